"""The arguments of the kernels: see ``ssamba.ops.mamba.cuda.kernel_args``."""

from __future__ import annotations

from ssamba.ops.jit.c_struct import c_struct

MAX_CONVERSIONS = 16
"""As conversions.cuh has it."""

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

PREPARE_WEIGHTS_ARGS = c_struct(
    "PrepareWeightsArgs",
    [
        ("const void *", "in_proj scale shift"),
        ("void *", "weight bias"),
        ("Conversions", "conversions"),
        ("int", "rows blocks inner width count"),
    ],
    ["ssamba/conversions.cuh"],
    {"Conversions": CONVERSION.ctype * MAX_CONVERSIONS},
)
"""The input product [h, ``blocks``, ``inner``, ``width``], which has ``rows`` rows; ``count`` conversions."""

HEADERS = (
    ("ssamba/layer_norm_args.cuh", LAYER_NORM_ARGS.header),
    ("ssamba/conversion.cuh", CONVERSION.header),
    ("ssamba/prepare_weights_args.cuh", PREPARE_WEIGHTS_ARGS.header),
)
