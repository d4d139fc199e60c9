// A thread's share of the copies of a batch to shared memory, for scan_forward_mma.cu.
//
// Where the rows of B and C lie: a step's row is nine rows of 16 bytes after that before it, and a tile is two more than
// a multiple of eight after the other, so that a warp's copies of two steps, four tiles each, are in different banks.
#pragma once

#define WINDOW 8
#define FIRST_SLOT 0
#define SLOTS 138

#include "ssamba/mma_elementwise.cuh"

#define ROWS_AT_ONCE (16 * SPLIT)  // rows of channels that all threads copy, 16 bytes each

// A part of p: COUNT copies of VALUES values of each step, by threads that stay at one place of a row.
template <int COUNT, int VALUES> struct RowCopies {
  static constexpr int AT_ONCE = THREADS / COUNT < STEPS ? THREADS / COUNT : STEPS;  // steps
  const T *from;
  int row, to;

  // Before: `from` is at the first step. Returns the value of this part that the thread's copy begins with.
  __device__ __forceinline__ int start(int thread, int step) {
    row = thread / COUNT;
    from += row * step;
    return thread % COUNT * VALUES;
  }
  __device__ __forceinline__ void copy(SmemAddr stage, int s0, int hi, int step, int distance) const {
#pragma unroll
    for (int i = 0; i < STEPS; i += AT_ONCE)
      if ((AT_ONCE * COUNT == THREADS || row < AT_ONCE) && (i + AT_ONCE <= STEPS || row < STEPS - i))
        cp_async<2 * VALUES>(smem_offset(stage, to + i * distance), from + i * step,
                             (unsigned)(s0 + row + i) < (unsigned)hi);
  }
};

struct BatchCopies {
  const T *x, *z, *y;
  int x_step, z_step, y_step, p_step;
  int row, to, end;
  RowCopies<RANK / 4, 4> low;
  RowCopies<2 * N / PIECE, PIECE> bc;

  // Before: the pointers are at the first step, at the first channel of the block.
  __device__ __forceinline__ void start(int thread, int channels, int hi, const T *p) {
    int part = thread % (CB / 8) * 8;
    row = thread / (CB / 8);
    to = row * XR + part;
    end = part < channels ? hi : 0;
    x += (row - HALO) * x_step + part; z += row * z_step + part; y += row * y_step + part;
    low.from = bc.from = p;
    int j = low.start(thread, p_step), m = bc.start(thread, p_step);
    low.from += j;
    low.to = LOW_AT + low.row * LR + j;
    bc.from += RANK + m;
    bc.to = BC_AT + (tile_of(m) * SLOTS + SLOT_OF(bc.row)) * 8 + column_of(m);
  }
  // Copies steps s0 to s0 + 15, zeros for those beyond the sequence, and moves on by 16.
  __device__ __forceinline__ void copy(SmemAddr stage, int s0, int hi) {
    SmemAddr at = smem_offset(stage, to);
    if (row < HALO + STEPS) cp_async<16>(at, x, (unsigned)(s0 + row - HALO) < (unsigned)end);
    x += STEPS * x_step;
    if (ROWS_AT_ONCE < HALO + STEPS && row < HALO)
      cp_async<16>(smem_offset(at, STEPS * XR), x, (unsigned)(s0 + row + STEPS - HALO) < (unsigned)end);
    if (ROWS_AT_ONCE == STEPS || row < STEPS) {
#if GATED
      cp_async<16>(smem_offset(at, Z_AT), z, (unsigned)(s0 + row) < (unsigned)end);
      z += STEPS * z_step;
#endif
#if PHASE == 2
      cp_async<16>(smem_offset(at, OTHER_AT), y, (unsigned)(s0 + row) < (unsigned)end);
      y += STEPS * y_step;
#endif
    }
    low.copy(stage, s0, hi, p_step, LR);
    bc.copy(stage, s0, hi, p_step, STEP_VALUES);
    low.from += STEPS * p_step; bc.from += STEPS * p_step;
  }
};
