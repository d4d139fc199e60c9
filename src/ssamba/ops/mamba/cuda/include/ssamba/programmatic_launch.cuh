// Programmatic dependent launch: blocks of a kernel start while the kernel before it in the stream ends.
#pragma once

// Before the first access to what kernels of this kind may have written (all but weights): waits until the kernel
// before this one has ended and what it wrote is there, then lets blocks of the next one start when all of this one
// have. So kernels before the last one have ended when a block starts. Does nothing in a kernel that is launched
// without the attribute, and before compute capability 9.0.
__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
