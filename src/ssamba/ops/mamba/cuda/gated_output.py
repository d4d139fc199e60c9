"""``triton_kernels.gated_output`` in CUDA C++ for Hopper: both products by ``wgmma``, weights and y by bulk copies.

A block goes over tiles of 128 tokens. Two warp groups own 64 tokens each and keep in registers what they need of them:
the normalised stream (the left side of z's product) and the sums of the output product. For 64 channels at a time z is
multiplied out, gates y, and is in that layout the left side of the output product. One more warp only starts copies: of
both weights' and y's next channels, in a ring of three places, also across the border of two tiles. The groups take
turns: while one's products run, the other gates.

How often weights are fetched bounds the portable form, whose programs own 64 tokens. Here two blocks are a cluster, and
each fetches half of every weight for both: once for 256 tokens.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.cuda.kernels.common import COMMON, KINDS
from ssamba.ops.mamba.cuda.kernels.ptx_sm80 import PRIMITIVES
from ssamba.ops.mamba.cuda.kernels.ptx_sm90 import hopper

_WIDEST = 192  # of the stream: its registers
_TOKENS, _CHANNELS, _STAGES = 128, 64, 3
_THREADS = 384

_KERNEL = r"""
#if WIDE
typedef float Stream;
#else
typedef T Stream;
#endif
struct GateArgs {
  Map y, stream_map, wz, wo;  // [rows, X] and [rows, D] by boxes of 128 x 64; [X, D] by 32 x 64; [D, X] by D / 2 x 64
  const T *bz;
  Stream *stream;
  T *out;
  long long rows;
  float eps, scale;
};
#define BN 64                     // channels at a time
#define TILES (D / 8)
#define TOKENS 128
#define WO_AT (BN * D * 2)        // bytes in a stage: wz, wo, y
#define Y_AT (2 * WO_AT)
#define STAGE (Y_AT + TOKENS * BN * 2)
#define BARS_AT (STAGES * STAGE)  // full, then free
#define BIAS_AT (BARS_AT + 128)
#define CHUNKS (X / BN)

__device__ __forceinline__ float2 read_two(const float *at) { return *(const float2 *)at; }
__device__ __forceinline__ float2 read_two(const T *at) {
  unsigned pair = *(const unsigned *)at;
  return make_float2(low_half(pair), high_half(pair));
}

// Where in the ring, and how often round it.
struct Place {
  int stage = 0, round = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) { stage = 0; round ^= 1; }
  }
};

// Mean and 1 / deviation of this lane's two tokens, each over the four lanes that hold it.
__device__ __forceinline__ void statistics(const float (*v)[4], float eps, float *mean, float *rstd) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < TILES; ++j) part[j % 4] += v[j][2 * row] + v[j][2 * row + 1];
    float sum = part[0] + part[1] + (part[2] + part[3]);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    mean[row] = sum / D;
    part[0] = part[1] = part[2] = part[3] = 0.0f;
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
      float p = v[j][2 * row] - mean[row], q = v[j][2 * row + 1] - mean[row];
      part[j % 4] += p * p; part[j % 4] += q * q;
    }
    float square = part[0] + part[1] + (part[2] + part[3]);
    square += __shfl_xor_sync(0xffffffffu, square, 1);
    square += __shfl_xor_sync(0xffffffffu, square, 2);
    rstd[row] = rsqrtf(square / D + eps);
  }
}

// A tile's pieces of the ring: the stream, where that has 16 bits; then, for c from 0, y and wo of channels c - 1 and
// wz of channels c, which one turn of a group reads. Each block of a cluster fetches half of the weights for both.
__device__ __forceinline__ void start_copies(const GateArgs &a, Row shared, int tiles) {
  Place place;
  int rank = block_in_cluster();
  for (int tile = blockIdx.x; tile - rank < tiles; tile += gridDim.x)
    for (int c = WIDE ? 0 : -1; c <= CHUNKS; ++c, place.next()) {
      Row full = shared + BARS_AT + place.stage * 8, at = shared + place.stage * STAGE;
      barrier_await(full + STAGES * 8, place.round ^ 1);
      if (c < 0) {
        barrier_expect(full, TOKENS * D * 2);
        for (int k = 0; k < D / 64; ++k)
          copy_box(at + k * TOKENS * 128, &a.stream_map, k * 64, tile * TOKENS, full);
        continue;
      }
      barrier_expect(full, (c < CHUNKS) * BN * D * 2 + (c > 0) * (BN * D * 2 + TOKENS * BN * 2));
      if (c > 0) {
        copy_box(at + Y_AT, &a.y, (c - 1) * BN, tile * TOKENS, full);
        copy_box_to_both(at + WO_AT + rank * D / 2 * 128, &a.wo, (c - 1) * BN, rank * D / 2, full);
      }
      if (c < CHUNKS)
        for (int k = 0; k < D / 64; ++k)
          copy_box_to_both(at + (k * BN + rank * BN / 2) * 128, &a.wz, k * 64, c * BN + rank * BN / 2, full);
    }
}

__device__ __forceinline__ void z_product(float (*z)[4], unsigned (*normal)[4], Row at) {
  Panel right = panel(at);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) wg_product<BN>(z, normal[k], beyond(right, k / 4 * BN * 128 + k % 4 * 32));
}
__device__ __forceinline__ void begin_z(float (*z)[4], const T *bias) {
#pragma unroll
  for (int j = 0; j < BN / 8; ++j) {
    float2 two = read_two(bias + j * 8);
    z[j][0] = z[j][2] = two.x; z[j][1] = z[j][3] = two.y;
  }
}
// y: this lane's first token and column. Eight tokens on are 1,024 bytes on; a token's 16 bytes are swizzled by its
// number.
__device__ __forceinline__ void gate(unsigned (*gated)[4], float (*z)[4], const char *y, int g) {
#pragma unroll
  for (int j = 0; j < BN / 8; ++j)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float lo = z[j][2 * row], hi = z[j][2 * row + 1];
      silu2(lo, hi);
      float2 by = read_two((const T *)(y + row * 1024 + ((j ^ g) * 16)));
      gated[j / 2][j % 2 * 2 + row] = pack2(lo * by.x, hi * by.y);
    }
}
__device__ __forceinline__ void out_product(float (*sum)[4], unsigned (*gated)[4], Row at) {
  Panel right = panel(at);
#pragma unroll
  for (int k = 0; k < BN / 16; ++k) wg_product<D>(sum, gated[k], beyond(right, k * 32));
}

// 64 columns of a warp's 16 tokens, whole rows of 128 bytes at a time; `at`: 2,048 bytes that only this warp uses.
__device__ __forceinline__ void store(const float (*v)[4], T *to, char *at, int lane, long long tokens) {
  char *mine = at + lane / 4 * 128 + lane % 4 * 4;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int row = 0; row < 2; ++row)
      *(unsigned *)(mine + row * 1024 + ((j ^ lane / 4) * 16)) = pack2(v[j][2 * row], v[j][2 * row + 1]);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int token = i * 4 + lane / 8, j = lane % 8;
    uint4 eight = *(const uint4 *)(at + token * 128 + ((j ^ token % 8) * 16));
    if (token < tokens) *(uint4 *)(to + token * D + j * 8) = eight;
  }
  __syncwarp();
}

struct Group {
  const GateArgs &a;
  char *raw;
  Row shared;
  int group, lane;
  Place place;

  __device__ __forceinline__ Row at() const { return shared + place.stage * STAGE; }
  __device__ __forceinline__ void await() { barrier_await(shared + BARS_AT + place.stage * 8, place.round); }
  // Both blocks' copies wait for it.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane < 2) barrier_arrive(shared + BARS_AT + (STAGES + place.stage) * 8, lane);
    place.next();
  }
  __device__ __forceinline__ void turn() { turn_await(group); wg_begin(); }
  __device__ __forceinline__ void close() { wg_close(); turn_give(1 - group); wg_await(); }

  __device__ __forceinline__ void tile(int number, int warp) {
    int g = lane / 4, q = lane % 4;
    long long first = (long long)number * TOKENS + warp * 16;
    // [j][2 row + i] is column 8 j + 2 q + i of token 8 row + g: of the left side of a product as of its sums.
    float sum[TILES][4], mean[2], rstd[2];
    const T *biases = (const T *)(raw + BIAS_AT) + q * 2;
    int row_at = (warp * 16 + g) * 128 + q * 4;
#if WIDE
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      bool there = first + row * 8 + g < a.rows;
      const float *from = a.stream + (first + row * 8 + g) * D + q * 2;
#pragma unroll
      for (int j = 0; j < TILES; ++j) {
        float2 two = there ? read_two(from + j * 8) : make_float2(0.0f, 0.0f);
        sum[j][2 * row] = two.x; sum[j][2 * row + 1] = two.y;
      }
    }
#else
    await();
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const char *from = raw + place.stage * STAGE + j / 8 * TOKENS * 128 + row_at + row * 1024;
        float2 two = read_two((const T *)(from + ((j % 8 ^ g) * 16)));
        sum[j][2 * row] = two.x; sum[j][2 * row + 1] = two.y;
      }
    release();
#endif
    statistics(sum, a.eps, mean, rstd);
    unsigned normal[D / 16][4];
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float lo = (sum[j][2 * row] - mean[row]) * rstd[row], hi = (sum[j][2 * row + 1] - mean[row]) * rstd[row];
        normal[j / 2][j % 2 * 2 + row] = pack2(lo, hi);
#if JOIN
        sum[j][2 * row] *= a.scale; sum[j][2 * row + 1] *= a.scale;
#else
        sum[j][2 * row] = sum[j][2 * row + 1] = 0.0f;
#endif
      }
    float z[BN / 8][4];
    unsigned gated[BN / 16][4];
    begin_z(z, biases);
    await();
    turn();
    z_product(z, normal, at());
    close();
    hold<BN / 8>(z);
    release();
#pragma unroll 1
    for (int c = 1; c < CHUNKS; ++c) {
      await();
      gate(gated, z, raw + place.stage * STAGE + Y_AT + row_at, g);
      begin_z(z, biases + c * BN);
      turn();
      out_product(sum, gated, at() + WO_AT);
      z_product(z, normal, at());
      close();
      hold<BN / 8>(z);
      release();
    }
    await();
    char *y = raw + place.stage * STAGE + Y_AT;
    gate(gated, z, y + row_at, g);
    turn();
    out_product(sum, gated, at() + WO_AT);
    close();
    hold<TILES>(sum);
    // This warp's y has been read: its place serves to bring results into order.
    y += warp * 2048;
#if JOIN
#if WIDE
#pragma unroll
    for (int row = 0; row < 2; ++row)
      if (first + row * 8 + g < a.rows)
#pragma unroll
        for (int j = 0; j < TILES; ++j)
          *(float2 *)(a.stream + (first + row * 8 + g) * D + j * 8 + q * 2) =
              make_float2(sum[j][2 * row], sum[j][2 * row + 1]);
#else
#pragma unroll
    for (int k = 0; k < D / 64; ++k) store(sum + k * 8, a.stream + first * D + k * 64, y, lane, a.rows - first);
#endif
    statistics(sum, a.eps, mean, rstd);
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[j][i] = (sum[j][i] - mean[i / 2]) * rstd[i / 2];
#endif
#pragma unroll
    for (int k = 0; k < D / 64; ++k) store(sum + k * 8, a.out + first * D + k * 64, y, lane, a.rows - first);
    show_writes();
    release();
  }
};

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)
    gated_output(const __grid_constant__ GateArgs a) {
  extern __shared__ __align__(1024) char raw[];
  Row shared = row_at((const T *)raw);
  int tiles = (int)((a.rows + TOKENS - 1) / TOKENS), rank = block_in_cluster();
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_make(shared + BARS_AT + s * 8, 1);
      barrier_make(shared + BARS_AT + (STAGES + s) * 8, 16);  // warps of both blocks
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  for (int i = threadIdx.x; i < X / 8; i += THREADS) ((uint4 *)(raw + BIAS_AT))[i] = ((const uint4 *)a.bz)[i];
  __syncthreads();
  cluster_await();
  int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == 8 && lane == 0) start_copies(a, shared, tiles);
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    Group group = {a, raw, shared, warp / 4, lane};
    if (group.group == 1) turn_give(0);
#pragma unroll 1
    for (int tile = blockIdx.x; tile - rank < tiles; tile += gridDim.x) group.tile(tile, warp);
  }
  cluster_await();  // what the other block sends must find this one here
}
"""


class _Args(ctypes.Structure):
    """``struct GateArgs`` of the source, field for field."""

    _fields_ = (
        [(n, nvrtc.BoxMap) for n in ("y", "stream_map", "wz", "wo")]
        + [(n, ctypes.c_void_p) for n in ("bz", "stream", "out")]
        + [("rows", ctypes.c_longlong)]
        + [(n, ctypes.c_float) for n in ("eps", "scale")]
    )


def usable(y_TX: Tensor, stream_Td: Tensor, out_Td: Tensor, *weights: Tensor) -> bool:
    """Whether the device has ``wgmma`` (compute capability 9.0) and this form takes sizes, types and addresses."""
    width, channels = stream_Td.shape[1], y_TX.shape[1]
    if not y_TX.is_cuda or width > _WIDEST or width % 64 or channels % _CHANNELS or y_TX.shape[0] == 0:
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
    narrow = stream_Td if stream_Td.dtype == torch.bfloat16 else out_Td  # a wide one is not copied
    boxes = ((y_TX, _TOKENS), (narrow, _TOKENS), (weight_Xd, _CHANNELS // 2), (out_proj_dX, width // 2))
    maps = (nvrtc.box_map(matrix, height, _CHANNELS) for matrix, height in boxes)
    addresses = (t.data_ptr() for t in (bias_X, stream_Td, out_Td))
    args = _Args(*maps, *addresses, rows, eps, 0.0 if residual_scale is None else residual_scale)
    values = {
        "DTYPE": KINDS[y_TX.dtype], "D": width, "X": y_TX.shape[1], "STAGES": _STAGES, "THREADS": _THREADS,
        "JOIN": int(residual_scale is not None), "WIDE": int(stream_Td.dtype == torch.float32),
    }  # fmt: skip
    defines = tuple(f"{name}={value}" for name, value in values.items())
    device = y_TX.device.index or 0
    with nvrtc.on(y_TX):
        run = nvrtc.kernel(COMMON + PRIMITIVES + hopper(_CHANNELS, width) + _KERNEL, "gated_output", defines, device)
        shared = _STAGES * 2 * _CHANNELS * (2 * width + _TOKENS) + 128 + 2 * y_TX.shape[1]
        pairs = min(-(-rows // (2 * _TOKENS)), torch.cuda.get_device_properties(device).multi_processor_count // 2)
        run((2 * pairs, 1, 1), _THREADS, args, shared)
