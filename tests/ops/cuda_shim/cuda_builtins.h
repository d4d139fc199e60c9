// What CUDA C++ has without any include: keywords, vector types, barriers and shuffles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "fibers.h"

using std::max;
using std::min;

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __shared__ static  // one block runs at a time
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

#define threadIdx fibers::thread_index
#define blockIdx fibers::block_index
#define gridDim fibers::grid_size

inline void __syncthreads() { fibers::wait_in(fibers::kAtBlockBarrier); }
inline void __syncwarp() { fibers::wait_in(fibers::kAtWarpBarrier); }

// Every lane of the warp hands in a value, then reads whichever it likes through values[0..31].
template <class V, class Read> auto exchange(V mine, Read read) {
  static V values[fibers::kMaxThreads];
  int thread = fibers::current;
  values[thread] = mine;
  __syncwarp();
  auto result = read(values + (thread & ~31), thread & 31);
  __syncwarp();
  return result;
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  return exchange(value, [=](const float *all, int lane) { return all[lane ^ mask]; });
}
inline float __shfl_sync(unsigned, float value, int source, int width) {
  return exchange(value, [=](const float *all, int lane) { return all[lane / width * width + source]; });
}

// Calls a kernel, whose only argument is at `args`, from each thread of a grid.
template <class Args> struct Launch {
  static inline Args args;
  template <void (*kernel)(Args)> static void run(fibers::Dim grid, int threads, const void *from) {
    args = *(const Args *)from;
    fibers::launch(grid, threads, [] { kernel(args); });
  }
};
