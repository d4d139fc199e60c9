"""Constants of the published front end."""

from __future__ import annotations

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
"""Log-mel statistics of AudioSet + LibriSpeech, used by the official checkpoints (REFERENCE.md, "Front end")."""


SAMPLE_RATE = 16000
"""Samples per second of everything that a model hears; other rates are resampled before."""
