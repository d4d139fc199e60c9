// A thread's share of the copies of batches to shared memory, for scan_backward_mma.cu: from a clip's last batch to its
// first, then those of the next clip.
//
// Pointers stay at the last batch of the block's first clip, and a thread's offsets of 32 bits go on from there: an
// address is one instruction. Where the rows of B and C lie is as in mma_copies.cuh.
#pragma once

#define BIASES (TIED ? 2 : 1)  // as registers allow

#include "ssamba/mma_elementwise.cuh"

struct __align__(16) BackwardStage {
  Stage forward;  // x, the low-rank dt, B and C
  T z[STEPS * XR], dy[STEPS * XR], y[STEPS * XR];
};
#define GATE_AT ((int)sizeof(Stage) / 2)
#define ROWS_OF (STEPS * XR)
#define STAGE ((int)sizeof(BackwardStage))
static_assert(STAGE == 2 * (GATE_AT + 3 * ROWS_OF), "offsets of the arrays of a stage");

// A part of p: COUNT copies of VALUES values of each step, by threads that stay at one place of a row.
template <int COUNT, int VALUES> struct PartOfP {
  static constexpr int AT_ONCE = THREADS / COUNT < STEPS ? THREADS / COUNT : STEPS;  // steps
  SmemAddr to;  // in the first stage
  int row, at;  // at: of the next batch's first step

  // from: the values that the thread copies.
  __device__ __forceinline__ void start(int thread, int from, int step) {
    row = thread / COUNT;
    at = row * step + from;
  }
  template <bool WHOLE>
  __device__ __forceinline__ void copy(const T *p, int stage, int s0, int L, int step, int distance) {
#pragma unroll
    for (int i = 0; i < STEPS; i += AT_ONCE)
      if ((AT_ONCE * COUNT == THREADS || row < AT_ONCE) && (i + AT_ONCE <= STEPS || row < STEPS - i))
        cp_async<2 * VALUES>(smem_offset(smem_bytes(to, stage), i * distance), p + (at + i * step),
                             WHOLE || s0 + row + i < L);
    at -= STEPS * step;
  }
};

struct BackwardCopies {
  const T *x, *z, *y, *dy, *p;
  int x_step, z_step, y_step, p_step;  // by one step, then (after start) by 16, except p_step
  bool gate, exist;                    // whether y is needed, and whether the thread's channels exist
  int x_at, z_at, y_at, row;
  SmemAddr to;  // in the first stage
  PartOfP<RANK / 4, 4> low;
  PartOfP<2 * N / PIECE, PIECE> bc;

  // Before: the pointers are at the first step of the first clip's last batch, at the block's first channel.
  __device__ __forceinline__ void start(SmemAddr stage, int thread, int channels) {
    int part = thread % (CB / 8) * 8;
    row = thread / (CB / 8);
    to = per_thread(smem_offset(stage, row * XR + part));
    exist = part < channels;
    part = min(part, channels - 8);  // beyond the channels there are warps without any, whose dy is zero
    x = kept(x); z = kept(z); y = kept(y); dy = kept(dy); p = kept(p);
    x_at = (row - HALO) * x_step + part; z_at = row * z_step + part; y_at = row * y_step + part;
    x_step = per_thread(STEPS * x_step); z_step = per_thread(STEPS * z_step); y_step = per_thread(STEPS * y_step);
    int j = thread % (RANK / 4) * 4, m = thread % (2 * N / PIECE) * PIECE;
    low.start(thread, j, p_step);
    low.to = per_thread(smem_offset(stage, LOW_AT + low.row * LR + j));
    bc.start(thread, RANK + m, p_step);
    bc.to = smem_offset(stage, BC_AT + (tile_of(m) * SLOTS + SLOT_OF(bc.row)) * 8 + column_of(m));
  }
  // Copies steps s0 to s0 + 15 to a stage, a number of bytes behind the first one, and goes back by 16 steps. WHOLE:
  // these steps and those that the convolution reads exist; else zeros are copied for those that do not.
  template <bool WHOLE> __device__ __forceinline__ void copy(int stage, int s0, int L) {
    SmemAddr at = smem_bytes(to, stage);
    bool wanted = WHOLE || s0 + row < L;
    cp_async<16>(smem_offset(at, GATE_AT), z + z_at, wanted);
    cp_async<16>(smem_offset(at, GATE_AT + ROWS_OF), dy + y_at, exist && wanted);
    if (gate) cp_async<16>(smem_offset(at, GATE_AT + 2 * ROWS_OF), y + y_at, wanted);
    cp_async<16>(at, x + x_at, WHOLE || (unsigned)(s0 + row - HALO) < (unsigned)L);
    if (row < HALO)
      cp_async<16>(smem_offset(at, STEPS * XR), x + (x_at + x_step), WHOLE || s0 + row + STEPS - HALO < L);
    low.copy<WHOLE>(p, stage, s0, L, p_step, LR);
    bc.copy<WHOLE>(p, stage, s0, L, p_step, STEP_VALUES);
    x_at -= x_step; z_at -= z_step; y_at -= y_step;
  }
  // From before the first of a clip's batches to the last one of the next clip.
  __device__ __forceinline__ void next_clip(const ScanArgs &a, int batches) {
    int of_p = a.L * P + batches * STEPS * p_step;
    x_at += (int)a.xb + batches * x_step; z_at += (int)a.zb + batches * z_step;
    y_at += a.L * a.K * a.E + batches * y_step; low.at += of_p; bc.at += of_p;
  }
};
