// Activations for 16-bit results, with fewer and cheaper instructions than those of common.cuh.
#pragma once

#include "ssamba/common.cuh"
#include "ssamba/ptx_sm80.cuh"

// The two values in 32 bits.
#if DTYPE == 2
__device__ __forceinline__ float low_half(unsigned v) { return load((T)(v & 0xffffu)); }
__device__ __forceinline__ float high_half(unsigned v) { return load((T)(v >> 16)); }
#else
__device__ __forceinline__ float low_half(unsigned v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high_half(unsigned v) { return __uint_as_float(v & 0xffff0000u); }
#endif

// silu(v) of two values by tanh.approx: one special function each, with a relative error of 2^-11, which is less than
// that of rounding to bfloat16, and as much as that of rounding to float16 may be.
__device__ __forceinline__ void silu2(float &a, float &b) {
  float ha = 0.5f * a, hb = 0.5f * b, ta = tanh_approx(ha), tb = tanh_approx(hb);
  a = ha * ta + ha; b = hb * tb + hb;
}

// share * silu(2 v) of two values: for results that were computed halved.
__device__ __forceinline__ void silu2_of_halves(float &a, float &b, float share = 1.0f) {
  float ta = tanh_approx(a), tb = tanh_approx(b);
  a *= share; b *= share;
  a = a * ta + a; b = b * tb + b;
}

// softplus(v) = max(v, 0) + log(1 + e^-|v|), the logarithm by a polynomial with a relative error of 8.4e-6, so that
// small values keep their digits.
__device__ __forceinline__ float softplus_poly(float v) {
  float e = ex2(-LOG2E * fabsf(v)), p = -0.0238694679f;
  p = p * e + 0.101223648f; p = p * e - 0.210050553f; p = p * e + 0.32520774f;
  p = p * e - 0.499361604f; p = p * e + 0.999991596f;
  return fmaxf(v, 0.0f) + p * e;
}
// The same with a relative error of 5.7e-5, which is less than rounding to either 16-bit type may be: one FMA fewer.
__device__ __forceinline__ float softplus_short(float v) {
  float e = ex2(-LOG2E * fabsf(v)), p = 0.0413473025f;
  p = p * e - 0.157427207f; p = p * e + 0.306300938f;
  p = p * e - 0.496977806f; p = p * e + 0.999943256f;
  return fmaxf(v, 0.0f) + p * e;
}
