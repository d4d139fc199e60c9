"""CUDA C++ of the scan (``nvrtc_scan`` compiles it). Everything that varies is a macro, so nothing is decided in the
loop.

One thread owns ``SPT`` states of one channel, ``LPC`` lanes of a warp own a channel, a block owns ``CB`` channels of
one lane (direction r, block k) of one clip and walks the time in tiles of ``TT`` steps: inputs of the next tile are
on their way while a tile is worked on; a first part computes u and delta once for each (step, channel); then the
recurrence runs; sums over states are folded so that each shuffle halves the values left (a transposed reduction: 7
shuffles for 8 steps where a butterfly takes 24). Splitting a channel's states over lanes is what fills the chip when
batch and width are small.

In memory order everything below is in *scan order*: step s of direction 1 is position L - 1 - s, and both convolutions
look back. The two directions meet in the middle, as ``triton_kernels.scan`` explains.
"""

import torch

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # DTYPE

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
  float *state;
  T *ckpt;
  float *da, *dvec;
  long long xb, xt, xk, zb, zt, zk, dzb, dzt, dzk;
  int B, L, K, E, R, count;
};

#ifndef SSAMBA_EMULATE
#define SHARED_BYTES(name) extern __shared__ __align__(16) char name[]
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
__device__ __forceinline__ unsigned pack2(float lo, float hi) {  // two bfloat16, or two float16 for DTYPE 2
  unsigned r;
#if DTYPE == 2
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#endif
  return r;
}
__device__ __forceinline__ void load_transposed(unsigned *m, const char *from) {  // four 8 by 8 matrices
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"((unsigned)__cvta_generic_to_shared(from)) : "memory");
}
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

// sigmoid(v) from softplus(v) = d: 1 - e^-d, by its series where that cancels.
__device__ __forceinline__ float sigmoid_of_softplus(float d) {
  float series = d * (1.0f - d * (0.5f - d * (0.16666667f - d * 0.041666667f)));
  return d < 0.0625f ? series : 1.0f - ex2(-LOG2E * d);
}

// The gate's argument, kept off zero: the backward divides the gated output by the gate to have the plain one again.
// The floor is far under what the output's type resolves.
__device__ __forceinline__ float gate_input(float z) {
  float least = DTYPE == 2 ? 0x1p-12f : 1e-20f;
  return fabsf(z) < least ? copysignf(least, z) : z;
}
// silu'(z) / silu(z): times the gated output and its gradient this is the gradient of z.
__device__ __forceinline__ float gate_ratio(float z, float sig) { return rcp(z) + 1.0f - sig; }

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
