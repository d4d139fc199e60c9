"""A 16-lane float32 vector type for Numba, so that the kernels do not depend on the auto-vectoriser.

``Vec`` is LLVM's ``<16 x float>``: one register with AVX-512, two with AVX2, four with NEON; LLVM splits it as the
machine needs, so nothing here names an instruction set. Kernels address memory by integer addresses in bytes, which
keeps one compiled form for every stride. This module imports Numba: import it only from the kernel modules.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16
_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_VEC = ir.VectorType(_F32, LANES)
_VEC_I32 = ir.VectorType(_I32, LANES)
_VEC_I1 = ir.VectorType(ir.IntType(1), LANES)

# The magic number below needs strict addition; contraction is what makes multiply-adds cheap and is exact anyway.
# Any: Numba's annotations give an intrinsic its generator's signature, with the typing context.
_intrinsic: Any = intrinsic
_type_callable: Any = type_callable
_lower_builtin: Any = lower_builtin
_register_model: Any = register_model
inline: Any = njit(forceinline=True, error_model="numpy")


class VecType(types.Type):
    """Numba's name for ``<16 x float>``."""

    def __init__(self) -> None:
        super().__init__(name="Vec16f32")


vec_type = VecType()


@_register_model(VecType)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VEC)


def _register_operator(op: Any, emit: str) -> None:
    @_type_callable(op)
    def _typer(context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            return vec_type if isinstance(a, VecType) and isinstance(b, VecType) else None

        return typer

    @_lower_builtin(op, VecType, VecType)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, emit)(*args)


for _op, _emit in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _register_operator(_op, _emit)


def _pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(pointee))


def _splat(builder: Any, scalar: Any) -> Any:
    first = builder.insert_element(ir.Constant(_VEC, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, ir.Constant(_VEC, ir.Undefined), ir.Constant(_VEC_I32, [0] * LANES))


def _llvm(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    function = builder.module.declare_intrinsic(name, (), ir.FunctionType(result, [a.type for a in args]))
    return builder.call(function, args)


def _lane_mask(builder: Any, lanes: Any) -> Any:
    """True in the first ``lanes`` lanes."""
    count = builder.trunc(lanes, _I32)
    first = builder.insert_element(ir.Constant(_VEC_I32, ir.Undefined), count, ir.Constant(_I32, 0))
    counts = builder.shuffle_vector(first, ir.Constant(_VEC_I32, ir.Undefined), ir.Constant(_VEC_I32, [0] * LANES))
    return builder.icmp_signed("<", ir.Constant(_VEC_I32, list(range(LANES))), counts)


@_intrinsic
def load(typingctx: Any, address: Any) -> Any:
    """Sixteen floats from ``address``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], _VEC), align=4)

    return vec_type(types.int64), codegen


@_intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Sixteen floats to ``address``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _VEC), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, vec_type), codegen


@_intrinsic
def _load_masked(typingctx: Any, address: Any, lanes: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], _VEC)
        mask = _lane_mask(builder, args[1])
        operands = [pointer, ir.Constant(_I32, 4), mask, ir.Constant(_VEC, [0.0] * LANES)]
        return _llvm(builder, "llvm.masked.load.v16f32.p0", _VEC, operands)

    return vec_type(types.int64, types.int64), codegen


@_intrinsic
def _store_masked(typingctx: Any, address: Any, value: Any, lanes: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], _VEC)
        operands = [args[1], pointer, ir.Constant(_I32, 4), _lane_mask(builder, args[2])]
        _llvm(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(types.int64, vec_type, types.int64), codegen


@_intrinsic
def load_scalar(typingctx: Any, address: Any) -> Any:
    """One float from ``address``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], _F32), align=4)

    return types.float32(types.int64), codegen


@_intrinsic
def store_scalar(typingctx: Any, address: Any, value: Any) -> Any:
    """One float to ``address``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _F32), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@_intrinsic
def splat(typingctx: Any, scalar: Any) -> Any:
    """The scalar in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return vec_type(types.float32), codegen


@_intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, fused where the machine can."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _llvm(builder, "llvm.fmuladd.v16f32", _VEC, list(args))

    return vec_type(vec_type, vec_type, vec_type), codegen


@_intrinsic
def at_least(typingctx: Any, a: Any, bound: Any) -> Any:
    """The greater of the two, lane by lane; NaN in ``a`` stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[1], args[0]), args[1], args[0])

    return vec_type(vec_type, vec_type), codegen


@_intrinsic
def at_most(typingctx: Any, a: Any, bound: Any) -> Any:
    """The lesser of the two, lane by lane; NaN in ``a`` stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[1], args[0]), args[1], args[0])

    return vec_type(vec_type, vec_type), codegen


def _make_fold(lower: list[int], upper: list[int]) -> Any:
    """An intrinsic that adds lanes ``lower`` to lanes ``upper`` of two vectors laid end to end."""

    @_intrinsic
    def fold(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            halves = (builder.shuffle_vector(*args, ir.Constant(_VEC_I32, lanes)) for lanes in (lower, upper))
            return builder.fadd(*halves)

        return vec_type(vec_type, vec_type), codegen

    return fold


# Four rounds turn sixteen vectors into one that holds their sums. The first two move whole quarters of a vector, the
# others stay within quarters, which is what shuffles do fastest.
_fold8 = _make_fold([*range(8), *range(16, 24)], [*range(8, 16), *range(24, 32)])
_fold4 = _make_fold(
    [*range(4), *range(8, 12), *range(16, 20), *range(24, 28)],
    [*range(4, 8), *range(12, 16), *range(20, 24), *range(28, 32)],
)
_fold2 = _make_fold(
    [v + q + i for q in range(0, 16, 4) for v in (0, 16) for i in (0, 1)],
    [v + q + i for q in range(0, 16, 4) for v in (0, 16) for i in (2, 3)],
)
_fold1 = _make_fold(
    [v + q + i for q in range(0, 16, 4) for v in (0, 16) for i in (0, 2)],
    [v + q + i for q in range(0, 16, 4) for v in (0, 16) for i in (1, 3)],
)


@inline
def totals(low, high):  # type: ignore[no-untyped-def]
    """Lane i is the sum over the lanes of the i-th of sixteen vectors, eight at each address, by a fixed tree."""
    first = _fold4(_fold8(load(low), load(low + 256)), _fold8(load(high), load(high + 256)))
    second = _fold4(_fold8(load(low + 64), load(low + 320)), _fold8(load(high + 64), load(high + 320)))
    third = _fold4(_fold8(load(low + 128), load(low + 384)), _fold8(load(high + 128), load(high + 384)))
    fourth = _fold4(_fold8(load(low + 192), load(low + 448)), _fold8(load(high + 192), load(high + 448)))
    return _fold1(_fold2(first, second), _fold2(third, fourth))


@_intrinsic
def _scale_by_power(typingctx: Any, mantissa: Any, shifted: Any) -> Any:
    """``mantissa * 2^i`` where ``shifted = 1.5 * 2^23 + i``: adds the low bits of ``shifted`` to the exponent field."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        power = builder.shl(builder.bitcast(args[1], _VEC_I32), ir.Constant(_VEC_I32, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(args[0], _VEC_I32), power), _VEC)

    return vec_type(vec_type, vec_type), codegen


@_intrinsic
def fetch_add(typingctx: Any, address: Any, amount: Any) -> Any:
    """Adds to the int64 at ``address`` atomically and returns what was there."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0], ir.IntType(64)), args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@_intrinsic
def load_int(typingctx: Any, address: Any) -> Any:
    """The int64 at ``address``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], ir.IntType(64)), align=8)

    return types.int64(types.int64), codegen


@inline
def load_part(address, lanes):  # type: ignore[no-untyped-def]
    """The first ``lanes`` floats from ``address``, zeros after them; plain where full, as NEON has no masked load."""
    if lanes >= 16:
        return load(address)
    return _load_masked(address, lanes)


@inline
def store_part(address, value, lanes):  # type: ignore[no-untyped-def]
    """The first ``lanes`` floats to ``address``."""
    if lanes >= 16:
        store(address, value)
    else:
        _store_masked(address, value, lanes)


LOG2E = np.float32(1.4426950408889634)
LN2 = np.float32(0.6931471805599453)
_LOG2E_REST = np.float32(1.4426950408889634 - float(LOG2E))
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
_LOWEST = np.float32(-126.0)  # 2^-126 is the least normal float: decays below it count as 1e-38, not 0
_LOWEST_E, _HIGHEST_E = np.float32(-126 / 1.4426950408889634), np.float32(126 / 1.4426950408889634)
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
# Least-maximum fit of 2^f on [-1/2, 1/2] with the constant fixed at 1, so that slow decays stay exact: error 9e-8.
_E1, _E2, _E3 = np.float32(0.6931470036506653), np.float32(0.24022242426872253), np.float32(0.05550733581185341)
_E4, _E5 = np.float32(0.009671512991189957), np.float32(0.001326472731307149)
# Least-maximum fit of 2 artanh(s) / s in s^2 on [0, 1/9]: error 4e-9.
_L0, _L1, _L2 = np.float32(2.0), np.float32(0.6666631698608398), np.float32(0.40024909377098083)
_L3, _L4 = np.float32(0.27960601449012756), np.float32(0.2817833423614502)


@inline
def _exp2_fraction(f):  # type: ignore[no-untyped-def]
    p = fma(splat(_E5), f, splat(_E4))
    p = fma(p, f, splat(_E3))
    p = fma(p, f, splat(_E2))
    p = fma(p, f, splat(_E1))
    return fma(p, f, splat(_ONE))


@inline
def exp2_decay(t):  # type: ignore[no-untyped-def]
    """``2**t`` for ``t <= 126``, relative error below 2e-7."""
    t = at_least(t, splat(_LOWEST))
    shifted = t + splat(_ROUND)
    f = t - (shifted - splat(_ROUND))
    return _scale_by_power(_exp2_fraction(f), shifted)


@inline
def exp(x):  # type: ignore[no-untyped-def]
    """``e**x`` clamped to [1.2e-38, 8.5e37]; the two-part reduction keeps the relative error at 2e-7 for every x."""
    x = at_most(at_least(x, splat(_LOWEST_E)), splat(_HIGHEST_E))
    shifted = fma(x, splat(LOG2E), splat(_ROUND))
    i = shifted - splat(_ROUND)
    f = fma(x, splat(_LOG2E_REST), fma(x, splat(LOG2E), splat(_ZERO) - i))
    return _scale_by_power(_exp2_fraction(f), shifted)


@inline
def sigmoid(x):  # type: ignore[no-untyped-def]
    """``1 / (1 + exp(-x))``; about 1e-38 instead of 0 far to the left."""
    return splat(_ONE) / (splat(_ONE) + exp(splat(_ZERO) - x))


@inline
def silu(x):  # type: ignore[no-untyped-def]
    """``x * sigmoid(x)``."""
    return x / (splat(_ONE) + exp(splat(_ZERO) - x))


@_intrinsic
def _where_negative(typingctx: Any, x: Any, a: Any, b: Any) -> Any:
    """``a`` where x < 0, else ``b``, lane by lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], ir.Constant(_VEC, [0.0] * LANES)), args[1], args[2])

    return vec_type(vec_type, vec_type, vec_type), codegen


@inline
def _log1p(e):  # type: ignore[no-untyped-def]
    """``log(1 + e) = 2 artanh(e / (2 + e))`` for e in [0, 1], to full relative accuracy for small e too."""
    s = e / (splat(_TWO) + e)
    q = s * s
    p = fma(splat(_L4), q, splat(_L3))
    p = fma(p, q, splat(_L2))
    p = fma(p, q, splat(_L1))
    p = fma(p, q, splat(_L0))
    return p * s


@inline
def softplus(x):  # type: ignore[no-untyped-def]
    """``log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))``: nothing cancels."""
    return at_least(x, splat(_ZERO)) + _log1p(exp(at_most(x, splat(_ZERO) - x)))


@inline
def softplus_and_derivative(x):  # type: ignore[no-untyped-def]
    """Softplus and its derivative, the sigmoid, from one exponential."""
    e = exp(at_most(x, splat(_ZERO) - x))
    derivative = _where_negative(x, e, splat(_ONE)) / (splat(_ONE) + e)
    return at_least(x, splat(_ZERO)) + _log1p(e), derivative
