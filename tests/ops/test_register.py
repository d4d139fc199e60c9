"""The first call of a custom operator does not import torch's compiler, which sees the operators all the same."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compare import Shape, conv_inputs

from ssamba.ops.mamba.cpu import operators


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("form", ["fresh", "compiled"])
def test_the_gpus_operators(form: str) -> None:
    script = str(Path(__file__).with_name("register_small.py"))
    done = subprocess.run([sys.executable, script, form], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_compiler_leaves_the_cpus_kernels_alone() -> None:
    """Even in a function that it has given up on, where it looks at every function that is called."""
    seen: list[str] = []

    def note(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    def broken(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            torch._dynamo.graph_break()
            y = torch.ops.ssamba.conv_silu(x, weight, bias)
        return y

    inputs = [x.detach() for x in conv_inputs(Shape(2, 5, 2, 1, 8, 4)).values()]
    found = torch.compile(broken, backend=note)(*inputs)
    assert torch.equal(found, operators.conv_silu(*inputs))
    assert seen == []
