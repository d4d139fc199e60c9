"""The arguments of the kernels: one list of fields each, from which come the C struct and its ctypes twin.

A kernel takes one struct by value. ``HEADERS`` are the structs as headers in memory, next to those in ``include``.
Letters of sizes: B clips, L tokens, K mixers side by side (2 in a pair), E channels, R directions. ``xb``, ``xt``,
``xk``: strides of x in elements, from clip to clip, token to token, mixer to mixer; likewise z, dz and dx.
"""

from __future__ import annotations

from ssamba.ops.jit.c_struct import CStruct, c_struct
from ssamba.ops.jit.cuda_driver import TensorMap

SCAN_ARGS = c_struct(
    "ScanArgs",
    [
        ("const T *", "x z p dy"),
        ("T *", "y dz du ddt dbc"),
        ("const float *", "conv_w conv_b dt_proj dt_bias a_log skip"),
        ("float *", "state"),
        ("T *", "ckpt"),
        ("float *", "da dvec"),
        ("long long", "xb xt xk zb zt zk dzb dzt dzk"),
        ("int", "B L K E R count"),
    ],
    ["ssamba/types.cuh"],
)
"""Of the scan, forward and backward. ``count``: chunks of each half of the time, saved states, or clips of a block.
``dvec``: sums over tokens [parts, R, K, rows, E]: the gradients of D and dt_bias and, with TOKEN_SUMS, dz, which
direction 0 alone writes."""

CONV_BACKWARD_ARGS = c_struct(
    "ConvBackwardArgs",
    [
        ("const T *", "x du"),
        ("T *", "u dx"),
        ("const float *", "conv_w conv_b"),
        ("float *", "part"),
        ("long long", "xb xt xk dxb dxt dxk"),
        ("int", "B L K E steps"),
    ],
    ["ssamba/types.cuh"],
)
"""``part``: partial sums [time part, B, R, K, rows, E]: W taps, the bias and, with TOKEN_SUMS, dx, which direction 0
alone writes; ``steps``: tokens of a time part."""

CONV_PROJECTION_ARGS = c_struct(
    "ConvProjectionArgs",
    [
        ("const T *", "x w"),
        ("const float *", "conv_w conv_b"),
        ("T *", "p"),
        ("long long", "xb xt xk"),
        ("int", "B L K E clip"),
    ],
    ["ssamba/types.cuh"],
)
"""``w``: the projection [R, K, P, E]; B sequences of L tokens, each made of clips of ``clip`` tokens."""

CONV_PROJECTION_BULK_ARGS = c_struct(
    "ConvProjectionBulkArgs",
    [
        ("TensorMap", "x w"),
        ("const float *", "conv_w conv_b"),
        ("T *", "p"),
        ("int", "B L K E clip"),
    ],
    ["ssamba/types.cuh", "ssamba/tensor_map.cuh"],
    {"TensorMap": TensorMap},
    alignment=64,
)
"""Tensor maps of x [B, K, 4, L / 4, E], the third one a token's place in its run of four, and of the projection
[R K P, E]; the rest as above."""


def _gated_output_args(name: str, maps: str, biases: str, out: str) -> CStruct:
    fields = [("TensorMap", maps), ("const T *", biases), ("Stream *", "stream"), ("T *", out)]
    fields += [("long long", "rows"), ("float", "eps scale")]
    types = {"TensorMap": TensorMap}
    return c_struct(name, fields, ["ssamba/types.cuh", "ssamba/tensor_map.cuh"], types, alignment=64)


GATED_OUTPUT_ARGS = _gated_output_args("GatedOutputArgs", "y stream_map wz wo", "bz", "out")
"""Tensor maps of y [rows, X] and the residual stream [rows, D], by boxes of 128 x 64; of z's weights [X, D], by
32 x 64; of the output's [D, X], by D / 2 x 64."""

GATED_OUTPUT_NEXT_ARGS = _gated_output_args("GatedOutputNextArgs", "y stream_map wz wo wx", "bz bx", "x")
"""The same with the next pair's x [rows, X] in place of the output, and its weights [X, D], by 64 x 64."""

HEADERS = (
    ("ssamba/scan_args.cuh", SCAN_ARGS.header),
    ("ssamba/conv_backward_args.cuh", CONV_BACKWARD_ARGS.header),
    ("ssamba/conv_projection_args.cuh", CONV_PROJECTION_ARGS.header),
    ("ssamba/conv_projection_bulk_args.cuh", CONV_PROJECTION_BULK_ARGS.header),
    ("ssamba/gated_output_args.cuh", GATED_OUTPUT_ARGS.header),
    ("ssamba/gated_output_next_args.cuh", GATED_OUTPUT_NEXT_ARGS.header),
)
