"""Tied decays and alternating scans in every form of the operators: values and every gradient against float64."""

from __future__ import annotations

import pytest
import torch
from compare import Shape, assert_close, case_id, compare, conv_inputs
from decay_inputs import FORMS, Form, mixer_of, scan_of, written_out
from part_script import NEEDS_TRITON, run_script
from torch import Tensor

from ssamba import ops
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams
from ssamba.utils.errors import ConfigError

FORWARD, BACKWARD = 1e-6, 2e-6  # those of free decays in both directions: tests/ops/test_cpu.py
SHAPES = [
    Shape(B=2, L=37, R=1, K=2, E=20, N=16),
    Shape(B=1, L=1, R=1, K=2, E=3, N=8, W=2),
    Shape(B=1, L=65, R=1, K=2, E=70, N=1, W=3),
    Shape(B=3, L=33, R=1, K=2, E=5, N=64),
    Shape(B=1, L=40, R=1, K=1, E=16, N=17),
]


@pytest.fixture(autouse=True)
def _two_threads(one_thread: None) -> None:
    torch.set_num_threads(2)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=case_id)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_plain_form_is_what_the_options_say(form: Form, shape: Shape) -> None:
    inputs = mixer_of(form, shape)
    x, z, *params = (t.double() for t in inputs.values())
    found = naive.bimamba_inner(x, z, MixerParams(*params), form.alternating)
    assert_close("output", found, written_out(form, inputs), 1e-14)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("shape", SHAPES, ids=case_id)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_scan_and_its_gradients(form: Form, shape: Shape, gated: bool) -> None:
    compare(
        lambda **x: ops.selective_scan(*x.values(), form.alternating),
        lambda **x: naive.selective_scan(*x.values(), form.alternating),
        scan_of(form, shape, gated), FORWARD, BACKWARD,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=case_id)
def test_alternating_convolution_and_its_gradients(shape: Shape) -> None:
    inputs = conv_inputs(shape)
    compare(
        lambda **x: ops.conv_silu(*x.values(), True), lambda **x: naive.conv_silu(*x.values(), True), inputs, FORWARD,
        BACKWARD,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=case_id)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_mixer_and_its_gradients(form: Form, shape: Shape) -> None:
    inputs = mixer_of(form, shape)

    def plain(x_BLKE: Tensor, z_BLKE: Tensor, **params: Tensor) -> Tensor:
        return naive.bimamba_inner(x_BLKE, z_BLKE, MixerParams(**params), form.alternating)

    compare(lambda **x: ops.bimamba_inner(*x.values(), form.alternating), plain, inputs, FORWARD, BACKWARD)
    with torch.no_grad():
        x, z, *params = inputs.values()
        found = ops.bimamba_inner_packed(torch.stack([x, z], dim=2), *params, form.alternating)
    assert_close("inference", found, written_out(form, inputs), FORWARD)


def test_number_of_states_and_expansion() -> None:
    tied = MixerParams(*list(mixer_of(FORMS[0], SHAPES[0]).values())[2:])
    assert tied.tied
    assert tied.states == 16
    assert tied.A_log_RKEN.shape[-1] == 1
    free = tied.expanded()
    assert not free.tied
    assert free.states == 16
    rates = torch.exp(free.A_log_RKEN) / torch.exp(tied.A_log_RKEN)
    torch.testing.assert_close(rates[0, 0, 0], torch.arange(1.0, 17.0))
    half = MixerParams(*(t.bfloat16() for t in tied))
    assert half.expanded().A_log_RKEN.dtype == torch.float32
    one = MixerParams(*list(mixer_of(FORMS[0], SHAPES[2]).values())[2:])
    assert not one.tied
    assert one.expanded() is one


def test_alternating_scans_have_one_direction() -> None:
    inputs = mixer_of(Form(False, "both"), SHAPES[0])
    with pytest.raises(ConfigError, match="alternating scans have parameters of one direction, got 2"):
        ops.bimamba_inner(*inputs.values(), True)


@NEEDS_TRITON
def test_the_portable_gpu_form() -> None:
    """Values and gradients of the GPU's operators, in Triton's interpreter."""
    run_script("decay_forms_small.py", seconds=300)
