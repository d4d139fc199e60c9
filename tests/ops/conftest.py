"""Fresh memory is full of NaN in every test of the operators: what is read before it is written shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ssamba.ops.mamba.cpu import mixer_inference


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    """``torch.empty``, ``empty_like`` and ``new_empty``, inside custom operators too. Integers are at their maximum."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns, fills = (
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    mixer_inference.release_work_area()
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warns)
    torch.utils.deterministic.fill_uninitialized_memory = fills
