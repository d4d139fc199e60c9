"""CUDA C++ around the recurrence of the forward by fragments: copies to shared memory, what is elementwise, the end.

``nvrtc_fragments`` explains the layout; this comes before it in the source. What is elementwise is cut in parts, so
that it runs between the steps of the recurrence of the steps before: its latencies then cost nothing.
"""

PARTS = r"""
// PHASE 0: one direction, whole; 1: first half, raw output; 2: second half, joined, gated; 3: end states alone.
#if STAGES < 3
#error "the batch whose first half is computed ahead lies beside the one at hand and the one on its way"
#endif
#define GATED (GATE && (PHASE == 0 || PHASE == 2))
#define KT ((RANK + 15) / 16)
#define STEPS 16
#define HALO 4
#define THREADS (WARPS * 32)
#define GROUPS (WARPS / SPLIT)
#define CB (16 * GROUPS)          // channels of a block
#define XR (CB + 8)               // rows in shared memory are padded so that ldmatrix finds no bank twice
#define LR (KT * 16 + 8)
#define SLOTS 136
#define PC (P / 4)                // chunks of a row of p
#define DR (STEPS + 4)
#define NJ (2 / SPLIT)            // tiles of 8 states

struct __align__(16) Stage {
  T x[(HALO + STEPS) * XR];
#if GATED
  T z[STEPS * XR];
#endif
#if PHASE == 2
  T other[STEPS * XR];
#endif
  T low[STEPS * LR];
  T bc[4][SLOTS * 8];  // B of states 0-7 and 8-15, then C
};
struct __align__(16) Shared {  // of the warps of one group
  float delta[SPLIT][16 * DR];  // with SPLIT 2, of this batch and of the next, as all below
#if SPLIT == 2
  uint2 drive[2][2][32];
  float4 sum[2][2][32];
#endif
};

// A thread's share of the copies of a batch: where from, where to, and how far all is from one batch to the next.
#define ROWS_AT_ONCE (16 * SPLIT)  // rows of channels, by 16 bytes for each thread
#define PROUNDS ((STEPS * PC + THREADS - 1) / THREADS)
struct Copies {
  const T *x, *z, *y, *p;
  int x_step, z_step, y_step, p_step;  // of 16 steps
  int row, to, end, p_from[PROUNDS], p_to[PROUNDS], p_row[PROUNDS];

  // The pointers given are the block's, at step `first` for its first channel and projection.
  __device__ __forceinline__ void start(const Stage &stage, int thread, int channels, int hi) {
    int part = thread % (CB / 8) * 8;
    row = thread / (CB / 8);
    to = row * XR + part;
    end = part < channels ? hi : 0;
    x += (row - HALO) * x_step + part; z += row * z_step + part; y += row * y_step + part;
#pragma unroll
    for (int i = 0; i < PROUNDS; ++i) {
      int n = thread + i * THREADS, j = n % PC * 4, m = j - RANK;
      p_row[i] = n < STEPS * PC ? n / PC : 1 << 30;
      p_from[i] = n / PC * p_step + j;
      p_to[i] = j < RANK ? (int)(stage.low - stage.x) + n / PC * LR + j
                         : (int)(stage.bc[m / 8] - stage.x) + (8 * (n / PC) + 7) * 8 + m % 8;
    }
    x_step *= STEPS; z_step *= STEPS; y_step *= STEPS; p_step *= STEPS;
  }
  // Steps s0 to s0 + 15, and on to the next 16. Zeros where there are none.
  __device__ __forceinline__ void copy(Stage &stage, int s0, int hi) {
    if (row < HALO + STEPS) copy_later<16>(stage.x + to, x, (unsigned)(s0 + row - HALO) < (unsigned)end);
    x += x_step;
    if (ROWS_AT_ONCE < HALO + STEPS && row < HALO)
      copy_later<16>(stage.x + STEPS * XR + to, x, s0 + row + STEPS - HALO < end);
    if (ROWS_AT_ONCE == STEPS || row < STEPS) {
#if GATED
      copy_later<16>(stage.z + to, z, s0 + row < end);
      z += z_step;
#endif
#if PHASE == 2
      copy_later<16>(stage.other + to, y, s0 + row < end);
      y += y_step;
#endif
    }
#pragma unroll
    for (int i = 0; i < PROUNDS; ++i)
      if (p_row[i] < STEPS) copy_later<8>(stage.x + p_to[i], p + p_from[i], s0 + p_row[i] < hi);
    p += p_step;
  }
};

// A lane's two channels.
struct Channels {
  float tap[2][W], conv_b[2], dt_b[2], skip[2];
  unsigned dt[KT][4];  // dt_proj as the left side of a product
};

__device__ __forceinline__ void read_channels(Channels &c, const Args &a, long long ch, int q) {
#pragma unroll
  for (int i = 0; i < 2; ++i, ch += 8) {
#pragma unroll
    for (int j = 0; j < W; ++j) c.tap[i][j] = a.conv_w[ch * W + j];
    c.conv_b[i] = a.conv_b[ch]; c.dt_b[i] = a.dt_bias[ch]; c.skip[i] = a.skip[ch];
#pragma unroll
    for (int k = 0; k < KT * 2; ++k) {
      int r = k * 8 + q * 2;
      float lo = r < RANK ? a.dt_proj[ch * RANK + r] : 0.0f, hi = r + 1 < RANK ? a.dt_proj[ch * RANK + r + 1] : 0.0f;
      c.dt[k / 2][k % 2 * 2 + i] = pack2(lo, hi);
    }
  }
}

// Where a lane's rows for ldmatrix begin, in values from the stage's beginning, for the first 8 steps or its warp's.
struct Places {
  int before, here, z, low;
};

__device__ __forceinline__ void find_places(Places &at, const Stage *stage, int lane, int group, int half) {
  int row = lane % 8 + half * 8, matrix = lane / 8, columns = group * 16 + matrix % 2 * 8;
  const T *first = (const T *)stage;
  at.before = (int)(stage->x - first) + (row + matrix / 2 * 2) * XR + columns;
  at.here = (int)(stage->x + HALO * XR - first) + row * XR + columns;
#if PHASE == 2
  if (matrix >= 2) at.here = (int)(stage->other - first) + row * XR + columns;
#endif
#if GATED
  at.z = (int)(stage->z - first) + row * XR + columns;
#endif
  at.low = (int)(stage->low - first) + row * LR + matrix % 2 * 8;
}

// 8 steps on their way through a warp; [2 i + j] is channel g + 8 i, step 2 q + j.
struct Eight {
  unsigned drive[2];  // delta u
  float sum[4];       // the output but for what comes from the states
};

// What is elementwise of 8 steps. Part 5 writes delta to shared memory, where all lanes must have seen it by the end.
struct Elementwise {
  unsigned before[4], here[4];
  float dt[4], v[4], d[4];

  // left: steps from this lane's first one on.
  template <int PART>
  __device__ __forceinline__ void part(const Channels &c, const T *stage, const Places &at, int block, int left,
                                       float *delta_at, Eight &to) {
    if constexpr (PART == 0) read(c, stage, at, block);
    if constexpr (PART == 1 || PART == 2) convolve<PART - 1>(c);
    if constexpr (PART == 3 || PART == 4) {  // Past the end delta is 0: the softplus of a value far below.
      constexpr int i = 2 * PART - 6;
      d[i] = softplus_poly(left > 0 ? dt[i] : -1e30f); d[i + 1] = softplus_poly(left > 1 ? dt[i + 1] : -1e30f);
    }
    if constexpr (PART == 5) {
      *(float2 *)(delta_at + block * 8) = make_float2(d[0], d[1]);
      *(float2 *)(delta_at + 8 * DR + block * 8) = make_float2(d[2], d[3]);
      silu2(v[0], v[1]);
    }
    if constexpr (PART == 6) silu2(v[2], v[3]);
    if constexpr (PART == 7)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        to.drive[i] = pack2(d[2 * i] * v[2 * i], d[2 * i + 1] * v[2 * i + 1]);
        float lo = PHASE == 2 ? low_half(here[2 + i]) : 0.0f, hi = PHASE == 2 ? high_half(here[2 + i]) : 0.0f;
        to.sum[2 * i] = lo + c.skip[i] * v[2 * i]; to.sum[2 * i + 1] = hi + c.skip[i] * v[2 * i + 1];
      }
  }
  template <int PART = 0>
  __device__ __forceinline__ void all(const Channels &c, const T *stage, const Places &at, int block, int left,
                                      float *delta_at, Eight &to) {
    part<PART>(c, stage, at, block, left, delta_at, to);
    if constexpr (PART < 7) all<PART + 1>(c, stage, at, block, left, delta_at, to);
  }

  __device__ __forceinline__ void read(const Channels &c, const T *stage, const Places &at, int block) {
    read4_turned(before, stage + at.before + block * 8 * XR);
#if PHASE == 2
    read4_turned(here, stage + at.here + block * 8 * XR);
#else
    read2_turned(here, stage + at.here + block * 8 * XR);
#endif
    dt[0] = dt[1] = c.dt_b[0]; dt[2] = dt[3] = c.dt_b[1];
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      unsigned low[2];
      read2(low, stage + at.low + block * 8 * LR + k * 16);
      mma16816(dt, c.dt[k][0], c.dt[k][1], c.dt[k][2], c.dt[k][3], low[0], low[1]);
    }
  }
  template <int i> __device__ __forceinline__ void convolve(const Channels &c) {
    float x[6] = {low_half(before[i]), high_half(before[i]), low_half(before[2 + i]), high_half(before[2 + i]),
                  low_half(here[i]), high_half(here[i])};
    v[2 * i] = v[2 * i + 1] = c.conv_b[i];
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int d = 0; d < W; ++d) v[2 * i + j] += c.tap[i][W - 1 - d] * x[4 + j - d];
  }
};

// The factors of 8 steps' outputs: gate, and the mean of two directions.
__device__ __forceinline__ void find_gate(const T *stage, const Places &at, int block, float *gate) {
  constexpr float SHARE = PHASE == 2 ? 0.5f : 1.0f;
#if GATED
  unsigned z[2];
  read2_turned(z, stage + at.z + block * 8 * XR);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    gate[2 * i] = gate_input(low_half(z[i])); gate[2 * i + 1] = gate_input(high_half(z[i]));
    silu2(gate[2 * i], gate[2 * i + 1], SHARE);
  }
#else
  gate[0] = gate[1] = gate[2] = gate[3] = SHARE;
#endif
}

// Writes 8 steps; to: this lane's first channel pair at step g of them.
__device__ __forceinline__ void finish(const float *sum, const float *gate, T *to, bool on) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    unsigned row = turn(pack2(sum[2 * i] * gate[2 * i], sum[2 * i + 1] * gate[2 * i + 1]));
    if (on) *(unsigned *)(to + 8 * i) = row;
  }
}
"""
