"""CUDA C++ of the forward scan (``nvrtc_scan`` compiles it after ``nvrtc_source.COMMON``).

A warp owns ``CW`` = 32 / LPC channels; ``LPC`` lanes share a channel's states, ``SPT`` each. With LPC 1 a lane is a
channel: no shuffles at all, the fewest instructions. With LPC 8 there are eight times the warps: that fills the chip
when batch times width is small. Time goes in batches of 8 to 32 steps, of which each lane of a channel computes an
LPC-th elementwise (u, delta, gate, output), so that work is never repeated; shuffles hand (delta, delta u) round, and
the folded sum over states ends in the lane that owns the step. B and C come through shared memory, double buffered,
one barrier each 32 steps; the raw dt of 16 steps is one small tensor-core product.
"""

TILES = r"""
#define CW (32 / LPC)
#define KT ((RANK + 15) / 16)
#define NT ((CW + 7) / 8)
#define MMA (DTYPE != 0 && P % 2 == 0)
#define RW (KT * 16 + 8)
#define VEC (P % 4 == 0 && RANK % 4 == 0 && N % 4 == 0 && SPT > 1 ? 4 : 1)
#define PV (P / VEC)
#define PN ((TT * PV + WARPS * 32 - 1) / (WARPS * 32))

#if MMA
typedef unsigned short Low;  // how the low-rank dt waits in shared memory
#else
typedef float Low;
#endif
struct __align__(VEC * sizeof(T)) Chunk { T v[VEC]; };

struct Rows {  // TT rows of p on their way
  Chunk p[PN];
  int steps, r;
  __device__ __forceinline__ void fetch(const T *p_lane, int L, int r_, int s0, int end) {
    r = r_;
    steps = min(TT, end - s0);
    const Chunk *from = (const Chunk *)(p_lane + (long long)(r ? L - s0 - steps : s0) * P) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < PN; ++i)
      if ((int)threadIdx.x + i * (WARPS * 32) < steps * PV) p[i] = from[i * (WARPS * 32)];
  }
  __device__ __forceinline__ void put(Low *low, float *bc) const {
#pragma unroll
    for (int i = 0; i < PN; ++i) {
      unsigned n = threadIdx.x + i * (WARPS * 32), row = n / PV;
      int j = n % PV * VEC;
      if (n < steps * PV) {
        int step = r ? steps - 1 - row : row;
        if (j < RANK) {
#pragma unroll
          for (int v = 0; v < VEC; ++v) {
#if MMA
            low[step * RW + j + v] = p[i].v[v];
#else
            low[step * RW + j + v] = load(p[i].v[v]);
#endif
          }
        } else {
          int m = j - RANK, is_c = m >= N, state = is_c ? m - N : m;
#pragma unroll
          for (int v = 0; v < VEC; ++v) {
            int st = state + v;
            bc[step * 2 * NP + st / SPT * 2 * SPT + is_c * SPT + st % SPT] = load(p[i].v[v]);
          }
        }
      }
    }
  }
};

// dts[16][CW] = 16 rows of low times this warp's dt_proj.
__device__ __forceinline__ void expand_dt(const Low *low, const float *wlow, float *dts, int lane) {
#if MMA
  float acc[NT][4];
#pragma unroll
  for (int j = 0; j < NT; ++j) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
  const unsigned *rows = (const unsigned *)low;
  int at = (lane / 4) * (RW / 2) + lane % 4;
#pragma unroll
  for (int k = 0; k < KT; ++k) {
    unsigned a0 = rows[at + k * 8], a1 = rows[at + 8 * (RW / 2) + k * 8];
    unsigned a2 = rows[at + k * 8 + 4], a3 = rows[at + 8 * (RW / 2) + k * 8 + 4];
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      uint2 b = ((const uint2 *)wlow)[(k * NT + j) * 32 + lane];
      mma16816(acc[j], a0, a1, a2, a3, b.x, b.y);
    }
  }
#pragma unroll
  for (int j = 0; j < NT; ++j) {
    int c = j * 8 + lane % 4 * 2, row = lane / 4;
    if (CW >= 8 || c < CW) {
      *(float2 *)(dts + row * CW + c) = make_float2(acc[j][0], acc[j][1]);
      *(float2 *)(dts + (row + 8) * CW + c) = make_float2(acc[j][2], acc[j][3]);
    }
  }
#else
  for (int n = lane; n < 16 * CW; n += 32) {
    float sum = 0.0f;
    for (int k = 0; k < RANK; ++k) sum += low[n / CW * RW + k] * wlow[k * CW + n % CW];
    dts[n] = sum;
  }
#endif
}

// This warp's dt_proj: as fragments of the product's right side, or plain [rank][channel].
__device__ __forceinline__ void put_weights(const Args &a, long long lane_of, int e0, float *wlow, int lane) {
#if MMA
  for (int i = 0; i < KT * NT * 2; ++i) {
    int half = i % 2, j = i / 2 % NT, k = i / 2 / NT, c = j * 8 + lane / 4, r = k * 16 + half * 8 + lane % 4 * 2;
    T pair[2];
#pragma unroll
    for (int v = 0; v < 2; ++v)
      pair[v] = c < CW && e0 + c < a.E && r + v < RANK
                    ? pack(a.dt_proj[(lane_of * a.E + e0 + c) * RANK + r + v]) : T(0);
    ((unsigned *)wlow)[((k * NT + j) * 32 + lane) * 2 + half] = pair[0] | (unsigned)pair[1] << 16;
  }
#else
  for (int n = lane; n < RANK * CW; n += 32) {
    int c = e0 + n % CW;
    wlow[n] = c < a.E ? a.dt_proj[(lane_of * a.E + c) * RANK + n / CW] : 0.0f;
  }
#endif
}
"""

FORWARD = r"""
// PHASE 0: one direction, whole; 1: first half, raw output; 2: second half, joined, gated.
#define EW (BATCH / LPC)
#define AHEAD 4
#define HIST ((W - 1 + LPC - 1) / LPC)
extern "C" __global__ void __launch_bounds__(128, MIN_BLOCKS) scan_forward(const Args a) {
  __shared__ __align__(16) Low low[2][TT * RW];
  __shared__ __align__(16) float bc[2][TT * 2 * NP];
  __shared__ __align__(16) float wlow_all[WARPS][MMA ? KT * NT * 64 : RANK * CW];
  __shared__ __align__(16) float dts_all[WARPS][(BATCH > 16 ? BATCH : 16) * CW];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, s = lane % LPC, c = lane / LPC;
  int b = blockIdx.y / a.K, k = blockIdx.y % a.K, r = blockIdx.z;
  int e0 = (blockIdx.x * WARPS + warp) * CW, e = e0 + c;
  bool on = e < a.E;
  if (!on) e = a.E - 1;
  long long lane_of = (long long)r * a.K + k, base = lane_of * a.B + b;
  float *wlow = wlow_all[warp], *dts = dts_all[warp];
  for (int i = threadIdx.x; i < 2 * TT * 2 * NP; i += 128) bc[0][i] = 0.0f;
  for (int i = threadIdx.x; i < 2 * TT * RW; i += 128) low[0][i] = 0;
  put_weights(a, lane_of, e0, wlow, lane);

  int half = first_half(a, r), lo = PHASE == 2 ? half : 0, hi = PHASE == 1 ? half : a.L;
  long long ch = lane_of * a.E + e, state_at = (base * a.E + e) * N;
  float tap[W], conv_b = a.conv_b[ch], dt_b = a.dt_bias[ch], skip = a.skip[ch];
#pragma unroll
  for (int j = 0; j < W; ++j) tap[j] = a.conv_w[ch * W + j];
  float h[SPT], a2[SPT];
#pragma unroll
  for (int i = 0; i < SPT; ++i) {
    int n = s * SPT + i;
    a2[i] = n < N ? -LOG2E * ex2(LOG2E * a.a_log[ch * N + n]) : 0.0f;
    h[i] = PHASE == 2 && n < N ? a.state[state_at + n] : 0.0f;
  }
  // Steps to positions: position = t_first + sign step. Pointers stand at this lane's channel.
  int t_first = r ? a.L - 1 : 0, sign = r ? -1 : 1;
  const T *x_at = a.x + b * a.xb + k * a.xk + e + t_first * a.xt;
  const T *z_at = a.z + b * a.zb + k * a.zk + e + t_first * a.zt;
  long long y_row = (long long)a.K * a.E, y_off = ((long long)b * a.L * a.K + k) * a.E + e + t_first * y_row;
  T *y_at = a.y + y_off;
  int x_step = sign * (int)a.xt, z_step = sign * (int)a.zt, y_step = sign * (int)y_row;
  const T *p_lane = a.p + base * a.L * P;

  float X[HIST + EW];  // x of this lane's steps, after those of the batch before
  T next[EW];
#pragma unroll
  for (int i = 0; i < HIST; ++i) {
    int step = lo + (i - HIST) * LPC + s;
    X[i] = step >= 0 && step < a.L ? load(x_at[step * x_step]) : 0.0f;
  }
  T z_next[EW], other_next[EW];  // as x, a batch ahead, where a lane has few steps and so few registers
  Rows rows;
  if (lo < hi) {
    rows.fetch(p_lane, a.L, r, lo, hi);
#pragma unroll
    for (int i = 0; i < EW; ++i) {
      int step = min(lo + i * LPC + s, hi - 1);
      next[i] = x_at[step * x_step];
      if (EW <= AHEAD && PHASE != 1) z_next[i] = z_at[step * z_step];
      if (EW <= AHEAD && PHASE == 2) other_next[i] = y_at[step * y_step];
    }
  }
  __syncthreads();
  if (lo < hi) rows.put(low[0], bc[0]);
  int buf = 0;
  for (int s0 = lo; s0 < hi; s0 += TT, buf ^= 1) {
    __syncthreads();
    bool more = s0 + TT < hi;
    if (more) rows.fetch(p_lane, a.L, r, s0 + TT, hi);
    int stop = min(TT, hi - s0);
#pragma unroll 1
    for (int g = 0; g < stop; g += BATCH) {
      if (BATCH >= 16 || g % 16 == 0) {
        __syncwarp();
        expand_dt(low[buf] + g * RW, wlow, dts, lane);
        if (BATCH > 16) expand_dt(low[buf] + (g + 16) * RW, wlow, dts + 16 * CW, lane);
        __syncwarp();
      }
      int left = hi - s0 - g;  // steps from this batch on
      float u[EW], delta[EW], drive[EW];
      T z[EW], other[EW];
#pragma unroll
      for (int i = 0; i < EW; ++i) {
        X[HIST + i] = load(next[i]);
        if (EW <= AHEAD) { z[i] = z_next[i]; other[i] = other_next[i]; }
      }
      if (left > BATCH) {
#pragma unroll
        for (int i = 0; i < EW; ++i) next[i] = x_at[(s0 + g + min(BATCH + i * LPC + s, left - 1)) * x_step];
      }
#pragma unroll
      for (int i = 0; i < EW; ++i) {
        int step = s0 + g + min((EW <= AHEAD ? BATCH : 0) + i * LPC + s, left - 1);
        T *zt = EW <= AHEAD ? z_next : z, *ot = EW <= AHEAD ? other_next : other;
        if (PHASE != 1) zt[i] = z_at[step * z_step];
        if (PHASE == 2) ot[i] = y_at[step * y_step];
      }
#pragma unroll
      for (int i = 0; i < EW; ++i) {
        float v = conv_b + tap[W - 1] * X[HIST + i];
#pragma unroll
        for (int d = 1; d < W; ++d) {
          if constexpr (LPC == 1) v += tap[W - 1 - d] * X[HIST + i - d];
          else {  // the lane that holds the step d back sends it, from this batch's row or the one before
            int from = i + HIST - d / LPC;
            float give = s + d % LPC >= LPC ? X[from > 0 ? from - 1 : 0] : X[from];
            v += tap[W - 1 - d] * __shfl_sync(0xffffffffu, give, (s - d) & (LPC - 1), LPC);
          }
        }
        u[i] = v * sigmoid(v);
        float dt = softplus(dts[((BATCH < 16 ? g % 16 : 0) + i * LPC + s) * CW + c] + dt_b);
        delta[i] = i * LPC + s < left ? dt : 0.0f;
        drive[i] = delta[i] * u[i];
      }
#pragma unroll
      for (int i = 0; i < HIST; ++i) X[i] = X[EW + i];
#pragma unroll
      for (int i = 0; i < EW; ++i) {
        float sum[LPC];
#pragma unroll
        for (int j = 0; j < LPC; ++j) {
          float dj = LPC == 1 ? delta[i] : __shfl_sync(0xffffffffu, delta[i], j, LPC);
          float gj = LPC == 1 ? drive[i] : __shfl_sync(0xffffffffu, drive[i], j, LPC);
          const float *m = bc[buf] + (g + i * LPC + j) * 2 * NP + s * 2 * SPT;
          float bv[2 * SPT], acc = 0.0f;
          if constexpr (SPT == 1) *(float2 *)bv = *(const float2 *)m;
          else {
#pragma unroll
            for (int q = 0; q < SPT / 2; ++q) {
              float4 v = ((const float4 *)m)[q];
              bv[4 * q] = v.x; bv[4 * q + 1] = v.y; bv[4 * q + 2] = v.z; bv[4 * q + 3] = v.w;
            }
          }
#pragma unroll
          for (int n = 0; n < SPT; ++n) {
            h[n] = ex2(dj * a2[n]) * h[n] + gj * bv[n];
            acc += h[n] * bv[SPT + n];
          }
          sum[j] = acc;
        }
        fold<LPC, LPC / 2, 1>(sum, s);
        float y = sum[0] + skip * u[i];
        if (on && i * LPC + s < left) {
          int step = s0 + g + i * LPC + s;
          if (PHASE == 2) y = 0.5f * (y + load(other[i]));
          if (PHASE == 1) y_at[step * y_step] = pack(y);
          else {
            float zv = gate_input(load(z[i])), sig = sigmoid(zv);
            y_at[step * y_step] = pack(y * zv * sig);
          }
        }
      }
    }
    if (more) rows.put(low[buf ^ 1], bc[buf ^ 1]);
  }
  if (PHASE == 1 && on) {
#pragma unroll
    for (int i = 0; i < SPT; ++i)
      if (s * SPT + i < N) a.state[state_at + s * SPT + i] = h[i];
  }
}
"""
