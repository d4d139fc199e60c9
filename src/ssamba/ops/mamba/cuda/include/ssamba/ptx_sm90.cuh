// PTX of compute capability 9.0 (Hopper), for either 16-bit type: wgmma, tensor-map copies (TMA), mbarrier, clusters.
#pragma once

#include "ssamba/ptx_sm80.cuh"
#include "ssamba/tensor_map.cuh"

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_wait_group() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// Keeps the compiler from moving reads of the accumulators before this point: wgmma writes them asynchronously.
template <int TILES> __device__ __forceinline__ void fence_operands(float (*d)[4]) {
#pragma unroll
  for (int i = 0; i < 4 * TILES; ++i) asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");
}

// Dynamic shared memory of a block of a cluster, for boxes of tensor maps.
#define SMEM_BYTES_1024(name) extern __shared__ __align__(1024) char name[]

// Describes the matrix b of wgmma in shared memory: K-major with the 128-byte swizzle, 64 values of the inner dimension
// in a row, eight rows in 1,024 bytes. The next 16 values of the inner dimension are 32 bytes further.
typedef unsigned long long SmemDescriptor;
__device__ __forceinline__ SmemDescriptor make_descriptor(SmemAddr at) {
  return (SmemDescriptor)((at & 0x3ffff) >> 4) | 1ull << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}
__device__ __forceinline__ SmemDescriptor advance_descriptor(SmemDescriptor b, int bytes) { return b + bytes / 16; }
// d += a b, asynchronously: 64 x 16 values of a in registers (16 rows a warp) times 16 x COLUMNS of b in shared memory.
// The accumulators of a thread are d[COLUMNS / 8][4], in the layout of mma_m16n8k16.
template <int COLUMNS> __device__ __forceinline__ void wgmma(float (*d)[4], const unsigned *a, SmemDescriptor b);

// Operand lists for the specialisations: 32 registers at a time.
#define REGS_0_31 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define REGS_32_63 \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define REGS_64_95 \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define ACC_4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define ACC_32(i) \
  ACC_4(i), ACC_4(i + 1), ACC_4(i + 2), ACC_4(i + 3), ACC_4(i + 4), ACC_4(i + 5), ACC_4(i + 6), ACC_4(i + 7)

#if DTYPE == 2
#define WGMMA_TYPES "f32.f16.f16"
#else
#define WGMMA_TYPES "f32.bf16.bf16"
#endif
// A_AND_B: the numbers of the operands that follow the accumulators.
#define WGMMA(COLUMNS, REGS, A_AND_B, ...)                                                                    \
  template <>                                                                                                 \
  __device__ __forceinline__ void wgmma<COLUMNS>(float (*d)[4], const unsigned *a, SmemDescriptor b) {        \
    asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0;"                                                        \
                 "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16." WGMMA_TYPES " "                          \
                 "{" REGS "}, " A_AND_B ", p, 1, 1, 0;}"                                                      \
                 : __VA_ARGS__                                                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                       \
  }
WGMMA(64, REGS_0_31, "{%32,%33,%34,%35}, %36", ACC_32(0))
WGMMA(128, REGS_0_31 "," REGS_32_63, "{%64,%65,%66,%67}, %68", ACC_32(0), ACC_32(8))
WGMMA(192, REGS_0_31 "," REGS_32_63 "," REGS_64_95, "{%96,%97,%98,%99}, %100", ACC_32(0), ACC_32(8), ACC_32(16))
#undef WGMMA
#undef WGMMA_TYPES
#undef ACC_32
#undef ACC_4
#undef REGS_64_95
#undef REGS_32_63
#undef REGS_0_31

// Barriers in shared memory, as in ptx_sm80.cuh. expect_tx also arrives.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_expect_tx(SmemAddr at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
// Arrives at the barrier with the same offset in shared memory of block `block` of the cluster.
__device__ __forceinline__ void mbarrier_arrive(SmemAddr at, int block) {
  asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;\n"
               "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(at), "r"(block) : "memory");
}

// Copies a box of a matrix to shared memory asynchronously, from this column and row on.
__device__ __forceinline__ void tma_load_2d(SmemAddr to, const TensorMap *map, int column, int row, SmemAddr barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
               ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
// The same of five dimensions.
__device__ __forceinline__ void tma_load_5d(SmemAddr to, const TensorMap *map, int i0, int i1, int i2, int i3, int i4,
                                            SmemAddr barrier) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
               " [%0], [%1, {%2, %3, %4, %5, %6}], [%7];"
               ::"r"(to), "l"(map), "r"(i0), "r"(i1), "r"(i2), "r"(i3), "r"(i4), "r"(barrier) : "memory");
}
// Of a matrix, to both blocks of a cluster of two, and counted by the barriers of both.
__device__ __forceinline__ void tma_load_2d_multicast(SmemAddr to, const TensorMap *map, int column, int row,
                                                      SmemAddr barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
               " [%0], [%1, {%2, %3}], [%4], %5;"
               ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "h"((unsigned short)3) : "memory");
}

// This block's number in its cluster.
__device__ __forceinline__ int cluster_ctarank() { int r; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Orders earlier writes to shared memory before later asynchronous copies there.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// What a thread of this warp group may hold from here on, taken from the block's registers or given back to them.
template <int REGISTERS> __device__ __forceinline__ void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Named barriers 1 and 2, at which warp group 0 and 1 wait for their turn at the tensor cores; the other group arrives.
__device__ __forceinline__ void group_barrier_sync(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}
// Named barrier 3, at which both groups meet.
__device__ __forceinline__ void both_groups_sync() { asm volatile("bar.sync 3, 256;" ::: "memory"); }
__device__ __forceinline__ void group_barrier_arrive(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(1 + group) : "memory");
}
