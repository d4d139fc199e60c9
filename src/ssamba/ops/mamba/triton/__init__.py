"""Triton kernels, one file for each part of the mixer. ``ssamba.ops.mamba.gpu`` calls them; nothing else should.

Layouts shared by all of them (legend in ``ssamba.ops.mamba.naive``): ``G = R K`` lanes with ``lane = r K + k``;
whatever is computed for each lane is lane-major, ``(G, B, L, channels)``, so that one lane is one plain matrix for a
matrix product.
"""
