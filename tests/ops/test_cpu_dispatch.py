"""Which form runs, what it says when it is the slow one, and what torch's tools make of the operators."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssamba import ops
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cpu import kernels, operators
from ssamba.utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning given yet, nothing looked up yet, no choice made outside."""
    monkeypatch.setattr(ops, "_warned", set())
    monkeypatch.setattr(ops, "_modules", {})
    monkeypatch.delenv("SSAMBA_BACKEND", raising=False)


def conv(dtype: torch.dtype = torch.float32, length: int = 5) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    sizes = ((2, length, 1, 8), (2, 1, 8, 4), (2, 1, 8))
    return [torch.randn(*size, generator=rng).to(dtype) for size in sizes]


def scan(length: int = 5, states: int = 4) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    tokens, lanes = (2, length, 2, 1), (2, 1)
    sizes = ((*tokens, 8), (*tokens, 8), (*lanes, 8, states), (*tokens, states), (*tokens, states))
    u, dt, decay, b, c = (torch.randn(*size, generator=rng) for size in sizes)
    skip, bias, z = (torch.randn(*size, generator=rng) for size in ((*lanes, 8), (*lanes, 8), (2, length, 1, 8)))
    return [u, dt, -decay.exp(), b, c, skip, bias, z]


def inner(length: int = 5) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    tokens, lanes = (2, length, 1, 8), (2, 1)
    rest = ((*lanes, 8, 4), (*lanes, 8), (*lanes, 2 + 8, 8), (*lanes, 8, 2), (*lanes, 8), (*lanes, 8, 4), (*lanes, 8))
    return [torch.randn(*size, generator=rng) for size in (tokens, tokens, *rest)]


def thrice(operator: Callable[..., Tensor], tensors: list[Tensor]) -> Tensor:
    """The last of three results."""
    return [operator(*tensors) for _ in range(3)][-1]


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [x.requires_grad_() for x in tensors]


# ---- the choice


def test_the_fast_form_is_silent_and_the_default() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ops.conv_silu(*conv()), operators.conv_silu(*conv()))
        assert torch.equal(ops.selective_scan(*scan()), operators.selective_scan(*scan()))
        assert torch.equal(ops.bimamba_inner(*inner()), operators.bimamba_inner(*inner()))


def test_float64_warns_once_and_runs_the_reference() -> None:
    with pytest.warns(RuntimeWarning, match="conv_silu runs in its slow reference form: float64") as caught:
        out = thrice(ops.conv_silu, conv(torch.float64))
    assert len(caught) == 1
    assert torch.equal(out, naive.conv_silu(*conv(torch.float64)))


def test_too_many_states_and_directions_say_so() -> None:
    with pytest.warns(RuntimeWarning, match="at most 64 states, got 65") as caught:
        thrice(ops.selective_scan, scan(states=65))
    assert len(caught) == 1
    three = [conv()[0], *(torch.cat([x, x[:1]]) for x in conv()[1:])]
    with pytest.warns(RuntimeWarning, match="at most 2 directions, got 3"):
        assert ops.conv_silu(*three).shape[2] == 3


def test_without_numba_one_warning_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.warns(RuntimeWarning, match="cpu form cannot be loaded .*numba") as caught:
        out = thrice(ops.conv_silu, conv())
    assert len(caught) == 1
    assert torch.equal(out, naive.conv_silu(*conv()))


def test_another_device_gets_the_reference_with_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match="no fast form for device meta"):
        assert ops.conv_silu(*(x.to("meta") for x in conv())).device.type == "meta"


def test_a_form_can_be_forced() -> None:
    with ops.use_backend("reference"):
        assert torch.equal(ops.conv_silu(*conv()), naive.conv_silu(*conv()))
        with ops.use_backend("cpu"):
            assert torch.equal(ops.conv_silu(*conv()), operators.conv_silu(*conv()))
            with pytest.raises(ConfigError, match="'cpu': float64"):
                ops.conv_silu(*conv(torch.float64))
    with pytest.raises(ConfigError, match="unknown backend 'fast'"), ops.use_backend("fast"):
        pass


def test_the_environment_forces_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSAMBA_BACKEND", "reference")
    assert torch.equal(ops.conv_silu(*conv()), naive.conv_silu(*conv()))
    monkeypatch.setenv("SSAMBA_BACKEND", "gpu")
    with pytest.raises(ConfigError, match="SSAMBA_BACKEND: unknown backend 'gpu'"):
        ops.conv_silu(*conv())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    tensors = leaves([x.to(dtype) for x in scan()])
    out = ops.selective_scan(*tensors)
    whole = leaves([x.detach().float() for x in tensors])
    truth = ops.selective_scan(*whole)
    assert out.dtype == dtype
    assert torch.equal(out, truth.to(dtype))
    out.backward(torch.ones_like(out))
    truth.backward(torch.ones_like(truth))
    for x, y in zip(tensors, whole, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        assert torch.equal(x.grad, y.grad.to(dtype))
    mixed = ops.bimamba_inner(*[x.to(dtype) for x in inner()[:2]], *inner()[2:])
    assert mixed.dtype == dtype
    trained = ops.bimamba_inner(*leaves([x.to(dtype) for x in inner()[:2]]), *inner()[2:])
    torch.testing.assert_close(mixed, trained, rtol=0.1, atol=0.1)


def test_a_gradient_without_states_is_refused() -> None:
    y, _ = torch.ops.ssamba.selective_scan(*leaves(scan()), False)
    with pytest.raises(RuntimeError, match="keep_states=True"):
        y.sum().backward()


# ---- torch's tools


@pytest.mark.parametrize("keep", [True, False])
def test_opcheck_of_the_scan(keep: bool) -> None:
    arguments = scan()
    if keep:
        torch.library.opcheck(torch.ops.ssamba.selective_scan.default, (*leaves(arguments), True))
        arguments[-1] = None  # type: ignore[call-overload]
    torch.library.opcheck(torch.ops.ssamba.selective_scan.default, (*arguments, keep))


def test_opcheck_of_the_others() -> None:
    torch.library.opcheck(torch.ops.ssamba.conv_silu.default, leaves(conv()))
    torch.library.opcheck(torch.ops.ssamba.conv_silu_backward.default, [operators.conv_silu(*conv()), *conv()])
    torch.library.opcheck(torch.ops.ssamba.bimamba_inference.default, inner())
    y, states = torch.ops.ssamba.selective_scan(*scan(), True)
    torch.library.opcheck(torch.ops.ssamba.selective_scan_backward.default, [y, *scan(), states])


def test_results_have_the_announced_strides() -> None:
    """A compiled graph relies on the strides that the fake operators promise."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    y, states = torch.ops.ssamba.selective_scan(*scan(), True)
    real = [
        torch.ops.ssamba.conv_silu(*conv()),
        *torch.ops.ssamba.conv_silu_backward(operators.conv_silu(*conv()), *conv()),
        *torch.ops.ssamba.selective_scan_backward(y, *scan(), states),
    ]
    with FakeTensorMode() as mode:
        x, w, b = (mode.from_tensor(t) for t in conv())
        tensors = [mode.from_tensor(t) for t in scan()]
        fake_y, fake_states = torch.ops.ssamba.selective_scan(*tensors, True)
        fake = [
            torch.ops.ssamba.conv_silu(x, w, b),
            *torch.ops.ssamba.conv_silu_backward(torch.ops.ssamba.conv_silu(x, w, b), x, w, b),
            *torch.ops.ssamba.selective_scan_backward(fake_y, *tensors, fake_states),
        ]
    assert [t.stride() for t in real] == [t.stride() for t in fake]
    assert [t.dtype for t in real] == [t.dtype for t in fake]


class Inner(nn.Module):
    """``bimamba_inner`` as a module, for the exporter."""

    def forward(self, *tensors: Tensor) -> Tensor:
        return ops.bimamba_inner(*tensors)


def test_compiles_into_one_graph_with_gradients() -> None:
    compiled = torch.compile(Inner(), fullgraph=True, backend="aot_eager")
    ours, eager = leaves(inner()), leaves(inner())
    compiled(*ours).square().sum().backward()
    Inner()(*eager).square().sum().backward()
    for x, y in zip(ours, eager, strict=True):
        torch.testing.assert_close(x.grad, y.grad)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inner()), Inner()(*inner()))


def test_exports_with_a_free_length() -> None:
    length = torch.export.Dim("length", min=2, max=4096)
    dims = ({1: length}, {1: length}, *[None] * 7)
    with torch.no_grad():
        program = torch.export.export(Inner(), tuple(inner()), dynamic_shapes=(dims,))
        assert "bimamba_inference" in str(program.graph)
        torch.testing.assert_close(program.module()(*inner(19)), Inner()(*inner(19)))


# ---- importing and compiling


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_short_pass_is_not_worth_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_device, chosen = torch.device("cpu"), lambda: ops._choose("conv_silu", conv()[0], 2, 1)
    monkeypatch.setattr(kernels, "_compiled", {})
    for device, tokens, expected in (
        (cpu_device, ops.SHORT, naive),
        (cpu_device, ops.SHORT + 1, operators),
        (torch.device("cuda"), 1, operators),
    ):
        with ops.short_work(device, tokens):
            assert chosen() is expected
        assert chosen() is operators
    with ops.use_backend("cpu"), ops.short_work(cpu_device, 1):
        assert chosen() is operators
    monkeypatch.setattr(kernels, "_compiled", {"conv_forward": None})
    with ops.short_work(cpu_device, 1):
        assert chosen() is operators
    monkeypatch.setattr(kernels, "_compiled", {})
    monkeypatch.setenv("SSAMBA_BACKEND", "cpu")
    with ops.short_work(cpu_device, 1):
        assert chosen() is operators


def test_importing_does_not_load_numba() -> None:
    assert run("import sys, ssamba.ops; print('numba' in sys.modules)") == "False"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_runs_where_no_cache_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba refuses to compile with a cache that it cannot place; the kernels then do without."""
    import numba

    asked = []
    plain = numba.cfunc

    def refuse(*args: object, cache: bool = False, **kwargs: object) -> object:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function 'scan_forward': no locator available")
        return plain(*args, **kwargs)

    monkeypatch.setattr(numba, "cfunc", refuse)
    monkeypatch.setattr(kernels, "_compiled", {})
    assert torch.equal(operators.conv_silu(*conv()), operators.conv_silu(*conv()))
    assert asked == [True, False]
