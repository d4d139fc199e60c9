// A thread's share of the copies of a batch to shared memory, for scan_forward_mma.cu.
#pragma once

#define BIASES (SPLIT == 1 && (TIED || PHASE) ? 2 : 1)  // as registers allow

#include "ssamba/mma_elementwise.cuh"

#define ROWS_AT_ONCE (16 * SPLIT)  // rows of channels that all threads copy, 16 bytes each

// A part of p: COUNT copies of VALUES values of each step, by threads that stay at one place of a row.
template <int COUNT, int VALUES> struct RowCopies {
  static constexpr int AT_ONCE = THREADS / COUNT < STEPS ? THREADS / COUNT : STEPS;  // steps
  const T *from;
  SmemAddr to;  // in the first stage
  int row;

  // p: at the first step, at the values that the thread copies.
  __device__ __forceinline__ void start(int thread, const T *p, int step) {
    row = thread / COUNT;
    from = kept(p + (long long)row * step);
  }
  // at: values from the first step to step s0.
  template <bool WHOLE>
  __device__ __forceinline__ void copy(int stage, int at, int s0, int hi, int step, int distance) const {
#pragma unroll
    for (int i = 0; i < STEPS; i += AT_ONCE)
      if ((AT_ONCE * COUNT == THREADS || row < AT_ONCE) && (i + AT_ONCE <= STEPS || row < STEPS - i))
        cp_async<2 * VALUES>(smem_offset(smem_bytes(to, stage), i * distance), from + (at + i * step),
                             WHOLE || (unsigned)(s0 + row + i) < (unsigned)hi);
  }
};

// Pointers stay at the first step, and offsets of 32 bits go on: an address is one instruction.
struct BatchCopies {
  const T *x, *z, *y;
  int x_step, z_step, y_step, p_step;  // by one step, then (after start) by 16, except p_step
  int x_at, z_at, y_at, p_at, row;
  SmemAddr to;  // in the first stage
  RowCopies<RANK / 4, 4> low;
  RowCopies<2 * N / PIECE, PIECE> bc;

  // Before: the pointers are at the first step, at the first channel of the block. p: at the first step.
  __device__ __forceinline__ void start(SmemAddr stage, int thread, int channels, const T *p) {
    int part = thread % (CB / 8) * 8;
    row = thread / (CB / 8);
    to = smem_offset(stage, row * XR + part);
    part = min(part, channels - 8);  // beyond the channels there are warps without any
    x = kept(x + (long long)(row - HALO) * x_step + part);
    z = kept(z + (long long)row * z_step + part); y = kept(y + (long long)row * y_step + part);
    x_step = per_thread(STEPS * x_step); z_step = per_thread(STEPS * z_step); y_step = per_thread(STEPS * y_step);
    x_at = z_at = y_at = p_at = 0;
    int j = thread % (RANK / 4) * 4, m = thread % (2 * N / PIECE) * PIECE;
    low.start(thread, p + j, p_step);
    low.to = smem_offset(stage, LOW_AT + low.row * LR + j);
    bc.start(thread, p + RANK + m, p_step);
    bc.to = smem_offset(stage, BC_AT + (tile_of(m) * SLOTS + SLOT_OF(bc.row)) * 8 + column_of(m));
  }
  // Copies steps s0 to s0 + 15 to a stage, a number of bytes behind the first one, and goes on by 16 steps. WHOLE: all
  // of these steps exist; else zeros are copied for those that do not.
  template <bool WHOLE> __device__ __forceinline__ void copy(int stage, int s0, int hi) {
    SmemAddr at = smem_bytes(to, stage);
    if (ROWS_AT_ONCE < HALO + STEPS || row < HALO + STEPS)
      cp_async<16>(at, x + x_at, WHOLE || (unsigned)(s0 + row - HALO) < (unsigned)hi);
    x_at += x_step;
    if (ROWS_AT_ONCE < HALO + STEPS && row < HALO)
      cp_async<16>(smem_offset(at, STEPS * XR), x + x_at,
                   WHOLE || (unsigned)(s0 + row + STEPS - HALO) < (unsigned)hi);
    if (ROWS_AT_ONCE == STEPS || row < STEPS) {
      bool wanted = WHOLE || (unsigned)(s0 + row) < (unsigned)hi;
#if GATED
      cp_async<16>(smem_offset(at, Z_AT), z + z_at, wanted);
      z_at += z_step;
#endif
#if PHASE == 2
      cp_async<16>(smem_offset(at, OTHER_AT), y + y_at, wanted);
      y_at += y_step;
#endif
    }
    low.copy<WHOLE>(stage, p_at, s0, hi, p_step, LR);
    bc.copy<WHOLE>(stage, p_at, s0, hi, p_step, STEP_VALUES);
    p_at += STEPS * p_step;
  }
};
