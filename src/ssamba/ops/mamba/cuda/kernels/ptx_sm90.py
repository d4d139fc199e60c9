"""CUDA C++ of what Hopper (compute capability 9.0) has: products by ``wgmma``, bulk copies, barriers in shared memory.

bfloat16 only. It comes after ``nvrtc_primitives.PRIMITIVES``.
"""

from __future__ import annotations


def hopper(*columns: int) -> str:
    """The source, with ``wg_product`` for results of so many columns."""
    return _SOURCE.replace("WGMMA", "".join(_wgmma(n) for n in sorted(set(columns))))


def _wgmma(columns: int) -> str:
    """``wg_product`` of so many columns: registers times shared memory, added to registers, in the background."""
    sums = ",".join(f"%{i}" for i in range(columns // 2))
    left = ",".join(f"%{columns // 2 + i}" for i in range(4))
    outputs = ", ".join(f'"+f"(d[{i // 4}][{i % 4}])' for i in range(columns // 2))
    inputs = f"{{{sums}}}, {{{left}}}, %{columns // 2 + 4}, p, 1, 1, 0;"
    return f"""
template <>
__device__ __forceinline__ void wg_product<{columns}>(float (*d)[4], const unsigned *a, Panel b) {{
  asm volatile("{{.reg .pred p; setp.ne.b32 p, 1, 0;"
               "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 "
               "{inputs}}}"
               : {outputs}
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}}
"""


_SOURCE = r"""
__device__ __forceinline__ void wg_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wg_close() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wg_await() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// Nothing that reads these may come before this.
template <int TILES> __device__ __forceinline__ void hold(float (*d)[4]) {
#pragma unroll
  for (int i = 0; i < 4 * TILES; ++i) asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");
}
// The right side of a product: rows (its columns) of 64 values of the inner dimension, swizzled by 128 bytes, eight
// rows in 1,024 bytes. Sixteen values on are 32 bytes on.
typedef unsigned long long Panel;
__device__ __forceinline__ Panel panel(Row at) {
  return (Panel)((at & 0x3ffff) >> 4) | 1ull << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}
__device__ __forceinline__ Panel beyond(Panel b, int bytes) { return b + bytes / 16; }
// d += a b for 16 tokens of each of four warps.
template <int COLUMNS> __device__ __forceinline__ void wg_product(float (*d)[4], const unsigned *a, Panel b);
WGMMA
// Barriers in shared memory, eight bytes each.
__device__ __forceinline__ void barrier_make(Row at, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_expect(Row at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
// The barrier at the same place in that block of the cluster.
__device__ __forceinline__ void barrier_arrive(Row at, int block) {
  asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;\n"
               "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(at), "r"(block) : "memory");
}
__device__ __forceinline__ void barrier_await(Row at, int parity) {
  asm volatile("{.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;}"
               ::"r"(at), "r"(parity) : "memory");
}
// A box of a matrix into shared memory, in the background: its first column and row.
struct alignas(64) Map { char bytes[128]; };
__device__ __forceinline__ void copy_box(Row to, const Map *map, int column, int row, Row barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
               ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
// The same into both blocks of the cluster; it counts at both barriers.
__device__ __forceinline__ void copy_box_to_both(Row to, const Map *map, int column, int row, Row barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
               " [%0], [%1, {%2, %3}], [%4], %5;"
               ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "h"((unsigned short)3) : "memory");
}
__device__ __forceinline__ int block_in_cluster() { int r; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
__device__ __forceinline__ void cluster_await() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// What was written into shared memory comes before later copies there.
__device__ __forceinline__ void show_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Named barriers of the two groups: a group's own is what it waits at for its turn.
__device__ __forceinline__ void turn_await(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}
__device__ __forceinline__ void turn_give(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(1 + group) : "memory");
}
"""
