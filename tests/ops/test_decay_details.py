"""Tied decays and alternating scans: strides, extremes, parts, threads, precision, further derivatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from compare import Shape, assert_close, compare, conv_inputs, values_and_gradients
from decay_inputs import FORMS, Form, mixer_of, scan_of, written_out
from torch import Tensor

from ssamba import ops
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cpu import mixer_inference
from ssamba.ops.mamba.params import MixerParams

FORWARD, BACKWARD = 1e-6, 2e-6  # those of free decays in both directions: tests/ops/test_cpu.py


@pytest.fixture(autouse=True)
def _two_threads(one_thread: None) -> None:
    torch.set_num_threads(2)


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
    inputs = mixer_of(form, Shape(B=2, L=37, R=1, K=2, E=20, N=16))
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
