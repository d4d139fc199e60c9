// What a warp of conv_projection.cu does with its tokens: the convolution of 16 channels, SiLU and the product with the
// projection's weights. The macros are explained in conv_projection.cu.
#pragma once

#include "ssamba/conv_projection_args.cuh"
#include "ssamba/fast_math.cuh"
#include "ssamba/ptx_sm80.cuh"

#define W 4
#define REACH (W - 1)
#define HALVES (ROWS / 16)             // products of 16 tokens of a warp
#ifndef XR
#define XR (EC + 8)                    // a row in shared memory, padded against bank conflicts
#endif
#define NT ((P + 15) / 16 * 2)         // tiles of 8 outputs, an even number

// Which of a warp's tokens row n * 8 + g of its products is.
#ifdef RUNS
#define ROW_TOKEN(n, g, sign) (ROWS / 8 * (g) + ((sign) > 0 ? (n) : ROWS / 8 - 1 - (n)))
#else
#define ROW_TOKEN(n, g, sign) ((n) * 8 + (g))
#endif

// Bit W n + d: whether the clip of the token of row n * 8 + g of this warp has a token d steps before it.
__device__ __forceinline__ unsigned neighbours(int token, int clip, int g, int sign) {
  unsigned found = 0;
#pragma unroll
  for (int n = 0; n < ROWS / 8; ++n) {
    int at = (token + ROW_TOKEN(n, g, sign)) % clip;
#pragma unroll
    for (int d = 0; d < W; ++d)
      if ((unsigned)(at - d * sign) < (unsigned)clip) found |= 1u << (W * n + d);
  }
  return found;
}

// Loads x of 16 channels at each of the taps' distances; zeros where the clip has no such token.
__device__ __forceinline__ void load_neighbours(unsigned (*near)[W][4], const SmemAddr *x_row, int tile, bool within,
                                                unsigned there) {
#pragma unroll
  for (int n = 0; n < HALVES * W; ++n)
    ldmatrix_x4(near[n / W][n % W], smem_offset(x_row[n % W], n / W * 16 * XR + tile));
  if (!within)
#pragma unroll
    for (int n = 0; n < HALVES * W * 4; ++n) {  // near[h][d][i]
      int h = n / (W * 4), d = n / 4 % W, i = n % 4;
      if (!(there >> (W * (2 * h + i % 2) + d) & 1)) near[h][d][i] = 0;
    }
}

// silu(conv(x)) of two channels of a token, from the registers i that load_neighbours filled. m, n: the channels' taps;
// taps and bias are halved, unless SLICES is given.
__device__ __forceinline__ unsigned convolve(const unsigned (*x)[4], int i, float4 m, float4 n, float2 bias) {
  float v0 = bias.x + m.w * low_half(x[0][i]) + m.z * low_half(x[1][i]) + m.y * low_half(x[2][i]);
  float v1 = bias.y + n.w * high_half(x[0][i]) + n.z * high_half(x[1][i]) + n.y * high_half(x[2][i]);
  v0 += m.x * low_half(x[3][i]); v1 += n.x * high_half(x[3][i]);
#ifdef SLICES
  silu2(v0, v1);
#else
  silu2_of_halves(v0, v1);
#endif
  return pack2_finite(v0, v1);
}

// sum += u w^T of 16 channels. w_row: this lane's row of w.
__device__ __forceinline__ void project(float (*sum)[NT][4], unsigned (*u)[4], SmemAddr w_row) {
#pragma unroll
  for (int j = 0; j < NT; j += 2) {
    unsigned m[4];
#if EXACT_TILES
    if (j * 8 + 8 >= P) {                // nobody reads the other sums
      ldmatrix_x2(m, smem_offset(w_row, j * 8 * XR));
#pragma unroll
      for (int h = 0; h < HALVES; ++h) mma_m16n8k16(sum[h][j], u[h][0], u[h][1], u[h][2], u[h][3], m[0], m[1]);
      continue;
    }
#endif
    ldmatrix_x4(m, smem_offset(w_row, j * 8 * XR));
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      mma_m16n8k16(sum[h][j], u[h][0], u[h][1], u[h][2], u[h][3], m[0], m[1]);
      mma_m16n8k16(sum[h][j + 1], u[h][0], u[h][1], u[h][2], u[h][3], m[2], m[3]);
    }
  }
}
