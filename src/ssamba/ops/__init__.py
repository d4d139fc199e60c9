"""Operators: one name for each, the fastest form that can run chosen here and nowhere else.

``use_backend`` (or the environment variable ``SSAMBA_BACKEND``) overrides the choice. Where the fast form cannot run,
one warning for each reason says so and the reference form runs. Shapes: ``ssamba.ops.mamba.naive``'s legend.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cpu import kernels, operators
from ssamba.utils.errors import ConfigError

__all__ = [
    "add_layer_norm",
    "bimamba_inner",
    "bimamba_inner_packed",
    "bimamba_ungated",
    "conv_silu",
    "gated_output_",
    "ready_weights",
    "runs_ungated",
    "selective_scan",
    "short_work",
    "use_backend",
]

_BACKENDS = ("auto", "reference", "cpu", "triton")
_FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_STATES, _MAX_DIRECTIONS = 64, 2
SHORT = 512
"""Tokens of the longest pass for which the kernels are not worth loading: 10.24 s of audio on the standard grid."""

_forced: str | None = None  # what use_backend says; None leaves it to the environment
_warned: set[str] = set()
_HOMES = {"cpu": "ssamba.ops.mamba.cpu.operators", "triton": "ssamba.ops.mamba.gpu"}
_modules: dict[str, ModuleType | str] = {}  # a module, or why it cannot be had


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs the operators in one form: "auto", "reference", "cpu" or "triton". It holds for every thread of the process.

    A forced form that cannot run raises instead of falling back.
    """
    global _forced
    before, _forced = _forced, _check_backend(name, "use_backend")
    try:
        yield
    finally:
        _forced = before


@contextmanager
def short_work(device: torch.device, tokens: int) -> Iterator[None]:
    """For a process that makes one pass over ``tokens`` tokens and ends: the reference form where it is done sooner.

    On a CPU, up to ``SHORT`` tokens, in a process that has not loaded the compiled kernels yet, the reference form ends
    before Numba is imported, let alone before the kernels are compiled. A choice made by the environment stands.
    """
    chosen = _forced or os.environ.get("SSAMBA_BACKEND", "auto")
    if chosen != "auto" or device.type != "cpu" or tokens > SHORT or kernels.loaded():
        yield
        return
    with use_backend("reference"):
        yield


def _check_backend(name: str, source: str) -> str:
    if name not in _BACKENDS:
        raise ConfigError(f"{source}: unknown backend {name!r}; choose one of {', '.join(_BACKENDS)}")
    return name


def _fast_module(name: str) -> ModuleType | str:
    """The module of a fast form, or the reason why it cannot be used. Looked up once."""
    if name not in _modules:
        try:
            if name == "cpu":
                importlib.import_module("numba")
            _modules[name] = importlib.import_module(_HOMES[name])
        except Exception as error:  # a broken installation may raise anything; the warning passes it on
            _modules[name] = f"{type(error).__name__}: {error}"
    return _modules[name]


def _limits(x: Tensor, directions: int, states: int) -> str | None:
    """Why the fast forms cannot take these arguments, or None."""
    if x.dtype not in _FAST_DTYPES:
        return f"{str(x.dtype).removeprefix('torch.')} is computed by the reference form only"
    if states > _MAX_STATES:
        return f"the fast forms take at most {_MAX_STATES} states, got {states}"
    if directions > _MAX_DIRECTIONS:
        return f"the fast forms take at most {_MAX_DIRECTIONS} directions, got {directions}"
    return None


def _choose(operator: str, x: Tensor, directions: int, states: int) -> ModuleType:
    """The module whose ``operator`` runs."""
    backend = _forced or _check_backend(os.environ.get("SSAMBA_BACKEND", "auto"), "SSAMBA_BACKEND")
    if backend == "reference":
        return naive
    device = x.device.type
    name = backend if backend != "auto" else {"cpu": "cpu", "cuda": "triton"}.get(device, "")
    reason = _limits(x, directions, states)
    if reason is None and not name:
        reason = f"there is no fast form for device {device}"
    if reason is None:
        # A graph being traced cannot import; numba is a dependency, and without it the operator itself says so.
        module = operators if name == "cpu" and torch.compiler.is_compiling() else _fast_module(name)
        if isinstance(module, str):
            reason = f"the {name} form cannot be loaded ({module})"
        elif hasattr(module, operator):
            return module
        else:
            reason = f"there is no {name} form of it alone"
    if backend != "auto":
        raise ConfigError(f"{operator} cannot run with backend {backend!r}: {reason}")
    _warn_once(f"ssamba.ops.{operator} runs in its slow reference form: {reason}")
    return naive


def _warn_once(message: str) -> None:
    if not torch.compiler.is_compiling() and message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def conv_silu(x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor) -> Tensor:
    """Depthwise causal convolution and SiLU for each direction: see ``naive.conv_silu``."""
    module = _choose("conv_silu", x_BLKE, weight_RKEW.shape[0], 1)
    return module.conv_silu(x_BLKE, weight_RKEW, bias_RKE)


def selective_scan(
    u_BLRKE: Tensor,
    dt_BLRKE: Tensor,
    A_RKEN: Tensor,
    B_BLRKN: Tensor,
    C_BLRKN: Tensor,
    D_RKE: Tensor,
    dt_bias_RKE: Tensor,
    z_BLKE: Tensor | None = None,
) -> Tensor:
    """Gated mean of the directions' selective scans: see ``naive.selective_scan``."""
    module = _choose("selective_scan", u_BLRKE, A_RKEN.shape[0], A_RKEN.shape[-1])
    return module.selective_scan(u_BLRKE, dt_BLRKE, A_RKEN, B_BLRKN, C_BLRKN, D_RKE, dt_bias_RKE, z_BLKE)


def bimamba_inner(
    x_BLKE: Tensor,
    z_BLKE: Tensor,
    conv_weight_RKEW: Tensor,
    conv_bias_RKE: Tensor,
    x_proj_RKPE: Tensor,
    dt_proj_RKEr: Tensor,
    dt_bias_RKE: Tensor,
    A_log_RKEN: Tensor,
    D_RKE: Tensor,
) -> Tensor:
    """The mixer between its input and its output projection: see ``naive.bimamba_inner``."""
    module = _choose("bimamba_inner", x_BLKE, A_log_RKEN.shape[0], A_log_RKEN.shape[-1])
    return module.bimamba_inner(
        x_BLKE, z_BLKE, conv_weight_RKEW, conv_bias_RKE, x_proj_RKPE, dt_proj_RKEr, dt_bias_RKE, A_log_RKEN, D_RKE
    )


def bimamba_inner_packed(
    xz_BLJKE: Tensor,
    conv_weight_RKEW: Tensor,
    conv_bias_RKE: Tensor,
    x_proj_RKPE: Tensor,
    dt_proj_RKEr: Tensor,
    dt_bias_RKE: Tensor,
    A_log_RKEN: Tensor,
    D_RKE: Tensor,
) -> Tensor:
    """``bimamba_inner`` of ``x = xz[:, :, 0]`` and ``z = xz[:, :, 1]``, with any strides: an input product as it is."""
    parameters = (conv_weight_RKEW, conv_bias_RKE, x_proj_RKPE, dt_proj_RKEr, dt_bias_RKE, A_log_RKEN, D_RKE)
    module = _choose("bimamba_inner", xz_BLJKE, A_log_RKEN.shape[0], A_log_RKEN.shape[-1])
    packed = getattr(module, "bimamba_inner_packed", None)
    if packed is not None:
        return packed(xz_BLJKE, *parameters)
    x_BLKE, z_BLKE = xz_BLJKE.unbind(2)
    return module.bimamba_inner(x_BLKE, z_BLKE, *parameters)


def runs_ungated(like: Tensor, A_log_RKEN: Tensor) -> bool:
    """Whether ``bimamba_ungated`` is likely to have a form for a product of ``like``: ask before making x for it.

    Never while a graph is traced: the form looks at addresses.
    """
    if torch.compiler.is_compiling():
        return False
    module = _choose("bimamba_inner", like, A_log_RKEN.shape[0], A_log_RKEN.shape[-1])
    answer = getattr(module, "runs_ungated", None)
    return answer is not None and answer(like, A_log_RKEN)


def ready_weights(
    in_proj_hKEd: Tensor, norm_weight_Kd: Tensor, norm_bias_Kd: Tensor, *others: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """A pair's weights as ``bimamba_ungated`` and ``gated_output_`` read them: see ``naive.ready_weights``.

    ``others``: out_proj, then the parameters of ``bimamba_inner``.
    """
    module = _fast_module("triton") if in_proj_hKEd.is_cuda and dtype in _FAST_DTYPES else naive
    form = naive if isinstance(module, str) else module
    return form.ready_weights(in_proj_hKEd, norm_weight_Kd, norm_bias_Kd, *others, dtype=dtype)


def bimamba_ungated(x_BLKE: Tensor, work: Tensor, *parameters: Tensor) -> Tensor | None:
    """``bimamba_inner`` without its gate, in inference, for a caller that goes on with ``gated_output_``.

    ``parameters``: those of ``bimamba_inner``. ``work`` is memory that the caller no longer needs and that may be
    overwritten. None, and ``work`` untouched, where there is no such form: use ``bimamba_inner``.
    """
    A_log_RKEN = parameters[5]
    module = _choose("bimamba_inner", x_BLKE, A_log_RKEN.shape[0], A_log_RKEN.shape[-1])
    form = getattr(module, "bimamba_ungated", None)
    return None if form is None else form(x_BLKE, work, *parameters)


def gated_output_(
    y_TX: Tensor,
    stream_Td: Tensor,
    weight_Xd: Tensor,
    bias_X: Tensor,
    out_proj_dX: Tensor,
    out_Td: Tensor,
    eps: float,
    residual_scale: float | None = None,
) -> None:
    """Gate and output product of what ``bimamba_ungated`` returned, in inference: see ``naive.gated_output_``."""
    fast = y_TX.is_cuda and all(t.is_contiguous() for t in (y_TX, stream_Td, out_Td))
    module = _fast_module("triton") if fast else naive
    form = naive if isinstance(module, str) else module
    form.gated_output_(y_TX, stream_Td, weight_Xd, bias_X, out_proj_dX, out_Td, eps, residual_scale)


def add_layer_norm(
    x_BLd: Tensor,
    residual_BLd: Tensor | None = None,
    weight_d: Tensor | None = None,
    bias_d: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual_scale: float = 1.0,
    x_scale_B: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    reuse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Residual addition and layer normalisation in one pass: see ``naive.add_layer_norm``.

    Only GPUs have a form of its own for it; elsewhere torch's own operators are the fast ones. ``reuse`` allows that
    form to write the stream over the residual and the norm over x, when no gradient is asked for; without a residual,
    x itself becomes the stream.
    """
    backend = _forced or _check_backend(os.environ.get("SSAMBA_BACKEND", "auto"), "SSAMBA_BACKEND")
    module: ModuleType | str = naive
    if x_BLd.is_cuda and backend in ("auto", "triton") and x_BLd.dtype in _FAST_DTYPES:
        module = _fast_module("triton")
    if isinstance(module, str):
        module = naive  # bimamba_inner has told why
    plain = x_scale_B is None and weight_d is None and out_dtype in (None, x_BLd.dtype)
    if reuse and plain and hasattr(module, "add_layer_norm_") and not torch.is_grad_enabled():
        if residual_BLd is None and x_BLd.is_contiguous():
            return module.layer_norm(x_BLd, eps), x_BLd
        if residual_BLd is None:
            return F.layer_norm(x_BLd, x_BLd.shape[-1:], eps=eps), x_BLd
        if x_BLd.is_contiguous() and residual_BLd.is_contiguous():
            module.add_layer_norm_(x_BLd, residual_BLd, eps, residual_scale)
            return x_BLd, residual_BLd
    return module.add_layer_norm(
        x_BLd, residual_BLd, weight_d, bias_d, eps=eps, residual_scale=residual_scale, x_scale_B=x_scale_B,
        out_dtype=out_dtype,
    )  # fmt: skip
