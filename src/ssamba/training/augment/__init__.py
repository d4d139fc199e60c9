"""Augmentation: draws from (seed, step), applied on the device."""
