"""The plain form of the operators against torch's own convolution, flips, and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close, values_and_gradients
from parallel_scan import selective_scan as parallel_scan
from torch import Tensor

from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams

pytestmark = pytest.mark.usefixtures("one_thread")


def random(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(("length", "width"), [(1, 4), (2, 4), (9, 4), (9, 1), (7, 3)])
def test_convolution_is_torchs_on_the_sequence_and_on_its_reverse(
    length: int, width: int, rng: torch.Generator
) -> None:
    x, weight, bias = random(rng, 2, length, 2, 3), random(rng, 2, 2, 3, width), random(rng, 2, 2, 3)
    ours = naive.conv_silu(x, weight, bias)
    assert ours.shape == (2, length, 2, 2, 3)
    for r in range(2):
        for k in range(2):
            sequence = x[:, :, k].transpose(1, 2)
            sequence = sequence.flip(-1) if r else sequence
            out = F.conv1d(sequence, weight[r, k][:, None], bias[r, k], padding=width - 1, groups=3)[..., :length]
            out = F.silu(out.flip(-1) if r else out).transpose(1, 2)
            torch.testing.assert_close(ours[:, :, r, k], out)


def scan_inputs(rng: torch.Generator, length: int = 6) -> dict[str, Tensor]:
    b, r, k, e, n = 2, 2, 2, 3, 4
    return {
        "u_BLRKE": random(rng, b, length, r, k, e),
        "dt_BLRKE": random(rng, b, length, r, k, e),
        "A_RKEN": -torch.exp(random(rng, r, k, e, n)),
        "B_BLRKN": random(rng, b, length, r, k, n),
        "C_BLRKN": random(rng, b, length, r, k, n),
        "D_RKE": random(rng, r, k, e),
        "dt_bias_RKE": random(rng, r, k, e),
        "z_BLKE": random(rng, b, length, k, e),
    }


@pytest.mark.parametrize("length", [1, 6, 33])
def test_the_parallel_scan_of_the_gpu_tests_is_the_recurrence(length: int, rng: torch.Generator) -> None:
    inputs = scan_inputs(rng, length)
    expected = values_and_gradients(naive.selective_scan, inputs)
    found = values_and_gradients(lambda **x: parallel_scan(*x.values()), inputs)
    for name, value in expected.items():
        assert_close(name, found[name], value, 1e-12)


def only(inputs: dict[str, Tensor], direction: int) -> dict[str, Tensor]:
    """The arguments of one direction, as the only one."""
    one = slice(direction, direction + 1)
    return {
        k: v if k == "z_BLKE" else v[:, :, one] if k.split("_")[1].startswith("BL") else v[one]
        for k, v in inputs.items()
    }


def test_right_to_left_is_the_flip_of_left_to_right(rng: torch.Generator) -> None:
    inputs = scan_inputs(rng)
    flipped = {k: v.flip(1) if k.split("_")[1].startswith("BL") else v for k, v in only(inputs, 1).items()}
    backward = naive.selective_scan(**flipped).flip(1)
    forward = naive.selective_scan(**only(inputs, 0))
    torch.testing.assert_close(naive.selective_scan(**inputs), (forward + backward) / 2)


def test_scan_is_its_recurrence(rng: torch.Generator) -> None:
    inputs = only(scan_inputs(rng), 0)
    gate = inputs.pop("z_BLKE")
    out = naive.selective_scan(**inputs)
    u, dt, a, b, c, d, bias = (v.squeeze(0) if v.shape[0] == 1 else v[:, :, 0] for v in inputs.values())
    for clip, block, channel in ((0, 0, 0), (1, 1, 2)):
        h = torch.zeros(4, dtype=torch.float64)
        for t in range(6):
            delta = torch.log1p(torch.exp(dt[clip, t, block, channel] + bias[block, channel]))
            x = u[clip, t, block, channel]
            h = torch.exp(delta * a[block, channel]) * h + delta * b[clip, t, block] * x
            y = c[clip, t, block] @ h + d[block, channel] * x
            torch.testing.assert_close(out[clip, t, block, channel], y)
    torch.testing.assert_close(naive.selective_scan(**inputs, z_BLKE=gate), out * F.silu(gate))


@pytest.mark.parametrize(("direction", "touched"), [(0, [3, 4, 5]), (1, [0, 1, 2, 3])])
def test_each_direction_reads_its_past_alone(direction: int, touched: list[int], rng: torch.Generator) -> None:
    inputs = scan_inputs(rng)
    inputs["C_BLRKN"][:, :, 1 - direction] = 0  # the other direction is silent
    inputs["D_RKE"][1 - direction] = 0
    before = naive.selective_scan(**inputs)
    inputs["u_BLRKE"][:, 3] += 1
    changed = (naive.selective_scan(**inputs) - before).abs().amax(dim=(0, 2, 3))
    assert changed.nonzero().flatten().tolist() == touched


def test_half_precision_is_computed_in_float32(rng: torch.Generator) -> None:
    inputs = {k: v.float() for k, v in scan_inputs(rng).items()}
    half = {k: v.bfloat16() if k[0] in "uBCz" or k.startswith("dt_BL") else v for k, v in inputs.items()}
    ours = naive.selective_scan(**half)
    assert ours.dtype == torch.bfloat16
    expected = naive.selective_scan(**{k: v.float() for k, v in half.items()})
    assert torch.equal(ours, expected.bfloat16())


def test_gradients_against_finite_differences(rng: torch.Generator) -> None:
    b, length, k, e, w, rank, n = 1, 3, 2, 2, 2, 1, 2
    shapes = [(b, length, k, e)] * 2 + [(2, k, e, w), (2, k, e), (2, k, rank + 2 * n, e), (2, k, e, rank), (2, k, e)]
    inputs = [random(rng, *shape).requires_grad_() for shape in [*shapes, (2, k, e, n), (2, k, e)]]
    assert torch.autograd.gradcheck(lambda x, z, *rest: naive.bimamba_inner(x, z, MixerParams(*rest)), inputs)
