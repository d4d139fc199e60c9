"""The mixer on NVIDIA GPUs, CUDA C++ compiled by NVRTC."""
