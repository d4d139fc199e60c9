// Elements of tensors by a code of their type, float32 (0), bfloat16 (1) or float16 (2): loads and stores of several
// neighbours as float32, and the sum over a warp.
#pragma once

#include "ssamba/convert.cuh"

template <int TYPE> struct Element { typedef unsigned short Bits; };
template <> struct Element<0> { typedef float Bits; };

// COUNT neighbours, at an address that is a multiple of their size or of 16 bytes.
template <class Bits, int COUNT> struct __align__(sizeof(Bits) * COUNT < 16 ? sizeof(Bits) * COUNT : 16) Neighbours {
  Bits v[COUNT];
};

template <int TYPE> __device__ __forceinline__ float as_float(typename Element<TYPE>::Bits bits) {
  if constexpr (TYPE == 0) return bits;
  else if constexpr (TYPE == 1) return __uint_as_float((unsigned)bits << 16);
  else return float_of_float16(bits);
}
template <int TYPE> __device__ __forceinline__ typename Element<TYPE>::Bits rounded(float v) {
  if constexpr (TYPE == 0) return v;
  else if constexpr (TYPE == 1) return to_bfloat16(v);
  else return to_float16(v);
}

// COUNT (1, 2, 4 or 8) values from element `at` of a tensor on, and back.
template <int TYPE, int COUNT> __device__ __forceinline__ void load_values(const void *from, long long at, float *to) {
  typedef typename Element<TYPE>::Bits Bits;
  auto read = *(const Neighbours<Bits, COUNT> *)((const Bits *)from + at);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) to[i] = as_float<TYPE>(read.v[i]);
}
template <int TYPE, int COUNT> __device__ __forceinline__ void store_values(void *to, long long at, const float *v) {
  typedef typename Element<TYPE>::Bits Bits;
  if constexpr (TYPE == 0 || COUNT == 1) {
    Neighbours<Bits, COUNT> made;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) made.v[i] = rounded<TYPE>(v[i]);
    *(Neighbours<Bits, COUNT> *)((Bits *)to + at) = made;
  } else {
    Neighbours<unsigned, COUNT / 2> made;
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      float lo = v[2 * i], hi = v[2 * i + 1];
      made.v[i] = TYPE == 1 ? to_bfloat16_pair(lo, hi) : to_float16_pair(lo, hi);
    }
    *(Neighbours<unsigned, COUNT / 2> *)((Bits *)to + at) = made;
  }
}

// The sum over the lanes of a warp, the same bits in each.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
  return v;
}
