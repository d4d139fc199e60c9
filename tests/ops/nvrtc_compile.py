"""Compiles the CUDA C++ that the published sizes use, run in a process of its own by test_gpu_kernels_on_cpu.py.

NVRTC needs no GPU: its library comes from the package nvidia-cuda-nvrtc. The kernels are not run.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

os.environ["TRITON_INTERPRET"] = "1"

from triton_small import plain_proj  # also mends the interpreter

from ssamba.ops import dispatch
from ssamba.ops.jit import nvrtc
from ssamba.ops.layer_norm import cuda as layer_norm
from ssamba.ops.layer_norm import gpu as gpu_norm
from ssamba.ops.mamba import gpu, gpu_inference
from ssamba.ops.mamba.cuda import gated_output, projection, scan, weights
from ssamba.ops.mamba.cuda.sources import MMA_TYPES
from ssamba.ops.mamba.params import MixerParams
from ssamba.ops.mamba.triton import conv

CAPABILITY = (9, 0)
SIZES = {"tiny": (384, 12), "small": (768, 24), "base": (1536, 48)}


def inputs(
    batch: int, length: int, size: str, directions: int, dtype: torch.dtype, states: int = 16, tied: bool = False
) -> list[Tensor]:
    (e, r), lanes = SIZES[size], (directions, 2)
    shapes = [(batch, length, 2, 2, e), (*lanes, e, 4), (*lanes, e), (*lanes, r + 2 * states, e), (*lanes, e, r)]
    shapes += [(*lanes, e), (*lanes, e, 1 if tied else states), (*lanes, e)]
    tensors = [torch.zeros(s, requires_grad=True) for s in shapes]
    return [tensors[0].detach().to(dtype).requires_grad_(), *tensors[1:]]


FORMS = ((True, True, 1, 16), (True, False, 2, 16), (False, True, 1, 16), (False, False, 2, 8), (True, True, 1, 8))
"""Tied decays, alternating directions, their number, and states: beside the form of the official checkpoint."""
CASES = ((2, torch.bfloat16), (1, torch.bfloat16), (2, torch.float16), (2, torch.float32))
EVERY_CASE = tuple(
    (directions, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32) for directions in (1, 2)
)


def visit_units(kernel: Callable[[nvrtc.Unit, str, tuple[str, ...]], object], every_case: bool = False) -> None:
    """Calls ``kernel(unit, name, defines)`` for each kernel that the published sizes launch; nothing runs.

    ``every_case``: each type in one and two directions, in training and in inference.
    """

    def stand_in(unit: nvrtc.Unit, name: str, defines: tuple[str, ...], device: int) -> Callable[..., None]:
        kernel(unit, name, defines)
        return lambda *_: None

    nvrtc.kernel = stand_in
    scan.usable, conv.conv_proj = (lambda *_: True), plain_proj  # type: ignore[assignment]
    projection.usable = lambda x, *_: x.dtype in MMA_TYPES  # type: ignore[assignment]
    projection._takes_maps = lambda x, tokens_each: tokens_each % 4 == 0  # type: ignore[assignment]
    nvrtc.make_tensor_map = nvrtc.make_tensor_map_2d = lambda *_: nvrtc.TensorMap()
    projection._MAX_SLICED_BLOCKS = 0  # inputs are short so that this is; visit_projections has the form of few tokens
    for name in ("add_parts", "copy_padded", "join_products"):  # Triton's, which its interpreter would run for minutes
        dispatch.TABLE[name].pop("triton", None)
    for size in SIZES:
        for directions, dtype in EVERY_CASE if every_case else CASES:
            tensors = inputs(64 if size == "tiny" else 4, 16, size, directions, dtype)
            train(tensors)
            if every_case:
                with torch.no_grad():
                    gpu.bimamba_inner_packed(tensors[0], MixerParams(*tensors[1:]))
    visit_forms()
    visit_free_backward()
    visit_projections()
    visit_chunks_in_float32(2, 16, False, False)
    with torch.no_grad():
        in_chunks, split = (1, 5000), (4, 600)  # chunks of time, and states shared by two warps
        for (batch, length), dtype in itertools.product((in_chunks, split), MMA_TYPES):
            x, *parameters = inputs(batch, length, "tiny", 2, dtype)
            gpu.bimamba_inner_packed(x, MixerParams(*parameters))
            work = torch.zeros_like(x)
            x = x[:, :, 0].contiguous()
            assert gpu_inference.bimamba_ungated(x, work, MixerParams(*parameters)) is not None
        torch.cuda.get_device_properties = lambda _: SimpleNamespace(multi_processor_count=132)  # type: ignore[assignment]
        for (width, wide), dtype in itertools.product(((192, False), (192, True), (64, False)), MMA_TYPES):
            shapes = (5, 4 * width), (5, width), (4 * width, width), (4 * width,), (width, 4 * width), (5, width)
            y, stream, *weights = (torch.zeros(s, dtype=dtype) for s in shapes)
            for scale in (None, 1.0):
                gated_output.gated_output(y, stream.float() if wide else stream, *weights, 1e-5, scale)
            arguments = y, stream.float() if wide else stream, *weights[:3], *weights[:2], y.clone()
            gated_output.gated_output_to_input(*arguments, 1e-5, 1.0)
    visit_small_kernels()


def train(tensors: list[Tensor], alternating: bool = False) -> None:
    """Forward and backward, without and with the gradient of the input product's bias and states that are kept."""
    params, bias = MixerParams(*tensors[1:]), torch.zeros(tensors[0].shape[2:], requires_grad=True)
    keep = tensors[0].shape[-1] == SIZES["tiny"][0] and tensors[0].dtype == torch.bfloat16
    for arguments, of_product in (((), []), ((bias, keep), [bias])):
        y = gpu.bimamba_inner_packed(tensors[0], params, alternating, *arguments)
        torch.autograd.grad(y.float().sum(), [*tensors, *of_product])


def visit_forms() -> None:
    """Training and inference in each form: many channels, few, and in chunks of time."""
    for tied, alternating, directions, states in FORMS:
        for dtype in (
            (torch.bfloat16, torch.float16, torch.float32)
            if tied and alternating and states == 16
            else (torch.bfloat16,)
        ):
            tensors = inputs(64, 16, "tiny", directions, dtype, states, tied)
            train(tensors, alternating)
            if dtype == torch.float32:
                visit_chunks_in_float32(directions, states, tied, alternating)
        if states < 16:  # its backward as it is, too
            os.environ["SSAMBA_STATES"] = "given"
            train(tensors, alternating)
            del os.environ["SSAMBA_STATES"]
        for backward in ("mma", "mma,movm=3") if tied and states == 16 else ():
            tensors = inputs(64, 16, "tiny", directions, torch.bfloat16, states, tied)
            os.environ["SSAMBA_BACKWARD"] = backward
            train(tensors, alternating)
            del os.environ["SSAMBA_BACKWARD"]
        with torch.no_grad():
            for (batch, length), dtype in itertools.product(((64, 16), (1, 5000), (4, 60)), MMA_TYPES):
                tensors = inputs(batch, length, "tiny", directions, dtype, states, tied)
                x, params = tensors[0][:, :, 0].contiguous(), MixerParams(*tensors[1:])
                gpu.bimamba_inner_packed(tensors[0], params, alternating)
                assert gpu_inference.bimamba_ungated(x, torch.zeros_like(x), params, alternating) is not None


def visit_free_backward() -> None:
    """The backward in fragments with free decays: each size and type in both directions, and the tilings to time."""
    both, alternating = (2, False), (1, True)
    calls = [(size, torch.bfloat16, *both, "mma") for size in SIZES]
    calls += [("tiny", torch.float16, *both, "mma"), ("tiny", torch.bfloat16, *alternating, "mma")]
    calls += [
        ("tiny", torch.bfloat16, *both, tiling)
        for tiling in ("mma,warps=12,blocks=1,keep=16,windows=0", "mma,windows=0")
    ]
    for size, dtype, directions, alternates, backward in calls:
        tensors = inputs(64, 16, size, directions, dtype)
        os.environ["SSAMBA_BACKWARD"] = backward
        train(tensors, alternates)
        del os.environ["SSAMBA_BACKWARD"]


@torch.no_grad()
def visit_projections() -> None:
    """The projection of one clip, in the official checkpoint's form and with alternating directions; and that of many
    in its other forms."""
    projection._MAX_SLICED_BLOCKS = 1000
    for size, dtype, (directions, alternating) in itertools.product(SIZES, MMA_TYPES, ((1, True), (2, False))):
        x, weight, bias, proj, *_ = inputs(1, 513, size, directions, dtype)
        projection.conv_proj(x[:, :, 0], weight, bias, proj, alternating=alternating)
    projection._MAX_SLICED_BLOCKS = 0
    for taps in ("near", "runs"):
        os.environ["SSAMBA_PROJ"] = f"taps={taps}"
        for size, (directions, alternating) in itertools.product(SIZES, ((1, True), (2, False))):
            for dtype in MMA_TYPES if size == "tiny" else MMA_TYPES[:1]:
                x, weight, bias, proj, *_ = inputs(1, 60, size, directions, dtype)
                projection.conv_proj(x[:, :, 0], weight, bias, proj, alternating=alternating)
        del os.environ["SSAMBA_PROJ"]


@torch.no_grad()
def visit_chunks_in_float32(directions: int, states: int, tied: bool, alternating: bool) -> None:
    """Long inference of few clips."""
    x, *parameters = inputs(1, 5000, "tiny", directions, torch.float32, states, tied)
    gpu.bimamba_inner_packed(x, MixerParams(*parameters), alternating)


@torch.no_grad()
def visit_small_kernels() -> None:
    """Norms and a pair's weights as inference has them in each type, with weights of that type and under autocast."""
    layer_norm.usable = weights.usable = lambda *_: True  # type: ignore[assignment]
    for size, dtype in itertools.product(SIZES, (torch.bfloat16, torch.float16, torch.float32)):
        (e, r), width = SIZES[size], SIZES[size][0] // 2
        x, stream, maps = torch.zeros(2, 3, width).to(dtype), torch.zeros(2, 3, width), torch.zeros(2, width).to(dtype)
        gpu_norm.layer_norm(x, 1e-5)
        gpu_norm.add_layer_norm_(x, x.clone(), 1e-5, 1.0)
        for residual in (x, None):
            gpu_norm.add_layer_norm(x, residual, *maps)
        of_mixer = [torch.zeros(s) for s in ((1, 2, e, 4), (1, 2, e), (1, 2, r + 32, e), (1, 2, e, r), (1, 2, e))]
        of_mixer += [torch.zeros(1, 2, e, 1), torch.zeros(1, 2, e)]
        of_pair = [torch.zeros(s) for s in ((2, 2, e, width), (2, width), (2, width), (width, 2, e))]
        for kind in (dtype, torch.float32):
            params = MixerParams(*of_mixer).to(kind)
            gpu_inference.ready_weights_of_pairs(of_pair[0], [(*(t.to(kind) for t in of_pair), params)], dtype)
        if dtype != torch.float32:
            gpu_norm.add_layer_norm(stream, None, out_dtype=dtype)
            gpu_norm.add_layer_norm(x, stream)
            gpu_norm.add_layer_norm(x, stream, *maps.float(), out_dtype=torch.float32)


def main() -> None:
    compiled = set()

    def compile_once(unit: nvrtc.Unit, name: str, defines: tuple[str, ...]) -> None:
        if (unit, name, defines) not in compiled:
            assert nvrtc.compile_unit(unit, defines, CAPABILITY)
            compiled.add((unit, name, defines))

    visit_units(compile_once)
    print(len(compiled), "kernels,", ", ".join(sorted({name for _, name, _ in compiled})))


if __name__ == "__main__":
    main()
