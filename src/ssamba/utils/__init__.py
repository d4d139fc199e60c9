"""Errors, atomic writing, progress bars, plots, devices."""
