// Backward of the causal convolution and its SiLU: one pass over x and the gradient of u, both directions at once.
//
// A thread processes V channels over one part of the time. Around its step it holds x from W - 1 tokens before to W - 1
// after, for both convolutions, and the sums that become dx, to which it scatters the gradient of each step. The taps'
// gradients stay in registers until the part ends. u is written on the way: the projection's gradient needs it.
//
// Given: W taps, DIRS directions, ALTERNATING, V channels of a thread, STEPS of an iteration, THREADS of a block, and
// TOKEN_SUMS: then the sums of dx over the part are one row more, which direction 0 alone writes.

#include "ssamba/common.cuh"
#include "ssamba/conv_backward_args.cuh"
#include "ssamba/token_sums.cuh"

#define REACH (W - 1)
#define ROWS (W + 1 + TOKEN_SUMS)  // of sums over a part: taps, bias, dx
#if TOKEN_SUMS && DTYPE == 0 && DIRS == 2 && V == 2
#define BOUNDS THREADS, 8  // or the compiler takes 159 registers instead of 128
#else
#define BOUNDS THREADS
#endif

struct __align__(V * sizeof(T)) Vec { T v[V]; };

// What a thread holds around its step. x[i] and dx[i] are of token t0 - REACH + i.
struct Window {
  float x[2 * REACH + STEPS][V], dx[2 * REACH + STEPS][V];
  float tap[DIRS][W][V], bias[DIRS][V], dtap[DIRS][W][V], dbias[DIRS][V];
#if TOKEN_SUMS
  float dx_sum[V];
#endif
};

// Steps t0 to t0 + STEPS - 1. FULL: all of them and their neighbours are inside the part and the sequence. `from`
// points at x of token t0 + REACH, `du` and `u` at t0, `to` at dx of t0 - REACH. ODD: whether the mixer is the second
// of two (ALTERNATING).
template <bool FULL, int ODD>
__device__ __forceinline__ void advance(const ConvBackwardArgs &a, Window &m, const T *from, const T *du, T *u,
                                        T *to, int t0, int start, int end) {
  Vec x[STEPS], d[DIRS][STEPS];
  long long direction_step = (long long)a.K * a.B * a.L * a.E;
#pragma unroll
  for (int j = 0; j < STEPS; ++j) {
    bool in = FULL || (t0 + j >= 0 && t0 + j < a.L), ahead = FULL || (t0 + j + REACH >= 0 && t0 + j + REACH < a.L);
    x[j] = ahead ? *(const Vec *)(from + j * a.xt) : Vec{};
#pragma unroll
    for (int r = 0; r < DIRS; ++r) d[r][j] = in ? *(const Vec *)(du + r * direction_step + (long long)j * a.E) : Vec{};
  }
#pragma unroll
  for (int j = 0; j < STEPS; ++j) {
    bool in_part = FULL || (t0 + j >= start && t0 + j < end);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      m.x[2 * REACH + j][v] = load(x[j].v[v]);
      m.dx[2 * REACH + j][v] = 0.0f;
    }
#pragma unroll
    for (int r = 0; r < DIRS; ++r) {
      Vec out;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float s = m.bias[r][v];
#pragma unroll
        for (int i = 0; i < W; ++i) s += m.tap[r][W - 1 - i][v] * m.x[j + REACH + (REVERSED(r, ODD) ? i : -i)][v];
        float sig = sigmoid(s), us = s * sig, g = load(d[r][j].v[v]) * (sig + us * (1.0f - sig));
        float g_part = in_part ? g : 0.0f;
        out.v[v] = pack(us);
        m.dbias[r][v] += g_part;
#pragma unroll
        for (int i = 0; i < W; ++i) {
          int at = j + REACH + (REVERSED(r, ODD) ? i : -i);
          m.dtap[r][W - 1 - i][v] += g_part * m.x[at][v];
          m.dx[at][v] += m.tap[r][W - 1 - i][v] * g;
        }
      }
      if (in_part) *(Vec *)(u + r * direction_step + (long long)j * a.E) = out;
    }
    if (FULL || (t0 + j - REACH >= start && t0 + j - REACH < end)) {
      Vec out;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        out.v[v] = pack(m.dx[j][v]);
#if TOKEN_SUMS
        m.dx_sum[v] += m.dx[j][v];
#endif
      }
      *(Vec *)(to + j * a.dxt) = out;
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * REACH; ++i) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      m.x[i][v] = m.x[STEPS + i][v];
      m.dx[i][v] = m.dx[STEPS + i][v];
    }
  }
}

extern "C" __global__ void __launch_bounds__(BOUNDS) conv_backward(const ConvBackwardArgs a) {
  int e = (blockIdx.x * THREADS + threadIdx.x) * V, b = blockIdx.z / a.K, k = blockIdx.z % a.K;
  if (e >= a.E) return;
  int start = blockIdx.y * a.steps, end = min(start + a.steps, a.L), t0 = start - REACH;
  Window m;
#pragma unroll
  for (int v = 0; v < V; ++v) {
#if TOKEN_SUMS
    m.dx_sum[v] = 0.0f;
#endif
#pragma unroll
    for (int r = 0; r < DIRS; ++r) {
      long long ch = (long long)(r * a.K + k) * a.E + e + v;
      m.bias[r][v] = a.conv_b[ch];
      m.dbias[r][v] = 0.0f;
#pragma unroll
      for (int i = 0; i < W; ++i) {
        m.tap[r][i][v] = a.conv_w[ch * W + i];
        m.dtap[r][i][v] = 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * REACH; ++i) {
      int t = t0 - REACH + i;
      m.x[i][v] = t >= 0 && t < a.L ? load(a.x[b * a.xb + k * a.xk + t * a.xt + e + v]) : 0.0f;
      m.dx[i][v] = 0.0f;
    }
  }
  const T *from = a.x + b * a.xb + k * a.xk + e + (t0 + REACH) * a.xt;
  long long row = (((long long)k * a.B + b) * a.L + t0) * a.E + e;
  const T *du = a.du + row;
  T *u = a.u + row, *to = a.dx + b * a.dxb + k * a.dxk + e + (t0 - REACH) * a.dxt;
#pragma unroll 1
  for (; t0 < end + REACH; t0 += STEPS) {
    bool full = t0 - REACH >= start && t0 + STEPS <= end && t0 + STEPS + REACH <= a.L;
    if (ALTERNATING && k % 2) {
      if (full) advance<true, 1>(a, m, from, du, u, to, t0, start, end);
      else advance<false, 1>(a, m, from, du, u, to, t0, start, end);
    } else if (full)
      advance<true, 0>(a, m, from, du, u, to, t0, start, end);
    else
      advance<false, 0>(a, m, from, du, u, to, t0, start, end);
    from += STEPS * a.xt; to += STEPS * a.dxt; du += (long long)STEPS * a.E; u += (long long)STEPS * a.E;
  }
#pragma unroll
  for (int r = 0; r < DIRS; ++r) {
    float *part = a.part + ((((long long)blockIdx.y * a.B + b) * DIRS + r) * a.K + k) * ROWS * a.E + e;
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int i = 0; i < W; ++i) part[(long long)i * a.E + v] = m.dtap[r][i][v];
      part[(long long)W * a.E + v] = m.dbias[r][v];
#if TOKEN_SUMS
      if (r == 0) part[(long long)(W + 1) * a.E + v] = m.dx_sum[v];
#endif
    }
  }
}
