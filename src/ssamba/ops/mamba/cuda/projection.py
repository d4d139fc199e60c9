"""Convolution, SiLU and the projection to (dt, B, C) in one pass over x, both directions at once, in CUDA C++.

A warp owns 32 tokens of all clips in a row, whichever clip they belong to, in one direction. x, the projection's
weights and the taps come through shared memory, 64 channels at a time, the next ones while these are worked on.
``ldmatrix`` reads x at each of the taps' distances in the layout of a product's left side, so the convolution's result,
computed in float32, is that side, once SiLU is applied and it is rounded to bfloat16. Reading shared memory is what
bounds this kernel: weights and taps are read once for a warp's two products of 16 tokens.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ssamba.ops import environment
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.cuda.kernels.common import COMMON, KINDS
from ssamba.ops.mamba.cuda.kernels.ptx_sm80 import PRIMITIVES

_CHANNELS = 64
_MOST_OUTPUTS = 96

PROJ = r"""
struct ConvArgs {
  const T *x, *w;  // w: [R, K, P, E]
  const float *conv_w, *conv_b;
  T *p;
  long long xb, xt, xk;
  int B, L, K, E, clip;  // B sequences of L tokens, each of clips of `clip` tokens
};
#define W 4
#define REACH (W - 1)
#define ROWS 32                        // tokens of a warp: HALVES products of 16
#define HALVES (ROWS / 16)
#define TOKENS (ROWS * WARPS / DIRS)
#define EC 64                          // channels at a time
#define XR (EC + 8)                    // a row in shared memory, padded against bank conflicts
#define NT ((P + 15) / 16 * 2)         // tiles of 8 outputs, an even number
#define THREADS (32 * WARPS)

struct __align__(16) Stage {
  T x[(TOKENS + 2 * REACH) * XR], w[DIRS][NT * 8 * XR];
  float tap[DIRS][EC * W], bias[DIRS][EC];
};

// A thread's share of the copies of EC channels: 8 channels of every AT_ONCEth row of x and w, and a channel's taps and
// bias, which go through registers, since SiLU wants half of them.
#define EACH (EC / 8)
#define AT_ONCE (THREADS / EACH)
#define X_ROUNDS ((TOKENS + 2 * REACH + AT_ONCE - 1) / AT_ONCE)
#define W_ROUNDS ((P + AT_ONCE - 1) / AT_ONCE)
#define TAP_ROUNDS ((DIRS * EC + THREADS - 1) / THREADS)
struct Copies {
  const T *x, *w;
  const float *tap[TAP_ROUNDS], *bias[TAP_ROUNDS];
  long long x_step, w_step, w_turn;  // from row to row, and from one direction to the other
  int row, part, left;               // left: channels still to come
  unsigned there;                    // bit i: row i * AT_ONCE of x exists
  float4 taps[TAP_ROUNDS];
  float biases[TAP_ROUNDS];

  __device__ __forceinline__ void start(const ConvArgs &a, const T *x_all, int k, int t0) {
    row = threadIdx.x / EACH; part = threadIdx.x % EACH * 8; left = a.E; there = 0;
#pragma unroll
    for (int i = 0; i < X_ROUNDS; ++i) {
      int r = row + i * AT_ONCE, t = t0 - REACH + r;
      if (r < TOKENS + 2 * REACH && t >= 0 && t < a.L) there |= 1u << i;
    }
    x = x_all + (t0 - REACH + row) * a.xt + part;
    w = a.w + ((long long)k * P + row) * a.E + part;
    x_step = AT_ONCE * a.xt; w_step = (long long)AT_ONCE * a.E; w_turn = (long long)a.K * P * a.E;
#pragma unroll
    for (int i = 0; i < TAP_ROUNDS; ++i) {
      int n = threadIdx.x + i * THREADS;
      long long channel = (long long)(n / EC * a.K + k) * a.E + n % EC;
      tap[i] = a.conv_w + channel * W; bias[i] = a.conv_b + channel;
    }
  }
  __device__ __forceinline__ void copy(Stage &stage) {
    bool in = part < left;
    Row to = row_at(stage.x + row * XR + part);
#pragma unroll
    for (int i = 0; i < X_ROUNDS; ++i)
      if ((i + 1) * AT_ONCE <= TOKENS + 2 * REACH || row < TOKENS + 2 * REACH - i * AT_ONCE)
        copy_later<16>(ahead(to, i * AT_ONCE * XR), x + i * x_step, in && (there >> i & 1));
#pragma unroll
    for (int r = 0; r < DIRS; ++r) {
      to = row_at(stage.w[r] + row * XR + part);
#pragma unroll
      for (int i = 0; i < W_ROUNDS; ++i)
        if ((i + 1) * AT_ONCE <= P || row < P - i * AT_ONCE)
          copy_later<16>(ahead(to, i * AT_ONCE * XR), w + r * w_turn + i * w_step, in);
    }
#pragma unroll
    for (int i = 0; i < TAP_ROUNDS; ++i) {
      int n = threadIdx.x + i * THREADS;
      bool wanted = n < DIRS * EC && n % EC < left;
      taps[i] = wanted ? *(const float4 *)tap[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      biases[i] = wanted ? *bias[i] : 0.0f;
      tap[i] += EC * W; bias[i] += EC;
    }
    x += EC; w += EC; left -= EC;
    close_copies();
  }
  // Half of the taps and biases that the last copy fetched.
  __device__ __forceinline__ void put(Stage &stage) const {
#pragma unroll
    for (int i = 0; i < TAP_ROUNDS; ++i) {
      int n = threadIdx.x + i * THREADS;
      if (n < DIRS * EC) {
        float4 four = taps[i];
        ((float4 *)stage.tap[0])[n] = make_float4(0.5f * four.x, 0.5f * four.y, 0.5f * four.z, 0.5f * four.w);
        stage.bias[0][n] = 0.5f * biases[i];
      }
    }
  }
};

// Bit 4 n + d: whether the token n * 8 + g of this warp has one d steps before it in its clip.
__device__ __forceinline__ unsigned neighbours(int token, int clip, int g, int sign) {
  unsigned found = 0;
#pragma unroll
  for (int n = 0; n < ROWS / 8; ++n) {
    int at = (token + n * 8 + g) % clip;
#pragma unroll
    for (int d = 0; d < W; ++d)
      if ((unsigned)(at - d * sign) < (unsigned)clip) found |= 1u << (W * n + d);
  }
  return found;
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) conv_proj(const ConvArgs a) {
  SHARED_BYTES(raw);
  Stage *stages = (Stage *)raw;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  int r = warp % DIRS, sign = r ? -1 : 1;
  int b = blockIdx.y / a.K, k = blockIdx.y % a.K, t0 = blockIdx.x * TOKENS, own = warp / DIRS * ROWS;
  const T *x = a.x + b * a.xb + k * a.xk;
  constexpr int EMPTY = (NT * 8 - P) * XR / 8;  // rows of weights that no copy fills, in 16 bytes
  for (int i = threadIdx.x; i < 2 * DIRS * EMPTY; i += THREADS)
    *((uint4 *)(stages[i / (DIRS * EMPTY)].w[i / EMPTY % DIRS] + P * XR) + i % EMPTY) = make_uint4(0, 0, 0, 0);
  float sum[HALVES][NT][4];
#pragma unroll
  for (int i = 0; i < HALVES * NT * 4; ++i) sum[i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;
  // Where this lane's rows for ldmatrix begin: tokens 0-7, 8-15, then again for 8 channels on; outputs likewise.
  int x_at = (own + REACH + lane % 16) * XR + lane / 16 * 8, w_at = (lane / 16 * 8 + lane % 8) * XR + lane / 8 % 2 * 8;
  int first = (t0 + own) % a.clip;
  bool within = first >= REACH && first + ROWS - 1 + REACH < a.clip;  // all of this warp's tokens and their neighbours
  unsigned there = neighbours(t0 + own, a.clip, g, sign);
  Copies copies;
  copies.start(a, x, k, t0);
  copies.copy(stages[0]);
  int now = 0;
#pragma unroll 1
  for (int e0 = 0; e0 < a.E; e0 += EC, now ^= 1) {
    copies.put(stages[now]);
    await_copies<0>();
    __syncthreads();
    if (e0 + EC < a.E) copies.copy(stages[now ^ 1]);
    const Stage &stage = stages[now];
    Row x_row[W], w_row = row_at(stage.w[0] + r * NT * 8 * XR + w_at);
#pragma unroll
    for (int d = 0; d < W; ++d) x_row[d] = row_at(stage.x + x_at - d * sign * XR);
    const float *taps = stage.tap[0] + (r * EC + q * 2) * W, *biases = stage.bias[0] + r * EC + q * 2;
#pragma unroll 1
    for (int tile = 0; tile < EC && e0 + tile < a.E; tile += 16) {
      unsigned near[HALVES][W][4], u[HALVES][4];
#pragma unroll
      for (int n = 0; n < HALVES * W; ++n) read4(near[n / W][n % W], ahead(x_row[n % W], n / W * 16 * XR + tile));
      if (!within)
#pragma unroll
        for (int n = 0; n < HALVES * W * 4; ++n) {  // near[h][d][i]
          int h = n / (W * 4), d = n / 4 % W, i = n % 4;
          if (!(there >> (W * (2 * h + i % 2) + d) & 1)) near[h][d][i] = 0;
        }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 *tap = (const float4 *)(taps + (tile + half * 8) * W);
        float4 m = tap[0], n = tap[1];
        float2 bias = *(const float2 *)(biases + tile + half * 8);
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            unsigned(*x)[4] = near[h];
            float v0 = bias.x + m.w * low_half(x[0][i]) + m.z * low_half(x[1][i]) + m.y * low_half(x[2][i]);
            float v1 = bias.y + n.w * high_half(x[0][i]) + n.z * high_half(x[1][i]) + n.y * high_half(x[2][i]);
            v0 += m.x * low_half(x[3][i]); v1 += n.x * high_half(x[3][i]);
            silu2_of_halves(v0, v1);
            u[h][i] = pack2(v0, v1);
          }
      }
#pragma unroll
      for (int j = 0; j < NT; j += 2) {
        unsigned m[4];
        read4(m, ahead(w_row, j * 8 * XR + tile));
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
          mma16816(sum[h][j], u[h][0], u[h][1], u[h][2], u[h][3], m[0], m[1]);
          mma16816(sum[h][j + 1], u[h][0], u[h][1], u[h][2], u[h][3], m[2], m[3]);
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < ROWS / 8; ++n) {
    int t = t0 + own + n * 8 + g;
    if (t < a.L) {
      T *to = a.p + (((long long)(r * a.K + k) * a.B + b) * a.L + t) * P + 2 * q;
#pragma unroll
      for (int j = 0; j < NT; ++j) {
        const float *two = sum[n / 2][j] + n % 2 * 2;
        if (j * 8 + 2 * q < P) *(unsigned *)(to + j * 8) = pack2(two[0], two[1]);
      }
    }
  }
}
"""


class _Args(ctypes.Structure):
    """``struct ConvArgs`` of the source, field for field."""

    _fields_ = (
        [(n, ctypes.c_void_p) for n in ("x", "w", "conv_w", "conv_b", "p")]
        + [(n, ctypes.c_longlong) for n in ("xb", "xt", "xk")]
        + [(n, ctypes.c_int) for n in ("B", "L", "K", "E", "clip")]
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
    return nvrtc.multiplies_bfloat16(x_BLKE.device.index or 0)


def conv_proj(
    x_BLKE: Tensor, weight_RKEW: Tensor, bias_RKE: Tensor, proj_RKPE: Tensor, out: Tensor | None = None
) -> Tensor:
    """``p_GBLP = silu(conv(x)) proj^T``; the taps and the bias in float32. ``out`` takes it."""
    batch, length, blocks, width = x_BLKE.shape
    directions, outputs = weight_RKEW.shape[0], proj_RKPE.shape[2]
    p = x_BLKE.new_empty(directions * blocks, batch, length, outputs) if out is None else out
    weight, bias, proj = weight_RKEW.float(), bias_RKE.float(), proj_RKPE.to(x_BLKE.dtype)
    args = _Args(*(t.data_ptr() for t in (x_BLKE, proj, weight, bias, p)), *x_BLKE.stride()[:3])
    # Clips that lie one behind the other are one sequence: blocks of tokens then need not end with each.
    together = x_BLKE.stride(0) == length * x_BLKE.stride(1) and batch * length < 2**31
    sequences, tokens_each = (1, batch * length) if together else (batch, length)
    args.B, args.L, args.K, args.E, args.clip = sequences, tokens_each, blocks, width, length
    warps, blocks_at_once = environment.projection_launch() or ((4, 4) if outputs <= 64 else (8, 1))
    tiles, tokens = -(-outputs // 16) * 2, 32 * warps // directions
    shared = 4 * (_CHANNELS + 8) * (tokens + 6 + directions * tiles * 8) + 2 * 20 * _CHANNELS * directions
    values = {"DTYPE": KINDS[x_BLKE.dtype], "P": outputs, "DIRS": directions}
    values |= {"WARPS": warps, "MIN_BLOCKS": blocks_at_once}
    defines = tuple(f"{name}={value}" for name, value in values.items())
    with nvrtc.on(x_BLKE):
        run = nvrtc.kernel(COMMON + PRIMITIVES + PROJ, "conv_proj", defines, x_BLKE.device.index or 0)
        run((-(-tokens_each // tokens), sequences * blocks, 1), 32 * warps, args, shared)
    return p
