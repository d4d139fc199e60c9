"""Which form of an operator runs: one table of operators and backends, consulted here and nowhere else.

``SSAMBA_BACKEND`` in the environment, or ``use_backend``, chooses:

=============  =========================================================================================
auto           the fastest form that takes the tensors; the reference form, with one warning per reason
reference      plain torch operators (``naive``)
cpu            kernels that Numba compiles for the CPU
gpu            CUDA C++ through NVRTC where it runs, else the portable Triton kernels
triton         the same as ``gpu``: what the name selected in version 0.1
cuda           of the GPU's kernels that exist in CUDA C++, only these; the others are Triton's
portable       the portable Triton kernels alone (AMD GPUs, comparisons)
=============  =========================================================================================

Any choice but "auto" raises ``ConfigError`` where its form cannot run, instead of falling back. A new backend is a
column: a module of the same functions, one entry for each operator that it has, and its name in the orders below.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.ops import derivatives, environment
from ssamba.ops.layer_norm import naive as naive_norm
from ssamba.ops.linear_layer import cpu as cpu_linear
from ssamba.ops.linear_layer import gpu_limits
from ssamba.ops.linear_layer import naive as naive_linear
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cpu import kernels as cpu_kernels
from ssamba.ops.mamba.cpu import operators as cpu_operators
from ssamba.ops.mamba.params import MixerParams
from ssamba.utils.errors import ConfigError

BACKENDS = ("auto", "reference", "cpu", "gpu", "cuda", "triton", "portable")
SHORT = 512
"""Tokens of the longest pass for which the kernels are not worth loading: 10.24 s of audio on the standard grid."""
GPU_ORDER = "cuda,triton"
"""Kernels that a GPU operator tries in turn. A text, since it travels through torch's custom ops."""
MAX_STATES, MAX_DIRECTIONS = 64, 2

_COLUMN_OF_DEVICE = {"cpu": "cpu", "cuda": "gpu"}
_COLUMN_OF_CHOICE = {"cpu": "cpu", "gpu": "gpu", "triton": "gpu", "cuda": "gpu", "portable": "gpu"}
_GPU_ORDER_OF_CHOICE = {"cuda": "cuda", "portable": "triton"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ON_GPU_ONLY = "the GPU's form takes 16 and 32 bit numbers on a GPU"
_NO_GRADIENT = "the GPU's form is for inference and has no gradient"
_NAIVE, _CPU, _GPU, _GPU_INFERENCE, _CUDA, _TRITON = (
    f"ssamba.ops.mamba.{name}" for name in ("naive", "cpu.operators", "gpu", "gpu_inference", "cuda", "triton")
)
_NAIVE_NORM, _GPU_NORM, _CUDA_NORM, _TRITON_NORM = (
    f"ssamba.ops.layer_norm.{name}" for name in ("naive", "gpu", "cuda", "triton")
)
_GPU_INPUT, _TRITON_LINEAR = f"{_GPU}_input", "ssamba.ops.linear_layer.triton"
_NAIVE_LINEAR, _CPU_LINEAR, _GPU_LINEAR = (f"ssamba.ops.linear_layer.{name}" for name in ("naive", "cpu", "gpu"))

_OVER_TRITON = (_GPU_INFERENCE, _GPU_INPUT, _GPU_NORM, _GPU_LINEAR)
"""Operators with steps that are Triton's alone, which these modules import only when they come to them."""


class Entry(NamedTuple):
    """One form: the module whose function of the operator's name it is, imported at first use, and what it takes."""

    module: str
    supports: Callable[..., str | None]
    """Of the operator's arguments: None, or why the form cannot take them."""


# ---- what the forms take


def _anything(*_: Any) -> None:
    return None


def _limits(x: Tensor, directions: int, states: int) -> str | None:
    if x.dtype not in _DTYPES:
        return f"{str(x.dtype).removeprefix('torch.')} is computed by the reference form only"
    if states > MAX_STATES:
        return f"the fast forms take at most {MAX_STATES} states, got {states}"
    if directions > MAX_DIRECTIONS:
        return f"the fast forms take at most {MAX_DIRECTIONS} directions, got {directions}"
    return None


def _conv_limits(x: Tensor, weight_RKEW: Tensor, *_: Any) -> str | None:
    return _limits(x, weight_RKEW.shape[0], 1)


def _scan_limits(u: Tensor, dt: Tensor, A_RKEN: Tensor, B_BLRKN: Tensor, *_: Any) -> str | None:
    return _limits(u, A_RKEN.shape[0], B_BLRKN.shape[-1])


def _mixer_limits(x: Tensor, *rest: Any) -> str | None:
    params = next(given for given in rest if isinstance(given, MixerParams))
    return _limits(x, params.directions, params.states)


def _mixer_on_gpu(x: Tensor, *rest: Any) -> str | None:
    if x.device.type == "cpu" and not environment.interprets_triton():
        return "the tensors are on the CPU"
    return _mixer_limits(x, *rest)


def _inference_on_gpu(xz: Tensor, work: Tensor, params: MixerParams, *_: Any) -> str | None:
    if derivatives.wants_gradient(xz, work, *params):
        return _NO_GRADIENT
    return _mixer_limits(xz, params) if xz.is_cuda else "the tensors are not on a GPU"


def _norm_on_gpu(x: Tensor, *_: Any) -> str | None:
    return None if x.is_cuda and x.dtype in _DTYPES else _ON_GPU_ONLY


def _weights_on_gpu(like: Tensor, pairs: Sequence[Any], dtype: torch.dtype) -> str | None:
    if any(derivatives.wants_gradient(*pair[:-1], *pair[-1]) for pair in pairs):
        return _NO_GRADIENT
    return None if like.is_cuda and dtype in _DTYPES else _ON_GPU_ONLY


def _ungated_on_gpu(like: Tensor, A_log_RKEN: Tensor, states: int, alternating: bool) -> str | None:
    reason = _limits(like, A_log_RKEN.shape[0], states)
    if reason is None and "cuda" not in gpu_backends().split(","):
        reason = "there is no portable form without a gate"
    if reason is None and not like.is_cuda:
        reason = "the tensors are not on a GPU"
    if reason is None:
        module = _load(_GPU_INFERENCE)
        reason = module if isinstance(module, str) else module.supports_ungated(like, A_log_RKEN, states, alternating)
    return reason


def _output_on_gpu(y: Tensor, stream: Tensor, w: Tensor, b: Tensor, proj: Tensor, out: Tensor, *_: Any) -> str | None:
    if derivatives.wants_gradient(y, stream, w, b, proj, out):
        return _NO_GRADIENT
    fits = y.is_cuda and y.dtype in _DTYPES and all(t.is_contiguous() for t in (y, stream, out))
    return None if fits else f"{_ON_GPU_ONLY}, contiguous"


def _to_input_on_gpu(y: Tensor, stream: Tensor, *rest: Tensor) -> str | None:
    *_, x = rest
    if derivatives.wants_gradient(y, stream, *rest):
        return _NO_GRADIENT
    if not (y.is_cuda and all(t.is_contiguous() for t in (y, stream, x))):
        return f"{_ON_GPU_ONLY}, contiguous"
    if find_kernels("gated_output_to_input", y, stream, *rest, backends=gpu_backends()) is None:
        return "only the one pass for Hopper makes the next input"
    return None


def _stream_on_gpu(y: Tensor, out_proj: Tensor, stream: Tensor, out: Tensor, *_: Any) -> str | None:
    if derivatives.wants_gradient(y, out_proj, stream, out):
        return _NO_GRADIENT
    tensors = y, out_proj, stream, out
    fits = y.is_cuda and y.dtype in _DTYPES and all(t.dtype == y.dtype and t.is_contiguous() for t in tensors)
    return None if fits else f"{_ON_GPU_ONLY}, contiguous and of one dtype"


def _usable(module: str, *arguments: Any) -> str | None:
    """Asks a module of kernels, which is imported when a custom op runs: not while a graph is traced."""
    return None if importlib.import_module(module).usable(*arguments) else f"{module} does not take these tensors"


def _cuda_mixer(x: Tensor, params: MixerParams) -> str | None:
    return importlib.import_module(f"{_CUDA}.mixer").supports(x, params)


def _cuda_conv_proj(x: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, proj_RKPE: Tensor) -> str | None:
    return _usable(f"{_CUDA}.projection", x, weight_RKEW, proj_RKPE)


def _cuda_output(y: Tensor, stream: Tensor, weight: Tensor, bias: Tensor, out_proj: Tensor, out: Tensor) -> str | None:
    return _usable(f"{_CUDA}.gated_output", y, stream, out, weight, bias, out_proj)


def _cuda_output_to_input(y: Tensor, stream: Tensor, *rest: Tensor) -> str | None:
    takes = importlib.import_module(f"{_CUDA}.gated_output").makes_next_input(y, stream, *rest)
    return None if takes else "the one pass for Hopper does not make the next input of these tensors"


def _with_triton(*_: Any) -> str | None:
    return None if importlib.util.find_spec("triton") is not None else "Triton is not installed"


def _triton_output(y: Tensor, stream: Tensor, *_: Tensor) -> str | None:
    return _usable(f"{_TRITON}.gated_output", y, stream)


def _triton_gate(y: Tensor, stream: Tensor, weight: Tensor, bias: Tensor, out_proj: Tensor, out: Tensor) -> str | None:
    return _usable(f"{_TRITON}.gate_product", y, stream, out, weight, bias)


# ---- the table


_PLAIN = Entry(_NAIVE, _anything)
_LINEAR = {"reference": Entry(_NAIVE_LINEAR, _anything), "cpu": Entry(_CPU_LINEAR, cpu_linear.supports)}
_MIXER = {"reference": _PLAIN, "cpu": Entry(_CPU, _mixer_limits), "gpu": Entry(_GPU, _mixer_on_gpu)}

TABLE: dict[str, dict[str, Entry]] = {
    "conv_silu": {"reference": _PLAIN, "cpu": Entry(_CPU, _conv_limits)},
    "selective_scan": {"reference": _PLAIN, "cpu": Entry(_CPU, _scan_limits)},
    "bimamba_inner": _MIXER,
    "bimamba_inner_packed": _MIXER,
    # Inference in memory that the caller no longer needs, and with a deferred gate, where a form for it exists.
    "bimamba_inner_with_work": {"reference": _PLAIN, "gpu": Entry(_GPU_INFERENCE, _inference_on_gpu)},
    "bimamba_ungated": {"reference": _PLAIN, "gpu": Entry(_GPU_INFERENCE, _ungated_on_gpu)},
    "ready_weights_of_pairs": {"reference": _PLAIN, "gpu": Entry(_GPU_INFERENCE, _weights_on_gpu)},
    "gated_output_": {"reference": _PLAIN, "gpu": Entry(_GPU_INFERENCE, _output_on_gpu)},
    "gated_output_to_input_": {"reference": _PLAIN, "gpu": Entry(_GPU_INFERENCE, _to_input_on_gpu)},
    "output_to_stream_": {"reference": _PLAIN, "gpu": Entry(_GPU_INFERENCE, _stream_on_gpu)},
    "fold_norm": {"reference": _PLAIN, "gpu": Entry(_GPU_INPUT, gpu_limits.supports_fold)},
    "add_layer_norm": {"reference": Entry(_NAIVE_NORM, _anything), "gpu": Entry(_GPU_NORM, _norm_on_gpu)},
    "linear": _LINEAR | {"gpu": Entry(_GPU_INPUT, gpu_limits.supports)},
    "batched_linear": _LINEAR | {"gpu": Entry(_GPU_LINEAR, gpu_limits.supports_batch)},
    # What the GPU's operators are made of. A custom op asks when it runs: the choice looks at addresses.
    "add_parts": {"reference": _PLAIN, "triton": Entry(f"{_TRITON}.partial_sums", _with_triton)},
    "join_products": {"triton": Entry(f"{_TRITON}.gradients", _with_triton)},
    "norm": {"cuda": Entry(_CUDA_NORM, partial(_usable, _CUDA_NORM)), "triton": Entry(_TRITON_NORM, _anything)},
    "norm_backward": {"triton": Entry(_TRITON_NORM, _anything)},
    "prepare": {
        "cuda": Entry(f"{_CUDA}.weights", partial(_usable, f"{_CUDA}.weights")),
        "triton": Entry(f"{_TRITON}.weights", _anything),
    },
    "fold_backward": {"triton": Entry(f"{_TRITON}.weights", _anything)},
    "column_sums": {"triton": Entry(f"{_TRITON}.partial_sums", _anything)},
    "product": {"triton": Entry(_TRITON_LINEAR, _anything)},
    "copy_padded": {"reference": _PLAIN, "triton": Entry(f"{_TRITON}.weights", _with_triton)},
    "mixer": {
        "cuda": Entry(f"{_CUDA}.mixer", _cuda_mixer),
        "triton": Entry(f"{_TRITON}.mixer", _anything),
    },
    "conv_proj": {
        "cuda": Entry(f"{_CUDA}.projection", _cuda_conv_proj),
        "triton": Entry(f"{_TRITON}.conv", _anything),
    },
    "gated_output": {
        "cuda": Entry(f"{_CUDA}.gated_output", _cuda_output),
        "triton": Entry(f"{_TRITON}.gated_output", _triton_output),
    },
    "gated_output_to_input": {"cuda": Entry(f"{_CUDA}.gated_output", _cuda_output_to_input)},
    # Where the one pass is not to be had: the product that makes z, which gates.
    "gate_product": {"triton": Entry(f"{_TRITON}.gate_product", _triton_gate)},
    "gate": {"triton": Entry(f"{_TRITON}.gate", _anything)},
}

_forced: str | None = None  # what use_backend says; None leaves it to the environment
_warned: set[str] = set()
_modules: dict[str, ModuleType | str] = {}  # a module, or why it cannot be had


def reset() -> None:
    """Forgets what has been loaded and warned of, as in a new process: the installation may have changed."""
    _warned.clear()
    _modules.clear()
    _modules.update({_NAIVE: naive, _NAIVE_NORM: naive_norm, _NAIVE_LINEAR: naive_linear, _CPU_LINEAR: cpu_linear})


reset()


# ---- the choice


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs the operators in one form (the names: ``ssamba.ops.dispatch``). It holds for every thread of the process.

    A forced form that cannot run raises ``ConfigError`` instead of falling back.
    """
    global _forced
    before, _forced = _forced, _check(name, "use_backend")
    try:
        yield
    finally:
        _forced = before


@contextmanager
def short_work(device: torch.device, tokens: int) -> Iterator[None]:
    """For a process that makes one pass over ``tokens`` tokens and ends: the reference form where it is done sooner.

    On a CPU, up to ``SHORT`` tokens, in a process that has not loaded the compiled kernels yet, the reference
    form ends before Numba is imported, let alone before the kernels are compiled. A choice made by the environment
    stands.
    """
    chosen = _forced or environment.backend()
    if chosen != "auto" or device.type != "cpu" or tokens > SHORT or cpu_kernels.loaded():
        yield
        return
    with use_backend("reference"):
        yield


def choice() -> str:
    """What ``use_backend`` or the environment asks for. Raises ``ConfigError`` for an unknown name."""
    return _forced or _check(environment.backend(), "SSAMBA_BACKEND")


def gpu_backends() -> str:
    """The kernels that the GPU's operators may try, in order: ``GPU_ORDER`` or a part of it."""
    return _GPU_ORDER_OF_CHOICE.get(choice(), GPU_ORDER)


def run(operator: str, *arguments: Any, name: str | None = None) -> Any:
    """Runs ``operator`` in the chosen form. Where that cannot run: see the module's docstring.

    ``name`` stands for the operator in the warning and the error.
    """
    form, reason = _fast_form(operator, *arguments)
    if form is None and reason is not None:
        if choice() != "auto":
            raise ConfigError(f"{name or operator} cannot run with backend {choice()!r}: {reason}")
        _warn_once(f"ssamba.ops.{name or operator} runs in its slow reference form: {reason}")
    return getattr(form or _load(TABLE[operator]["reference"].module), operator)(*arguments)


def prefer(operator: str, *arguments: Any, **options: Any) -> Any:
    """Runs ``operator`` in the chosen form, and in the reference form where that has none or cannot run."""
    form, _ = _fast_form(operator, *arguments)
    return getattr(form or _load(TABLE[operator]["reference"].module), operator)(*arguments, **options)


def find(operator: str, *arguments: Any) -> ModuleType | None:
    """The module of the chosen form; None where that has no such operator or does not take these arguments."""
    form, _ = _fast_form(operator, *arguments)
    if form is None and choice() == "reference":
        form = _load(TABLE[operator]["reference"].module)
    return form


def find_kernels(kernels: str, *arguments: Any, backends: str = GPU_ORDER) -> ModuleType | None:
    """The first of ``backends`` whose kernels take the arguments, as a module; None without one."""
    for backend in backends.split(","):
        entry = TABLE[kernels].get(backend)
        if entry is not None and entry.supports(*arguments) is None:
            return importlib.import_module(entry.module)
    return None


def kernels(name: str, *arguments: Any, backends: str = GPU_ORDER) -> ModuleType:
    """As ``find_kernels``. Raises ``ConfigError`` where none of ``backends`` takes the arguments."""
    found = find_kernels(name, *arguments, backends=backends)
    if found is None:
        reasons = (TABLE[name][backend].supports(*arguments) for backend in backends.split(","))
        raise ConfigError(f"{name} cannot run with backend {backends!r}: {'; '.join(r for r in reasons if r)}")
    return found


def small_kernels(name: str, *arguments: Any) -> ModuleType:
    """The kernels of a row that Triton has for all arguments, and CUDA C++ for some: these where the choice allows it.

    A GPU for which there is no CUDA C++ at all, and ``SSAMBA_BACKEND=cuda`` where it does not take them, have Triton's.
    """
    found = find_kernels(name, *arguments, backends=gpu_backends())
    return kernels(name, *arguments, backends="triton") if found is None else found


def _fast_form(operator: str, *arguments: Any) -> tuple[ModuleType | None, str | None]:
    """The module of the fast form, or the reason why there is none; neither where the reference form is asked for."""
    chosen = choice()
    if chosen == "reference":
        return None, None
    if derivatives.beyond_backward():
        return None, derivatives.REASON
    device = arguments[0].device.type
    column = _COLUMN_OF_DEVICE.get(device) if chosen == "auto" else _COLUMN_OF_CHOICE[chosen]
    entry = None if column is None else TABLE[operator].get(column)
    if column is None:
        return None, f"there is no fast form for device {device}"
    if entry is None:
        return None, f"there is no {column} form of it alone"
    reason = entry.supports(*arguments)
    if reason is not None:
        return None, reason
    module = _load(entry.module)
    if isinstance(module, str):
        return None, f"the {column} form cannot be loaded ({module})"
    return module, None


def _load(path: str) -> Any:
    """The module, or the reason why it cannot be used. Looked up once."""
    if path == _CPU and torch.compiler.is_compiling():
        # A graph being traced cannot import; numba is a dependency, and without it the operator itself says so.
        return cpu_operators
    if path not in _modules:
        missing = _with_triton() if path in _OVER_TRITON else None
        if missing is not None:
            _modules[path] = missing
            return missing
        try:
            if path == _CPU:
                cpu_kernels.check()
            _modules[path] = importlib.import_module(path)
        except Exception as error:  # a broken installation may raise anything; the warning passes it on
            _modules[path] = f"{type(error).__name__}: {error}"
    return _modules[path]


def _check(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ConfigError(f"{source}: unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return name


def _warn_once(message: str) -> None:
    if not torch.compiler.is_compiling() and message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)
