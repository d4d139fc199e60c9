"""Gate and output for Hopper (gated_output_sm90.cu) emulated on the CPU, run by test_gpu_kernels_on_cpu.py.

``one``: one size; ``all``: every width and type, tiles that are not full, streams of 32 bits, copies that come late.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from types import SimpleNamespace

import torch
from torch import Tensor

from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.cuda import gated_output

BOUNDS = {torch.bfloat16: 6e-3, torch.float16: 1.5e-3}


def matrix_of(matrix: Tensor, height: int, width: int) -> ctypes.Array[ctypes.c_uint64]:
    """Stands in for ``nvrtc.make_tensor_map_2d``: what the shim's ``Matrix`` holds."""
    rows, columns = matrix.shape
    packed = struct.pack("<QqqII", matrix.data_ptr(), rows, columns, height, width)
    return nvrtc.TensorMap.from_buffer_copy(packed.ljust(128, b"\0"))


def draw(rows: int, width: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
    """y, stream, z's weight and bias, the output's weight, the next x's weight and bias."""
    generator = torch.Generator().manual_seed(rows)
    of_z = (channels, width), (channels,)
    shapes = [(rows, channels), (rows, width), *of_z, (width, channels), *of_z]
    y, stream, weight, bias, out_proj, next_weight, next_bias = (torch.randn(s, generator=generator) for s in shapes)
    drawn = y, stream, weight / width**0.5, bias, out_proj / channels**0.5, next_weight / width**0.5, next_bias
    return [t.to(dtype) for t in drawn]


def check(rows: int, width: int, channels: int, dtype: torch.dtype, wide: bool = False, scale: float = 2.0) -> None:
    """The norm, alone and joined to the stream, against float64; then x, whose bits are those of the norm's product."""
    y, stream, *weights, next_weight, next_bias = draw(rows, width, channels, dtype)
    stream = stream.float() if wide else stream
    exact = [t.double() for t in (y, *weights)]
    where = f"{(rows, width, channels, dtype, wide)}"

    def compare(name: str, found: Tensor, expected: Tensor) -> None:
        error = float((found.double() - expected).norm() / expected.norm())
        assert error < BOUNDS[dtype], f"{name} of {where}: off by {error:.1e}"

    for join in (None, scale):
        mine, out = stream.clone(), torch.full((rows, width), float("nan"), dtype=dtype)
        gated_output.gated_output(y, mine, *weights, out, 1e-5, join)
        exact_stream, exact_out = stream.double(), torch.empty(rows, width).double()
        naive.gated_output_(exact[0].clone(), exact_stream, *exact[1:], exact_out, 1e-5, join)
        compare(f"output, scale {join}", out, exact_out)
        compare(f"stream, scale {join}", mine, exact_stream)
    if channels % 256:
        return
    to_x, x = stream.clone(), torch.full_like(y, float("nan"))
    gated_output.gated_output_to_input(y, to_x, *weights, next_weight, next_bias, x, 1e-5, scale)
    assert torch.equal(to_x, mine), f"stream of {where}, with x and without"
    product = torch.addmm(next_bias.double(), out.double(), next_weight.double().t())
    exact_x = torch.addmm(next_bias.double(), exact_out, next_weight.double().t())
    compare("x", x, exact_x)
    # Of the norm as it is stored elsewhere: rounded once, but for sums in float32 that lie between two values.
    assert (x != product.to(dtype)).float().mean() < 2e-3, f"x of {where} is not the product of the norm"
    nearest = (x.double() - product).abs() / product.abs().clamp_min(1e-2)
    assert float(nearest.max()) < 2.0 * torch.finfo(dtype).eps, where


def main(form: str) -> None:
    from emulation import build

    nvrtc.kernel, nvrtc.make_tensor_map_2d = build, matrix_of  # type: ignore[assignment]
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(multi_processor_count=2)  # type: ignore[assignment]
    check(300, 64, 256, torch.bfloat16)  # two tiles of one block, one and nothing of the other
    if form == "one":
        return
    for width, channels in ((64, 192), (64, 512), (128, 256), (192, 768)):
        for dtype in BOUNDS:
            check(1, width, channels, dtype, scale=1.0)
            check(129, width, channels, dtype, wide=True)


if __name__ == "__main__":
    main(sys.argv[1])
