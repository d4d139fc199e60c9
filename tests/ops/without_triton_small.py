"""Inference in 16 bits in a process that cannot import Triton; test_without_triton.py runs it.

``walk``: tiny's recordings, short and long, with kernels that do nothing in place of the compiled ones. ``values``: a
small model in the same form with the kernels emulated, beside float64; ``deferred``: the same where the gate is
deferred. CPU tensors stand for a GPU's.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ["SSAMBA_BACKEND"] = "gpu"

import numpy as np
import torch
from emulation import build
from gated_output_small import matrix_of
from torch import Tensor

import ssamba
from ssamba import ops
from ssamba.models.config import Config
from ssamba.models.registry import make_encoder
from ssamba.ops import dispatch
from ssamba.ops.jit import nvrtc

FORBIDDEN = ("triton", "torch._dynamo", "torch._inductor")
asked: list[str] = []
"""What was asked for of ``FORBIDDEN``, also where the one who asked went on without."""


class Refuse:
    """Of ``sys.meta_path``, and a loader: these packages are installed, but none of them can be imported."""

    @classmethod
    def find_spec(cls, name: str, *_: object) -> ModuleSpec | None:
        """None for all others."""
        return ModuleSpec(name, cls) if name in FORBIDDEN else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """As any module."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Raises ImportError."""
        asked.append(module.__name__)
        raise ImportError(f"{module.__name__} must not be imported here")


def stand_for_a_gpu(kernel: Callable[..., Callable[..., None]]) -> None:
    """CPU tensors take the path of a Hopper GPU's, whose kernels come from ``kernel``."""
    torch.Tensor.is_cuda = property(lambda _: True)  # type: ignore[assignment,misc]
    of_mixer = dispatch.TABLE["bimamba_inner_packed"]
    of_mixer["gpu"] = of_mixer["gpu"]._replace(supports=dispatch._mixer_limits)
    nvrtc.available = nvrtc.multiplies_bfloat16 = lambda _: True  # type: ignore[assignment]
    nvrtc.on = lambda _: contextlib.nullcontext()
    nvrtc.kernel = kernel
    nvrtc.make_tensor_map_2d = lambda *_: nvrtc.TensorMap()
    torch.cuda.get_device_capability = lambda _=None: (9, 0)  # type: ignore[assignment]
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(  # type: ignore[assignment]
        multi_processor_count=132, shared_memory_per_block_optin=232448
    )
    torch.cuda.is_current_stream_capturing = lambda: True  # as if a graph were being captured: no other is then
    torch.version.cuda = "13.0"  # type: ignore[assignment]


def walk() -> None:
    """One clip of 10 s in one pass; and so many that the gate is deferred."""
    launched: list[str] = []
    written: list[tuple[str, int]] = []  # where norms and projections go

    def stand_in(unit: nvrtc.Unit, name: str, defines: tuple[str, ...], device: int) -> Callable[..., None]:
        def run(grid: tuple[int, ...], threads: int, args: Any, *_: int) -> None:
            launched.append(name)
            if name in ("add_layer_norm", "conv_proj"):
                written.append((name, args.out if name == "add_layer_norm" else args.p))

        return run

    stand_for_a_gpu(stand_in)
    for dtype in ("bf16", "fp16"):
        model = ssamba.load("tiny", "cpu", dtype=dtype)
        launched.clear()
        written.clear()
        model.embed(np.zeros(160000, dtype=np.float32), 16000)
        assert {"add_layer_norm", "prepare_weights", "scan_fragments"} <= set(launched), launched
        pairs = [(last, now) for last, now in itertools.pairwise(written) if now[0] == "conv_proj"]
        assert len(pairs) == model.n_layers, written
        assert all(last == ("add_layer_norm", now[1]) for last, now in pairs), written  # in the norm's memory
        assert launched.count("prepare_weights") == 1, launched  # of all pairs
        launched.clear()
        model.plan = model.plan._replace(defer_gate_min_tokens=512)  # as with 16,384 tokens
        model.embed(np.zeros(160000, dtype=np.float32), 16000)
        assert {"add_layer_norm", "gated_output", "prepare_weights", "scan_fragments"} <= set(launched), launched


def values() -> None:
    """Tokens in both types are no further from float64's than the plain form's are in those types, or hardly."""
    check_values(build, 1.1, defer_from=2**40)


def deferred() -> None:
    """The same with the gate after the scan, in the pass that goes on to the next pair's x, and in one that does not.

    Both forms round at other places than the plain one.
    """
    launched: list[str] = []

    def kernel(unit: nvrtc.Unit, name: str, defines: tuple[str, ...], device: int) -> Callable[..., None]:
        launched.append(" ".join((name, *defines)))
        return build(unit, name, defines, device)

    for gate, next_inputs in (("", 2), ("apart", 0)):
        os.environ["SSAMBA_GATE"] = gate
        launched.clear()
        check_values(kernel, 1.3, defer_from=1)
        of_gate = [name for name in launched if name.startswith("gated_output")]
        assert len(of_gate) == 4 * 3, launched  # three pairs, both types, twice each
        assert sum("NEXT=1" in name for name in of_gate) == 4 * next_inputs, launched


@torch.no_grad()
def check_values(kernel: Callable[..., Callable[..., None]], allowed: float, defer_from: int) -> None:
    shape = {"width": 64, "depth": 6, "frames": 96, "mel_bins": 48, "dt_rank": 4}
    model = make_encoder(Config(**shape, decay="tied", scan="alternating"), generator=torch.Generator().manual_seed(1))
    for weight in model.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    features = torch.randn(2, 96, 48, generator=torch.Generator().manual_seed(2))
    narrow = {dtype: copy.deepcopy(model).to(dtype) for dtype in (torch.bfloat16, torch.float16)}

    def error(found: Tensor) -> float:
        return float((found.double() - exact).norm() / exact.norm())

    with ops.use_backend("reference"):
        exact = model.double().encode(features.double())
        plain = {dtype: error(of_type.encode(features)) for dtype, of_type in narrow.items()}
    stand_for_a_gpu(kernel)
    nvrtc.make_tensor_map_2d = matrix_of
    for dtype, of_type in narrow.items():
        of_type.plan = of_type.plan._replace(defer_gate_min_tokens=defer_from)
        found = of_type.encode(features)
        assert torch.equal(found, of_type.encode(features))
        assert error(found) < allowed * plain[dtype], (
            f"{dtype}: off by {error(found):.2e}, the plain form {plain[dtype]:.2e}"
        )
        if (
            defer_from > 1
        ):  # whoever keeps the tokens finds them as they were, though the mixer writes to a norm's memory
            tokens = of_type.embed_patches(features)
            kept = tokens.clone()
            assert error(of_type.encode_tokens(tokens)) < allowed * plain[dtype]
            assert torch.equal(tokens, kept)


def main(form: str) -> None:
    sys.meta_path.insert(0, Refuse)  # type: ignore[arg-type]
    globals()[form]()
    loaded = [name for name in sys.modules if name.split(".")[0] == "triton" or name in FORBIDDEN]
    assert not loaded, loaded
    assert not asked, asked


if __name__ == "__main__":
    main(sys.argv[1])
