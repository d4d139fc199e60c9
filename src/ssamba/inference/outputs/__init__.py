"""What surrounds an output: where it comes from, how it looks as text, as a notebook's HTML and as a figure."""
