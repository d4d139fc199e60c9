// Arithmetic of pairs of 16-bit values, and a limit to the compiler's scheduling.
#pragma once

#include "ssamba/ptx.cuh"

// The products of two pairs of the activations' type, rounded. (A multiplication of bfloat16 values alone would need
// compute capability 9.0.)
__device__ __forceinline__ unsigned mul2(unsigned a, unsigned b) {
  unsigned r;
#if DTYPE == 2
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000u));
#else
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000u));
#endif
  return r;
}

// Ends a stretch of code that the compiler schedules as one: a branch that is never taken. Without it, products whose
// result is needed late move behind all others, where they wait for each other; their operands take registers.
__device__ __forceinline__ void end_stretch(bool never) {
  if (never) asm volatile("trap;");
}
