// Stands in for the package's ssamba/ptx_sm90.cuh: the same functions in plain C++, for clusters of two blocks.
//
// As late as they may: products, at the wait for them; copies (where fibers.h says so), when all threads wait.
#pragma once

#include <functional>

#include "ssamba/ptx_sm80.cuh"
#include "ssamba/tensor_map.cuh"

static const int blocks_of_cluster = fibers::blocks = 2;
alignas(1024) static char block_memory[2][232448];
#define SMEM_BYTES_1024(name) char *name = block_memory[fibers::rank()]

// The same place in the memory of a block of the cluster.
inline SmemAddr in_block(SmemAddr at, int block) {
  return (SmemAddr)block_memory[block] + (at - (SmemAddr)block_memory[fibers::rank()]);
}
// Where the 128-byte swizzle puts a byte.
inline SmemAddr swizzled(SmemAddr at) { return at ^ (at >> 7 & 7) << 4; }

// ---- products

typedef unsigned long long SmemDescriptor;
inline SmemDescriptor make_descriptor(SmemAddr at) { return at; }
inline SmemDescriptor advance_descriptor(SmemDescriptor b, int bytes) { return b + bytes; }

struct LeftOperand { unsigned a[4]; };
struct Product {
  float (*d)[4];
  LeftOperand left;
  SmemAddr b;
  int columns;

  void finish() const {
    auto half = [](unsigned pair, int upper) { return load((T)(upper ? pair >> 16 : pair & 0xffff)); };
    exchange(left, [&](const LeftOperand *all, int lane) {
      float a[2][16];
      for (int row = 0; row < 2; ++row)
        for (int k = 0; k < 16; ++k) a[row][k] = half(all[lane / 4 * 4 + k % 8 / 2].a[row + 2 * (k / 8)], k & 1);
      for (int n = 0; n < columns / 4; ++n) {
        int column = n / 2 * 8 + lane % 4 * 2 + n % 2;
        float sum[2] = {0, 0};
        for (int k = 0; k < 16; ++k) {
          float right = load(*(const T *)swizzled(b + column * 128 + k * 2));
          for (int row = 0; row < 2; ++row) sum[row] += a[row][k] * right;
        }
        for (int row = 0; row < 2; ++row) d[n / 2][2 * row + n % 2] += sum[row];
      }
      return 0;
    });
  }
};
static std::vector<Product> products[fibers::kMaxThreads];

template <int COLUMNS> void wgmma(float (*d)[4], const unsigned *a, SmemDescriptor b) {
  products[fibers::current].push_back({d, {{a[0], a[1], a[2], a[3]}}, (SmemAddr)b, COLUMNS});
}
inline void wgmma_fence() {}
inline void wgmma_commit_group() {}
inline void wgmma_wait_group() {
  auto &mine = products[fibers::current];
  for (auto &product : mine) product.finish();
  mine.clear();
}
template <int TILES> void fence_operands(float (*)[4]) {}

// ---- barriers

inline void fence_mbarrier_init() {}
inline void mbarrier_expect_tx(SmemAddr at, int bytes) {
  mbarrier(at)->bytes += bytes;
  --mbarrier(at)->pending;
  mbarrier(at)->settle();
}
inline void mbarrier_arrive(SmemAddr at, int block) {
  Mbarrier *there = mbarrier(in_block(at, block));
  --there->pending;
  there->settle();
}

inline int cluster_ctarank() { return fibers::rank(); }
inline void cluster_sync() { fibers::wait_in(fibers::kAtClusterBarrier); }
inline void fence_proxy_async() {}
template <int REGISTERS> void raise_registers() {}
template <int REGISTERS> void lower_registers() {}

struct NamedBarrier {
  int arrived, rounds;

  void arrive() {
    if (++arrived < 256) return;
    arrived = 0;
    ++rounds;
  }
};
static NamedBarrier named_barriers[2][3];
static void forget_barriers() { memset(named_barriers, 0, sizeof(named_barriers)); }
static const auto forgets = fibers::at_start = forget_barriers;
inline void group_barrier_sync(int group) {
  NamedBarrier &barrier = named_barriers[fibers::rank()][group];
  int round = barrier.rounds;
  barrier.arrive();
  while (barrier.rounds == round) fibers::poll();
}
inline void both_groups_sync() { group_barrier_sync(2); }
inline void group_barrier_arrive(int group) { named_barriers[fibers::rank()][group].arrive(); }

// ---- copies

struct Matrix {  // what a test writes into a TensorMap
  const T *values;
  long long rows, columns;
  int box_rows, box_columns;
};
struct BoxCopy {
  SmemAddr to, barrier;
  Matrix from;
  int column, row;

  void finish() const {
    for (int i = 0; i < from.box_rows; ++i)
      for (int j = 0; j < from.box_columns; ++j) {
        bool within = row + i < from.rows && column + j < from.columns;
        T value = within ? from.values[(row + i) * from.columns + column + j] : 0;
        *(T *)swizzled(to + i * 128 + j * 2) = value;
      }
    mbarrier(barrier)->bytes -= from.box_rows * from.box_columns * 2;
    mbarrier(barrier)->settle();
  }
};
struct Array {  // the same of five dimensions, the innermost first, which has stride 1
  const T *values;
  long long strides[4];  // in bytes
  unsigned sizes[5], box[5];
};
struct Box5Copy {
  SmemAddr to, barrier;
  Array from;
  int at[5];

  void finish() const {
    unsigned count = 1, bytes;
    for (unsigned n : from.box) count *= n;
    bytes = count * 2;
    for (unsigned i = 0; i < count; ++i) {
      const char *source = (const char *)from.values;
      bool within = true;
      for (unsigned d = 0, rest = i; d < 5; rest /= from.box[d++]) {
        long long index = at[d] + (long long)(rest % from.box[d]);
        within = within && index >= 0 && index < from.sizes[d];
        source += index * (d ? from.strides[d - 1] : 2);
      }
      *(T *)swizzled(to + i * 2) = within ? *(const T *)source : 0;
    }
    mbarrier(barrier)->bytes -= bytes;
    mbarrier(barrier)->settle();
  }
};
static std::vector<std::function<void()>> under_way;  // copies

template <class Copy> void start(const Copy &copy) {
  if (fibers::skewed < 3) copy.finish();
  else under_way.push_back([copy] { copy.finish(); });
}

inline void tma_load_2d_to(int block, SmemAddr to, const TensorMap *map, int column, int row, SmemAddr barrier) {
  BoxCopy copy = {in_block(to, block), in_block(barrier, block), {}, column, row};
  memcpy(&copy.from, map, sizeof(Matrix));
  start(copy);
}
inline void tma_load_5d(SmemAddr to, const TensorMap *map, int i0, int i1, int i2, int i3, int i4, SmemAddr barrier) {
  Box5Copy copy = {to, barrier, {}, {i0, i1, i2, i3, i4}};
  memcpy(&copy.from, map, sizeof(Array));
  start(copy);
}
inline void tma_load_2d(SmemAddr to, const TensorMap *map, int column, int row, SmemAddr barrier) {
  tma_load_2d_to(fibers::rank(), to, map, column, row, barrier);
}
inline void tma_load_2d_multicast(SmemAddr to, const TensorMap *map, int column, int row, SmemAddr barrier) {
  for (int block = 0; block < 2; ++block) tma_load_2d_to(block, to, map, column, row, barrier);
}

static void finish_first() {
  if (under_way.empty()) return;
  under_way.front()();
  under_way.erase(under_way.begin());
  fibers::idle = 0;
}
static const auto finishes = finish_a_copy = finish_first;
