// The outputs of scan_forward_mma.cu: their gate, and where a lane stores them.
#pragma once

#include "ssamba/mma_elementwise.cuh"

#define SHARE (PHASE == 2 ? 0.5f : 1.0f)
// Factors of outputs before the first ones, which are not stored: without a gate the same as later, a constant.
#define NO_GATE {SHARE, SHARE, SHARE, SHARE}

// The factors of the outputs of 8 steps: the gate, and 1/2 for the mean of two directions.
__device__ __forceinline__ void load_gate(const FragmentAddrs &at, int stage, int block, float *gate) {
#if GATED
  unsigned z[2];
  ldmatrix_x2_trans(z, smem_offset(smem_bytes(at.before, stage), Z_AT + block * 8 * XR));
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    unsigned half = halve2(at_least2(z[i], MIN_GATE_INPUTS));  // as gate_input bounds it
    gate[2 * i] = low_half(half); gate[2 * i + 1] = high_half(half);
    silu2_of_halves(gate[2 * i], gate[2 * i + 1], SHARE);
  }
#else
  gate[0] = gate[1] = gate[2] = gate[3] = SHARE;
#endif
}

// What is stored of two outputs. What other kernels go on with stays finite; an output that is too large does not.
__device__ __forceinline__ unsigned pack_outputs(float lo, float hi) {
  return GATED ? pack2(lo, hi) : pack2_finite(lo, hi);
}

// Where a lane stores the outputs of 8 steps of each 8 * SPLIT: of step g of them, its first channel pair.
struct Outputs {
  T *to;               // of the first step
  int at, distance;    // values from there, and from one 8 steps to the next
  int place, count;    // steps from there, and how many there are

  // begin: of the first batch, counted from the first step to store. g: the lane's step of 8.
  __device__ __forceinline__ void start(T *first, int step, int begin, int g, int steps, bool on) {
    to = kept(first);
    place = begin - 8 * SPLIT + g;
    at = place * step;
    distance = per_thread(8 * SPLIT * step);
#if SPLIT == 2
    count = max(steps, 0);  // the same for all warps of a block: no register of the thread
    if (!on) place = -(1 << 30);  // so that none is reached
#else
    count = per_thread(on ? max(steps, 0) : 0);
#endif
  }
  __device__ __forceinline__ void store(const float *sum, const float *gate) {
    unsigned rows[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      rows[i] = movmatrix_trans(pack_outputs(sum[2 * i] * gate[2 * i], sum[2 * i + 1] * gate[2 * i + 1]));
    if ((unsigned)place < (unsigned)count) {
      store_pair<0>(to + at, rows[0]); store_pair<8>(to + at, rows[1]);
    }
    at += distance;
    place += 8 * SPLIT;
  }
};
