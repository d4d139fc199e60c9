"""Torch generators that depend on a seed and the place of use alone, so that a resumed run draws the same."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def torch_generator(seed: int, purpose: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose at one step. Devices of different kinds draw different numbers from the same seed."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), step]).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(words[0]) << 32 | int(words[1]))
