// The convolution of conv_projection.cu where a lane's four tokens are a run, so that it needs seven rows for them, not
// four times four. With TAPS 1 in float32, each value unpacked once; with TAPS 2 as products.
//
// Row n * 8 + g of a warp's products is token 4 g + n (in a reversed direction 4 g + 3 - n). d taps before it is row
// 8 (n - d) + g of the same lane: `slots` n - d, -3 to 3, are all that it needs, matrices of 8 x 8 for ldmatrix. In
// shared memory 16 bytes after every four rows keep them free of bank conflicts.
//
// As products: v (16 tokens x 8 channels) = bias + sum over taps of X_d (16 x 8) diag(tap_d) (8 x 8), two taps in one
// product of depth 16. A tap is its 16-bit value and, in a second product, the 16-bit value of the rest, so that it
// has 16 bits or more; x is exact, and sums are float32.
#pragma once

#include "ssamba/conv_projection_tile.cuh"

#define RUN (ROWS / 8)                 // tokens of a lane
static_assert(RUN == W, "the rows of all taps are four quadruples of registers");

// The token, from the warp's first one on, that this lane addresses for ldmatrix in a slot.
__device__ __forceinline__ int run_token(int lane, int sign, int slot) {
  return lane % 8 * RUN + (sign > 0 ? slot : RUN - 1 - slot);
}

// Zero instead of a pair of channels d taps before row n where its clip has no such token.
template <bool WITHIN> __device__ __forceinline__ unsigned masked(unsigned two, int n, int d, unsigned there) {
  return WITHIN || there >> (W * n + d) & 1 ? two : 0;
}

#if TAPS == 1
// Four addresses: of two slots each, of 16 channels.
__device__ __forceinline__ int run_slot(int lane, int i) { return 2 * i + lane / 16 - REACH; }
__device__ __forceinline__ int run_part(int lane) { return lane / 8 % 2 * 8; }

struct __align__(16) Taps {            // of EC channels, halved
  float tap[EC * W], bias[EC];

  __device__ __forceinline__ void clear(int) {}
  __device__ __forceinline__ void put(int channel, float4 taps, float b) {
    ((float4 *)tap)[channel] = make_float4(0.5f * taps.x, 0.5f * taps.y, 0.5f * taps.z, 0.5f * taps.w);
    bias[channel] = 0.5f * b;
  }
  // u = silu(conv(x)) of the 16 channels from `tile` on, as the matrix a of a product.
  __device__ __forceinline__ void convolve(unsigned (*u)[4], const SmemAddr *x_row, int tile, int lane, bool within,
                                           unsigned there) const {
    unsigned x[W][4];                  // x[i]: slot 2 i - 3 of the first eight channels, of the others, slot 2 i - 2
#pragma unroll
    for (int i = 0; i < 3; ++i) ldmatrix_x4(x[i], smem_offset(x_row[i], tile));
    ldmatrix_x2(x[3], smem_offset(x_row[3], tile));
    if (within) convolve<true>(u, x, tile, lane, there);
    else convolve<false>(u, x, tile, lane, there);
  }
  template <bool WITHIN>
  __device__ __forceinline__ void convolve(unsigned (*u)[4], const unsigned (*x)[4], int tile, int lane,
                                           unsigned there) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int channel = tile + half * 8 + lane % 4 * 2;
      const float4 *from = (const float4 *)(tap + channel * W);
      float4 t0 = from[0], t1 = from[1];
      float2 b = *(const float2 *)(bias + channel);
#pragma unroll
      for (int n = 0; n < RUN; ++n) {
        unsigned two[W];
#pragma unroll
        for (int d = 0; d < W; ++d) {
          int slot = n - d + REACH;
          two[d] = masked<WITHIN>(x[slot / 2][slot % 2 * 2 + half], n, d, there);
        }
        float v0 = b.x + t0.w * low_half(two[0]) + t0.z * low_half(two[1]) + t0.y * low_half(two[2]);
        float v1 = b.y + t1.w * high_half(two[0]) + t1.z * high_half(two[1]) + t1.y * high_half(two[2]);
        v0 += t0.x * low_half(two[3]); v1 += t1.x * high_half(two[3]);
        silu2_of_halves(v0, v1);
        u[n / 2][2 * half + n % 2] = pack2_finite(v0, v1);
      }
    }
  }
};
#else
// Three addresses: the operands a of two taps, where those of rows 0 to 15 with the first two are those of rows 16 to
// 31 with the last two. Slots s, s + 1, s - 1, s of eight channels; s is 2 i - 2.
__device__ __forceinline__ int run_slot(int lane, int i) { return 2 * i - 2 + (lane / 8 == 1) - (lane / 8 == 2); }
__device__ __forceinline__ int run_part(int) { return 0; }

struct __align__(16) Taps {            // of EC channels, halved
  // Of eight channels: the taps in 16 bits, that of the token itself first, in the half of a register where the
  // diagonal has them; zeros for the lanes that hold none of the diagonal; then the same of the rest.
  uint4 diagonal[EC / 8][2][8 + 1];
  float bias[EC];

  // Writes the zeros, which stay.
  __device__ __forceinline__ void clear(int thread) {
    if (thread < EC / 4) diagonal[thread / 2][thread % 2][8] = make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void put(int channel, float4 taps, float b) {
    unsigned high[W], rest[W], left = channel % 2 * 16;
    float four[W] = {0.5f * taps.w, 0.5f * taps.z, 0.5f * taps.y, 0.5f * taps.x};
#pragma unroll
    for (int d = 0; d < W; ++d) {
      high[d] = pack2_finite(four[d], 0.0f);
      rest[d] = pack2_finite(four[d] - low_half(high[d]), 0.0f) << left;
      high[d] <<= left;
    }
    diagonal[channel / 8][0][channel % 8] = make_uint4(high[0], high[1], high[2], high[3]);
    diagonal[channel / 8][1][channel % 8] = make_uint4(rest[0], rest[1], rest[2], rest[3]);
    bias[channel] = 0.5f * b;
  }
  __device__ __forceinline__ void convolve(unsigned (*u)[4], const SmemAddr *x_row, int tile, int lane, bool within,
                                           unsigned there) const {
    if (within) convolve<true>(u, x_row, tile, lane, there);
    else convolve<false>(u, x_row, tile, lane, there);
  }
  template <bool WITHIN>
  __device__ __forceinline__ void convolve(unsigned (*u)[4], const SmemAddr *x_row, int tile, int lane,
                                           unsigned there) const {
    int g = lane / 4, q = lane % 4, mine = q == g / 2 ? g : 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 b = *(const float2 *)(bias + tile + half * 8 + q * 2);
      const float c[4] = {b.x, b.y, b.x, b.y};
      unsigned x[3][4];
#pragma unroll
      for (int i = 0; i < 3; ++i) ldmatrix_x4(x[i], smem_offset(x_row[i], tile + half * 8));
      uint4 high = diagonal[tile / 8 + half][0][mine], rest = diagonal[tile / 8 + half][1][mine];
#pragma unroll
      for (int h = 0; h < HALVES; ++h) {
        float v[4];
#pragma unroll
        for (int d = 0; d < W; d += 2) {
          unsigned a[4];
#pragma unroll
          for (int i = 0; i < 4; ++i)
            a[i] = masked<WITHIN>(x[h + 1 - d / 2][i], 2 * h + i % 2, d + i / 2, there);
          if (d == 0) mma_m16n8k16_from(v, a[0], a[1], a[2], a[3], high.x, high.y, c);
          else mma_m16n8k16(v, a[0], a[1], a[2], a[3], high.z, high.w);
          mma_m16n8k16(v, a[0], a[1], a[2], a[3], d ? rest.z : rest.x, d ? rest.w : rest.y);
        }
        silu2_of_halves(v[0], v[1]);
        silu2_of_halves(v[2], v[3]);
        u[h][2 * half] = pack2_finite(v[0], v[1]);
        u[h][2 * half + 1] = pack2_finite(v[2], v[3]);
      }
    }
  }
};
#endif
