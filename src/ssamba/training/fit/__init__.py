"""A classifier on a frozen encoder, in seconds: features once, a linear head fitted to its minimum."""
