// Stands in for the package's ssamba/ptx_sm80.cuh: the same functions in plain C++, for both 16-bit types.
#pragma once

#include "ssamba/ptx.cuh"

inline int thread_index() { return threadIdx.x; }

typedef uintptr_t SmemAddr;  // here an address in shared memory is one as any other
inline SmemAddr smem_addr(const T *at) { return (SmemAddr)at; }
inline SmemAddr smem_offset(SmemAddr addr, int values) { return addr + values * (int)sizeof(T); }
inline SmemAddr smem_bytes(SmemAddr addr, int bytes) { return addr + bytes; }

template <class U> U per_thread(U v) { return v; }
template <class U> U *kept(U *at) { return at; }
template <int VALUES> void store_pair(T *to, unsigned v) { *(unsigned *)(to + VALUES) = v; }
template <int VALUES> void store_quad(T *to, unsigned lo, unsigned hi) {
  store_pair<VALUES>(to, lo); store_pair<VALUES + 2>(to, hi);
}

inline void ldmatrix_x4(unsigned *m, SmemAddr row) { load_matrices<4, false>(m, (const T *)row); }
inline void ldmatrix_x4_trans(unsigned *m, SmemAddr row) { load_matrices<4, true>(m, (const T *)row); }
inline void ldmatrix_x2(unsigned *m, SmemAddr row) { load_matrices<2, false>(m, (const T *)row); }
inline void ldmatrix_x2_trans(unsigned *m, SmemAddr row) { load_matrices<2, true>(m, (const T *)row); }

// One 8 x 8 matrix over the lanes of a warp, transposed.
inline unsigned movmatrix_trans(unsigned m) {
  return exchange(m, [](const unsigned *all, int lane) {
    unsigned pair[2];
    for (int j = 0; j < 2; ++j) {
      unsigned from = all[(lane % 4 * 2 + j) * 4 + lane / 8];
      pair[j] = lane / 4 % 2 ? from >> 16 : from & 0xffff;
    }
    return pair[0] | pair[1] << 16;
  });
}

inline void fma2_where(unsigned there, float a0, float x0, float &v0, float a1, float x1, float &v1) {
  if (there) { v0 += a0 * x0; v1 += a1 * x1; }
}

inline unsigned pack2_finite(float lo, float hi) {
#if DTYPE == 2
  if (fabsf(lo) > 65504.0f) lo = copysignf(65504.0f, lo);  // NaN stays
  if (fabsf(hi) > 65504.0f) hi = copysignf(65504.0f, hi);
#endif
  return pack2(lo, hi);
}

inline unsigned at_least2(unsigned v, unsigned bound) {
  return (v & 0x80008000u) | std::max(v & 0x7fffu, bound & 0x7fffu) | std::max(v & 0x7fff0000u, bound & 0x7fff0000u);
}
inline unsigned halve2(unsigned v) { return pack2(0.5f * load((T)(v & 0xffffu)), 0.5f * load((T)(v >> 16))); }

inline float tanh_approx(float v) {  // to 11 bits, as the unit
  int exponent;
  float mantissa = frexpf(tanhf(v), &exponent);
  return ldexpf(roundf(mantissa * 2048.0f) / 2048.0f, exponent);
}

inline void mma_m16n8k8(float *d, unsigned a0, unsigned a1, unsigned b0) { mma_m16n8k16(d, a0, a1, 0, 0, b0, 0); }
inline void mma_m16n8k8_zero(float *d, unsigned a0, unsigned a1, unsigned b0) {
  d[0] = d[1] = d[2] = d[3] = 0;
  mma_m16n8k8(d, a0, a1, b0);
}

struct AsyncCopy {
  T *to;
  const T *from;  // null: zeros
  int bytes;

  void finish() const {
    if (from) memcpy(to, from, bytes);
    else memset(to, 0, bytes);
  }
};
typedef std::vector<AsyncCopy> CopyGroup;
static CopyGroup open_group[fibers::kMaxThreads];
static std::vector<CopyGroup> committed[fibers::kMaxThreads];

template <int BYTES> void cp_async(SmemAddr to, const T *from, bool wanted) {
  AsyncCopy copy = {(T *)to, wanted ? from : nullptr, BYTES};
  if (fibers::skewed < 3) copy.finish();
  else open_group[fibers::current].push_back(copy);
}
inline void cp_async_commit() {
  committed[fibers::current].push_back(open_group[fibers::current]);
  open_group[fibers::current].clear();
}
template <int LEFT> void cp_async_wait() {
  auto &groups = committed[fibers::current];
  while ((int)groups.size() > LEFT) {
    for (auto &copy : groups[0]) copy.finish();
    groups.erase(groups.begin());
  }
}

// ---- mbarriers

struct Mbarrier {
  int bytes;  // that are still to come
  unsigned char count, pending, phase;

  void settle() {
    if (pending > count) fibers::deadlock();  // more arrivals than it was made for
    if (pending || bytes) return;
    pending = count;
    phase ^= 1;
  }
};
static_assert(sizeof(Mbarrier) == 8, "as long as an mbarrier");
static void (*finish_a_copy)();  // that is under way, if not null

inline Mbarrier *mbarrier(SmemAddr at) { return (Mbarrier *)at; }
inline void mbarrier_init(SmemAddr at, int count) {
  *mbarrier(at) = {0, (unsigned char)count, (unsigned char)count, 0};
}
inline void mbarrier_arrive_warp(SmemAddr at, int lane) {
  __syncwarp();
  if (lane) return;
  --mbarrier(at)->pending;
  mbarrier(at)->settle();
}
inline void mbarrier_wait(SmemAddr at, int parity) {
  while (mbarrier(at)->phase == parity) {
    if (finish_a_copy && fibers::idle > 2L * fibers::blocks * fibers::threads) finish_a_copy();
    if (mbarrier(at)->phase == parity) fibers::poll();
  }
}

inline bool last_of_round(SmemAddr at, int count) {
  unsigned &arrived = *(unsigned *)at;
  if ((int)++arrived < count) return false;
  arrived = 0;
  return true;
}
