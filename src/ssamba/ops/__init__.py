"""Operators: one name for each, the fastest form that can run chosen here and nowhere else."""

from ssamba.ops.reference import bimamba_inner, conv_silu, selective_scan

__all__ = ["bimamba_inner", "conv_silu", "selective_scan"]
