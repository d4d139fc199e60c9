// The convolution of conv_projection.cu where a lane's four tokens are a run, so that it needs seven rows for them, not
// four times four, and unpacks each value once.
//
// Row n * 8 + g of a warp's products is token 4 g + n (in a reversed direction 4 g + 3 - n). d taps before it is row
// 8 (n - d) + g of the same lane: `slots` n - d, -3 to 3, are all that it needs, matrices of 8 x 8 for ldmatrix. In
// shared memory 16 bytes after every four rows keep them free of bank conflicts. A tap for which a clip has no token is
// left out of the sum by a predicate, so values are unpacked once there, too.
#pragma once

#include "ssamba/conv_projection_tile.cuh"

#define RUN (ROWS / 8)                 // tokens of a lane
static_assert(RUN == W, "the rows of all taps are four quadruples of registers");

// The token, from the warp's first one on, that this lane addresses for ldmatrix in a slot.
__device__ __forceinline__ int run_token(int lane, int sign, int slot) {
  return lane % 8 * RUN + (sign > 0 ? slot : RUN - 1 - slot);
}

// Four addresses: of two slots each, of 16 channels.
__device__ __forceinline__ int run_slot(int lane, int i) { return 2 * i + lane / 16 - REACH; }
__device__ __forceinline__ int run_part(int lane) { return lane / 8 % 2 * 8; }

// u = silu(conv(x)) of two channels of a lane's run, with their taps and biases, as registers 2 half and 2 half + 1 of
// the matrix a of each product. x[i]: slot 2 i - 3 of the first eight channels, of the others, slot 2 i - 2.
template <bool WITHIN>
__device__ __forceinline__ void convolve_run(unsigned (*u)[4], const unsigned (*x)[4], int half, const float *tap,
                                             const float *bias, unsigned there) {
  const float4 *from = (const float4 *)tap;
  float4 t0 = from[0], t1 = from[1];
  float2 b = *(const float2 *)bias;
#pragma unroll
  for (int n = 0; n < RUN; ++n) {
    float v0 = b.x, v1 = b.y, of0[W] = {t0.w, t0.z, t0.y, t0.x}, of1[W] = {t1.w, t1.z, t1.y, t1.x};
#pragma unroll
    for (int d = 0; d < W; ++d) {
      int slot = n - d + REACH;
      unsigned two = x[slot / 2][slot % 2 * 2 + half];
      if (WITHIN || d == 0) {
        v0 += of0[d] * low_half(two); v1 += of1[d] * high_half(two);
      } else {
        fma2_where(there & 1u << (W * n + d), of0[d], low_half(two), v0, of1[d], high_half(two), v1);
      }
    }
    silu2_of_halves(v0, v1);
    u[n / 2][2 * half + n % 2] = pack2_finite(v0, v1);
  }
}

struct __align__(16) Taps {            // of EC channels, halved
  float tap[EC * W], bias[EC];

  __device__ __forceinline__ void put(int channel, float4 taps, float b) {
    ((float4 *)tap)[channel] = make_float4(0.5f * taps.x, 0.5f * taps.y, 0.5f * taps.z, 0.5f * taps.w);
    bias[channel] = 0.5f * b;
  }
  // u = silu(conv(x)) of the 16 channels from `tile` on, as the matrix a of a product.
  __device__ __forceinline__ void convolve(unsigned (*u)[4], const SmemAddr *x_row, int tile, int lane, bool within,
                                           unsigned there) const {
    unsigned x[W][4];
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
      convolve_run<WITHIN>(u, x, half, tap + channel * W, bias + channel, there);
    }
  }
};
