"""A mixer's projection in memory that the caller no longer needs, on a GPU: the same bits, and what that saves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compare import Shape
from test_gpu import inputs
from torch import Tensor

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
BATCH, LENGTH, WIDTH, RANK, STATES = 64, 512, 384, 24, 16
"""Of small, with 64 clips of 512 tokens."""


def peak(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What the second call gives, and the most bytes beyond those before it."""
    run()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = run()
    return found, torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_mixer(dtype: torch.dtype) -> None:
    """In the exact form: less memory by the projection's; and where the memory does not serve, it stays as it is."""
    xz, *params = inputs(Shape(BATCH, LENGTH, 2, 2, 2 * WIDTH, STATES, r=RANK), dtype)
    work = torch.full((BATCH, LENGTH, WIDTH), float("nan"), device="cuda", dtype=dtype)
    values = 2 * 2 * BATCH * LENGTH * (RANK + 2 * STATES)
    own, most = peak(lambda: ops.bimamba_inner_packed(xz, *params))
    found, least = peak(lambda: ops.bimamba_inner_with_work(xz, work, *params))
    assert torch.equal(found, own)
    assert torch.isfinite(work.flatten()[:values]).all()
    assert work.flatten()[values:].isnan().all()
    assert least <= most - 2 * values + 2**21, (least, most)  # the allocator cuts large memory in pieces of 2 MiB
    for refused in (work.flatten()[: values - 1], work.float(), work.transpose(0, 1)):
        refused.fill_(float("nan"))
        assert torch.equal(ops.bimamba_inner_with_work(xz, refused, *params), own)
        assert refused.isnan().all()


@torch.no_grad()
def test_a_pass() -> None:
    """The exact form in bfloat16: xz, y, the norm, the stream and what the scans hand over, and no more than a pair's
    weights in addition. The projection would be another 14 MiB.
    """
    model = SSAMBA(Config(width=WIDTH, depth=4)).to("cuda", torch.bfloat16).eval()
    model.plan = model.plan._replace(prepare_together_bytes=0)
    given = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)).to("cuda", torch.bfloat16)
    assert model.pairs[0].prepares_weights(given)
    activations = 2 * BATCH * LENGTH * (8 + 4 + 1 + 1) * WIDTH
    states = 4 * BATCH * 2 * 2 * (2 * WIDTH) * STATES
    _, found = peak(lambda: model.encode_tokens(given.clone(), own=True))
    assert found < activations + states + 7 * 2**20, found
