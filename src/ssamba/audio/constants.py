"""Constants of the published front end."""

from __future__ import annotations

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
"""Log-mel statistics of AudioSet + LibriSpeech, used by the official checkpoints (docs/reference.md, "Front end")."""
SAMPLE_RATE = 16000
"""Samples per second that the published models read. Another model's rate is that of its ``FrontEnd``."""
MEL_BINS = 128
FRAME_MILLISECONDS, HOP_MILLISECONDS = 25, 10
FRAME_SECONDS = FRAME_MILLISECONDS / 1000
"""Length of an analysis frame at any rate: less audio gives no frame at all."""
