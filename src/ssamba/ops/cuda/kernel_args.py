"""The arguments of the kernels: see ``ssamba.ops.mamba.cuda.kernel_args``."""

from __future__ import annotations

from functools import cache

from ssamba.ops.jit.c_struct import CStruct, c_struct

MAX_CONVERSIONS = 8
"""Of a pair, as conversions.cuh has it."""
MAX_PAIRS = 12
"""Of a launch: a kernel's arguments have at most 4,096 bytes."""

LAYER_NORM_ARGS = c_struct(
    "LayerNormArgs",
    [
        ("const void *", "x residual weight bias"),
        ("const float *", "factor"),
        ("void *", "out sum"),
        ("float *", "mean rstd"),
        ("long long", "rows length"),
        ("int", "width"),
        ("float", "eps scale"),
    ],
)
"""``scale``: that of the residual. ``factor``: one for each ``length`` rows of x."""

CONVERSION = c_struct(
    "Conversion",
    [
        ("const void *", "source"),
        ("void *", "target"),
        ("long long", "count"),
        ("int", "source_type target_type"),
    ],
)
"""A tensor of ``count`` elements that takes another's values; ``source_type`` and ``target_type`` are codes."""

PAIR_WEIGHTS = c_struct(
    "PairWeights",
    [
        ("const void *", "in_proj scale shift"),
        ("void *", "weight bias"),
        ("Conversions", "conversions"),
    ],
    ["ssamba/conversions.cuh"],
    {"Conversions": CONVERSION.ctype * MAX_CONVERSIONS},
)
"""The input product of a pair, what is folded into it, and what else is converted."""


@cache
def prepare_weights_args(pairs: int) -> CStruct:
    """The argument for ``pairs`` pairs of one shape, the macro PAIRS.

    The input product is [h, ``blocks``, ``inner``, ``width``], which has ``rows`` rows; ``count`` conversions.
    """
    return c_struct(
        "PrepareWeightsArgs",
        [("Pairs", "pairs"), ("int", "rows blocks inner width count")],
        ["ssamba/pairs.cuh"],
        {"Pairs": PAIR_WEIGHTS.ctype * pairs},
    )


HEADERS = (
    ("ssamba/layer_norm_args.cuh", LAYER_NORM_ARGS.header),
    ("ssamba/conversion.cuh", CONVERSION.header),
    ("ssamba/pair_weights.cuh", PAIR_WEIGHTS.header),
    ("ssamba/prepare_weights_args.cuh", prepare_weights_args(1).header),
)
