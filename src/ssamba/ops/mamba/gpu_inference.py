"""The mixer's inside in inference: its projection lies where the caller has memory that it no longer needs.

Without its gate, z need not be in memory while the scan is: x, z and y together are the most that a pass over long
input holds. A caller that makes z later, a part at a time, has room for all clips at once, and with them the GPU is
full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.ops import dispatch
from ssamba.ops.jit import nvrtc
from ssamba.ops.layer_norm.gpu import forward_kernels
from ssamba.ops.mamba import gpu_states
from ssamba.ops.mamba.cuda import mixer
from ssamba.ops.mamba.cuda.sources import MMA_TYPES
from ssamba.ops.mamba.params import SCHEMA, MixerParams
from ssamba.ops.register import define_operator

PIECE_VALUES = 2**24
"""Values of z that exist at once: they stay in a GPU's second-level cache, or nearly."""


def supports_ungated(like: Tensor, A_log_RKEN: Tensor, states: int, alternating: bool = False) -> str | None:
    """Why no product of ``like`` can go through ``bimamba_ungated``, or None: it still may refuse one.

    Products must be bfloat16 or float16, the GPU's tensor cores must take them, and N (``states``) may be 16 at most.
    """
    mixed = torch.is_autocast_enabled(like.device.type)
    dtype = torch.get_autocast_dtype(like.device.type) if mixed else like.dtype
    channels = A_log_RKEN.shape[-2]
    states = gpu_states.forward_states(states)
    if dtype not in MMA_TYPES or states not in (8, 16) or channels % 16 or not like.is_cuda:
        return "the scan without a gate takes bfloat16 and float16, at most 16 states and channels in multiples of 16"
    if not nvrtc.multiplies_bfloat16(like.device.index or 0):
        return "this GPU has no 16-bit matrix products that NVRTC compiles for"
    return None


def bimamba_ungated(x_BLKE: Tensor, work: Tensor, params: MixerParams, alternating: bool = False) -> Tensor | None:
    """``naive.bimamba_ungated``, or None where only the gated form serves.

    ``work`` is memory that the caller no longer needs: the projection is written there when it fits.
    """
    if x_BLKE.dtype not in MMA_TYPES or torch.is_grad_enabled():
        return None
    params = params._replace(x_proj_RKPE=params.x_proj_RKPE.to(x_BLKE.dtype))
    params = gpu_states.rounded(x_BLKE, params)
    if not mixer.supports_ungated(x_BLKE, work, params):
        return None
    return inner_with_work(x_BLKE, None, work, *params, "cuda", alternating)


def bimamba_inner_with_work(xz_BLhKE: Tensor, work: Tensor, params: MixerParams, alternating: bool = False) -> Tensor:
    """``naive.bimamba_inner_with_work``: the bits of ``gpu.bimamba_inner_packed``, and the projection in ``work``.

    Where it does not fit, or kernels make it that take no memory for it, it has its own, and ``work`` stays as it is.
    """
    params = gpu_states.rounded(xz_BLhKE, params)
    halves = xz_BLhKE[:, :, 0], xz_BLhKE[:, :, 1]
    return inner_with_work(*halves, work, *params, dispatch.gpu_backends(), alternating)


def _run_with_work(x: Tensor, z: Tensor | None, work: Tensor, *rest: Any) -> Tensor:
    *tensors, backends, alternating = rest
    params = MixerParams(*tensors).contiguous()
    x = x if x.stride(-1) == 1 else x.contiguous()
    z = z if z is None or z.stride(-1) == 1 else z.contiguous()
    with torch.autocast(x.device.type, enabled=False):
        kernels = dispatch.kernels("mixer", x, params, backends=backends)
        return kernels.forward(x, z, params, alternating, work=work)[0]


inner_with_work = define_operator(
    "ssamba::gpu_inner_with_work_",
    mutates_args=("work",),
    schema=f"(Tensor x, Tensor? z, Tensor(a!) work, {SCHEMA}, str backends, bool alternating) -> Tensor",
)(_run_with_work)
"""The custom op of ``bimamba_inner_with_work`` and, for what ``supports_ungated`` took, without z, of
``bimamba_ungated``."""


@inner_with_work.register_fake
def _(x: Tensor, z: Tensor | None, work: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


# ---- a pair's weights, as the kernels read them


class _Weights:
    """``out_proj`` and a mixer's parameters, and the dtypes that the kernels read them in."""

    def __init__(self, tensors: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        wide = torch.float32
        of_mixer = [dtype if field == "x_proj_RKPE" else wide for field in MixerParams._fields]
        self.pairs = list(zip(tensors, (dtype, *of_mixer), strict=True))

    def as_they_are(self) -> list[Tensor | None]:
        """Those that need no conversion, None for the others."""
        return [w if w.dtype == dtype and w.is_contiguous() else None for w, dtype in self.pairs]

    def to_convert(self) -> list[tuple[Tensor, torch.dtype]]:
        """The others, and what they become."""
        return [pair for pair, kept in zip(self.pairs, self.as_they_are(), strict=True) if kept is None]

    def new_memory(self, in_proj: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """For the folded input product's weight and bias, then for each that is converted."""
        folded = [in_proj.new_empty(shape, dtype=dtype) for shape in (in_proj.shape, in_proj.shape[:-1])]
        return folded + [w.new_empty(w.shape, dtype=kind) for w, kind in self.to_convert()]


def _made(in_proj: Tensor, others: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return _Weights(tuple(others), dtype).new_memory(in_proj, dtype)


def _of_each_pair(others: list[Tensor]) -> list[list[Tensor]]:
    """``out_proj`` and the mixer's parameters of each pair, from those of all."""
    count = 1 + len(MixerParams._fields)
    return [others[at : at + count] for at in range(0, len(others), count)]


def _run_prepare(
    in_proj: list[Tensor], norm_weight: list[Tensor], norm_bias: list[Tensor], others: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    found: list[Tensor] = []
    pairs: list[tuple[Any, ...]] = []
    for product, scale, shift, tensors in zip(in_proj, norm_weight, norm_bias, _of_each_pair(others), strict=True):
        made = _made(product, tensors, dtype)
        sources = [w.contiguous() for w, _ in _Weights(tuple(tensors), dtype).to_convert()]
        folded = product.contiguous(), scale.contiguous(), shift.contiguous()
        pairs.append((*folded, made[0], made[1], sources, made[2:]))
        found += made
    kernels = dispatch.small_kernels("prepare", *pairs[0])
    if all(_kinds(pair) == _kinds(pairs[0]) for pair in pairs):
        kernels.prepare_pairs(pairs)
    else:
        for pair in pairs:
            dispatch.small_kernels("prepare", *pair).prepare(*pair)
    return found


def _kinds(pair: tuple[Any, ...]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(t.shape, t.dtype) for t in (*pair[:5], *pair[5], *pair[6])]


prepare_weights = define_operator(
    "ssamba::gpu_ready_weights",
    schema="(Tensor[] in_proj, Tensor[] norm_weight, Tensor[] norm_bias, Tensor[] others, ScalarType dtype)"
    " -> Tensor[]",
)(_run_prepare)
"""The custom op of ``ready_weights_of_pairs``: what it makes of each pair, without the tensors that stay as they are.

``others``: of each pair ``out_proj`` and the mixer's parameters.
"""


@prepare_weights.register_fake
def _(
    in_proj: list[Tensor], norm_weight: list[Tensor], norm_bias: list[Tensor], others: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    return [w for of in zip(in_proj, _of_each_pair(others), strict=True) for w in _made(*of, dtype)]


def ready_weights_of_pairs(
    like: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, MixerParams]], dtype: torch.dtype
) -> list[tuple[Tensor, Tensor, Tensor, MixerParams]]:
    """``naive.ready_weights_of_pairs``, all in one launch where they have the same shapes and dtypes."""
    products, scales, shifts = ([pair[i] for pair in pairs] for i in range(3))
    others = [(out_proj, *params) for *_, out_proj, params in pairs]
    made = iter(prepare_weights(products, scales, shifts, [w for of in others for w in of], dtype))
    found = []
    for of_pair in others:
        weight, bias = next(made), next(made)
        kept = _Weights(of_pair, dtype).as_they_are()
        out_proj, *rest = (next(made) if w is None else w for w in kept)
        found.append((weight, bias, out_proj, MixerParams(*rest)))
    return found


# ---- gate and output product


def gated_output_(
    y_TX: Tensor, stream_Td: Tensor, weight_Xd: Tensor, bias_X: Tensor, out_proj_dX: Tensor, out_Td: Tensor,
    eps: float, residual_scale: float | None = None, normed: bool = False, piece_values: int = PIECE_VALUES,
) -> None:  # fmt: skip
    """``naive.gated_output_``: in one pass, or in two products, the first of which gates; else by pieces.

    Only pieces write z to memory, ``piece_values`` of it at a time.
    """
    tensors = y_TX, stream_Td, weight_Xd, bias_X, out_proj_dX, out_Td
    write_gated_output(*tensors, eps, residual_scale, normed, dispatch.gpu_backends(), piece_values)


@define_operator("ssamba::gpu_gated_output_", mutates_args=("y", "stream", "out"))
def write_gated_output(
    y: Tensor, stream: Tensor, weight: Tensor, bias: Tensor, out_proj: Tensor, out: Tensor, eps: float,
    residual_scale: float | None, normed: bool, backends: str, piece_values: int,
) -> None:  # fmt: skip
    """The custom op of ``gated_output_``."""
    with torch.autocast(y.device.type, enabled=False):
        weight, bias, out_proj = (w.to(y.dtype).contiguous() for w in (weight, bias, out_proj))
        tensors = y, stream, weight, bias, out_proj, out
        whole = dispatch.find_kernels("gated_output", *tensors, backends=backends)
        product = None if whole else dispatch.find_kernels("gate_product", *tensors, backends=backends)
        if whole is not None:
            whole.gated_output(*tensors, eps, residual_scale)
        elif product is not None:
            _after_gate_product(product.gate_product, *tensors, eps, residual_scale, normed)
        else:
            _by_pieces(*tensors, eps, residual_scale, normed, max(1, round(y.numel() / piece_values)))


@write_gated_output.register_fake
def _(y: Tensor, stream: Tensor, weight: Tensor, bias: Tensor, out_proj: Tensor, out: Tensor, *rest: Any) -> None:
    return None


def gated_output_to_input_(
    y_TX: Tensor, stream_Td: Tensor, weight_Xd: Tensor, bias_X: Tensor, out_proj_dX: Tensor, next_weight_Xd: Tensor,
    next_bias_X: Tensor, x_TX: Tensor, eps: float, residual_scale: float,
) -> None:  # fmt: skip
    """``naive.gated_output_to_input_`` in one pass, of what ``dispatch`` has found to be taken. y stays as it is."""
    tensors = y_TX, stream_Td, weight_Xd, bias_X, out_proj_dX, next_weight_Xd, next_bias_X, x_TX
    write_next_input(*tensors, eps, residual_scale, dispatch.gpu_backends())


@define_operator("ssamba::gpu_gated_output_to_input_", mutates_args=("stream", "x"))
def write_next_input(
    y: Tensor, stream: Tensor, weight: Tensor, bias: Tensor, out_proj: Tensor, next_weight: Tensor, next_bias: Tensor,
    x: Tensor, eps: float, residual_scale: float, backends: str,
) -> None:  # fmt: skip
    """The custom op of ``gated_output_to_input_``."""
    weights = (w.to(y.dtype).contiguous() for w in (weight, bias, out_proj, next_weight, next_bias))
    tensors = y, stream, *weights, x
    kernels = dispatch.kernels("gated_output_to_input", *tensors, backends=backends)
    kernels.gated_output_to_input(*tensors, eps, residual_scale)


@write_next_input.register_fake
def _(y: Tensor, stream: Tensor, weight: Tensor, bias: Tensor, out_proj: Tensor, *rest: Any) -> None:
    return None


def _after_gate_product(
    gate_product: Callable[[Tensor, Tensor, Tensor, Tensor], None],
    y: Tensor, stream: Tensor, weight: Tensor, bias: Tensor, out_proj: Tensor, out: Tensor, eps: float,
    residual_scale: float | None, normed: bool,
) -> None:  # fmt: skip
    """The normalised stream lies in ``out`` until the output takes its place."""
    layer_norm = forward_kernels(stream, out)
    if not normed:
        layer_norm.normalise(stream, eps, out.dtype, out)
    gate_product(y, out, weight, bias)
    if residual_scale is not None and stream.dtype == y.dtype:
        return _output_to_stream(y, out_proj, stream, out, eps, residual_scale)
    torch.mm(y, out_proj.t(), out=out)
    if residual_scale is not None:
        layer_norm.forward(out, stream, None, None, None, eps, residual_scale, out.dtype, in_place=True)


def _by_pieces(
    y: Tensor, stream: Tensor, weight: Tensor, bias: Tensor, out_proj: Tensor, out: Tensor, eps: float,
    residual_scale: float | None, normed: bool, pieces: int,
) -> None:  # fmt: skip
    layer_norm, gate = forward_kernels(stream, out, y), dispatch.small_kernels("gate")
    for y_TX, stream_Td, out_Td in zip(*(t.tensor_split(pieces) for t in (y, stream, out)), strict=True):
        normal_Td = out_Td.to(y.dtype) if normed else layer_norm.normalise(stream_Td, eps, y.dtype)
        gate.gate(y_TX, F.linear(normal_Td, weight, bias))
        del normal_Td
        if out.dtype == y.dtype:
            torch.mm(y_TX, out_proj.t(), out=out_Td)
        else:
            out_Td.copy_(y_TX @ out_proj.t())
    if residual_scale is not None:
        layer_norm.forward(out, stream, None, None, None, eps, residual_scale, out.dtype, in_place=True)


# ---- output product and residual stream


def output_to_stream_(
    y_TX: Tensor, out_proj_dX: Tensor, stream_Td: Tensor, out_Td: Tensor, eps: float, residual_scale: float
) -> None:
    """``naive.output_to_stream_``: the product adds to the stream, so the norm reads and writes one tensor each."""
    write_stream(y_TX, out_proj_dX, stream_Td, out_Td, eps, residual_scale)


@define_operator("ssamba::gpu_output_to_stream_", mutates_args=("stream", "out"))
def write_stream(y: Tensor, out_proj: Tensor, stream: Tensor, out: Tensor, eps: float, residual_scale: float) -> None:
    """The custom op of ``output_to_stream_``."""
    with torch.autocast(y.device.type, enabled=False):
        _output_to_stream(y, out_proj, stream, out, eps, residual_scale)


@write_stream.register_fake
def _(y: Tensor, out_proj: Tensor, stream: Tensor, out: Tensor, eps: float, residual_scale: float) -> None:
    return None


def _output_to_stream(
    y: Tensor, out_proj: Tensor, stream: Tensor, out: Tensor, eps: float, residual_scale: float
) -> None:
    stream.addmm_(y, out_proj.t(), beta=residual_scale)
    forward_kernels(stream, out).normalise(stream, eps, out.dtype, out)
