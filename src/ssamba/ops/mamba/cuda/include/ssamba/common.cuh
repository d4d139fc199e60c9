// Functions of every kernel: activations and their derivatives in float32, and sums over the lanes of a warp.
#pragma once

#include "ssamba/ptx.cuh"

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

__device__ __forceinline__ float sigmoid(float v) { return rcp(1.0f + ex2(-LOG2E * v)); }

// log(1 + e^v); for small e^v by its series, because 1 + e^v would round its digits away.
__device__ __forceinline__ float softplus(float v) {
  float e = ex2(LOG2E * v);
  float series = e * (1.0f - e * (0.5f - e * (0.33333333f - e * 0.25f)));
  float log = LN2 * lg2(1.0f + e);
  return v > 20.0f ? v : (e < 0.0625f ? series : log);
}

// sigmoid(v) from d = softplus(v): 1 - e^-d, for small d by its series, because the difference cancels.
__device__ __forceinline__ float sigmoid_of_softplus(float d) {
  float series = d * (1.0f - d * (0.5f - d * (0.16666667f - d * 0.041666667f)));
  return d < 0.0625f ? series : 1.0f - ex2(-LOG2E * d);
}

// The gate's argument, kept away from zero: the backward recovers the ungated output by dividing by the gate. The bound
// is far below the resolution of the output's type, and a value of either type of 16 bits.
#define MIN_GATE_INPUT (DTYPE == 2 ? 0x1p-12f : 0x1p-66f)
#define MIN_GATE_INPUTS (DTYPE == 2 ? 0x0c000c00u : 0x1e801e80u)  // two in 16 bits
__device__ __forceinline__ float gate_input(float z) {
  return fabsf(z) < MIN_GATE_INPUT ? copysignf(MIN_GATE_INPUT, z) : z;
}
// silu'(z) / silu(z). Times the gated output and its gradient it is the gradient of z.
__device__ __forceinline__ float gate_ratio(float z, float sig) { return rcp(z) + 1.0f - sig; }

// r^first, r^(first + 1), ... from log2 r. Each is at the end of a tree of products, at most log2 COUNT + 1 of them, so
// that its relative error stays at some roundings of float32.
template <int COUNT> __device__ __forceinline__ void powers(float log, float first, float *to) {
  float step = ex2(log);
  to[0] = ex2(log * first);
#pragma unroll
  for (int have = 1; have < COUNT; have *= 2, step *= step)
#pragma unroll
    for (int i = 0; i < have && have + i < COUNT; ++i) to[have + i] = to[i] * step;
}
// The same from r itself on, with one special function.
template <int COUNT> __device__ __forceinline__ void powers(float log, float *to) {
  to[0] = ex2(log);
#pragma unroll
  for (int n = 2; n <= COUNT; ++n) to[n - 1] = to[n / 2 - 1] * to[n - n / 2 - 1];
}

// A transposed reduction: sums CNT values over the lanes whose numbers differ in the bits WD, WD / 2, ..., END. Each
// step exchanges half of the values left, so 8 values over 8 lanes take 7 shuffles (a butterfly takes 24). At the end
// a lane holds the fold_left() sums from number fold_at() on.
template <int CNT, int WD, int END> __device__ __forceinline__ void fold(float *v, int lane) {
  if constexpr (WD >= END) {
    if constexpr (CNT > 1) {
      bool up = lane & WD;
#pragma unroll
      for (int i = 0; i < CNT / 2; ++i) {
        float give = up ? v[i] : v[i + CNT / 2];
        float keep = up ? v[i + CNT / 2] : v[i];
        v[i] = keep + __shfl_xor_sync(0xffffffffu, give, WD);
      }
      fold<CNT / 2, WD / 2, END>(v, lane);
    } else {
      v[0] += __shfl_xor_sync(0xffffffffu, v[0], WD);
      fold<1, WD / 2, END>(v, lane);
    }
  }
}
template <int CNT, int WD, int END> __device__ __forceinline__ int fold_at(int lane) {
  if constexpr (WD >= END && CNT > 1)
    return ((lane & WD) ? CNT / 2 : 0) + fold_at<CNT / 2, WD / 2, END>(lane);
  else
    return 0;
}
template <int CNT, int WD, int END> __host__ __device__ constexpr int fold_left() {
  if constexpr (WD >= END && CNT > 1)
    return fold_left<CNT / 2, WD / 2, END>();
  else
    return CNT;
}
