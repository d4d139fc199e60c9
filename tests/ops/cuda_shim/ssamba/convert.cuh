// Stands in for the package's ssamba/convert.cuh: the same functions in plain C++.
#pragma once

#include "cuda_builtins.h"

inline float float_of_float16(unsigned short bits) {
  _Float16 half;
  memcpy(&half, &bits, 2);
  return (float)half;
}
inline unsigned short to_bfloat16(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  if (v != v) return 0x7fff;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
inline unsigned short to_float16(float v) {
  _Float16 half = (_Float16)v;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}
inline unsigned to_bfloat16_pair(float lo, float hi) { return to_bfloat16(lo) | (unsigned)to_bfloat16(hi) << 16; }
inline unsigned to_float16_pair(float lo, float hi) { return to_float16(lo) | (unsigned)to_float16(hi) << 16; }
