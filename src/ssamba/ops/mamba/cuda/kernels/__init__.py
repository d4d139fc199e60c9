"""CUDA C++ of the mixer."""
