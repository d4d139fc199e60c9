"""The mixer on a CPU, compiled by Numba."""
