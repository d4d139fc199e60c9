// Tiles of the projection p in shared memory, for the kernels with a thread's states in registers (scan_forward.cu,
// scan_states.cu, scan_backward*.cu).
//
// A warp processes CW = 32 / LPC channels; LPC lanes share a channel, each with SPT of its states. A tile is TT steps
// of p: the low-rank dt (RANK values), B and C (N values each). Steps are in scan order: step s of direction 1 is
// token L - 1 - s. The product of dt and dt_proj is computed 16 steps at a time, by tensor cores where MMA.
#pragma once

#include "ssamba/common.cuh"
#include "ssamba/scan_args.cuh"

// Given: N states (NP: rounded up to a power of two), P = RANK + 2 N outputs of the projection, W taps of the
// convolution, LPC, SPT, WARPS of a block, TT.
#define CW (32 / LPC)                   // channels of a warp
#define KT ((RANK + 15) / 16)           // products of 16 values of the low-rank dt
#define NT ((CW + 7) / 8)               // products of 8 channels
#define MMA (DTYPE != 0 && P % 2 == 0)  // whether tensor cores expand the low-rank dt
#define RW (KT * 16 + 8)                // a row of the low-rank dt in shared memory, padded against bank conflicts
#define VEC (P % 4 == 0 && RANK % 4 == 0 && N % 4 == 0 && SPT > 1 ? 4 : 1)  // values of p that a load takes
#define PV (P / VEC)                    // loads of a row of p
#define PN ((TT * PV + WARPS * 32 - 1) / (WARPS * 32))  // loads of a thread

#if MMA
typedef unsigned short Low;  // element type of the low-rank dt in shared memory
#else
typedef float Low;
#endif
struct __align__(VEC * sizeof(T)) Chunk { T v[VEC]; };

// TT rows of p, loaded to registers by fetch and stored to shared memory by put.
struct TileLoader {
  Chunk p[PN];
  int steps, r;
  __device__ __forceinline__ void fetch(const T *p_rows, int L, int r_, int s0, int end) {
    r = r_;
    steps = min(TT, end - s0);
    const Chunk *from = (const Chunk *)(p_rows + (long long)(r ? L - s0 - steps : s0) * P) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < PN; ++i)
      if ((int)threadIdx.x + i * (WARPS * 32) < steps * PV) p[i] = from[i * (WARPS * 32)];
  }
  __device__ __forceinline__ void put(Low *low, float *bc) const {
#pragma unroll
    for (int i = 0; i < PN; ++i) {
      unsigned n = threadIdx.x + i * (WARPS * 32), row = n / PV;
      int j = n % PV * VEC;
      if (n < steps * PV) {
        int step = r ? steps - 1 - row : row;
        if (j < RANK) {
#pragma unroll
          for (int v = 0; v < VEC; ++v) {
#if MMA
            low[step * RW + j + v] = p[i].v[v];
#else
            low[step * RW + j + v] = load(p[i].v[v]);
#endif
          }
        } else {
          int m = j - RANK, is_c = m >= N, state = is_c ? m - N : m;
#pragma unroll
          for (int v = 0; v < VEC; ++v) {
            int st = state + v;
            bc[step * 2 * NP + st / SPT * 2 * SPT + is_c * SPT + st % SPT] = load(p[i].v[v]);
          }
        }
      }
    }
  }
};

// dts[16][CW] = 16 rows of low times this warp's part of dt_proj.
__device__ __forceinline__ void expand_dt(const Low *low, const float *wlow, float *dts, int lane) {
#if MMA
  float acc[NT][4];
#pragma unroll
  for (int j = 0; j < NT; ++j) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
  const unsigned *rows = (const unsigned *)low;
  int at = (lane / 4) * (RW / 2) + lane % 4;
#pragma unroll
  for (int k = 0; k < KT; ++k) {
    unsigned a0 = rows[at + k * 8], a1 = rows[at + 8 * (RW / 2) + k * 8];
    unsigned a2 = rows[at + k * 8 + 4], a3 = rows[at + 8 * (RW / 2) + k * 8 + 4];
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      uint2 b = ((const uint2 *)wlow)[(k * NT + j) * 32 + lane];
      mma_m16n8k16(acc[j], a0, a1, a2, a3, b.x, b.y);
    }
  }
#pragma unroll
  for (int j = 0; j < NT; ++j) {
    int c = j * 8 + lane % 4 * 2, row = lane / 4;
    if (CW >= 8 || c < CW) {
      *(float2 *)(dts + row * CW + c) = make_float2(acc[j][0], acc[j][1]);
      *(float2 *)(dts + (row + 8) * CW + c) = make_float2(acc[j][2], acc[j][3]);
    }
  }
#else
  for (int n = lane; n < 16 * CW; n += 32) {
    float sum = 0.0f;
    for (int k = 0; k < RANK; ++k) sum += low[n / CW * RW + k] * wlow[k * CW + n % CW];
    dts[n] = sum;
  }
#endif
}

// This warp's part of dt_proj: as fragments of the matrix b of the product, or as [rank][channel].
__device__ __forceinline__ void put_weights(const ScanArgs &a, long long dir_block, int e0, float *wlow, int lane) {
#if MMA
  for (int i = 0; i < KT * NT * 2; ++i) {
    int half = i % 2, j = i / 2 % NT, k = i / 2 / NT, c = j * 8 + lane / 4, r = k * 16 + half * 8 + lane % 4 * 2;
    T pair[2];
#pragma unroll
    for (int v = 0; v < 2; ++v)
      pair[v] = c < CW && e0 + c < a.E && r + v < RANK
                    ? pack(a.dt_proj[(dir_block * a.E + e0 + c) * RANK + r + v]) : T(0);
    ((unsigned *)wlow)[((k * NT + j) * 32 + lane) * 2 + half] = pair[0] | (unsigned)pair[1] << 16;
  }
#else
  for (int n = lane; n < RANK * CW; n += 32) {
    int c = e0 + n % CW;
    wlow[n] = c < a.E ? a.dt_proj[(dir_block * a.E + c) * RANK + n / CW] : 0.0f;
  }
#endif
}
