"""Convolution, SiLU and the projection to (dt, B, C) in one pass over x, both directions at once, in CUDA C++.

A warp owns 16 tokens, a block 64. x and the projection's weights come through shared memory, 64 channels at a time, the
next ones while these are worked on. ``ldmatrix`` reads x at each of the taps' distances in the layout of a product's
left side, so the convolution's result, computed in float32, is that side, once SiLU is applied and it is rounded to
bfloat16.
"""

from __future__ import annotations

import ctypes
import os

import torch
from torch import Tensor

from ssamba.ops import nvrtc
from ssamba.ops.nvrtc_primitives import PRIMITIVES, fast_silu
from ssamba.ops.nvrtc_source import COMMON, KINDS

_THREADS, _TOKENS, _CHANNELS = 128, 64, 64
_MOST_OUTPUTS = 96

PROJ = r"""
struct ConvArgs {
  const T *x, *w;  // w: [R, K, P, E]
  const float *conv_w, *conv_b;
  T *p;
  long long xb, xt, xk;
  int B, L, K, E;
};
#define W 4
#define REACH (W - 1)
#define TOKENS 64
#define EC 64                          // channels at a time
#define XR (EC + 8)                    // a row in shared memory, padded against bank conflicts
#define NT ((P + 15) / 16 * 2)         // tiles of 8 outputs, an even number
#define THREADS 128

struct __align__(16) Stage {
  T x[(TOKENS + 2 * REACH) * XR], w[DIRS][NT * 8 * XR];
};

__device__ __forceinline__ void copy_stage(Stage &stage, const ConvArgs &a, const T *x, const T *w, int t0, int e0) {
  constexpr int EACH = EC / 8, ROWS = TOKENS + 2 * REACH;
  int part = threadIdx.x % EACH * 8;
  bool in = e0 + part < a.E;
  x += e0 + part; w += e0 + part;
#pragma unroll
  for (int i = 0; i < (ROWS * EACH + THREADS - 1) / THREADS; ++i) {
    int row = threadIdx.x / EACH + i * (THREADS / EACH), t = t0 - REACH + row;
    bool ok = in && t >= 0 && t < a.L;
    if (row < ROWS) copy_later<16>(stage.x + row * XR + part, x + (ok ? t * a.xt : 0), ok);
  }
#pragma unroll
  for (int r = 0; r < DIRS; ++r)
#pragma unroll
    for (int i = 0; i < (P * EACH + THREADS - 1) / THREADS; ++i) {
      int row = threadIdx.x / EACH + i * (THREADS / EACH);
      if (row < P) copy_later<16>(stage.w[r] + row * XR + part, w + ((long long)r * a.K * P + row) * a.E, in);
    }
  close_copies();
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) conv_proj(const ConvArgs a) {
  SHARED_BYTES(raw);
  Stage *stages = (Stage *)raw;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  int b = blockIdx.y / a.K, k = blockIdx.y % a.K, t0 = blockIdx.x * TOKENS;
  const T *x = a.x + b * a.xb + k * a.xk, *w = a.w + (long long)k * P * a.E;
  if (P % 16)  // rows of weights that no copy fills
    for (int i = threadIdx.x; i < 2 * (int)sizeof(Stage) / 16; i += THREADS) ((uint4 *)raw)[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  float sum[DIRS][NT][4];
#pragma unroll
  for (int i = 0; i < DIRS * NT * 4; ++i) sum[i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;
  // Where this lane's rows for ldmatrix begin: tokens 0-7, 8-15, then again for 8 channels on; outputs likewise.
  int x_at = (warp * 16 + lane % 16) * XR + lane / 16 * 8, w_at = (lane / 16 * 8 + lane % 8) * XR + lane / 8 % 2 * 8;
  copy_stage(stages[0], a, x, w, t0, 0);
  int now = 0;
#pragma unroll 1
  for (int e0 = 0; e0 < a.E; e0 += EC, now ^= 1) {
    await_copies<0>();
    __syncthreads();
    if (e0 + EC < a.E) copy_stage(stages[now ^ 1], a, x, w, t0, e0 + EC);
    const Stage &stage = stages[now];
#pragma unroll 1
    for (int tile = 0; tile < EC && e0 + tile < a.E; tile += 16) {
      unsigned near[2 * REACH + 1][4], u[DIRS][4];
#pragma unroll
      for (int i = 0; i < 2 * REACH + 1; ++i) read4(near[i], stage.x + x_at + i * XR + tile);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        long long ch = (long long)k * a.E + e0 + tile + half * 8 + q * 2;
        float4 tap[DIRS][2];
        float2 bias[DIRS];
#pragma unroll
        for (int r = 0; r < DIRS; ++r) {
          long long at = ch + (long long)r * a.K * a.E;
          tap[r][0] = ((const float4 *)a.conv_w)[at]; tap[r][1] = ((const float4 *)a.conv_w)[at + 1];
          bias[r] = *(const float2 *)(a.conv_b + at);
        }
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          float lo[2 * REACH + 1], hi[2 * REACH + 1];
#pragma unroll
          for (int j = 0; j < 2 * REACH + 1; ++j) { lo[j] = low_half(near[j][i]); hi[j] = high_half(near[j][i]); }
#pragma unroll
          for (int r = 0; r < DIRS; ++r) {
            float4 m = tap[r][0], n = tap[r][1];
            int s = r ? 1 : -1;
            float v0 = bias[r].x + m.w * lo[REACH] + m.z * lo[REACH + s] + m.y * lo[REACH + 2 * s];
            float v1 = bias[r].y + n.w * hi[REACH] + n.z * hi[REACH + s] + n.y * hi[REACH + 2 * s];
            v0 += m.x * lo[REACH + 3 * s]; v1 += n.x * hi[REACH + 3 * s];
            silu2(v0, v1);
            u[r][i] = pack2(v0, v1);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < DIRS; ++r)
#pragma unroll
        for (int j = 0; j < NT; j += 2) {
          unsigned m[4];
          read4(m, stage.w[r] + w_at + j * 8 * XR + tile);
          mma16816(sum[r][j], u[r][0], u[r][1], u[r][2], u[r][3], m[0], m[1]);
          mma16816(sum[r][j + 1], u[r][0], u[r][1], u[r][2], u[r][3], m[2], m[3]);
        }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int t = t0 + warp * 16 + i * 8 + g;
    if (t < a.L)
#pragma unroll
      for (int r = 0; r < DIRS; ++r) {
        T *to = a.p + (((long long)(r * a.K + k) * a.B + b) * a.L + t) * P + 2 * q;
#pragma unroll
        for (int j = 0; j < NT; ++j)
          if (j * 8 + 2 * q < P) *(unsigned *)(to + j * 8) = pack2(sum[r][j][2 * i], sum[r][j][2 * i + 1]);
      }
  }
}
"""


class _Args(ctypes.Structure):
    """``struct ConvArgs`` of the source, field for field."""

    _fields_ = (
        [(n, ctypes.c_void_p) for n in ("x", "w", "conv_w", "conv_b", "p")]
        + [(n, ctypes.c_longlong) for n in ("xb", "xt", "xk")]
        + [(n, ctypes.c_int) for n in ("B", "L", "K", "E")]
    )


def usable(x_BLKE: Tensor, weight_RKEW: Tensor, x_proj_RKPE: Tensor) -> bool:
    """Whether this form takes these shapes: 8 channels of a token must lie in 16 aligned bytes."""
    outputs, width = x_proj_RKPE.shape[2:]
    if x_BLKE.dtype != torch.bfloat16 or width % 16 or weight_RKEW.shape[-1] != 4 or x_BLKE.numel() == 0:
        return False
    if outputs % 2 or outputs > _MOST_OUTPUTS or x_BLKE.shape[0] * x_BLKE.shape[2] >= 65536:
        return False
    if any(t.data_ptr() % 16 for t in (x_BLKE, weight_RKEW, x_proj_RKPE)) or any(
        stride % 8 for stride in x_BLKE.stride()[:3]
    ):
        return False
    if not x_BLKE.is_cuda:
        return False
    device = x_BLKE.device.index or 0
    return torch.cuda.get_device_capability(device)[0] >= 8 and nvrtc.available(device)


def conv_proj(
    x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, proj_RKPE: Tensor, out: Tensor | None = None
) -> Tensor:
    """``p_GBLP = silu(conv(x)) proj^T``; the taps and the bias in float32. ``out`` takes it."""
    batch, length, blocks, width = x_BLKE.shape
    directions, outputs = weight_RKEW.shape[0], proj_RKPE.shape[2]
    p = x_BLKE.new_empty(directions * blocks, batch, length, outputs) if out is None else out
    weight, bias, proj = weight_RKEW.float(), bias_RKE.float(), proj_RKPE.to(x_BLKE.dtype)
    args = _Args(*(t.data_ptr() for t in (x_BLKE, proj, weight, bias, p)), *x_BLKE.stride()[:3])
    args.B, args.L, args.K, args.E = batch, length, blocks, width
    tiles = -(-outputs // 16) * 2
    shared = 2 * 2 * (_CHANNELS + 8) * (_TOKENS + 6 + directions * tiles * 8)
    blocks_at_once = int(os.environ.get("SSAMBA_PROJ_BLOCKS", "0"))  # for measurements
    values = {"DTYPE": KINDS[x_BLKE.dtype], "P": outputs, "DIRS": directions, "TANH": int(fast_silu())}
    values["MIN_BLOCKS"] = blocks_at_once or (3 if outputs <= 64 else 2)
    defines = tuple(f"{name}={value}" for name, value in values.items())
    with nvrtc.on(x_BLKE):
        run = nvrtc.kernel(COMMON + PRIMITIVES + PROJ, "conv_proj", defines, x_BLKE.device.index or 0)
        run((-(-length // _TOKENS), batch * blocks, 1), _THREADS, args, shared)
    return p
