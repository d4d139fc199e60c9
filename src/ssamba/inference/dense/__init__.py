"""Frames closer together than the patch grid: passes over the recording from later beginnings, interleaved."""
