// Arithmetic of pairs of 16-bit values.
#pragma once

#include "ssamba/ptx.cuh"

// The products of two pairs of bfloat16 values, rounded. (A multiplication alone would need compute capability 9.0.)
__device__ __forceinline__ unsigned mul2(unsigned a, unsigned b) {
  unsigned r; asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000u)); return r;
}
