// PTX of every supported GPU: special functions, conversions from and to 16 bits, and ldmatrix and mma of either
// 16-bit type, which only templates for compute capability 8.0 and above use.
#pragma once

#include "ssamba/types.cuh"

// Dynamic shared memory.
#define SHARED_BYTES(name) extern __shared__ __align__(16) char name[]

// 2^v, log2(v) and 1 / v by the special function unit.
__device__ __forceinline__ float ex2(float v) {
  float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r;
}
__device__ __forceinline__ float lg2(float v) {
  float r; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r;
}
__device__ __forceinline__ float rcp(float v) {
  float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r;
}

// One value of the activations' type to float32 and back, rounded to nearest even.
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
// Two values in 32 bits, `lo` in the lower half.
__device__ __forceinline__ unsigned pack2(float lo, float hi) {
  unsigned r;
#if DTYPE == 2
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#endif
  return r;
}

// Four 8 x 8 matrices, transposed; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned *m, const char *from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"((unsigned)__cvta_generic_to_shared(from)) : "memory");
}

// d (16 x 8, float32) += a (16 x 16) b (16 x 8).
__device__ __forceinline__ void mma_m16n8k16(float *d, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                             unsigned b0, unsigned b1) {
#if DTYPE == 1
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif
