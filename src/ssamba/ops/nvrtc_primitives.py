"""CUDA C++ that the kernels by tensor-core fragments are built from: matrices out of shared memory, copies into it.

bfloat16 only. It comes after ``nvrtc_source.COMMON``; compute capability 8.0 has all of it.
"""

import os


def fast_silu() -> bool:
    """Whether SiLU goes by the hardware's tanh (``TANH`` of the source): ``SSAMBA_TANH=1`` in the environment."""
    return os.environ.get("SSAMBA_TANH") == "1"


PRIMITIVES = r"""
#ifndef SSAMBA_EMULATE
#if AHEAD || SPLIT == 2
// The thread's number as a value of its own: of the special register the compiler makes new copies inside loops, and
// each waits some 25 cycles. Elsewhere registers are too dear for it.
__device__ __forceinline__ int thread_number() { return __shfl_sync(0xffffffffu, threadIdx.x, threadIdx.x % 32); }
#else
__device__ __forceinline__ int thread_number() { return threadIdx.x; }
#endif
#define ADDRESS(at) ((unsigned)__cvta_generic_to_shared(at))
// 8 x 8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void read4(unsigned *m, const T *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(ADDRESS(row)));
}
__device__ __forceinline__ void read4_turned(unsigned *m, const T *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(ADDRESS(row)));
}
__device__ __forceinline__ void read2_turned(unsigned *m, const T *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(m[0]), "=r"(m[1]) : "r"(ADDRESS(row)));
}
__device__ __forceinline__ void read2(unsigned *m, const T *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(m[0]), "=r"(m[1]) : "r"(ADDRESS(row)));
}
__device__ __forceinline__ unsigned turn(unsigned m) {
  unsigned r; asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(m)); return r;
}
__device__ __forceinline__ float tanh_fast(float v) {
  float r; asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(v)); return r;
}
__device__ __forceinline__ void mma1688(float *d, unsigned a0, unsigned a1, unsigned b0) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
}
// Both sides are float32 values, of which the product sees 19 bits.
__device__ __forceinline__ void mma1688_tf32(float *d, float a0, float a1, float a2, float a3, unsigned b0,
                                             unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
        "r"(b0), "r"(b1));
}
// Copies BYTES (8 or 16) into shared memory in the background, or writes zeros there.
template <int BYTES> __device__ __forceinline__ void copy_later(T *to, const T *from, bool wanted) {
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ADDRESS(to)), "l"(from), "r"(wanted ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(ADDRESS(to)), "l"(from), "r"(wanted ? 8 : 0)
                 : "memory");
}
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
#else
__device__ __forceinline__ int thread_number() { return threadIdx.x; }
#endif

__device__ __forceinline__ float low_half(unsigned v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high_half(unsigned v) { return __uint_as_float(v & 0xffff0000u); }

// `share` of the SiLU of two values. Its sigmoid: by tanh, one special function that is right to 2^-11, with TANH; or
// with one reciprocal for both values, and a bound that keeps their product finite.
__device__ __forceinline__ void silu2(float &a, float &b, float share = 1.0f) {
#if TANH
  float ha = 0.5f * a, hb = 0.5f * b, ta = tanh_fast(ha), tb = tanh_fast(hb);
  ha *= share; hb *= share;
  a = ha * ta + ha; b = hb * tb + hb;
#else
  float ea = 1.0f + ex2(fminf(-LOG2E * a, 60.0f)), eb = 1.0f + ex2(fminf(-LOG2E * b, 60.0f)), r = share * rcp(ea * eb);
  a *= r * eb; b *= r * ea;
#endif
}

// max(v, 0) + log(1 + e^-|v|), the logarithm to 1.3e-6 of its value by a polynomial: small steps keep their digits.
__device__ __forceinline__ float softplus_poly(float v) {
  float e = ex2(-LOG2E * fabsf(v)), p = 0.014140922f;
  p = p * e - 0.0664014954f; p = p * e + 0.149223532f; p = p * e - 0.235038425f;
  p = p * e + 0.331094448f; p = p * e - 0.499869653f; p = p * e + 0.999998731f;
  return fmaxf(v, 0.0f) + p * e;
}
"""
