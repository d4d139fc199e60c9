// The states that scan_forward_mma.cu saves, those before every 8 steps: the backward goes on from them.
#pragma once

#include "ssamba/mma_elementwise.cuh"

#if SAVES
static_assert(QUADS && SPLIT == 1 && !CHUNKED, "saved are four states in a row, of a direction from its first step on");
// Two directions meet where a batch of the first ends, so blocks of 8 steps of the second begin anywhere.
#ifndef DUE
#define DUE 0
#endif
#define SHIFTED ((PHASE == 1 || PHASE == 2) && DUE)

// Where a lane's states of its first channel go.
struct SavedStates {
  T *to;              // those before the first step
  int at, distance;   // values from there, below zero for what is not saved, and from one place to the next
#if SHIFTED
  bool second;        // whether this is direction 1
#endif

  // begin: the step, which may lie before the first one, that the first block of 8 begins with.
  __device__ __forceinline__ void start(T *first, int step, int begin, int direction, bool on) {
    to = kept(first);
    at = on ? (begin + (direction ? DUE : 0)) / 8 * step : -(1 << 30);
    distance = per_thread(step);
#if SHIFTED
    second = direction != 0;
#endif
  }
  // Before step STEP of a block.
  template <int STEP> __device__ __forceinline__ void before(const float *h) {
#if SHIFTED
    if constexpr (STEP == 0 || STEP == DUE)
      if (second == (STEP == DUE)) save(h);
#else
    if constexpr (STEP == 0) save(h);
#endif
  }
  __device__ __forceinline__ void save(const float *h) {
    if (at >= 0) {
      store_quad<0>(to + at, pack2(h[0], h[1]), pack2(h[4], h[5]));
      store_quad<8 * N>(to + at, pack2(h[2], h[3]), pack2(h[6], h[7]));
    }
    at += distance;
  }
};
#endif
