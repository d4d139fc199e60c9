"""A labelled set of synthetic sounds."""
