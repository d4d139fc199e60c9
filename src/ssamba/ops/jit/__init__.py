"""Compiling kernels at run time: NVRTC for CUDA, Numba for the CPU."""
