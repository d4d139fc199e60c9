// Stands in for the package's ssamba/ptx.cuh: the same functions in plain C++.
#pragma once

#include "cuda_builtins.h"
#include "ssamba/types.cuh"

#define SHARED_BYTES(name) alignas(16) static char name[300000]

inline float ex2(float v) { return exp2f(v); }
inline float lg2(float v) { return log2f(v); }
inline float rcp(float v) { return 1.0f / v; }

#if DTYPE == 0
inline float load(T v) { return v; }
inline T pack(float v) { return v; }
#elif DTYPE == 2
inline float load(T v) {
  _Float16 half;
  memcpy(&half, &v, 2);
  return (float)half;
}
inline T pack(float v) {
  _Float16 half = (_Float16)v;
  T bits;
  memcpy(&bits, &half, 2);
  return bits;
}
#else
inline float load(T v) { return __uint_as_float((unsigned)v << 16); }
inline T pack(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
#endif
#if DTYPE != 0
inline unsigned pack2(float lo, float hi) { return pack(lo) | (unsigned)pack(hi) << 16; }

// COUNT matrices of 8 x 8 in shared memory, of which lane 8 i + k gives the address of row k of matrix i. Lane l gets
// elements (l / 4, l % 4 * 2) and the one after it of each, transposed: (l % 4 * 2, l / 4) and the one below.
template <int COUNT, bool TRANSPOSED> void load_matrices(unsigned *m, const T *row) {
  exchange(row, [=](const T *const *rows, int lane) {
    for (int i = 0; i < COUNT; ++i) {
      unsigned pair[2];
      for (int j = 0; j < 2; ++j) {
        int r = TRANSPOSED ? lane % 4 * 2 + j : lane / 4, c = TRANSPOSED ? lane / 4 : lane % 4 * 2 + j;
        pair[j] = rows[8 * i + r][c];
      }
      m[i] = pair[0] | pair[1] << 16;
    }
    return 0;
  });
}
inline void ldmatrix_x4_trans(unsigned *m, const char *row) { load_matrices<4, true>(m, (const T *)row); }

struct MmaOperands { unsigned a[4], b[2]; };

// d (16 x 8) += a (16 x 16) b (16 x 8), in the fragments that the PTX manual draws.
inline void mma_m16n8k16(float *d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  exchange(MmaOperands{{a0, a1, a2, a3}, {b0, b1}}, [=](const MmaOperands *all, int lane) {
    auto half = [](unsigned pair, int upper) { return load((T)(upper ? pair >> 16 : pair & 0xffff)); };
    for (int i = 0; i < 4; ++i) {
      int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) {
        unsigned a = all[row % 8 * 4 + k % 8 / 2].a[row / 8 + 2 * (k / 8)], b = all[column * 4 + k % 8 / 2].b[k / 8];
        sum += half(a, k & 1) * half(b, k & 1);
      }
      d[i] += sum;
    }
    return 0;
  });
}
#endif
