// What the forward scan and the scan of states share: where a lane is, and the convolution of a batch of steps.
//
// Given, besides the macros of tiles.cuh: BATCH, steps of a batch.
#pragma once

#include "ssamba/tiles.cuh"

#define EW (BATCH / LPC)                // steps of a batch that a lane computes elementwise: every LPC-th
#define HIST ((W - 1 + LPC - 1) / LPC)  // steps of x that a lane keeps for the convolution

// Which lane of which warp this thread is, and what it computes: with the lanes s of a channel, channel e (number c of
// the warp's, from e0 on) of mixer k and direction r of clip b. If the channel does not exist, `on` is false and e the
// last.
struct LanePlace {
  int lane, warp, s, c, b, k, back, r, e0, e;  // back: whether it runs from right to left
  bool on;
  long long dir_block, base;  // r K + k, and the number of its clip b
};
__device__ __forceinline__ LanePlace lane_place(const ScanArgs &a) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, s = lane % LPC, c = lane / LPC;
#ifdef CHUNKED
  int b = blockIdx.y / a.K, k = blockIdx.y % a.K, r = blockIdx.z % a.R;
#else
  int b = blockIdx.y / a.K, k = blockIdx.y % a.K, r = blockIdx.z;
#endif
  int e0 = (blockIdx.x * WARPS + warp) * CW, e = e0 + c;
  bool on = e < a.E;
  if (!on) e = a.E - 1;
  long long dir_block = (long long)r * a.K + k;
  return {lane, warp, s, c, b, k, REVERSED(r, k), r, e0, e, on, dir_block, dir_block * a.B + b};
}

// The decays of a lane's states, those from s SPT on, at a step. TIED: log2 r is a2[0] for each unit of delta.
#if TIED
#define RATES 1
#define DECAY(delta, i) decay[i]
#define LOAD_DECAYS(delta)                                                  \
  float decay[SPT];                                                         \
  if constexpr (LPC == 1) powers<SPT>((delta) * a2[0], decay);              \
  else powers<SPT>((delta) * a2[0], (float)(s * SPT + 1), decay);
#else
#define RATES SPT
#define DECAY(delta, i) ex2((delta) * a2[i])
#define LOAD_DECAYS(delta)
#endif

// SiLU of the convolution at this lane's step i of a batch. X: x of its last steps of the batch before, then this
// batch.
__device__ __forceinline__ float activation(const float *X, const float *tap, float bias, int i, int s) {
  float v = bias + tap[W - 1] * X[HIST + i];
#pragma unroll
  for (int d = 1; d < W; ++d) {
    if constexpr (LPC == 1) v += tap[W - 1 - d] * X[HIST + i - d];
    else {  // from the lane that computes the step d before, in this batch's row or the previous one
      int from = i + HIST - d / LPC;
      float give = s + d % LPC >= LPC ? X[from > 0 ? from - 1 : 0] : X[from];
      v += tap[W - 1 - d] * __shfl_sync(0xffffffffu, give, (s - d) & (LPC - 1), LPC);
    }
  }
  return v * sigmoid(v);
}
