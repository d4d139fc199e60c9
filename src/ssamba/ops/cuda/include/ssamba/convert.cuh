// PTX that converts between float32 and 16 bits, rounded to nearest even: compute capability 8.0 and above.
#pragma once

__device__ __forceinline__ float float_of_float16(unsigned short bits) {
  float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits)); return r;
}
__device__ __forceinline__ unsigned short to_bfloat16(float v) {
  unsigned short r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r;
}
__device__ __forceinline__ unsigned short to_float16(float v) {
  unsigned short r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r;
}
// Two values in 32 bits, `lo` in the lower half.
__device__ __forceinline__ unsigned to_bfloat16_pair(float lo, float hi) {
  unsigned r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r;
}
__device__ __forceinline__ unsigned to_float16_pair(float lo, float hi) {
  unsigned r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r;
}
