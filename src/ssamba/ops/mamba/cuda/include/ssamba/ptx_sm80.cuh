// PTX of compute capability 8.0 and above, for both 16-bit types: ldmatrix, mma, cp.async. Named after the
// instructions.
#pragma once

#include "ssamba/ptx.cuh"

// threadIdx.x behind a shuffle: the compiler reads the special register again inside loops, at some 25 cycles each; it
// keeps the result of a shuffle in a register.
__device__ __forceinline__ int thread_index() { return __shfl_sync(0xffffffffu, threadIdx.x, threadIdx.x % 32); }

// An address in shared memory in 32 bits: a constant offset becomes part of the instruction that uses it.
typedef unsigned SmemAddr;
__device__ __forceinline__ SmemAddr smem_addr(const T *at) { return (unsigned)__cvta_generic_to_shared(at); }
__device__ __forceinline__ SmemAddr smem_offset(SmemAddr addr, int values) { return addr + 2 * values; }
// By so many bytes: what all threads add alike is part of the instruction, too.
__device__ __forceinline__ SmemAddr smem_bytes(SmemAddr addr, int bytes) { return addr + bytes; }

// The same value in a register of the thread: the compiler would compute one that all threads have again and again.
template <class U> __device__ __forceinline__ U per_thread(U v) {
  return __shfl_sync(0xffffffffu, v, threadIdx.x % 32);
}
// The same address, which the compiler takes as one value instead of as a sum to take apart.
template <class U> __device__ __forceinline__ U *kept(U *at) {
  U *r; asm("mov.b64 %0, %1;" : "=l"(r) : "l"(at)); return r;
}
// Stores two values VALUES behind `to`.
template <int VALUES> __device__ __forceinline__ void store_pair(T *to, unsigned v) {
  asm volatile("st.global.b32 [%0+%2], %1;" ::"l"(to), "r"(v), "n"(2 * VALUES) : "memory");
}
// Four values.
template <int VALUES> __device__ __forceinline__ void store_quad(T *to, unsigned lo, unsigned hi) {
  asm volatile("st.global.v2.b32 [%0+%3], {%1, %2};" ::"l"(to), "r"(lo), "r"(hi), "n"(2 * VALUES) : "memory");
}

// 8 x 8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(unsigned *m, SmemAddr row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(row));
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned *m, SmemAddr row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(row));
}
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned *m, SmemAddr row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(m[0]), "=r"(m[1]) : "r"(row));
}
__device__ __forceinline__ void ldmatrix_x2(unsigned *m, SmemAddr row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(m[0]), "=r"(m[1]) : "r"(row));
}
// One 8 x 8 matrix over the registers of a warp, transposed.
__device__ __forceinline__ unsigned movmatrix_trans(unsigned m) {
  unsigned r; asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(m)); return r;
}

__device__ __forceinline__ float tanh_approx(float v) {
  float r; asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(v)); return r;
}

// v += a x of two values, if `there` is not zero.
__device__ __forceinline__ void fma2_where(unsigned there, float a0, float x0, float &v0, float a1, float x1,
                                           float &v1) {
  asm("{.reg .pred p; setp.ne.u32 p, %2, 0;\n@p fma.rn.ftz.f32 %0, %3, %4, %0;\n@p fma.rn.ftz.f32 %1, %5, %6, %1;}"
      : "+f"(v0), "+f"(v1) : "r"(there), "f"(a0), "f"(x0), "f"(a1), "f"(x1));
}

// As pack2, but float16 values beyond +-65504 become +-65504, in the same instruction: in a product over zeros an
// infinity would make NaN of everything that it meets. bfloat16 has the range of float32.
__device__ __forceinline__ unsigned pack2_finite(float lo, float hi) {
#if DTYPE == 2
  unsigned r; asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r;
#else
  return pack2(lo, hi);
#endif
}

// Two values, each with a magnitude of at least that of `bound`, which is positive; halved. One instruction for both.
__device__ __forceinline__ unsigned at_least2(unsigned v, unsigned bound) {
#if __CUDA_ARCH__ < 860
  return (v & 0x80008000u) | max(v & 0x7fffu, bound & 0x7fffu) | max(v & 0x7fff0000u, bound & 0x7fff0000u);
#elif DTYPE == 2
  unsigned r; asm("max.NaN.xorsign.abs.f16x2 %0, %1, %2;" : "=r"(r) : "r"(v), "r"(bound)); return r;
#else
  unsigned r; asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(v), "r"(bound)); return r;
#endif
}
__device__ __forceinline__ unsigned halve2(unsigned v) {
#if DTYPE == 2
  unsigned r; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(v), "r"(0x38003800u), "r"(0x80008000u)); return r;
#else
  unsigned r; asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(v), "r"(0x3f003f00u), "r"(0x80008000u)); return r;
#endif
}

#if DTYPE == 2
#define MMA_K8 "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"
#else
#define MMA_K8 "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32"
#endif
// d (16 x 8) += a (16 x 8) b (8 x 8).
__device__ __forceinline__ void mma_m16n8k8(float *d, unsigned a0, unsigned a1, unsigned b0) {
  asm(MMA_K8 " {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
}
// d = a b.
__device__ __forceinline__ void mma_m16n8k8_zero(float *d, unsigned a0, unsigned a1, unsigned b0) {
  asm(MMA_K8 " {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(a0), "r"(a1), "r"(b0), "f"(0.0f));
}
#undef MMA_K8

// Copies BYTES (4, 8 or 16) to shared memory asynchronously; zeros unless `wanted`.
template <int BYTES> __device__ __forceinline__ void cp_async(SmemAddr to, const T *from, bool wanted) {
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(wanted ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(from), "r"(wanted ? BYTES : 0),
                 "n"(BYTES) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most LEFT groups are under way.
template <int LEFT> __device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Barriers in shared memory, eight bytes each. wait returns when the phase of that parity, at first 0, has ended.
__device__ __forceinline__ void mbarrier_init(SmemAddr at, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
// Lane 0 of the warp arrives, after all lanes have got here.
__device__ __forceinline__ void mbarrier_arrive_warp(SmemAddr at, int lane) {
  __syncwarp();
  if (lane == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
#if __CUDA_ARCH__ >= 900
#define MBARRIER_WAIT "mbarrier.try_wait.parity.shared::cta.b64"  // may sleep for a while
#else
#define MBARRIER_WAIT "mbarrier.test_wait.parity.shared::cta.b64"
#endif
__device__ __forceinline__ void mbarrier_wait(SmemAddr at, int parity) {
  asm volatile("{.reg .pred p;\nagain:\n" MBARRIER_WAIT " p, [%0], %1;\n@!p bra again;}"
               ::"r"(at), "r"(parity) : "memory");
}
#undef MBARRIER_WAIT

// Counts an arrival in shared memory, where 0 is at first; whether it was the last of COUNT, after which it counts from
// 0 again. Reads of the others before their arrivals come before what the last one does.
__device__ __forceinline__ bool last_of_round(SmemAddr at, int count) {
  unsigned before;
  asm volatile("atom.acq_rel.cta.shared::cta.inc.u32 %0, [%1], %2;"
               : "=r"(before) : "r"(at), "r"(count - 1) : "memory");
  return before == count - 1;
}
