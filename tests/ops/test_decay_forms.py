"""Tied decays and alternating scans in every form of the operators: values and every gradient against float64."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compare import Shape, assert_close, case_id, compare, conv_inputs, values_and_gradients
from decay_inputs import FORMS, Form, mixer_of, scan_of, written_out
from torch import Tensor

from ssamba import ops
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cpu import mixer_inference
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


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels apart": lambda x: torch.stack([x, x], dim=-1)[..., 1],
    "channels first": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
    "part of a longer sequence": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "one clip for all": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", [Form(True, "both"), Form(True, "alternating")], ids=str)
def test_any_strides(form: Form, layout: str) -> None:
    shape, lay = Shape(2, 37, 1, 2, 20, 16), LAYOUTS[layout]
    inputs = {name: None if x is None else lay(x) for name, x in scan_of(form, shape).items()}
    compare(
        lambda **x: ops.selective_scan(*x.values(), form.alternating),
        lambda **x: naive.selective_scan(*x.values(), form.alternating),
        inputs, FORWARD, BACKWARD,
    )  # fmt: skip
    if form.alternating:
        of_conv = {name: lay(x) for name, x in conv_inputs(shape).items()}
        compare(
            lambda **x: ops.conv_silu(*x.values(), True), lambda **x: naive.conv_silu(*x.values(), True), of_conv,
            FORWARD, BACKWARD,
        )  # fmt: skip


@pytest.mark.parametrize("offset", [-200.0, -20.0, 15.0, 300.0, 1e4])
def test_powers_of_extreme_steps(offset: float) -> None:
    """Of steps of 1e-35 no power decays, of steps of 1e4 all are 0."""
    inputs = scan_of(Form(True, "both"), Shape(1, 40, 2, 1, 17, 16))
    assert inputs["dt_BLRKE"] is not None
    compare(
        lambda **x: ops.selective_scan(*x.values()), lambda **x: naive.selective_scan(*x.values()),
        inputs | {"dt_BLRKE": inputs["dt_BLRKE"] + offset}, FORWARD, BACKWARD,
    )  # fmt: skip


@pytest.mark.parametrize("part", [1, 5, 16, 64])
@pytest.mark.parametrize("form", FORMS, ids=str)
@torch.no_grad()
def test_inference_in_parts(form: Form, part: int) -> None:
    for length in (1, 16, 37):
        inputs = mixer_of(form, Shape(2, length, 1, 2, 20, 8))
        x, z, *params = inputs.values()
        weights = mixer_inference.Weights.of(MixerParams(*params))
        found = mixer_inference.bimamba(x, z, weights, part, form.alternating)
        assert_close("output", found, written_out(form, inputs), FORWARD)


@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_the_same_bits_each_time_and_on_any_number_of_threads(form: Form) -> None:
    shape, found = Shape(2, 70, form.directions, 2, 130, 16), []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        of_scan = values_and_gradients(
            lambda **x: ops.selective_scan(*x.values(), form.alternating), scan_of(form, shape)
        )
        of_conv = values_and_gradients(lambda **x: ops.conv_silu(*x.values(), form.alternating), conv_inputs(shape))
        found.append(of_scan | {f"convolution: {name}": value for name, value in of_conv.items()})
    assert all(torch.equal(other[name], value) for name, value in found[0].items() for other in found[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_lower_precision_is_computed_in_float32(form: Form, dtype: torch.dtype) -> None:
    inputs = mixer_of(form, SHAPES[0])
    x, z, *params = inputs.values()
    half = {"x_BLKE": x.to(dtype), "z_BLKE": z.to(dtype)} | dict(zip(list(inputs)[2:], params, strict=True))
    with torch.no_grad():
        found = ops.bimamba_inner(*half.values(), form.alternating)
    assert found.dtype == dtype
    assert_close("output", found, written_out(form, half), 1e-2)


@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_opcheck(form: Form) -> None:
    small = Shape(1, 5, 1, 2, 3, 4, r=2)
    alternating, arguments = form.alternating, [x for x in scan_of(form, small).values() if x is not None]
    leaves = [x.clone().requires_grad_() for x in arguments]
    torch.library.opcheck(torch.ops.ssamba.selective_scan.default, (*leaves, True, alternating))
    y, states = torch.ops.ssamba.selective_scan(*arguments, True, alternating)
    torch.library.opcheck(torch.ops.ssamba.selective_scan_backward.default, (y, *arguments, states, alternating))
    conv = list(conv_inputs(small._replace(R=form.directions)).values())
    torch.library.opcheck(torch.ops.ssamba.conv_silu.default, ([*conv, alternating]))
    u = torch.ops.ssamba.conv_silu(*conv, alternating)
    torch.library.opcheck(torch.ops.ssamba.conv_silu_backward.default, (u, *conv, alternating))
    mixer = list(mixer_of(form, small).values())
    torch.library.opcheck(torch.ops.ssamba.bimamba_inference.default, (*mixer, alternating))


@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_second_derivatives_and_forward_mode(form: Form) -> None:
    """Those of the plain form, which the fast ones go through."""
    small = Shape(1, 5, 1, 2, 3, 2, r=2)
    inputs = list(mixer_of(form, small).values())

    def twice(operator: Callable[..., Tensor], tensors: list[Tensor]) -> Tensor:
        leaves = [x.clone().requires_grad_() for x in tensors]
        first = torch.autograd.grad(operator(*leaves).square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        return torch.cat([g.flatten() for g in second])

    def plain(*tensors: Tensor) -> Tensor:
        return naive.bimamba_inner(*tensors[:2], MixerParams(*tensors[2:]), form.alternating)

    def fast(*tensors: Tensor) -> Tensor:
        return ops.bimamba_inner(*tensors, form.alternating)

    exact = [x.double() for x in inputs]
    assert_close("second derivatives", twice(fast, inputs), twice(plain, exact), 1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # once a process: it runs in its reference form
        found = torch.func.jvp(fast, tuple(inputs), tuple(inputs))[1]
    assert_close("tangent", found, torch.func.jvp(plain, tuple(exact), tuple(exact))[1], 1e-5)


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


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_portable_gpu_form() -> None:
    """Values and gradients of the GPU's operators, in Triton's interpreter."""
    script = Path(__file__).with_name("decay_forms_small.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
