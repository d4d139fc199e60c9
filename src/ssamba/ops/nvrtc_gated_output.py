"""``triton_kernels.gated_output`` in CUDA C++ for Hopper: both products by ``wgmma``, weights shared by 128 tokens.

A warp owns 16 tokens and keeps all of them in registers: their normalised stream (the left side of z's product) and the
sums of the output product. For 32 channels at a time z is multiplied out, gates y, and is in that layout the left side
of the output product. So only weights go through shared memory, each piece once for eight warps; how often they are
fetched is what bounds the portable form, whose programs own 64 tokens.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ssamba.ops import nvrtc
from ssamba.ops.nvrtc_primitives import PRIMITIVES
from ssamba.ops.nvrtc_source import COMMON, KINDS

_WIDEST = 192  # of the stream: its registers
_TOKENS, _CHANNELS, _STAGES = 128, 32, 4


def _wgmma(columns: int) -> str:
    """``wg_product`` of so many columns: registers times shared memory, added to registers, in the background."""
    sums = ",".join(f"%{i}" for i in range(columns // 2))
    left = ",".join(f"%{columns // 2 + i}" for i in range(4))
    outputs = ", ".join(f'"+f"(d[{i // 4}][{i % 4}])' for i in range(columns // 2))
    inputs = f"{{{sums}}}, {{{left}}}, %{columns // 2 + 4}, p, 1, 1, 0;"
    return f"""
template <>
__device__ __forceinline__ void wg_product<{columns}>(float (*d)[4], const unsigned *a, Panel b) {{
  asm volatile("{{.reg .pred p; setp.ne.b32 p, 1, 0;"
               "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 "
               "{inputs}}}"
               : {outputs}
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}}
"""


_PRODUCTS = r"""
#ifndef SSAMBA_EMULATE
// What other threads copied into shared memory, a product may read: after this and a barrier.
__device__ __forceinline__ void show_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void wg_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wg_close() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wg_await() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// The right side of a product: 8 x 8 matrices one behind the other along the columns, those of the next 8 of the inner
// dimension `ahead_k` values on. Rows of 16 bytes, nothing swizzled.
typedef unsigned long long Panel;
__device__ __forceinline__ Panel panel(Row at, int ahead_k) {
  return (Panel)((at & 0x3ffff) >> 4) | (Panel)(2 * ahead_k >> 4) << 16 | (Panel)(128 >> 4) << 32;
}
__device__ __forceinline__ Panel ahead(Panel b, int values) { return b + values / 8; }
// d += a b for 16 tokens of each of four warps.
template <int COLUMNS> __device__ __forceinline__ void wg_product(float (*d)[4], const unsigned *a, Panel b);
WGMMA
#else
static void show_copies() {} static void wg_begin() {} static void wg_close() {} static void wg_await() {}
struct Panel { Row at; int ahead_k; };
static Panel panel(Row at, int ahead_k) { return {at, ahead_k}; }
static Panel ahead(Panel b, int values) { return {b.at + values, b.ahead_k}; }
template <int COLUMNS> static void wg_product(float (*d)[4], const unsigned *a, Panel b) {
  int lane = threadIdx.x % 32, at = lane / 4 * 8 + lane % 4 * 2;
  for (int j = 0; j < COLUMNS / 8; ++j) {
    unsigned pair[2];
    for (int i = 0; i < 2; ++i) { const T *v = b.at + j * 64 + i * b.ahead_k + at; pair[i] = v[0] | (unsigned)v[1] << 16; }
    mma16816(d[j], a[0], a[1], a[2], a[3], pair[0], pair[1]);
  }
}
#endif
"""

_KERNEL = r"""
struct GateArgs {
  const T *y, *wz, *bz, *wo;  // wz: [X, D], wo: [D, X]
  Stream *stream;
  T *out;
  long long rows;
  float eps, scale;
};
#define BN 32             // channels at a time
#define THREADS 256
#define TILES (D / 8)
#define TOKENS 128
#define YR (BN + 8)       // a row of y in shared memory, padded against bank conflicts
#define Y_AT (2 * BN * D)
#define STAGE (Y_AT + TOKENS * YR)  // values of both weights and y
#define BIAS_AT (STAGES * STAGE)

__device__ __forceinline__ float2 read_two(const float *at) { return *(const float2 *)at; }
__device__ __forceinline__ void write_two(float *at, float a, float b) { *(float2 *)at = make_float2(a, b); }
__device__ __forceinline__ float2 read_two(const T *at) {
  unsigned pair = *(const unsigned *)at;
  return make_float2(low_half(pair), high_half(pair));
}
__device__ __forceinline__ void write_two(T *at, float a, float b) { *(unsigned *)at = pack2(a, b); }

// A thread's share of the copies of BN channels: y, and the weights in matrices of 8 x 8 one behind the other, of which
// eight threads fill one, each with a row of 16 bytes.
struct Copies {
  const T *z, *out, *y;
  int z_to, out_to, y_to;
  bool there[2];

  __device__ __forceinline__ void start(const GateArgs &a) {
    int i = threadIdx.x, n = i % 8 + i / 32 % 4 * 8, k = i / 8 % 4 + i / 128 * 4;
    z = a.wz + n * D + k * 8; z_to = (k * BN + n) * 8;
    n = i % 8 + i / 32 * 8; k = i / 8 % 4;
    out = a.wo + n * X + k * 8; out_to = BN * D + (k * D + n) * 8;
    n = i / 4; k = i % 4;
    long long token = (long long)blockIdx.x * TOKENS + n;
    y = a.y + token * X + k * 8; y_to = Y_AT + n * YR + k * 8;
    there[0] = token < a.rows; there[1] = token + TOKENS / 2 < a.rows;
  }
  __device__ __forceinline__ void copy(Row stage) {
#pragma unroll
    for (int i = 0; i < (BN * D / 8 + THREADS - 1) / THREADS; ++i)
      if (BN * D / 8 % THREADS == 0 || threadIdx.x + i * THREADS < BN * D / 8) {
        copy_later<16>(ahead(stage, z_to + i * 8 * BN * 8), z + i * 8 * 8, true);
        copy_later<16>(ahead(stage, out_to + i * 64 * 8), out + i * 64 * X, true);
      }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      copy_later<16>(ahead(stage, y_to + i * TOKENS / 2 * YR), y + (long long)i * (TOKENS / 2) * X, there[i]);
    z += BN * D; out += BN; y += BN;
  }
};

// Mean and 1 / deviation of this lane's two tokens, each over the four lanes that hold it.
__device__ __forceinline__ void statistics(const float (*v)[4], float eps, float *mean, float *rstd) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < TILES; ++j) sum += v[j][2 * row] + v[j][2 * row + 1];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    mean[row] = sum / D;
    float square = 0.0f;
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
      float p = v[j][2 * row] - mean[row], q = v[j][2 * row + 1] - mean[row];
      square += p * p + q * q;
    }
    square += __shfl_xor_sync(0xffffffffu, square, 1);
    square += __shfl_xor_sync(0xffffffffu, square, 2);
    rstd[row] = rsqrtf(square / D + eps);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) gated_output(const GateArgs a) {
  SHARED_BYTES(raw);
  Row stages = row_at((const T *)raw);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  long long token[2];
  bool there[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    token[row] = (long long)blockIdx.x * TOKENS + warp * 16 + row * 8 + g;
    there[row] = token[row] < a.rows;
    if (!there[row]) token[row] = a.rows - 1;
  }
  Copies copies;
  copies.start(a);
#pragma unroll
  for (int c = 0; c < STAGES - 2; ++c) {
    if (c * BN < X) copies.copy(ahead(stages, c * STAGE));
    close_copies();
  }
  // [j][2 row + i] is column 8 j + 2 q + i of token 8 row + g: of the left side of a product as of its sums.
  float sum[TILES][4], mean[2], rstd[2];
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float2 two = read_two(a.stream + token[row] * D + j * 8 + q * 2);
      sum[j][2 * row] = two.x; sum[j][2 * row + 1] = two.y;
    }
  statistics(sum, a.eps, mean, rstd);
  unsigned normal[D / 16][4];
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float lo = (sum[j][2 * row] - mean[row]) * rstd[row], hi = (sum[j][2 * row + 1] - mean[row]) * rstd[row];
      normal[j / 2][j % 2 * 2 + row] = pack2(lo, hi);
      sum[j][2 * row] *= a.scale; sum[j][2 * row + 1] *= a.scale;  // 0 where the output does not join the stream
    }
  T *biases = (T *)raw + BIAS_AT;
  for (int i = threadIdx.x; i < X / 8; i += THREADS) ((uint4 *)biases)[i] = ((const uint4 *)a.bz)[i];
  int y_at = Y_AT + (warp * 16 + g) * YR + q * 2;
  int now = 0, free = (STAGES - 2) * STAGE;
#pragma unroll 1
  for (int first = 0; first < X; first += BN) {
    await_copies<STAGES - 3>();
    show_copies();
    __syncthreads();
    // Free since z of the channels before was there: products end in the order in which they began.
    if (first + (STAGES - 2) * BN < X) copies.copy(ahead(stages, free));
    close_copies();
    float z[BN / 8][4];
#pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
      float2 bias = read_two(biases + first + j * 8 + q * 2);
      z[j][0] = z[j][2] = bias.x; z[j][1] = z[j][3] = bias.y;
    }
    Panel right = panel(ahead(stages, now), BN * 8);
    wg_begin();
#pragma unroll
    for (int k = 0; k < D / 16; ++k) wg_product<BN>(z, normal[k], ahead(right, 2 * k * BN * 8));
    wg_close();
    wg_await();
    unsigned gated[BN / 16][4];
    const T *y = (const T *)raw + now + y_at;
#pragma unroll
    for (int j = 0; j < BN / 8; ++j)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float lo = z[j][2 * row], hi = z[j][2 * row + 1];
        silu2(lo, hi);
        float2 by = read_two(y + row * 8 * YR + j * 8);
        gated[j / 2][j % 2 * 2 + row] = pack2(lo * by.x, hi * by.y);
      }
    right = panel(ahead(stages, now + BN * D), D * 8);
    wg_begin();
#pragma unroll
    for (int k = 0; k < BN / 16; ++k) wg_product<D>(sum, gated[k], ahead(right, 2 * k * D * 8));
    wg_close();
    now = now == (STAGES - 1) * STAGE ? 0 : now + STAGE;
    free = free == (STAGES - 1) * STAGE ? 0 : free + STAGE;
  }
  wg_await();
#if JOIN
  statistics(sum, a.eps, mean, rstd);
#endif
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int row = 0; row < 2; ++row)
      if (there[row]) {
        float lo = sum[j][2 * row], hi = sum[j][2 * row + 1];
        long long at = token[row] * D + j * 8 + q * 2;
#if JOIN
        write_two(a.stream + at, lo, hi);
        lo = (lo - mean[row]) * rstd[row]; hi = (hi - mean[row]) * rstd[row];
#endif
        write_two(a.out + at, lo, hi);
      }
}
"""


class _Args(ctypes.Structure):
    """``struct GateArgs`` of the source, field for field."""

    _fields_ = (
        [(n, ctypes.c_void_p) for n in ("y", "wz", "bz", "wo", "stream", "out")]
        + [("rows", ctypes.c_longlong)]
        + [(n, ctypes.c_float) for n in ("eps", "scale")]
    )


def usable(y_TX: Tensor, stream_Td: Tensor, out_Td: Tensor, *weights: Tensor) -> bool:
    """Whether the device has ``wgmma`` (compute capability 9.0) and this form takes sizes, types and addresses."""
    width, channels = stream_Td.shape[1], y_TX.shape[1]
    if not y_TX.is_cuda or width > _WIDEST or width % 32 or channels % _CHANNELS or y_TX.shape[0] == 0:
        return False
    if y_TX.dtype != torch.bfloat16 or out_Td.dtype != torch.bfloat16:
        return False
    if stream_Td.dtype not in (torch.bfloat16, torch.float32):
        return False
    if any(t.data_ptr() % 16 for t in (y_TX, stream_Td, out_Td, *weights)):
        return False
    device = y_TX.device.index or 0
    return torch.cuda.get_device_capability(device) == (9, 0) and nvrtc.available(device)


def gated_output(
    y_TX: Tensor,
    stream_Td: Tensor,
    weight_Xd: Tensor,
    bias_X: Tensor,
    out_proj_dX: Tensor,
    out_Td: Tensor,
    eps: float,
    residual_scale: float | None = None,
) -> None:
    """As ``triton_kernels.gated_output.gated_output``; weights and bias in bfloat16, all aligned to 16 bytes."""
    rows, width = stream_Td.shape
    addresses = (t.data_ptr() for t in (y_TX, weight_Xd, bias_X, out_proj_dX, stream_Td, out_Td))
    join = residual_scale is not None
    args = _Args(*addresses, rows, eps, residual_scale if residual_scale is not None else 0.0)
    values = {
        "DTYPE": KINDS[y_TX.dtype], "D": width, "X": y_TX.shape[1], "STAGES": _STAGES, "JOIN": int(join),
        "WIDE": int(stream_Td.dtype == torch.float32),
    }  # fmt: skip
    products = _PRODUCTS.replace("WGMMA", "".join(_wgmma(columns) for columns in sorted({_CHANNELS, width})))
    stream = "#if WIDE\ntypedef float Stream;\n#else\ntypedef T Stream;\n#endif\n"
    defines = tuple(f"{name}={value}" for name, value in values.items())
    with nvrtc.on(y_TX):
        source = COMMON + PRIMITIVES + products + stream + _KERNEL
        run = nvrtc.kernel(source, "gated_output", defines, y_TX.device.index or 0)
        shared = _STAGES * (4 * _CHANNELS * width + 2 * _TOKENS * (_CHANNELS + 8)) + 2 * y_TX.shape[1]
        run((-(-rows // _TOKENS), 1, 1), 256, args, shared)
