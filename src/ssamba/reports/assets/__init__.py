"""Style and script of the page, inlined when it is written."""
