"""CUDA C++ of the forward scan for bfloat16 and 16 states, with the states in tensor-core fragments.

A warp owns 16 channels; their states are the accumulators of 16 x 8 products: lane 4 g + q holds states 2 q and 2 q + 1
(and + 8) of channels g and g + 8. A step multiplies them by their decays, all in float32, and leaves the rest to
products: ``delta u B`` is one whose inner dimension is time, and which sees the B of one step and zeros; the sum over
states of ``h C`` is one whose columns are eight steps, and which sees the C of one step and zeros. ``ldmatrix`` reads
those zeros out of shared memory: step t lies in row 8 t + 7 among rows of zeros, so the window of eight rows that is
right for it is found by adding a constant. What is elementwise (convolution, delta, gate) happens in the same layout,
lane 4 g + q holding channels g and g + 8 at steps 2 q and 2 q + 1 of eight, so nothing is handed round but delta.

``SPLIT`` 2 gives 8 of the states to each of two warps: for few channels. ``CHUNKED`` cuts each half of the time in
``count`` chunks that run side by side: for fewer still. A pass without output (``PHASE`` 3) then leaves the state at
the end of each chunk, as if it had begun with zeros, and its sum of delta; the others make their first states from
them. Time goes in batches of 16 steps, copied to shared memory one or two batches ahead.
"""

FRAGMENTS = r"""
// PHASE 0: one direction, whole; 1: first half, raw output; 2: second half, joined, gated; 3: end states alone.
#define GATED (PHASE == 0 || PHASE == 2)
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
#define BLOCKS (2 / SPLIT)        // blocks of 8 steps of a batch that a warp computes elementwise

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
  float delta[16 * DR];
#if SPLIT == 2
  uint2 drive[2][32];
  float4 sum[2][32];
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
  __device__ __forceinline__ void start(const Stage &stage, int channels, int hi) {
    int part = threadIdx.x % (CB / 8) * 8;
    row = threadIdx.x / (CB / 8);
    to = row * XR + part;
    end = part < channels ? hi : 0;
    x += (row - HALO) * x_step + part; z += row * z_step + part; y += row * y_step + part;
#pragma unroll
    for (int i = 0; i < PROUNDS; ++i) {
      int n = threadIdx.x + i * THREADS, j = n % PC * 4, m = j - RANK;
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

// What the elementwise part of 8 steps leaves for the end: [2 i + j] is channel g + 8 i, step 2 q + j.
struct Pending {
  float u[4];
  unsigned z[2], other[2];
};

// Where a lane's rows for ldmatrix begin, in values from the stage's beginning.
struct Places {
  int before, here, other, low;
};

// u, delta (to shared memory) and delta u of 8 steps; `left`: steps from this lane's first one on.
__device__ __forceinline__ void elementwise(const Channels &c, const T *stage, const Places &at, int block, int left,
                                            Pending &pending, float *delta_at, unsigned *drive) {
  unsigned before[4], here[4], other[4];
  read4_turned(before, stage + at.before + block * 8 * XR);
  read4_turned(here, stage + at.here + block * 8 * XR);
#if PHASE == 2
  read4_turned(other, stage + at.other + block * 8 * XR);
#endif
  float dt[4] = {c.dt_b[0], c.dt_b[0], c.dt_b[1], c.dt_b[1]};
#pragma unroll
  for (int k = 0; k < KT; ++k) {
    unsigned low[2];
    read2(low, stage + at.low + block * 8 * LR + k * 16);
    mma16816(dt, c.dt[k][0], c.dt[k][1], c.dt[k][2], c.dt[k][3], low[0], low[1]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float x[6] = {low_half(before[i]), high_half(before[i]), low_half(before[2 + i]), high_half(before[2 + i]),
                  low_half(here[i]), high_half(here[i])};
    float v[2] = {c.conv_b[i], c.conv_b[i]};
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int d = 0; d < W; ++d) v[j] += c.tap[i][W - 1 - d] * x[4 + j - d];
    silu2(v[0], v[1]);
    // Past the end delta is 0: the softplus of a value far below.
    float d0 = softplus_poly(left > 0 ? dt[2 * i] : -1e30f), d1 = softplus_poly(left > 1 ? dt[2 * i + 1] : -1e30f);
    *(float2 *)(delta_at + i * 8 * DR + block * 8) = make_float2(d0, d1);
    drive[i] = pack2(d0 * v[0], d1 * v[1]);
    pending.u[2 * i] = v[0]; pending.u[2 * i + 1] = v[1];
    pending.z[i] = here[2 + i];
    if (PHASE == 2) pending.other[i] = other[i];
  }
}

// Joins, gates and writes 8 steps; to: this lane's first channel pair at step g of them.
__device__ __forceinline__ void finish(const Channels &c, const Pending &pending, const float *sum, T *to, bool on) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float y0 = sum[2 * i] + c.skip[i] * pending.u[2 * i], y1 = sum[2 * i + 1] + c.skip[i] * pending.u[2 * i + 1];
    if (PHASE == 2) {
      y0 = 0.5f * (y0 + low_half(pending.other[i]));
      y1 = 0.5f * (y1 + high_half(pending.other[i]));
    }
    if (GATED) {
      float z0 = gate_input(low_half(pending.z[i])), z1 = gate_input(high_half(pending.z[i]));
      silu2(z0, z1);
      y0 *= z0; y1 *= z1;
    }
    unsigned row = turn(pack2(y0, y1));
    if (on) *(unsigned *)(to + 8 * i) = row;
  }
}

// 16 steps of the states h; sum[4 n ..]: the outputs of steps 8 n to 8 n + 7. delta: of this lane's channel g.
__device__ __forceinline__ void advance(float *h, const float *a2, const T *b_rows, const float *delta,
                                        const unsigned *drive, float *sum, float *total) {
  constexpr int EACH = 2 * SPLIT;  // steps that one ldmatrix serves
  float d[2][4];
  unsigned b[4], c[4];
#pragma unroll
  for (int t = 0; t < STEPS; ++t) {
    if (t % 4 == 0)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float4 four = *(const float4 *)(delta + i * 8 * DR + t);
        d[i][0] = four.x; d[i][1] = four.y; d[i][2] = four.z; d[i][3] = four.w;
        if (PHASE == 3) total[i] += (four.x + four.y) + (four.z + four.w);
      }
#pragma unroll
    for (int i = 0; i < NJ * 4; ++i) h[i] *= ex2(d[i / 2 % 2][t % 4] * a2[i]);
    if (t % EACH == 0) {
      read4_turned(b, b_rows + (8 * t - t % 8) * 8);
      if (PHASE != 3) read4(c, b_rows + 2 * SLOTS * 8 + (8 * t - t % 8) * 8);
    }
#pragma unroll
    for (int j = 0; j < NJ; ++j)
      mma1688(h + 4 * j, drive[t / 8 * 2], drive[t / 8 * 2 + 1], b[t % EACH * NJ + j]);
    if (PHASE == 3) continue;
    const unsigned *row = c + t % EACH * NJ;
#if SPLIT == 1
    mma16816(sum + t / 8 * 4, pack2(h[0], h[1]), pack2(h[2], h[3]), pack2(h[4], h[5]), pack2(h[6], h[7]), row[0],
             row[1]);
#else
    mma1688(sum + t / 8 * 4, pack2(h[0], h[1]), pack2(h[2], h[3]), row[0]);
#endif
  }
}

// The first step of a chunk; the end of the last one is that of the direction.
__device__ __forceinline__ int chunk_start(int chunk, int count, int middle, int L) {
  int from = chunk < count ? 0 : middle, steps = chunk < count ? middle : L - middle;
  int each = ((steps + count - 1) / count + STEPS - 1) / STEPS * STEPS;
  return from + min((chunk < count ? chunk : chunk - count) * each, steps);
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) scan_fragments(const Args a) {
  SHARED_BYTES(raw);
  Stage *stages = (Stage *)raw;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  int half = warp % SPLIT, group = warp / SPLIT, row = lane % 8, matrix = lane / 8;
  Shared &own = ((Shared *)(stages + STAGES))[group];
  int b = blockIdx.y / a.K, k = blockIdx.y % a.K, r = blockIdx.z % a.R;
  int e_block = blockIdx.x * CB, e0 = e_block + group * 16;
  bool on = e0 < a.E;
  if (!on) e0 = 0;
  long long lane_of = (long long)r * a.K + k, base = lane_of * a.B + b;
  int middle = first_half(a, r), lo = PHASE == 2 ? middle : 0, hi = PHASE == 1 ? middle : a.L;
#if CHUNKED
  int chunk = blockIdx.z / a.R + (PHASE == 2 ? a.count : 0);
  lo = chunk_start(chunk, a.count, middle, a.L);
  hi = chunk_start(chunk + 1, a.count, middle, a.L);
#endif
  for (int i = threadIdx.x; i < STAGES * (int)sizeof(Stage) / 16; i += THREADS)
    ((uint4 *)raw)[i] = make_uint4(0, 0, 0, 0);  // copies leave what lies between their rows alone

  long long ch = lane_of * a.E + e0 + g;
  Channels c;
  read_channels(c, a, ch, q);
  float h[NJ * 4], a2[NJ * 4];
  long long state_at = (base * a.E + e0 + g) * 16 + half * 8 + q * 2;
#pragma unroll
  for (int i = 0; i < NJ * 4; ++i) {
    int n = i / 4 * 8 + half * 8 + q * 2 + i % 2, side = i / 2 % 2 * 8;
    a2[i] = -LOG2E * ex2(LOG2E * a.a_log[(ch + side) * 16 + n]);
    h[i] = PHASE == 2 && !CHUNKED ? a.state[state_at + side * 16 + i / 4 * 8 + i % 2] : 0.0f;
  }
#if CHUNKED  // a.da: end states of chunks, a.dvec: their sums of delta
  long long channels = (long long)a.R * a.K * a.B * a.E;
  if (PHASE != 3)
    for (int before = 0; before < chunk; ++before)
#pragma unroll
      for (int i = 0; i < NJ * 4; ++i) {
        int side = i / 2 % 2 * 8;
        float total = a.dvec[before * channels + base * a.E + e0 + g + side];
        h[i] = ex2(total * a2[i]) * h[i] + a.da[before * channels * 16 + state_at + side * 16 + i / 4 * 8 + i % 2];
      }
#endif
  // Steps to positions: position = t_first + sign step.
  int t_first = r ? a.L - 1 : 0, sign = r ? -1 : 1;
  long long y_row = (long long)a.K * a.E, y_at = ((long long)b * a.L * a.K + k) * a.E + t_first * y_row;
  Copies copies = {a.x + b * a.xb + k * a.xk + e_block + t_first * a.xt + (long long)(lo * sign) * a.xt,
                   a.z + b * a.zb + k * a.zk + e_block + t_first * a.zt + (long long)(lo * sign) * a.zt,
                   a.y + y_at + e_block + lo * sign * y_row, a.p + (base * a.L + t_first + lo * sign) * P,
                   sign * (int)a.xt, sign * (int)a.zt, sign * (int)y_row, sign * P};
  copies.start(*stages, a.E - e_block, hi);
  int y_step = sign * (int)y_row;
  T *y = a.y + y_at + e0 + 2 * q;

  const T *first = (const T *)raw;
  int columns = group * 16 + matrix % 2 * 8;
  Places at;
  at.before = (int)(stages->x - first) + (row + matrix / 2 * 2) * XR + columns;
#if !GATED
  at.here = (int)(stages->x + HALO * XR - first) + row * XR + columns;
#else
  at.here = (int)((matrix < 2 ? stages->x + HALO * XR : stages->z) - first) + row * XR + columns;
#endif
  at.low = (int)(stages->low - first) + row * LR + matrix % 2 * 8;
#if PHASE == 2
  at.other = (int)(stages->other - first) + row * XR + columns;
#endif
  int window = SPLIT == 1 ? matrix % 2 * SLOTS + 7 + row + matrix / 2 * 7 : half * SLOTS + 7 + row + matrix * 7;
  int b_rows = (int)(stages->bc[0] - first) + window * 8;
  float *delta_at = own.delta + g * DR + q * 2;

  __syncthreads();
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) {
    copies.copy(stages[i], lo + i * STEPS, hi);
    close_copies();
  }
  Pending pending[BLOCKS];
  float sum[8], total[2] = {0.0f, 0.0f};
  int now = 0, free = STAGES - 1;
#pragma unroll 1
  for (int s0 = lo; s0 < hi; s0 += STEPS) {
    await_copies<STAGES - 2>();
    __syncthreads();
    if (s0 + (STAGES - 1) * STEPS < hi) copies.copy(stages[free], s0 + (STAGES - 1) * STEPS, hi);
    close_copies();
    const T *stage = (const T *)(stages + now);
    free = now;
    now = now == STAGES - 1 ? 0 : now + 1;
    unsigned drive[4];
#if SPLIT == 2
    if (PHASE != 3 && s0 > lo) {  // the batch before, of which the other warp has left its share
      float4 more = own.sum[half ^ 1][lane];
      if (half) { sum[0] = sum[4]; sum[1] = sum[5]; sum[2] = sum[6]; sum[3] = sum[7]; }
      sum[0] += more.x; sum[1] += more.y; sum[2] += more.z; sum[3] += more.w;
      int step = s0 - STEPS + half * 8 + g;
      finish(c, pending[0], sum, y + step * y_step, on && step < hi);
    }
    elementwise(c, stage, at, half, hi - s0 - half * 8 - q * 2, pending[0], delta_at, drive);
    own.drive[half][lane] = make_uint2(drive[0], drive[1]);
    __syncthreads();
    uint2 first_drive = own.drive[0][lane], second = own.drive[1][lane];
    drive[0] = first_drive.x; drive[1] = first_drive.y; drive[2] = second.x; drive[3] = second.y;
#else
#pragma unroll
    for (int n = 0; n < 2; ++n)
      elementwise(c, stage, at, n, hi - s0 - n * 8 - q * 2, pending[n], delta_at, drive + 2 * n);
    __syncwarp();
#endif
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = 0.0f;
    advance(h, a2, stage + b_rows, own.delta + g * DR, drive, sum, total);
#if PHASE == 3
    __syncwarp();
#elif SPLIT == 2
    const float *theirs = half ? sum : sum + 4;
    own.sum[half][lane] = make_float4(theirs[0], theirs[1], theirs[2], theirs[3]);
#else
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      int step = s0 + n * 8 + g;
      finish(c, pending[n], sum + 4 * n, y + step * y_step, on && step < hi);
    }
    __syncwarp();
#endif
  }
#if SPLIT == 2 && PHASE != 3
  __syncthreads();
  if (lo < hi) {
    float4 more = own.sum[half ^ 1][lane];
    if (half) { sum[0] = sum[4]; sum[1] = sum[5]; sum[2] = sum[6]; sum[3] = sum[7]; }
    sum[0] += more.x; sum[1] += more.y; sum[2] += more.z; sum[3] += more.w;
    int step = lo + (hi - 1 - lo) / STEPS * STEPS + half * 8 + g;
    finish(c, pending[0], sum, y + step * y_step, on && step < hi);
  }
#endif
  if ((PHASE == 3 || (PHASE == 1 && !CHUNKED)) && on) {
    float *to = a.state + state_at;
#if PHASE == 3
    to = a.da + chunk * channels * 16 + state_at;
    if (q == 0 && half == 0)
#pragma unroll
      for (int i = 0; i < 2; ++i) a.dvec[chunk * channels + base * a.E + e0 + g + i * 8] = total[i];
#endif
#pragma unroll
    for (int i = 0; i < NJ * 4; ++i) to[i / 2 % 2 * 8 * 16 + i / 4 * 8 + i % 2] = h[i];
  }
}
"""
