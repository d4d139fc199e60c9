"""Which form runs, and what is said when it is the slow one or cannot run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compare import Shape, conv_inputs, inner_inputs, scan_inputs
from torch import Tensor

from ssamba import ops
from ssamba.ops import dispatch
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cpu import kernels, operators
from ssamba.ops.mamba.params import MixerParams
from ssamba.utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
HAS_TRITON = importlib.util.find_spec("triton") is not None
OPS = Path(ops.__file__).parent


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning given yet, nothing looked up yet, no choice made outside."""
    dispatch.reset()
    monkeypatch.delenv("SSAMBA_BACKEND", raising=False)


def conv(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [x.to(dtype) for x in conv_inputs(Shape(2, 5, 2, 1, 8, 4)).values()]


def scan(states: int = 4) -> list[Tensor]:
    return [x for x in scan_inputs(Shape(2, 5, 2, 1, 8, states)).values() if x is not None]


def inner() -> list[Tensor]:
    return list(inner_inputs(Shape(2, 5, 2, 1, 8, 4)).values())


def thrice(operator: Callable[..., Tensor], tensors: list[Tensor]) -> Tensor:
    """The last of three results."""
    return [operator(*tensors) for _ in range(3)][-1]


def is_plain() -> bool:
    """Whether the plain form of the convolution is what runs: the two forms round differently."""
    return torch.equal(ops.conv_silu(*conv()), naive.conv_silu(*conv()))


# ---- the table


def test_every_entry_of_the_table_exists() -> None:
    for operator, row in dispatch.TABLE.items():
        for backend, entry in row.items():
            if backend in ("reference", "cpu") or HAS_TRITON:
                module = importlib.import_module(entry.module)
                found = getattr(module, operator, None) or getattr(module, "forward", None)
                assert callable(found), f"{operator} of {backend}"


def test_every_public_operator_has_a_row_and_a_plain_form() -> None:
    operators_only = set(ops.__all__) - {"use_backend", "short_work", "runs_ungated", "gives_bias_gradient"}
    assert operators_only <= set(dispatch.TABLE)
    assert all("reference" in dispatch.TABLE[name] for name in operators_only)


def test_the_backends_of_a_mixer_have_the_same_functions() -> None:
    if not HAS_TRITON:
        pytest.skip("triton is not installed")
    for entry in dispatch.TABLE["mixer"].values():
        module = importlib.import_module(entry.module)
        assert all(hasattr(module, name) for name in ("forward", "scan_backward", "conv_backward"))


def test_the_portable_kernels_know_nothing_of_cuda_cpp() -> None:
    for path in [*(OPS / "mamba" / "triton").glob("*.py"), *OPS.glob("*/triton.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            assert not any("cuda" in name.split(".") or "nvrtc" in name for name in names), path


# ---- the choice


def test_the_fast_form_is_silent_and_the_default() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ops.conv_silu(*conv()), operators.conv_silu(*conv()))
        assert torch.equal(ops.selective_scan(*scan()), operators.selective_scan(*scan()))
        x, z, *params = inner()
        expected = operators.bimamba_inner(x, z, MixerParams(*params))
        assert torch.equal(ops.bimamba_inner(x, z, *params), expected)
        assert torch.equal(ops.bimamba_inner_packed(torch.stack([x, z], 2), *params), expected)
        assert not is_plain()


def test_float64_warns_once_and_runs_the_plain_form() -> None:
    with pytest.warns(RuntimeWarning, match="conv_silu runs in its slow reference form: float64") as caught:
        out = thrice(ops.conv_silu, conv(torch.float64))
    assert len(caught) == 1
    assert torch.equal(out, naive.conv_silu(*conv(torch.float64)))


def test_a_packed_mixer_is_told_by_the_mixers_name() -> None:
    x, z, *params = (t.double() for t in inner())
    with pytest.warns(RuntimeWarning, match="ops.bimamba_inner runs in its slow reference form: float64"):
        packed = ops.bimamba_inner_packed(torch.stack([x, z], 2), *params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the reason has been given
        torch.testing.assert_close(packed, ops.bimamba_inner(x, z, *params))


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
    dispatch.reset()


def test_another_device_gets_the_plain_form_with_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match="no fast form for device meta"):
        assert ops.conv_silu(*(x.to("meta") for x in conv())).device.type == "meta"


def test_a_form_can_be_forced() -> None:
    with ops.use_backend("reference"):
        assert is_plain()
        with ops.use_backend("cpu"):
            assert torch.equal(ops.conv_silu(*conv()), operators.conv_silu(*conv()))
            with pytest.raises(ConfigError, match="'cpu': float64"):
                ops.conv_silu(*conv(torch.float64))
    with pytest.raises(ConfigError, match="unknown backend 'fast'"), ops.use_backend("fast"):
        pass


def test_the_environment_forces_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSAMBA_BACKEND", "reference")
    assert is_plain()
    monkeypatch.setenv("SSAMBA_BACKEND", "fast")
    with pytest.raises(ConfigError, match="SSAMBA_BACKEND: unknown backend 'fast'; choose one of auto, reference"):
        ops.conv_silu(*conv())


@pytest.mark.parametrize("name", ["gpu", "triton", "cuda", "portable"])
def test_a_gpus_form_does_not_fall_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with ops.use_backend(name):
        with pytest.raises(ConfigError, match=f"bimamba_inner cannot run with backend '{name}': .*on the CPU"):
            ops.bimamba_inner(*inner())
        with pytest.raises(ConfigError, match="there is no gpu form of it alone"):
            ops.conv_silu(*conv())
        # What only saves memory or time has a plain form everywhere.
        out, stream = ops.add_layer_norm(torch.ones(1, 2, 3))
        assert not out.any()
        assert stream.all()


@pytest.mark.parametrize(
    ("name", "kernels"), [("auto", "cuda,triton"), ("gpu", "cuda,triton"), ("triton", "cuda,triton"), ("cuda", "cuda"),
                          ("portable", "triton")],
)  # fmt: skip
def test_the_kernels_that_a_gpu_may_use(name: str, kernels: str) -> None:
    """``triton`` is what the name selected at 0.1: CUDA C++ where it runs, else the portable kernels."""
    with ops.use_backend(name):
        assert dispatch.gpu_backends() == kernels


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_the_kernels_are_the_first_that_take_the_tensors() -> None:
    x, _, *rest = inner()
    params = MixerParams(*rest)
    assert dispatch.kernels("mixer", x, params).__name__ == "ssamba.ops.mamba.triton.mixer"
    with pytest.raises(ConfigError, match="mixer cannot run with backend 'cuda': the CUDA C\\+\\+ scan"):
        dispatch.kernels("mixer", x, params, backends="cuda")


def test_the_deferred_gate_is_the_plain_forms_alone_on_a_cpu() -> None:
    x, z, *params = inner()
    assert not ops.runs_ungated(x, params[5])
    assert ops.bimamba_ungated(x, torch.empty(0), *params) is None
    with ops.use_backend("reference"):
        assert ops.runs_ungated(x, params[5])
        y = ops.bimamba_ungated(x, torch.empty(0), *params)
        assert y is not None
        torch.testing.assert_close(y * torch.nn.functional.silu(z), ops.bimamba_inner(x, z, *params))


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_the_mixer_leaves_memory_alone_that_only_a_gpu_uses(backend: str) -> None:
    x, z, *params = inner()
    xz, work = torch.stack([x, z], 2), torch.full((10_000,), float("nan"))
    with ops.use_backend(backend):
        found = ops.bimamba_inner_with_work(xz, work, *params)
        assert torch.equal(found, ops.bimamba_inner_packed(xz, *params))
    assert work.isnan().all()


def test_a_pairs_weights_come_back_in_order() -> None:
    _, _, *params = inner()
    in_proj, norm_weight, norm_bias, out_proj = (
        torch.randn(2, 1, 8, 4),
        torch.ones(1, 4),
        torch.ones(1, 4),
        torch.ones(4, 1, 8),
    )
    weight, bias, *rest = ops.ready_weights_of_pairs(
        [(in_proj, norm_weight, norm_bias, out_proj, *params)], torch.float32
    )[0]
    assert torch.equal(weight, in_proj)
    torch.testing.assert_close(bias, in_proj.sum(-1))
    assert all(torch.equal(a, b) for a, b in zip(rest, [out_proj, *params], strict=True))


def test_one_short_pass_is_not_worth_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    is_plain()  # whatever the kernels' first use does is done
    monkeypatch.setattr(kernels, "loaded", lambda: False)
    for device, tokens, plain in (
        (cpu, ops.SHORT, True),
        (cpu, ops.SHORT + 1, False),
        (torch.device("cuda"), 1, False),
    ):
        with ops.short_work(device, tokens):
            assert is_plain() is plain
        assert not is_plain()
    with ops.use_backend("cpu"), ops.short_work(cpu, 1):
        assert not is_plain()
    monkeypatch.setenv("SSAMBA_BACKEND", "cpu")
    with ops.short_work(cpu, 1):
        assert not is_plain()
    monkeypatch.delenv("SSAMBA_BACKEND")
    monkeypatch.setattr(kernels, "loaded", lambda: True)
    with ops.short_work(cpu, 1):
        assert not is_plain()
