"""Mixers whose states are rounded up for tensor cores, emulated on the CPU: see test_few_states.py.

Values and every gradient against float64, and the same bits twice. ``backward``: numbers of states that the backward
by tensor cores lacks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from cuda_forms_small import a_lane_is_a_channel, check_training, draw, environment
from triton_small import build, plain_proj

from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba import gpu_states
from ssamba.ops.mamba.cuda import projection, scan
from ssamba.ops.mamba.cuda.sources import MMA_TYPES
from ssamba.ops.mamba.triton import conv

BOUND = {torch.bfloat16: 2e-2, torch.float16: 4e-3}


@contextmanager
def launched() -> Iterator[list[tuple[str, str]]]:
    """Name and states of every kernel that is launched."""
    found: list[tuple[str, str]] = []

    def watched(unit: nvrtc.Unit, name: str, defines: tuple[str, ...], device: int) -> Callable[..., None]:
        found.append((name, next((d for d in defines if d.startswith("N=")), "")))
        return build(unit, name, defines, device)

    nvrtc.kernel = watched
    yield found
    nvrtc.kernel = build


def backward() -> None:
    """Lengths of whole and of broken batches, one step, both directions and alternating ones."""
    for B, L, E, r, R, alternating, states, dtype in (
        (1, 33, 48, 12, 1, True, 8, torch.bfloat16), (2, 1, 16, 4, 1, True, 8, torch.float16),
        (1, 25, 32, 12, 2, False, 8, torch.float16), (2, 17, 16, 4, 1, True, 5, torch.bfloat16),
    ):  # fmt: skip
        tensors = draw(B, L, 2, E, r, R, True, states=states, dtype=dtype)
        tensors[0][:, 0, 1] = 0.5  # a gate that is closed at every step would leave nothing to compare
        for switch in ("", "given"):
            with environment(SSAMBA_STATES=switch), a_lane_is_a_channel(), launched() as kernels:
                check_training(tensors, alternating, BOUND[dtype])
            rounded = kernels.count(("scan_backward_mma", "N=16"))
            assert rounded == (0 if switch else 3), (states, switch, kernels)
            assert (("scan_backward", f"N={states}") in kernels) == (switch == "given"), kernels
    free_decays()


def free_decays() -> None:
    """Rates for the states that are zero, whatever the form of the backward with 16 states."""
    for states, alternating, R in ((8, False, 2), (6, True, 1)):
        tensors = draw(1, 21, 2, 16, 4, R, False, states=states)
        chosen, gpu_states._on_tensor_cores = gpu_states._on_tensor_cores, lambda *_: True
        with a_lane_is_a_channel(), launched() as kernels:
            check_training(tensors, alternating, BOUND[torch.bfloat16])
        gpu_states._on_tensor_cores = chosen
        assert {n for name, n in kernels if name.startswith("scan_backward")} == {"N=16"}, kernels


def main(part: str) -> None:
    nvrtc.kernel, scan.usable, conv.conv_proj = build, lambda *_: True, plain_proj  # type: ignore[assignment]
    projection.usable = lambda x, *_: x.dtype in MMA_TYPES and x.shape[-1] % 16 == 0  # type: ignore[assignment]
    {"backward": backward}[part]()


if __name__ == "__main__":
    main(sys.argv[1])
