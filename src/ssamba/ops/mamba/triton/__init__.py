"""Triton kernels, one file for each part of the mixer. ``ssamba.ops.mamba.gpu`` calls them; nothing else should.

Layouts shared by all of them (legend in ``ssamba.ops.mamba.naive``): ``G = R K`` pairs of direction and block, at
``rk = r K + k``. Whatever is computed for each of them lies as ``(G, B, L, channels)``, so that each is one plain
matrix for a matrix product.
"""
