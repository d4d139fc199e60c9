"""The mixer's inside on a GPU, as torch custom ops: forward, backward, fake and autograd.

``dispatch`` chooses between a backend's kernels when an op runs, among those that the caller allows: the scan is CUDA
C++ compiled at run time by the NVRTC that torch carries, or a portable Triton kernel. dev/KERNEL-NOTES.md has the
numbers.

The ops are opaque to ``torch.compile``, save what a backward can start from (x, z, the output y and the small
projection p) and compute the rest again, take no decision on the host that depends on data, and use no atomics: two
runs give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssamba.ops import derivatives, dispatch
from ssamba.ops.mamba import gpu_states, naive
from ssamba.ops.mamba.params import SCHEMA, MixerParams
from ssamba.ops.register import define_operator

COUNT = len(MixerParams._fields)
GIVES_BIAS_GRADIENT = True
"""Whether ``bimamba_inner_packed`` should give the gradient of the input product's bias: here that costs no pass."""


def bimamba_inner(x_BLKE: Tensor, z_BLKE: Tensor, params: MixerParams, alternating: bool = False) -> Tensor:
    """``naive.bimamba_inner`` on a GPU. ``x`` and ``z`` may be strided views of one tensor.

    Differentiable as often as wanted: from the second time on through the plain form.
    Computed in float32 from float32, bfloat16 or float16 activations (parameters in any of them). Up to 64 states and 2
    directions.
    """
    params = gpu_states.rounded(x_BLKE, params)
    return _gpu_inner(x_BLKE, z_BLKE.to(x_BLKE.dtype), *params, dispatch.gpu_backends(), alternating, False)[0]


def bimamba_inner_packed(
    xz_BLhKE: Tensor, params: MixerParams, alternating: bool = False, bias_hKE: Tensor | None = None,
    keep_states: bool = False,
) -> Tensor:  # fmt: skip
    """``bimamba_inner`` with x and z as ``xz[:, :, 0]`` and ``xz[:, :, 1]``: an input product's output as it is.

    Its gradient comes back in one piece too, which saves the backward one copy of 4 E values for each token.

    ``bias_hKE``: as in ``naive.bimamba_inner_packed``. Its gradient is the sum over clips and tokens of that of xz, in
    float32 of the values before they are rounded: the kernels that write them add them up, and nobody reads them again.

    ``keep_states``: see ``ssamba.ops.bimamba_inner_packed``. Only where the tensor-core scan saves them on the way.
    """
    params = gpu_states.rounded(xz_BLhKE, params)
    bias = bias_hKE if derivatives.wants_gradient(bias_hKE) else None
    # Not in a traced graph: whether the forward saves them depends on addresses.
    keep = keep_states and derivatives.wants_gradient(xz_BLhKE, *params) and not torch.compiler.is_compiling()
    return _gpu_inner_packed(xz_BLhKE, bias, *params, dispatch.gpu_backends(), alternating, keep)[0]


def _dense(x: Tensor) -> Tensor:
    """Strides are free but for the channels, which must lie next to each other."""
    return x if x.stride(-1) == 1 or (x.shape[-1] == 1 and x.stride(-2) > 0) else x.contiguous()


def _products_over_tokens(a_GTm: Tensor, b_GTn: Tensor) -> Tensor:
    """``a^T b`` of each matrix in parts ``xGmn``: a small result from many tokens, so these are cut and added after."""
    matrices, tokens = a_GTm.shape[:2]
    parts = 16
    while parts > 1 and (tokens % parts or tokens // parts < 256):
        parts //= 2
    a, b = (x.unflatten(1, (parts, -1)).flatten(0, 1) for x in (a_GTm, b_GTn))
    return (a.transpose(1, 2) @ b).unflatten(0, (matrices, parts)).transpose(0, 1)


def _product_weights(params: MixerParams, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``dt_proj_GEr`` and ``x_proj_GPE`` in ``dtype``, as the backward's products read them.

    Their fast kernels want rows aligned, so r and P are padded with zeros to a multiple of eight.
    """
    dt_proj_GEr, x_proj_GPE = params.dt_proj_RKEr.flatten(0, 1), params.x_proj_RKPE.flatten(0, 1)
    (matrices, channels, rank), outputs = dt_proj_GEr.shape, x_proj_GPE.shape[1]
    sizes = (channels, rank + -rank % 8), (outputs + -outputs % 8, channels)
    padded_dt, padded_x = (dt_proj_GEr.new_empty(matrices, *size, dtype=dtype) for size in sizes)
    _small_kernels("copy_padded").copy_padded([(dt_proj_GEr, padded_dt), (x_proj_GPE, padded_x)])
    return padded_dt, padded_x


def _small_kernels(name: str) -> Any:
    """The module of a row of ``dispatch.TABLE`` that Triton has a form for and torch serves, too."""
    return dispatch.find_kernels(name, backends="triton") or naive


def _projection_gradients(
    ddt_GTE: Tensor, dbc_xGT2N: Tensor, p_GTP: Tensor, dt_proj_GEr: Tensor, params: MixerParams
) -> tuple[Tensor, Tensor]:
    """``dp_GTP``, from the gradients of dt and (B, C), the latter in parts, and that of ``dt_proj`` in parts ``xGEr``.

    ``dbc`` may have more states than ``params``, which are left out.
    Rows of dp are padded with zeros to a multiple of eight; ``dt_proj`` is what ``_product_weights`` returns.
    """
    rank, outputs, pad = params.rank, params.outputs, -params.outputs % 8
    gradients = dispatch.find_kernels("join_products", backends="triton")
    if gradients is not None and gradients.supports_products(ddt_GTE, rank) is None:
        return gradients.join_products(ddt_GTE, dbc_xGT2N, p_GTP, dt_proj_GEr, rank, pad)
    dt_GTm = ddt_GTE @ dt_proj_GEr
    if gradients is not None:
        dp_GTP, low_GTm = gradients.join(dt_GTm, dbc_xGT2N, p_GTP, rank, pad)
        return dp_GTP, _products_over_tokens(ddt_GTE, low_GTm)[..., :rank]
    dp_GTP = ddt_GTE.new_zeros(*ddt_GTE.shape[:2], outputs + pad)
    dp_GTP[..., :rank] = dt_GTm[..., :rank]
    dp_GTP[..., rank:outputs] = dbc_xGT2N.sum(0).unflatten(-1, (2, -1))[..., : params.states].flatten(-2)
    return dp_GTP, _products_over_tokens(ddt_GTE, p_GTP[..., :rank])


def _parts_of_rates(da_log_xRKEN: Tensor, A_log_RKEN: Tensor) -> tuple[Tensor, Tensor]:
    """Both as ``add_parts`` takes them, without the states that only the parts have."""
    rates = A_log_RKEN.shape[-1]
    if da_log_xRKEN.shape[-1] == rates:
        return da_log_xRKEN.flatten(1)[:, None, None], A_log_RKEN.flatten()[None, None]
    return da_log_xRKEN.flatten(1, 3)[:, None, :, :rates], A_log_RKEN.flatten(0, 2)[None]


def _add_gradients(
    params: MixerParams, dconv_xRKVE: Tensor, dx_proj_xGPE: Tensor, ddt_proj_xGEr: Tensor, da_log_xRKEN: Tensor,
    dvec_xRK2E: Tensor, *of_bias: tuple[Tensor, Tensor],
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of ``params`` from their parts, in the dtypes of ``params``, all of them in one launch.

    ``dconv`` (V = W + 1, the bias after the taps), ``da_log`` and ``dvec`` (of D and dt_bias) are what the two
    functions of a mixer's backward return, ``da_log`` perhaps with more states than ``params``. ``of_bias``: parts xKE
    and totals KE, written by the same launch.
    """
    found = MixerParams(*(w.new_empty(w.shape) for w in params))
    taps, outputs = params.taps, params.outputs
    dconv_xGVE, dvec_x2GE = dconv_xRKVE.flatten(1, 2), dvec_xRK2E.flatten(1, 2).transpose(1, 2)
    sums = [
        (dconv_xGVE[:, :, :taps], found.conv_weight_RKEW.flatten(0, 1).transpose(1, 2)),
        (dconv_xGVE[:, :, taps:], found.conv_bias_RKE.flatten(0, 1)[:, None]),
        (dx_proj_xGPE[:, :, :outputs], found.x_proj_RKPE.flatten(0, 1)),
        (ddt_proj_xGEr, found.dt_proj_RKEr.flatten(0, 1)),
        (dvec_x2GE[:, 1:], found.dt_bias_RKE.flatten(0, 1)[None]),
        _parts_of_rates(da_log_xRKEN, found.A_log_RKEN),
        (dvec_x2GE[:, :1], found.D_RKE.flatten(0, 1)[None]),
        *((parts_xKE[:, None], total_KE[None]) for parts_xKE, total_KE in of_bias),
    ]
    _small_kernels("add_parts").add_parts(sums)
    return tuple(found)


def _forward(
    x: Tensor, z: Tensor, params: MixerParams, backends: str, alternating: bool, keep_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``y_BLKE``, and what the backward starts from: the projection ``p_GBLP``, and states or an empty tensor."""
    x, z, params = _dense(x), _dense(z), params.contiguous()
    with torch.autocast(x.device.type, enabled=False):
        kernels = dispatch.kernels("mixer", x, params, backends=backends)
        y, p_GBLP, states = kernels.forward(x, z, params, alternating, keep_states)
        return y, p_GBLP, x.new_empty(0) if states is None else states


def _backward(
    dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p_GBLP: Tensor, states: Tensor, params: MixerParams, backends: str,
    alternating: bool, dx: Tensor, dz: Tensor, dbias_hKE: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Writes ``dx`` and ``dz`` (views with free strides) and returns the gradients of ``params``, in their dtypes.

    ``dbias_hKE``, where it is given, is written, too: the sums of ``dx`` and ``dz`` over clips and tokens.
    """
    given, params = params, params.contiguous()
    x, z, dy, sums = _dense(x), _dense(z), dy.contiguous(), dbias_hKE is not None
    with torch.autocast(x.device.type, enabled=False):
        kernels = dispatch.kernels("mixer", x, params, backends=backends)
        inputs = gpu_states.ScanInputs(dy, x, z, y, p_GBLP, params, dz)
        inputs, kept = gpu_states.for_backward(kernels, inputs, alternating), states if states.numel() else None
        du, ddt, dbc, da_log, dvec, dz_sums = kernels.scan_backward(*inputs, alternating, sums, kept)
        del inputs
        dt_proj_GEr, x_proj_GPE = _product_weights(params, x.dtype)
        ddt_GTE, du_GTE = ddt.flatten(1, 2), du.flatten(1, 2)
        of_projection = ddt_GTE, dbc.flatten(2, 3), p_GBLP.flatten(1, 2), dt_proj_GEr, params
        dp_GTP, ddt_proj = _projection_gradients(*of_projection)
        del ddt, ddt_GTE, dbc, of_projection
        du_GTE.baddbmm_(dp_GTP, x_proj_GPE)
        u, dconv, dx_sums = kernels.conv_backward(x, params, du, dx, alternating, sums)
        dx_proj = _products_over_tokens(dp_GTP, u.flatten(1, 2))
        of_bias = () if dbias_hKE is None else zip((dx_sums, dz_sums), dbias_hKE, strict=True)
        return _add_gradients(given, dconv, dx_proj, ddt_proj, da_log, dvec, *of_bias)


# ---- the operators of torch: their arguments are flat


def _run_inner(x: Tensor, z: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(x, z, MixerParams(*rest[:COUNT]), *rest[COUNT:])


def _run_inner_packed(xz: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _run_inner(xz[:, :, 0], xz[:, :, 1], *rest)


def _run_backward(
    dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p: Tensor, states: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dx, dz = x.new_empty(x.shape), z.new_empty(z.shape)
    params, (backends, alternating) = MixerParams(*rest[:COUNT]), rest[COUNT:]
    return (dx, dz, *_backward(dy, x, z, y, p, states, params, backends, alternating, dx, dz))


def _run_backward_packed(
    dy: Tensor, xz: Tensor, bias: Tensor | None, y: Tensor, p: Tensor, states: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dxz, dbias = _like_packed(xz, bias)
    params, (backends, alternating) = MixerParams(*rest[:COUNT]), rest[COUNT:]
    halves = xz[:, :, 0], xz[:, :, 1], y, p, states, params, backends, alternating, dxz[:, :, 0], dxz[:, :, 1]
    return (dxz, dbias, *_backward(dy, *halves, None if bias is None else dbias))


def _like_packed(xz: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Memory for the gradients of both, the first in the order of xz's axes: the product before has its own. An empty
    tensor stands for no bias, since an operator always returns as many.
    """
    return torch.empty_like(xz), xz.new_empty(0) if bias is None else bias.new_empty(bias.shape)


def _op(name: str, inputs: str, outputs: int, run: Any, more: str = "") -> Any:
    """A custom op of the tensors ``inputs``, a mixer's parameters, the backends that it may use, the directions, and
    ``more``.
    """
    tensors = ", ".join(["Tensor"] * outputs)
    schema = f"({inputs}, {SCHEMA}, str backends, bool alternating{more}) -> ({tensors})"
    return define_operator(f"ssamba::{name}", schema=schema)(run)


_gpu_inner = _op("gpu_inner", "Tensor x, Tensor z", 3, _run_inner, ", bool keep_states")
_gpu_inner_packed = _op("gpu_inner_packed", "Tensor xz, Tensor? bias", 3, _run_inner_packed, ", bool keep_states")
_gpu_inner_backward = _op(
    "gpu_inner_backward", "Tensor dy, Tensor x, Tensor z, Tensor y, Tensor p, Tensor states", 2 + COUNT, _run_backward
)
_gpu_inner_packed_backward = _op(
    "gpu_inner_packed_backward",
    "Tensor dy, Tensor xz, Tensor? bias, Tensor y, Tensor p, Tensor states",
    2 + COUNT,
    _run_backward_packed,
)


@_gpu_inner.register_fake
def _(x: Tensor, z: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, blocks, channels = x.shape
    params = MixerParams(*rest[:COUNT])
    p_GBLP = x.new_empty(params.directions * blocks, batch, length, params.outputs)
    return x.new_empty(batch, length, blocks, channels), p_GBLP, x.new_empty(0)


@_gpu_inner_packed.register_fake
def _(xz: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.ssamba.gpu_inner(xz[:, :, 0], xz[:, :, 1], *rest)


@_gpu_inner_backward.register_fake
def _(dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p: Tensor, states: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return (x.new_empty(x.shape), z.new_empty(z.shape), *(w.new_empty(w.shape) for w in rest[:COUNT]))


@_gpu_inner_packed_backward.register_fake
def _(
    dy: Tensor, xz: Tensor, bias: Tensor | None, y: Tensor, p: Tensor, states: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return (*_like_packed(xz, bias), *(w.new_empty(w.shape) for w in rest[:COUNT]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.backends, ctx.alternating, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)  # the product after the mixer keeps its output anyway


def _plain_inner(x: Tensor, z: Tensor, *rest: Any) -> Tensor:
    params = MixerParams(*rest[:COUNT]).to(torch.float32)
    return naive.bimamba_inner(x.float(), z.float(), params, rest[COUNT]).to(x.dtype)


def _plain_inner_packed(xz: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    wide = naive.with_bias_gradient(xz.float(), bias)
    return _plain_inner(wide[:, :, 0], wide[:, :, 1], *rest).to(xz.dtype)


def _plain_backward(
    dy: Tensor, x: Tensor, z: Tensor, y: Tensor, p: Tensor, states: Tensor, *rest: Any
) -> list[Tensor | None]:
    return derivatives.gradient(_plain_inner, (x, z, *rest[:COUNT], rest[-1]), [dy])[:-1]


def _plain_backward_packed(
    dy: Tensor, xz: Tensor, bias: Tensor | None, y: Tensor, p: Tensor, states: Tensor, *rest: Any
) -> list[Tensor | None]:
    return derivatives.gradient(_plain_inner_packed, (xz, bias, *rest[:COUNT], rest[-1]), [dy])[:-1]


def _differentiate_by(operator: Any, plain: Any) -> Any:
    """The backward by ``operator``, of a forward whose plain form is ``plain``; both take two inputs, then the rest."""

    def differentiate(ctx: Any, dy: Tensor | None, dp: Tensor | None, dstates: Tensor | None) -> Any:
        *inputs, y, p, states = ctx.saved_tensors
        others = None, None, None  # the arguments that are no tensors
        if dy is None:
            return (*(None for _ in inputs), *others)
        if derivatives.in_forward_mode():
            found = derivatives.gradient(plain, [*inputs, ctx.alternating], [dy], required_only=True)
            return (*found[: len(inputs)], *others)
        found = operator(dy, *inputs[:-COUNT], y, p, states, *inputs[-COUNT:], ctx.backends, ctx.alternating)
        return (*(None if given is None else d for given, d in zip(inputs, found, strict=True)), *others)

    return differentiate


_gpu_inner.register_autograd(_differentiate_by(_gpu_inner_backward, _plain_inner), setup_context=_save)
_gpu_inner_packed.register_autograd(
    _differentiate_by(_gpu_inner_packed_backward, _plain_inner_packed), setup_context=_save
)
for _operator, _plain in (
    (_gpu_inner_backward, _plain_backward),
    (_gpu_inner_packed_backward, _plain_backward_packed),
):
    _save_all, _differentiate_plain = derivatives.gradient_of_plain(_plain)
    _operator.register_autograd(_differentiate_plain, setup_context=_save_all)
for _operator in (_gpu_inner, _gpu_inner_packed, _gpu_inner_backward, _gpu_inner_packed_backward):
    _operator.register_vmap(derivatives.one_by_one(_operator))
