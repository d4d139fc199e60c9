"""CUDA C++ that families of operators share: element types, and kernels that are elementwise or sums over rows."""
