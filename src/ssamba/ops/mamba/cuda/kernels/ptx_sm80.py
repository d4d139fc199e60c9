"""CUDA C++ that the kernels by tensor-core fragments are built from: matrices out of shared memory, copies into it.

bfloat16 only. It comes after ``nvrtc_source.COMMON``; compute capability 8.0 has all of it.
"""

PRIMITIVES = r"""
#ifndef SSAMBA_EMULATE
// The thread's number as a value of its own: of the special register the compiler makes new copies inside loops, and
// each waits some 25 cycles.
__device__ __forceinline__ int thread_number() { return __shfl_sync(0xffffffffu, threadIdx.x, threadIdx.x % 32); }
// A place in shared memory, as 32 bits: constants added to it become part of the instruction that reads there.
typedef unsigned Row;
__device__ __forceinline__ Row row_at(const T *at) { return (unsigned)__cvta_generic_to_shared(at); }
__device__ __forceinline__ Row ahead(Row row, int values) { return row + 2 * values; }
// 8 x 8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void read4(unsigned *m, Row row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(row));
}
__device__ __forceinline__ void read4_turned(unsigned *m, Row row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(row));
}
__device__ __forceinline__ void read2_turned(unsigned *m, Row row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(m[0]), "=r"(m[1]) : "r"(row));
}
__device__ __forceinline__ void read2(unsigned *m, Row row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(m[0]), "=r"(m[1]) : "r"(row));
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
// The same without a sum to add to.
__device__ __forceinline__ void product1688(float *d, unsigned a0, unsigned a1, unsigned b0) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(a0), "r"(a1), "r"(b0), "f"(0.0f));
}
// Copies BYTES (8 or 16) into shared memory in the background, or writes zeros there.
template <int BYTES> __device__ __forceinline__ void copy_later(Row to, const T *from, bool wanted) {
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(wanted ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(wanted ? 8 : 0)
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

// `share` of the SiLU of two values, by the hardware's tanh: one special function each, right to 2^-11, which is less
// than rounding to bfloat16 takes.
__device__ __forceinline__ void silu2(float &a, float &b, float share = 1.0f) {
  float ha = 0.5f * a, hb = 0.5f * b, ta = tanh_fast(ha), tb = tanh_fast(hb);
  ha *= share; hb *= share;
  a = ha * ta + ha; b = hb * tb + hb;
}

// The SiLU of twice the two values.
__device__ __forceinline__ void silu2_of_halves(float &a, float &b) {
  float ta = tanh_fast(a), tb = tanh_fast(b);
  a = a * ta + a; b = b * tb + b;
}

// max(v, 0) + log(1 + e^-|v|), the logarithm to 8.4e-6 of its value by a polynomial: small steps keep their digits.
__device__ __forceinline__ float softplus_poly(float v) {
  float e = ex2(-LOG2E * fabsf(v)), p = -0.0238694679f;
  p = p * e + 0.101223648f; p = p * e - 0.210050553f; p = p * e + 0.32520774f;
  p = p * e - 0.499361604f; p = p * e + 0.999991596f;
  return fmaxf(v, 0.0f) + p * e;
}
"""
