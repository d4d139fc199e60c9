"""CUDA C++ of the scan (``nvrtc_scan`` compiles it). Everything that varies is a macro, so nothing is decided in the loop.

One thread owns ``SPT`` states of one channel, ``LPC`` lanes of a warp own a channel, a block owns ``CB`` channels of one
lane (direction r, block k) of one clip and walks the time in tiles of ``TT`` steps: inputs of the next tile are on their
way while a tile is worked on; a first part computes u and delta once for each (step, channel); then the recurrence runs;
sums over states are folded so that each shuffle halves the values left (a transposed reduction: 7 shuffles for 8 steps
where a butterfly takes 24). Splitting a channel's states over lanes is what fills the chip when batch and width are small.

In memory order everything below is in *scan order*: step s of direction 1 is position L - 1 - s, and both convolutions
look back. The two directions meet in the middle, as ``triton_kernels.scan`` explains.
"""

COMMON = r"""
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

#if DTYPE == 0
typedef float T;
#else
typedef unsigned short T;  // bits of a bf16 (DTYPE 1) or fp16 (DTYPE 2) value
#endif

struct Args {
  const T *x, *z, *p, *dy;
  T *y, *dz, *du, *ddt, *dbc;
  const float *conv_w, *conv_b, *dt_proj, *dt_bias, *a_log, *skip;
  float *state, *ckpt, *da, *dvec;
  long long xb, xt, xk, zb, zt, zk, dzb, dzt, dzk;
  int B, L, K, E, R, count;
};

#ifndef SSAMBA_EMULATE
__device__ __forceinline__ float ex2(float v) {
  float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r;
}
__device__ __forceinline__ float lg2(float v) {
  float r; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r;
}
__device__ __forceinline__ float rcp(float v) {
  float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r;
}
#if DTYPE == 0
__device__ __forceinline__ float load(T v) { return v; }
__device__ __forceinline__ T pack(float v) { return v; }
#elif DTYPE == 1
__device__ __forceinline__ float load(T v) { return __uint_as_float((unsigned)v << 16); }
__device__ __forceinline__ T pack(float v) {
  T r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r;
}
#else
__device__ __forceinline__ float load(T v) {
  float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v)); return r;
}
__device__ __forceinline__ T pack(float v) {
  T r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r;
}
#endif
#if DTYPE != 0
__device__ __forceinline__ void mma16816(float *d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                         unsigned b1) {
#if DTYPE == 1
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif
#endif

__device__ __forceinline__ float sigmoid(float v) { return rcp(1.0f + ex2(-LOG2E * v)); }

// log(1 + e^v): a short series where 1 + e would lose the digits of a small e.
__device__ __forceinline__ float softplus(float v) {
  float e = ex2(LOG2E * v);
  float series = e * (1.0f - e * (0.5f - e * (0.33333333f - e * 0.25f)));
  float log = LN2 * lg2(1.0f + e);
  return v > 20.0f ? v : (e < 0.0625f ? series : log);
}

// Sums CNT values over the lanes whose numbers differ in the bits WD, WD/2 .. END. Each step hands half of the values
// over, so at the end a lane holds only the values from fold_at() on (one, when there are at least as many lanes).
template <int CNT, int WD, int END> __device__ __forceinline__ void fold(float *v, int lane) {
  if constexpr (WD >= END) {
    if constexpr (CNT > 1) {
      bool up = lane & WD;
#pragma unroll
      for (int i = 0; i < CNT / 2; ++i) {
        float give = up ? v[i] : v[i + CNT / 2];
        float keep = up ? v[i + CNT / 2] : v[i];
        v[i] = keep + __shfl_xor_sync(0xffffffffu, give, WD);
      }
      fold<CNT / 2, WD / 2, END>(v, lane);
    } else {
      v[0] += __shfl_xor_sync(0xffffffffu, v[0], WD);
      fold<1, WD / 2, END>(v, lane);
    }
  }
}
template <int CNT, int WD, int END> __device__ __forceinline__ int fold_at(int lane) {
  if constexpr (WD >= END && CNT > 1)
    return ((lane & WD) ? CNT / 2 : 0) + fold_at<CNT / 2, WD / 2, END>(lane);
  else
    return 0;
}
template <int CNT, int WD, int END> __host__ __device__ constexpr int fold_left() {
  if constexpr (WD >= END && CNT > 1)
    return fold_left<CNT / 2, WD / 2, END>();
  else
    return CNT;
}

// First half of the steps of direction r (its phase 1), and the steps of one phase.
__device__ __forceinline__ int first_half(const Args &a, int r) {
  return a.R == 1 ? a.L : (r ? a.L / 2 : (a.L + 1) / 2);
}
"""

BACKWARD = r"""
#define THREADS (CB * LPC)
#define NIT ((TT + LPC - 1) / LPC)
#define GROUP (LPC < TT ? LPC : TT)
#define RP ((RANK + 3) / 4 * 4)
#define XN ((TT + W - 1 + LPC - 1) / LPC)
#define VEC (P % 4 == 0 && RANK % 4 == 0 && N % 4 == 0 && SPT > 1 ? 4 : 1)
#define PV (P / VEC)
#define PN ((TT * PV + THREADS - 1) / THREADS)

// Where a block stands: its clip, lane, channels, and the pointers moved there.
struct Place {
  int tid, c, row, s, b, k, r, e;
  bool on;
  long long lane, base;  // lane = r K + k; base = (lane B + b)
  __device__ __forceinline__ Place(const Args &a) {
    tid = threadIdx.x;
    c = tid % CB; row = tid / CB;                // (channel, step) of the elementwise parts
    s = tid % LPC;                               // lane of the channel in the recurrence
    b = blockIdx.y / a.K; k = blockIdx.y % a.K; r = blockIdx.z;
    e = blockIdx.x * CB + c; on = e < a.E;
    lane = (long long)r * a.K + k; base = lane * a.B + b;
  }
  __device__ __forceinline__ int time(const Args &a, int step) const { return r ? a.L - 1 - step : step; }
};

// VEC values of p.
struct __align__(VEC * sizeof(T)) Chunk { T v[VEC]; };

// Inputs of one tile on their way from memory, still in their own type. Offsets inside a clip fit 32 bits.
struct Inputs {
  T x[XN];
  Chunk p[PN];
  int steps;
  __device__ __forceinline__ void fetch(const Args &a, const Place &at, int s0, int end) {
    const T *x_from = a.x + at.b * a.xb + at.k * a.xk + at.e;
    int first = s0 - (W - 1) + at.row, stride = (int)a.xt;
    int offset = at.time(a, first) * stride, move = (at.r ? -LPC : LPC) * stride;
#pragma unroll
    for (int i = 0; i < XN; ++i) {
      int step = first + i * LPC;
      x[i] = at.on && step >= 0 && step < end ? x_from[offset] : T(0);
      offset += move;
    }
    // The rows of the tile are one run of memory, whichever way it is read.
    steps = min(TT, end - s0);
    const Chunk *p_from = (const Chunk *)(a.p + (at.base * a.L + (at.r ? a.L - s0 - steps : s0)) * P) + at.tid;
#pragma unroll
    for (int i = 0; i < PN; ++i)
      if (at.tid + i * THREADS < steps * PV) p[i] = p_from[i * THREADS];
  }
  // xs[step][channel], dts[step][rank], bc[step][state lane][SPT of B, SPT of C]. Rows after the last keep old values.
  __device__ __forceinline__ void put(const Place &at, float *xs, float *dts, float *bc) const {
#pragma unroll
    for (int i = 0; i < XN; ++i)
      if (at.row + i * LPC < TT + W - 1) xs[(at.row + i * LPC) * CB + at.c] = load(x[i]);
#pragma unroll
    for (int i = 0; i < PN; ++i) {
      unsigned n = at.tid + i * THREADS, row = n / PV;
      int j = n % PV * VEC;
      if (n < steps * PV) {
        int step = at.r ? steps - 1 - row : row;
        if constexpr (VEC == 4) {
          float4 v = make_float4(load(p[i].v[0]), load(p[i].v[VEC / 4]), load(p[i].v[VEC / 2]), load(p[i].v[VEC - 1]));
          if (j < RANK) *(float4 *)(dts + step * RP + j) = v;
          else {
            int m = j - RANK, is_c = m >= N, state = is_c ? m - N : m;
            float *to = bc + step * 2 * NP + state * 2 + is_c * SPT;
            if constexpr (SPT == 2) {
              *(float2 *)to = make_float2(v.x, v.y);
              *(float2 *)(to + 4) = make_float2(v.z, v.w);
            } else *(float4 *)(bc + step * 2 * NP + state / SPT * 2 * SPT + is_c * SPT + state % SPT) = v;
          }
        } else {
          float v = load(p[i].v[0]);
          if (j < RANK) dts[step * RP + j] = v;
          else {
            int m = j - RANK, is_c = m >= N, state = is_c ? m - N : m;
            bc[step * 2 * NP + state / SPT * 2 * SPT + is_c * SPT + state % SPT] = v;
          }
        }
      }
    }
  }
};

// What a thread needs of its elementwise channel for the whole scan.
struct Channel {
  float tap[W], conv_b, dt_b, skip;
  __device__ __forceinline__ Channel(const Args &a, const Place &at) {
    long long e = at.lane * a.E + at.e;
#pragma unroll
    for (int j = 0; j < W; ++j) tap[j] = at.on ? a.conv_w[e * W + j] : 0.0f;
    conv_b = at.on ? a.conv_b[e] : 0.0f;
    dt_b = at.on ? a.dt_bias[e] : 0.0f;
    skip = at.on ? a.skip[e] : 0.0f;
  }
};

__device__ __forceinline__ void put_dt_proj(const Args &a, const Place &at, float *wdt) {
  for (int i = at.tid; i < RP * CB; i += THREADS) {
    int j = i / CB, e = blockIdx.x * CB + i % CB;
    wdt[i] = j < RANK && e < a.E ? a.dt_proj[(at.lane * a.E + e) * RANK + j] : 0.0f;
  }
}

// u and the raw dt of this thread's NIT steps.
__device__ __forceinline__ void expand(const Place &at, const Channel &ch, const float *xs, const float *dts,
                                       const float *wdt, float *u, float *dt) {
#pragma unroll
  for (int i = 0; i < NIT; ++i) {
    int step = at.row + i * LPC;
    float v = ch.conv_b;
    if (step < TT) {
#pragma unroll
      for (int j = 0; j < W; ++j) v += ch.tap[j] * xs[(step + j) * CB + at.c];
    }
    u[i] = v * sigmoid(v);
    dt[i] = ch.dt_b;
  }
#pragma unroll 4
  for (int q = 0; q < RP / 4; ++q) {
    float w0 = wdt[(4 * q) * CB + at.c], w1 = wdt[(4 * q + 1) * CB + at.c];
    float w2 = wdt[(4 * q + 2) * CB + at.c], w3 = wdt[(4 * q + 3) * CB + at.c];
#pragma unroll
    for (int i = 0; i < NIT; ++i) {
      int step = at.row + i * LPC;
      if (step < TT) {
        float4 d = *(const float4 *)(dts + step * RP + 4 * q);
        dt[i] += w0 * d.x + w1 * d.y + w2 * d.z + w3 * d.w;
      }
    }
  }
}

// Tile by tile from the end: the states again from the tile's saved one (kept in registers), then the adjoint.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) scan_backward(const Args a) {
  constexpr int WARPS = (THREADS + 31) / 32, CPW_END = LPC;
  constexpr int LEFT = fold_left<2 * SPT, 16, CPW_END>();
  __shared__ __align__(16) float xs[(TT + W - 1) * CB], dts[TT * RP + 4], wdt[RP * CB + 4], bc[TT * 2 * NP + 4];
  __shared__ __align__(16) float4 drive[TT * CB];
  __shared__ float s1s[TT * CB], s2s[TT * CB], red[WARPS * TT * 2 * NP + 2 * THREADS];
  Place at(a);
  Channel ch(a, at);
  put_dt_proj(a, at, wdt);
  for (int i = at.tid; i < TT * 2 * NP; i += THREADS) bc[i] = 0.0f;
  for (int i = at.tid; i < TT * RP; i += THREADS) dts[i] = 0.0f;
  int half = first_half(a, at.r), half_tiles = (half + TT - 1) / TT;
  int sc = at.tid / LPC, se = blockIdx.x * CB + sc, warp = at.tid / 32, lane = at.tid % 32;
  float carry[SPT], a2[SPT], da[SPT], dskip = 0.0f, dbias = 0.0f;
#pragma unroll
  for (int i = 0; i < SPT; ++i) {
    int n = at.s * SPT + i;
    a2[i] = n < N && se < a.E ? -LOG2E * ex2(LOG2E * a.a_log[(at.lane * a.E + se) * N + n]) : 0.0f;
    carry[i] = da[i] = 0.0f;
  }
  const T *z_from = a.z + at.b * a.zb + at.k * a.zk + at.e;
  const T *dy_from = a.dy + (at.b * (long long)a.L * a.K + at.k) * a.E + at.e;
  T *du_to = a.du + at.base * a.L * a.E + at.e, *ddt_to = a.ddt + at.base * a.L * a.E + at.e;
  T *dbc_to = a.dbc + (blockIdx.x * (long long)(a.R * a.K * a.B) + at.base) * a.L * 2 * N;
  Inputs in;
  {
    int tile = a.count - 1;
    bool late = tile >= half_tiles;
    in.fetch(a, at, late ? half + (tile - half_tiles) * TT : tile * TT, late ? a.L : half);
  }
  for (int tile = a.count - 1; tile >= 0; --tile) {
    bool late = tile >= half_tiles;
    int s0 = late ? half + (tile - half_tiles) * TT : tile * TT, end = late ? a.L : half;
    __syncthreads();
    in.put(at, xs, dts, bc);
    if (tile > 0) {
      bool next_late = tile - 1 >= half_tiles;
      in.fetch(a, at, next_late ? half + (tile - 1 - half_tiles) * TT : (tile - 1) * TT, next_late ? a.L : half);
    }
    float h[SPT];
#pragma unroll
    for (int i = 0; i < SPT; ++i) {
      int n = at.s * SPT + i;
      h[i] = n < N && se < a.E ? a.ckpt[((at.base * a.count + tile) * a.E + se) * N + n] : 0.0f;
    }
    T z[NIT], dy[NIT];
    int t0 = at.time(a, s0 + at.row), dt0 = at.r ? -LPC : LPC;
#pragma unroll
    for (int i = 0; i < NIT; ++i) {
      int row = at.row + i * LPC, t = t0 + i * dt0;
      bool ok = at.on && s0 + row < end && row < TT;
      z[i] = ok ? z_from[t * (int)a.zt] : T(0);
      dy[i] = ok ? dy_from[t * a.K * a.E] : T(0);
    }
    __syncthreads();
    float u[NIT], dt[NIT], ds[NIT];
    expand(at, ch, xs, dts, wdt, u, dt);
#pragma unroll
    for (int i = 0; i < NIT; ++i) {
      int row = at.row + i * LPC;
      float zv = load(z[i]);
      ds[i] = load(dy[i]) * zv * sigmoid(zv) * (a.R == 2 ? 0.5f : 1.0f);
      if (row < TT) {
        float delta = s0 + row < end ? softplus(dt[i]) : 0.0f;
        drive[row * CB + at.c] = make_float4(delta, delta * u[i], ds[i], 0.0f);
      }
    }
    __syncthreads();
    float before[TT][SPT], decay[TT][SPT];
#pragma unroll
    for (int j = 0; j < TT; ++j) {
      float4 d = drive[j * CB + sc];
#pragma unroll
      for (int i = 0; i < SPT; ++i) {
        before[j][i] = h[i];
        decay[j][i] = ex2(d.x * a2[i]);
        h[i] = decay[j][i] * h[i] + d.y * bc[j * 2 * NP + at.s * 2 * SPT + i];
      }
    }
#pragma unroll
    for (int g = TT - GROUP; g >= 0; g -= GROUP) {
      float s1[GROUP], s2[GROUP];
#pragma unroll
      for (int jj = GROUP - 1; jj >= 0; --jj) {
        int j = g + jj;
        float4 d = drive[j * CB + sc];
        const float *m = bc + j * 2 * NP + at.s * 2 * SPT;
        float out[2 * SPT];
        s1[jj] = s2[jj] = 0.0f;
#pragma unroll
        for (int i = 0; i < SPT; ++i) {
          float dh = carry[i] + m[SPT + i] * d.z;
          out[SPT + i] = h[i] * d.z;
          out[i] = dh * d.y;
          s1[jj] += dh * m[i];
          carry[i] = dh * decay[j][i];
          h[i] = before[j][i];
          float kept = carry[i] * h[i];
          s2[jj] += kept * a2[i];
          da[i] += kept * d.x;
        }
        fold<2 * SPT, 16, CPW_END>(out, lane);
        int first = fold_at<2 * SPT, 16, CPW_END>(lane);
#pragma unroll
        for (int i = 0; i < LEFT; ++i) red[(warp * TT + j) * 2 * NP + at.s * 2 * SPT + first + i] = out[i];
      }
      fold<GROUP, LPC / 2, 1>(s1, at.s);
      fold<GROUP, LPC / 2, 1>(s2, at.s);
      int row = g + fold_at<GROUP, LPC / 2, 1>(at.s);
      s1s[row * CB + sc] = s1[0];
      s2s[row * CB + sc] = s2[0];
    }
    __syncthreads();
    for (int n = at.tid; n < TT * 2 * NP; n += THREADS) {
      int row = n / (2 * NP), v = n % (2 * NP);
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) total += red[w * TT * 2 * NP + n];
      int state = v / (2 * SPT) * SPT + v % SPT, is_c = v % (2 * SPT) >= SPT, step = s0 + row;
      if (state < N && step < end) dbc_to[at.time(a, step) * 2 * N + is_c * N + state] = pack(total);
    }
#pragma unroll
    for (int i = 0; i < NIT; ++i) {
      int row = at.row + i * LPC, to = (t0 + i * dt0) * a.E;
      if (at.on && s0 + row < end && row < TT) {
        float s1 = s1s[row * CB + at.c], delta = drive[row * CB + at.c].x;
        float ddt = (s2s[row * CB + at.c] * LN2 + u[i] * s1) * sigmoid(dt[i]);
        du_to[to] = pack(delta * s1 + ch.skip * ds[i]);
        ddt_to[to] = pack(ddt);
        dskip += ds[i] * u[i];
        dbias += ddt;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < SPT; ++i) {
    int n = at.s * SPT + i;
    if (n < N && se < a.E)
      a.da[((at.b * (long long)(a.R * a.K) + at.lane) * a.E + se) * N + n] = da[i] * a2[i] * LN2;
  }
  __syncthreads();
  float *col = red;
  col[at.tid] = dskip;
  col[THREADS + at.tid] = dbias;
  __syncthreads();
  if (at.row == 0 && at.on) {
    float t0 = 0.0f, t1 = 0.0f;
    for (int i = 0; i < LPC; ++i) { t0 += col[i * CB + at.c]; t1 += col[THREADS + i * CB + at.c]; }
    float *to = a.dvec + (at.b * (long long)(a.R * a.K) + at.lane) * 2 * a.E + at.e;
    to[0] = t0; to[a.E] = t1;
  }
}
"""
