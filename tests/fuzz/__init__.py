"""Damaged and hostile files: mutations, the calls that must take or refuse them, and campaigns of many cases."""
