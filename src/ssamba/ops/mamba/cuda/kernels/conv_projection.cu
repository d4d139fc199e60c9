// Causal convolution, SiLU and the projection to (dt, B, C) in one pass over x, both directions at once.
//
// A warp processes ROWS = 32 tokens of one direction, whichever clips they belong to. x, the projection's weights and
// the taps come through shared memory, EC = 64 channels at a time, the next ones while these are used. ldmatrix reads
// x at each of the taps' distances as the matrix a of a product, so the result of the convolution, computed in
// float32, is that matrix once SiLU is applied and it is rounded to 16 bits. Reads of shared memory bound this
// kernel, so weights and taps are read once for a warp's two products of 16 tokens.
//
// With RUNS a lane's four tokens are a run, so x is read once for them (conv_projection_runs.cuh).
//
// Given: P outputs, DIRS directions, ALTERNATING, WARPS of a block, MIN_BLOCKS of a multiprocessor; perhaps RUNS.

#define ROWS 32                        // tokens of a warp
#define EC 64                          // channels at a time
#define THREADS (32 * WARPS)
#include "ssamba/programmatic_launch.cuh"
#ifdef RUNS
#include "ssamba/conv_projection_runs.cuh"
#define BEFORE RUN                     // rows before a block's first token, a multiple of RUN
#define X_ROW(row) ((row) * EC + (row) / RUN * 8)
#define SEQUENCE(a) blockIdx.z
#define MIXER(a) blockIdx.y
#define W_ROWS P                       // tiles reach beyond the last: sums that nobody reads
#else
#include "ssamba/conv_projection_tile.cuh"
#define BEFORE REACH
#define X_ROW(row) ((row) * XR)        // where a row of x begins
#define SEQUENCE(a) (blockIdx.y / (a).K)
#define MIXER(a) (blockIdx.y % (a).K)
#define W_ROWS (NT * 8)
#endif

#define TOKENS (ROWS * WARPS / DIRS)
#define X_ROWS (TOKENS + BEFORE + REACH)

struct __align__(16) Stage {
  T x[X_ROW(X_ROWS)], w[DIRS][W_ROWS * XR];
#ifdef RUNS
  Taps taps[DIRS];
#else
  float tap[DIRS][EC * W], bias[DIRS][EC];
#endif
};

// A thread's share of the copies of EC channels: 8 channels of every AT_ONCE-th row of x and w, and a channel's taps
// and bias, which go through registers to be halved (silu2_of_halves).
#define EACH (EC / 8)
#define AT_ONCE (THREADS / EACH)
#define X_ROUNDS ((X_ROWS + AT_ONCE - 1) / AT_ONCE)
#define W_ROUNDS ((P + AT_ONCE - 1) / AT_ONCE)
#define TAP_ROUNDS ((DIRS * EC + THREADS - 1) / THREADS)
struct StageCopies {
  const T *x, *w;
  const float *tap[TAP_ROUNDS], *bias[TAP_ROUNDS];
#ifdef RUNS
  int x_step, w_step, w_direction_step;  // in values: AT_ONCE rows further, and to the other direction
  bool whole;                        // every row of x exists
#else
  long long x_step, w_step, w_direction_step;
#endif
  int row, part, left;               // left: channels from here on
  unsigned there;                    // bit i: row i * AT_ONCE of x exists
  float4 taps[TAP_ROUNDS];
  float biases[TAP_ROUNDS];

  __device__ __forceinline__ void start(const ConvProjectionArgs &a, const T *x_all, int k, int t0) {
    row = threadIdx.x / EACH; part = threadIdx.x % EACH * 8; left = a.E; there = 0;
#pragma unroll
    for (int i = 0; i < X_ROUNDS; ++i) {
      int r = row + i * AT_ONCE, t = t0 - BEFORE + r;
      if (r < X_ROWS && t >= 0 && t < a.L) there |= 1u << i;
    }
    x = x_all + (t0 - BEFORE + row) * a.xt + part;
    w = a.w + ((long long)k * P + row) * a.E + part;
    x_step = AT_ONCE * a.xt; w_step = (long long)AT_ONCE * a.E; w_direction_step = (long long)a.K * P * a.E;
#ifdef RUNS
    whole = t0 >= BEFORE && t0 + TOKENS + REACH <= a.L;
#endif
#pragma unroll
    for (int i = 0; i < TAP_ROUNDS; ++i) {
      int n = threadIdx.x + i * THREADS;
      long long channel = (long long)(n / EC * a.K + k) * a.E + n % EC;
      tap[i] = a.conv_w + channel * W; bias[i] = a.conv_b + channel;
    }
  }
#ifdef RUNS
  // Rows of x and w; where all of them exist and all channels do, without a test of each.
  template <bool ALL> __device__ __forceinline__ void copy_rows(Stage &stage) const {
    bool in = ALL || part < left;
    SmemAddr to = smem_addr(stage.x + X_ROW(row) + part);
#pragma unroll
    for (int i = 0; i < X_ROUNDS; ++i)
      if ((i + 1) * AT_ONCE <= X_ROWS || row < X_ROWS - i * AT_ONCE)
        cp_async<16>(smem_offset(to, X_ROW(i * AT_ONCE)), x + (long long)x_step * i, ALL || (in && (there >> i & 1)));
    to = smem_addr(stage.w[0] + row * XR + part);
#pragma unroll
    for (int i = 0; i < DIRS * W_ROUNDS; ++i) {
      int r = i / W_ROUNDS, round = i % W_ROUNDS;
      if ((round + 1) * AT_ONCE <= P || row < P - round * AT_ONCE)
        cp_async<16>(smem_offset(to, (r * W_ROWS + round * AT_ONCE) * XR),
                     w + (long long)w_direction_step * r + (long long)w_step * round, in);
    }
  }
#endif
  __device__ __forceinline__ void copy(Stage &stage) {
#ifdef RUNS
    if (whole && left >= EC) copy_rows<true>(stage);
    else copy_rows<false>(stage);
#else
    bool in = part < left;
    SmemAddr to = smem_addr(stage.x + X_ROW(row) + part);
#pragma unroll
    for (int i = 0; i < X_ROUNDS; ++i)
      if ((i + 1) * AT_ONCE <= X_ROWS || row < X_ROWS - i * AT_ONCE)
        cp_async<16>(smem_offset(to, X_ROW(i * AT_ONCE)), x + i * x_step, in && (there >> i & 1));
#pragma unroll
    for (int r = 0; r < DIRS; ++r) {
      to = smem_addr(stage.w[r] + row * XR + part);
#pragma unroll
      for (int i = 0; i < W_ROUNDS; ++i)
        if ((i + 1) * AT_ONCE <= P || row < P - i * AT_ONCE)
          cp_async<16>(smem_offset(to, i * AT_ONCE * XR), w + r * w_direction_step + i * w_step, in);
    }
#endif
#pragma unroll
    for (int i = 0; i < TAP_ROUNDS; ++i) {
      int n = threadIdx.x + i * THREADS;
      bool wanted = n < DIRS * EC && n % EC < left;
      taps[i] = wanted ? *(const float4 *)tap[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      biases[i] = wanted ? *bias[i] : 0.0f;
      tap[i] += EC * W; bias[i] += EC;
    }
    x += EC; w += EC; left -= EC;
    cp_async_commit();
  }
  // Stores half of the taps and biases that the last copy loaded.
  __device__ __forceinline__ void put(Stage &stage) const {
#pragma unroll
    for (int i = 0; i < TAP_ROUNDS; ++i) {
      int n = threadIdx.x + i * THREADS;
      if (n < DIRS * EC) {
#ifdef RUNS
        stage.taps[n / EC].put(n % EC, taps[i], biases[i]);
#else
        float4 four = taps[i];
        ((float4 *)stage.tap[0])[n] = make_float4(0.5f * four.x, 0.5f * four.y, 0.5f * four.z, 0.5f * four.w);
        stage.bias[0][n] = 0.5f * biases[i];
#endif
      }
    }
  }
};

// Stores the sums of a warp's tokens, from token t0 + warp_row on.
__device__ __forceinline__ void store(const ConvProjectionArgs &a, const float (*sum)[NT][4], int b, int k, int r,
                                      int t0, int warp_row, int g, int q, int sign) {
#pragma unroll
  for (int n = 0; n < ROWS / 8; ++n) {
    int t = t0 + warp_row + ROW_TOKEN(n, g, sign);
    if (t < a.L) {
      T *to = a.p + (((long long)(r * a.K + k) * a.B + b) * a.L + t) * P + 2 * q;
#pragma unroll
      for (int j = 0; j < NT; ++j) {
        const float *two = sum[n / 2][j] + n % 2 * 2;
        if (j * 8 + 2 * q < P) *(unsigned *)(to + j * 8) = pack2_finite(two[0], two[1]);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) conv_proj(const ConvProjectionArgs a) {
  SHARED_BYTES(raw);
  Stage *stages = (Stage *)raw;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  int b = SEQUENCE(a), k = MIXER(a), t0 = blockIdx.x * TOKENS, warp_row = warp / DIRS * ROWS;
  int r = warp % DIRS, sign = REVERSED(r, k) ? -1 : 1;
  const T *x = a.x + b * a.xb + k * a.xk;
  StageCopies copies;
#ifdef RUNS
  wait_for_kernel_before();
  copies.start(a, x, k, t0);
  copies.copy(stages[0]);              // first, for what follows needs none of it
#else
  constexpr int EMPTY = (NT * 8 - P) * XR / 8;  // padding rows of weights, which no copy fills, in units of 16 bytes
  for (int i = threadIdx.x; i < 2 * DIRS * EMPTY; i += THREADS)
    *((uint4 *)(stages[i / (DIRS * EMPTY)].w[i / EMPTY % DIRS] + P * XR) + i % EMPTY) = make_uint4(0, 0, 0, 0);
#endif
  float sum[HALVES][NT][4];
#pragma unroll
  for (int i = 0; i < HALVES * NT * 4; ++i) sum[i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;
  // This lane's row for ldmatrix: tokens 0-7, 8-15, then the same of the next 8 channels; outputs likewise.
#ifdef RUNS
  int x_at[W];
#pragma unroll
  for (int i = 0; i < W; ++i)
    x_at[i] = X_ROW(BEFORE + warp_row + run_token(lane, sign, run_slot(lane, i))) + run_part(lane);
#else
  int x_at = (warp_row + REACH + lane % 16) * XR + lane / 16 * 8;
#endif
  int w_at = (lane / 16 * 8 + lane % 8) * XR + lane / 8 % 2 * 8;
  int first = (t0 + warp_row) % a.clip;
  bool within = first >= REACH && first + ROWS - 1 + REACH < a.clip;  // all tokens and neighbours are of one clip
  unsigned there = neighbours(t0 + warp_row, a.clip, g, sign);
#ifndef RUNS
  wait_for_kernel_before();
  copies.start(a, x, k, t0);
  copies.copy(stages[0]);
#endif
  int now = 0;
#pragma unroll 1
  for (int e0 = 0; e0 < a.E; e0 += EC, now ^= 1) {
    copies.put(stages[now]);
    cp_async_wait<0>();
    __syncthreads();
    if (e0 + EC < a.E) copies.copy(stages[now ^ 1]);
    const Stage &stage = stages[now];
    SmemAddr x_row[W], w_row = smem_addr(stage.w[0] + r * W_ROWS * XR + w_at);
#ifdef RUNS
#pragma unroll
    for (int i = 0; i < W; ++i) x_row[i] = smem_addr(stage.x + x_at[i]);
#pragma unroll 1
    for (int tile = 0; tile < EC && e0 + tile < a.E; tile += 16) {
      unsigned u[HALVES][4];
      stage.taps[r].convolve(u, x_row, tile, lane, within, there);
#else
#pragma unroll
    for (int d = 0; d < W; ++d) x_row[d] = smem_addr(stage.x + x_at - d * sign * XR);
    const float *taps = stage.tap[0] + (r * EC + q * 2) * W, *biases = stage.bias[0] + r * EC + q * 2;
#pragma unroll 1
    for (int tile = 0; tile < EC && e0 + tile < a.E; tile += 16) {
      unsigned near[HALVES][W][4], u[HALVES][4];
      load_neighbours(near, x_row, tile, within, there);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 *tap = (const float4 *)(taps + (tile + half * 8) * W);
        float4 m = tap[0], n = tap[1];
        float2 bias = *(const float2 *)(biases + tile + half * 8);
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) u[h][i] = convolve(near[h], i, m, n, bias);
      }
#endif
      project(sum, u, smem_offset(w_row, tile));
    }
  }
  store(a, sum, b, k, r, t0, warp_row, g, q, sign);
}
