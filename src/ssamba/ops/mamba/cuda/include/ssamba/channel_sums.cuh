// Rows of states in shared memory, and their sums over channels by matrix products, for scan_backward_lanes.cu.
//
// A row holds 32 channels by 16 states as 16-bit values, 32 bytes a channel. The two halves of every second group of
// four channels are swapped, which avoids bank conflicts.
#pragma once

#include "ssamba/tiles.cuh"

#define HALF 8                       // steps between saved states
#define ROW 1024                     // bytes of 32 channels by 16 states

// The two values in 32 bits.
__device__ __forceinline__ float low_of(unsigned v) { return load((T)(v & 0xffffu)); }
__device__ __forceinline__ float high_of(unsigned v) {
#if DTYPE == 1
  return __uint_as_float(v & 0xffff0000u);
#else
  return load((T)(v >> 16));
#endif
}

// Stores 16 values of this lane's channel in a row, and loads them.
__device__ __forceinline__ void store_row(char *row, int lane, const float *h) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float *v = h + 8 * half;
    *(uint4 *)(row + lane * 32 + (half ^ (lane / 4 & 1)) * 16) =
        make_uint4(pack2(v[0], v[1]), pack2(v[2], v[3]), pack2(v[4], v[5]), pack2(v[6], v[7]));
  }
}
__device__ __forceinline__ void load_row(const char *row, int lane, float *h) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint4 v = *(const uint4 *)(row + lane * 32 + (half ^ (lane / 4 & 1)) * 16);
    unsigned w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      h[8 * half + 2 * i] = low_of(w[i]);
      h[8 * half + 2 * i + 1] = high_of(w[i]);
    }
  }
}

// Sums the 32 channels of rows[j] times the weights of step j, for eight steps. The weights are the matrix b: lane
// 4 g + q holds those of step g and channels 2 q, 2 q + 1, 2 q + 8, 2 q + 9 (and the same from 16 on). Of the result it
// gets states g and g + 8 of steps 2 q and 2 q + 1.
__device__ __forceinline__ void sum_channels(const char *rows, const unsigned *weights, float *sums, int lane) {
  int c = (lane >> 4 & 1) * 8 + (lane & 7);
  const char *from = rows + c * 32 + ((lane >> 3 & 1) ^ (c / 4 & 1)) * 16;
#pragma unroll
  for (int j = 0; j < HALF; ++j) {
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned m[4];
      ldmatrix_x4_trans(m, from + j * ROW + i * 512);
      mma_m16n8k16(d, m[0], m[1], m[2], m[3], weights[2 * i], weights[2 * i + 1]);
    }
    if (lane % 4 == j / 2) {
      sums[j % 2] = d[j % 2];
      sums[2 + j % 2] = d[2 + j % 2];
    }
  }
}

// Stores the result of sum_channels to to[step][32], from column `at` on (dB 0, dC 16).
__device__ __forceinline__ void store_sums(float *to, int at, const float *sums, int lane) {
  int g = lane / 4, q = lane % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) to[(2 * q + i % 2) * 32 + at + g + i / 2 * 8] = sums[i];
}
