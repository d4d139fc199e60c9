"""Encoders through ``torch.export``: one program for any batch and length, saved and loaded, with the same numbers."""

from __future__ import annotations

import io

import pytest
import torch
from torch.export import Dim

from ssamba.models.config import Config
from ssamba.models.registry import make_encoder

pytestmark = pytest.mark.usefixtures("one_thread")
GRID = 20
"""Patch columns that the models are made for."""


@pytest.mark.parametrize("frames", [160, 416], ids=["traced below the grid", "traced beyond the grid"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"directions": 1, "residual_scale": 1, "depth": 4},
        {"stride_time": 10},
        {"encoder": "ssast", "depth": 2},
        {"decay": "tied", "scan": "alternating"},
    ],
    ids=str,
)
@torch.no_grad()
def test_one_program_for_any_batch_and_length(values: dict[str, object], frames: int) -> None:
    config = Config(**{"width": 32, "depth": 2, "frames": 16 * GRID, **values})  # type: ignore[arg-type]
    model = make_encoder(config).eval()
    sizes = {0: Dim.DYNAMIC(min=1, max=4096), 1: Dim.DYNAMIC(min=32, max=200_000)}
    program = torch.export.export(model, (torch.randn(2, frames, 128),), dynamic_shapes=(sizes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    run = torch.export.load(file).module()
    for columns in (2, 3, 16, 17, GRID - 1, GRID, GRID + 1, 2 * GRID):
        for batch in (1, 3):
            features = torch.randn(batch, 16 * columns + columns % 3, 128)
            torch.testing.assert_close(run(features), model(features), rtol=0, atol=1e-5)
