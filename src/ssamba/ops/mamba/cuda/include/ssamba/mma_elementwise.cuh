// Around the recurrence of scan_forward_mma.cu: what lies in shared memory, and the elementwise part.
//
// The elementwise part of eight steps (convolution, SiLU, delta) is cut into parts 0 to 7, which the main loop runs
// between the steps of the recurrence of the eight steps before, so that their latencies overlap.
//
// Given: N states (8 or 16), W taps, P = RANK + 2 N outputs of the projection, WARPS of a block, STAGES of the
// pipeline, PHASE, SPLIT, CHUNKED, GATE and TIED (scan_forward_mma.cu). And by the header that includes this one,
// BIASES: with 2, dt's bias of a channel is in two registers, as a product starts from it, with 1 it is copied for each
// product.
#pragma once

#include "ssamba/fast_math.cuh"
#include "ssamba/ptx_sm80.cuh"
#include "ssamba/scan_args.cuh"

#define GATED (GATE && (PHASE == 0 || PHASE == 2))
#define OUTPUTS (PHASE != 3 && PHASE != 4)
// SAVES: the states before every 8 steps go to memory. PHASE 4 does nothing else; given for other phases, with SPLIT 1
// and without CHUNKED: 1, so that the backward needs no PHASE 4, and DUE, -L % 8, the step of a block of 8 before which
// direction 1 saves (direction 0: before its first one).
#ifndef SAVES
#define SAVES (PHASE == 4)
#endif
#define KT ((RANK + 15) / 16)    // products of 16 values of the low-rank dt
#define STEPS 16                 // steps of a batch
#define HALO 4                   // steps before it that the convolution reads
#define THREADS (WARPS * 32)
#define GROUPS (WARPS / SPLIT)   // groups of 16 channels of a block
#define CB (16 * GROUPS)         // channels of a block
#define XR (CB + 8)              // a row of x in shared memory, padded so that ldmatrix meets no bank conflicts
#define LR (KT * 16 + 8)         // a row of the low-rank dt, likewise
#define TILES_OF_STATES (N / 8)
#define NJ (TILES_OF_STATES / SPLIT)  // tiles of 8 states of a warp
static_assert(NJ * SPLIT * 8 == N, "8 states can not be split");
// The row of B or C of a step, nine after that of the step before it. The others are zeros: in the 8 rows of a step's
// window, only its own is not. A tile is a multiple of eight rows and two more after the other, so that a warp's copies
// of two steps, four tiles each, are in different banks.
#define WINDOW 8                 // rows from the window of a step to that of the next
#define SLOTS 138                // rows of a tile of 8 states
#define SLOT_OF(step) ((WINDOW + 1) * (step))
#define STEP_VALUES ((WINDOW + 1) * 8)  // from a step's row to that of the next
// QUADS: a lane's four states follow each other, so that one power and three multiplications by r give their decays,
// and saved states are read and written eight bytes at a time.
#define QUADS ((TIED || SAVES) && NJ == 2)
#define PIECE (QUADS ? 2 : 4)    // values of B and C that a copy takes
#define DV (TIED ? 2 : 1)        // values of a step that lanes exchange: delta or, if TIED, log2 r and r
#define DR (DV * STEPS + 4)      // a row of them, padded
// The row of channel g, of 8. Lanes of channels that write at once then meet different banks, as those that read do.
#define DELTA_ROW(g) (TIED ? (g) % 2 * 4 + (g) / 2 : (g) % 4 * 2 + (g) / 4)

// A batch of 16 steps.
struct __align__(16) Stage {
  T x[(HALO + STEPS) * XR];
#if GATED
  T z[STEPS * XR];
#endif
#if PHASE == 2
  T other[STEPS * XR];  // output of the other direction
#endif
  T low[STEPS * LR];
  T bc[2 * TILES_OF_STATES][SLOTS * 8];  // B of states 0-7 and 8-15 (QUADS: see column_of), then C
};
// Offsets of these arrays in values.
#define Z_AT ((HALO + STEPS) * XR)
#define OTHER_AT (Z_AT + (GATED ? STEPS * XR : 0))
#define LOW_AT (OTHER_AT + (PHASE == 2 ? STEPS * XR : 0))
#define BC_AT (LOW_AT + STEPS * LR)
static_assert(sizeof(Stage) == 2 * (BC_AT + 2 * TILES_OF_STATES * SLOTS * 8), "offsets of the arrays of a stage");
// Where value m of (B, C) lies in the rows of its step: a tile of 8 states, and its column there. QUADS: lane 4 g + q
// holds columns 2 q and 2 q + 1 of both tiles, which are states 4 q to 4 q + 3.
__device__ __forceinline__ int tile_of(int m) {
  if (QUADS) return m / 16 * 2 + m / 2 % 2;
  return m / 8;
}
__device__ __forceinline__ int column_of(int m) { return QUADS ? m % 16 / 4 * 2 + m % 2 : m % 8; }

// What the warps of one group of 16 channels share.
struct __align__(16) GroupShared {
  float delta[SPLIT][16 * DR];  // with SPLIT 2, of this batch and of the next, as the others
#if SPLIT == 2
  uint2 drive[2][2][32];
  float4 sum[2][2][32];
#endif
};

// Parameters of a lane's two channels; taps and bias of the convolution are halved for silu2_of_halves.
struct ChannelParams {
  float tap[2][W], conv_b[2], dt_b[BIASES][2], skip[2];
  unsigned dt[KT][4];  // dt_proj as the matrix a of a product
#if TIED
  float rate[2];       // log2 r for each unit of delta
#endif
};

__device__ __forceinline__ void load_channel_params(ChannelParams &c, const ScanArgs &a, long long ch, int q) {
#pragma unroll
  for (int i = 0; i < 2; ++i, ch += 8) {
    float4 four;
    if (W == 4) four = *(const float4 *)(a.conv_w + ch * W);
#pragma unroll
    for (int j = 0; j < W; ++j) c.tap[i][j] = 0.5f * (W == 4 ? (&four.x)[j] : a.conv_w[ch * W + j]);
    c.conv_b[i] = 0.5f * a.conv_b[ch]; c.skip[i] = a.skip[ch];
    c.dt_b[0][i] = a.dt_bias[ch];
    if constexpr (BIASES == 2) c.dt_b[1][i] = per_thread(c.dt_b[0][i]);
#if TIED
    c.rate[i] = -LOG2E * ex2(LOG2E * a.a_log[ch]);
#endif
#pragma unroll
    for (int k = 0; k < KT * 2; ++k) {
      int r = k * 8 + q * 2;
      float2 two = r < RANK ? *(const float2 *)(a.dt_proj + ch * RANK + r) : make_float2(0.0f, 0.0f);
      c.dt[k / 2][k % 2 * 2 + i] = pack2_finite(two.x, two.y);
    }
  }
}

// A lane's row addresses for ldmatrix in a stage, of the first 8 steps or its warp's half. Where two matrices are
// loaded, only lanes 0 to 15 count: their rows of x and z are at constant offsets from `before`.
struct FragmentAddrs {
  SmemAddr before, low, b;
#if PHASE == 2
  SmemAddr here;  // of x, and of the other direction's output
#endif

  __device__ __forceinline__ void init(SmemAddr stage, int lane, int group, int half) {
    int row = lane % 8 + half * 8, matrix = lane / 8, columns = row * XR + group * 16 + matrix % 2 * 8;
    before = smem_offset(stage, matrix / 2 * 2 * XR + columns);
#if PHASE == 2
    here = smem_offset(stage, (matrix < 2 ? HALO * XR : OTHER_AT) + columns);
#endif
    low = smem_offset(stage, LOW_AT + row * LR + matrix * 8);
    int slot = lane % 8;
    b = smem_offset(stage, BC_AT + (NJ == 2 ? matrix % 2 * SLOTS + slot + matrix / 2 * WINDOW
                                               : half * SLOTS + slot + matrix * WINDOW) * 8);
  }
};

// 8 steps of a warp's channels; [2 i + j] is channel g + 8 i, step 2 q + j.
struct StepBlock {
  unsigned drive[2];  // delta u
  float sum[4];       // the output, at first without the part that comes from the states
};

// The elementwise part of 8 steps. Part 5 writes delta (TIED: log2 r and r) to shared memory: a barrier must follow
// before it is read.
struct Elementwise {
  unsigned before[4], here[4];
  float dt[4], v[4], d[4];

  // stage: how many bytes the batch's stage is behind the one that `at` points to.
  template <int PART>
  __device__ __forceinline__ void part(const ChannelParams &c, const FragmentAddrs &at, int stage, int block,
                                       float *delta_at, StepBlock &to) {
    if constexpr (PART == 0) read(c, at, stage, block);
    if constexpr (PART == 1 || PART == 2) convolve<PART - 1>(c);
    if constexpr (PART == 3 || PART == 4) {
      constexpr int i = 2 * PART - 6;
#if PHASE != 4  // saved states have what the backward computes
      d[i] = softplus_short(dt[i]); d[i + 1] = softplus_short(dt[i + 1]);
#else
      d[i] = softplus_poly(dt[i]); d[i + 1] = softplus_poly(dt[i + 1]);
#endif
    }
    if constexpr (PART == 5) {
#if TIED
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float lo = d[2 * i] * c.rate[i], hi = d[2 * i + 1] * c.rate[i];
        *(float4 *)(delta_at + i * 8 * DR + block * 16) = make_float4(lo, ex2(lo), hi, ex2(hi));
      }
#else
      *(float2 *)(delta_at + block * 8) = make_float2(d[0], d[1]);
      *(float2 *)(delta_at + 8 * DR + block * 8) = make_float2(d[2], d[3]);
#endif
      silu2_of_halves(v[0], v[1]);
    }
    if constexpr (PART == 6) silu2_of_halves(v[2], v[3]);
    if constexpr (PART == 7)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        to.drive[i] = pack2_finite(d[2 * i] * v[2 * i], d[2 * i + 1] * v[2 * i + 1]);
        float lo = PHASE == 2 ? low_half(here[2 + i]) : 0.0f, hi = PHASE == 2 ? high_half(here[2 + i]) : 0.0f;
        to.sum[2 * i] = lo + c.skip[i] * v[2 * i]; to.sum[2 * i + 1] = hi + c.skip[i] * v[2 * i + 1];
      }
  }
  template <int PART = 0>
  __device__ __forceinline__ void all(const ChannelParams &c, const FragmentAddrs &at, int stage, int block,
                                      float *delta_at, StepBlock &to) {
    part<PART>(c, at, stage, block, delta_at, to);
    if constexpr (PART < 7) all<PART + 1>(c, at, stage, block, delta_at, to);
  }

  __device__ __forceinline__ void read(const ChannelParams &c, const FragmentAddrs &at, int stage, int block) {
    SmemAddr rows = smem_offset(smem_bytes(at.before, stage), block * 8 * XR);
    ldmatrix_x4_trans(before, rows);
#if PHASE == 2
    ldmatrix_x4_trans(here, smem_offset(smem_bytes(at.here, stage), block * 8 * XR));
#else
    ldmatrix_x2_trans(here, smem_offset(rows, HALO * XR));
#endif
#pragma unroll
    for (int n = 0; n < 4; ++n) dt[n] = c.dt_b[n % BIASES][n / 2];
    unsigned low[4];
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      SmemAddr row = smem_offset(smem_bytes(at.low, stage), block * 8 * LR + k * 16);
      if (k % 2 == 0 && k + 1 < KT) ldmatrix_x4(low, row);  // of two products
      if (k % 2 == 0 && k + 1 == KT) ldmatrix_x2(low, row);
      const unsigned *pair = low + k % 2 * 2;
      mma_m16n8k16(dt, c.dt[k][0], c.dt[k][1], c.dt[k][2], c.dt[k][3], pair[0], pair[1]);
    }
  }
  template <int i> __device__ __forceinline__ void convolve(const ChannelParams &c) {
    float x[6] = {low_half(before[i]), high_half(before[i]), low_half(before[2 + i]), high_half(before[2 + i]),
                  low_half(here[i]), high_half(here[i])};
    v[2 * i] = v[2 * i + 1] = c.conv_b[i];
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int d = 0; d < W; ++d) v[2 * i + j] += c.tap[i][W - 1 - d] * x[4 + j - d];
  }
};
