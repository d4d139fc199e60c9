"""From scores in time to events with a start and an end, and the files that people label in."""
