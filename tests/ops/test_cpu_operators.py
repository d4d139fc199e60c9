"""The CPU's operators as torch sees them: dtypes, tracing, export; how the kernels are compiled and cached."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from compare import Shape, conv_inputs, inner_inputs, scan_inputs
from torch import Tensor, nn

import ssamba
from ssamba import ops
from ssamba.ops.mamba.cpu import kernels, operators

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSAMBA_BACKEND", raising=False)


def conv() -> list[Tensor]:
    return list(conv_inputs(Shape(2, 5, 2, 1, 8, 4)).values())


def scan() -> list[Tensor]:
    return [x for x in scan_inputs(Shape(2, 5, 2, 1, 8, 4)).values() if x is not None]


def inner(length: int = 5) -> list[Tensor]:
    return list(inner_inputs(Shape(2, length, 2, 1, 8, 4, r=2)).values())


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [x.requires_grad_() for x in tensors]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    tensors = leaves([x.to(dtype) for x in scan()])
    out = ops.selective_scan(*tensors)
    whole = leaves([x.detach().float() for x in tensors])
    truth = ops.selective_scan(*whole)
    assert out.dtype == dtype
    assert torch.equal(out, truth.to(dtype))
    out.backward(torch.ones_like(out))
    truth.backward(torch.ones_like(truth))
    for x, y in zip(tensors, whole, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        assert torch.equal(x.grad, y.grad.to(dtype))
    mixed = ops.bimamba_inner(*[x.to(dtype) for x in inner()[:2]], *inner()[2:])
    assert mixed.dtype == dtype
    trained = ops.bimamba_inner(*leaves([x.to(dtype) for x in inner()[:2]]), *inner()[2:])
    torch.testing.assert_close(mixed, trained, rtol=0.1, atol=0.1)


def test_a_gradient_without_states_is_refused() -> None:
    y, _ = torch.ops.ssamba.selective_scan(*leaves(scan()), False)
    with pytest.raises(RuntimeError, match="keep_states=True"):
        y.sum().backward()


# ---- torch's tools


@pytest.mark.parametrize("keep", [True, False])
def test_opcheck_of_the_scan(keep: bool) -> None:
    arguments = scan()
    if keep:
        torch.library.opcheck(torch.ops.ssamba.selective_scan.default, (*leaves(arguments), True))
        arguments[-1] = None  # type: ignore[call-overload]
    torch.library.opcheck(torch.ops.ssamba.selective_scan.default, (*arguments, keep))


def test_opcheck_of_the_others() -> None:
    torch.library.opcheck(torch.ops.ssamba.conv_silu.default, leaves(conv()))
    torch.library.opcheck(torch.ops.ssamba.conv_silu_backward.default, [operators.conv_silu(*conv()), *conv()])
    torch.library.opcheck(torch.ops.ssamba.bimamba_inference.default, inner())
    y, states = torch.ops.ssamba.selective_scan(*scan(), True)
    torch.library.opcheck(torch.ops.ssamba.selective_scan_backward.default, [y, *scan(), states])


def test_results_have_the_announced_strides() -> None:
    """A compiled graph relies on the strides that the fake operators promise."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    y, states = torch.ops.ssamba.selective_scan(*scan(), True)
    real = [
        torch.ops.ssamba.conv_silu(*conv()),
        *torch.ops.ssamba.conv_silu_backward(operators.conv_silu(*conv()), *conv()),
        *torch.ops.ssamba.selective_scan_backward(y, *scan(), states),
    ]
    with FakeTensorMode() as mode:
        x, w, b = (mode.from_tensor(t) for t in conv())
        tensors = [mode.from_tensor(t) for t in scan()]
        fake_y, fake_states = torch.ops.ssamba.selective_scan(*tensors, True)
        fake = [
            torch.ops.ssamba.conv_silu(x, w, b),
            *torch.ops.ssamba.conv_silu_backward(torch.ops.ssamba.conv_silu(x, w, b), x, w, b),
            *torch.ops.ssamba.selective_scan_backward(fake_y, *tensors, fake_states),
        ]
    assert [t.stride() for t in real] == [t.stride() for t in fake]
    assert [t.dtype for t in real] == [t.dtype for t in fake]


class Inner(nn.Module):
    """``bimamba_inner`` as a module, for the exporter."""

    def forward(self, *tensors: Tensor) -> Tensor:
        return ops.bimamba_inner(*tensors)


def test_compiles_into_one_graph_with_gradients() -> None:
    compiled = torch.compile(Inner(), fullgraph=True, backend="aot_eager")
    ours, eager = leaves(inner()), leaves(inner())
    compiled(*ours).square().sum().backward()
    Inner()(*eager).square().sum().backward()
    for x, y in zip(ours, eager, strict=True):
        torch.testing.assert_close(x.grad, y.grad)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inner()), Inner()(*inner()))


def test_exports_with_a_free_length() -> None:
    length = torch.export.Dim("length", min=2, max=4096)
    dims = ({1: length}, {1: length}, *[None] * 7)
    with torch.no_grad():
        program = torch.export.export(Inner(), tuple(inner()), dynamic_shapes=(dims,))
        assert "bimamba_inference" in str(program.graph)
        torch.testing.assert_close(program.module()(*inner(19)), Inner()(*inner(19)))


# ---- importing and compiling


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_does_not_load_numba() -> None:
    assert run("import sys, ssamba.ops; print('numba' in sys.modules)") == "False"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_runs_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Numba refuses to compile with a cache that it cannot place; the kernels then do without."""
    import numba

    (tmp_path / "file").touch()
    monkeypatch.setenv("SSAMBA_CACHE_DIR", str(tmp_path / "file" / "kernels"))

    asked = []
    plain = numba.cfunc

    def refuse(*args: object, cache: bool = False, **kwargs: object) -> object:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function 'scan_forward': no locator available")
        return plain(*args, **kwargs)

    monkeypatch.setattr(numba, "cfunc", refuse)
    assert kernels.compile_kernel("conv_forward").address
    assert asked == [True, False]


# ---- the cache of machine code


def test_a_changed_helper_changes_the_cache_key(tmp_path: Path) -> None:
    """Numba's own key looks at the file of the entry point alone: stale machine code would be used silently."""
    copies = [tmp_path / path.name for path in kernels.sources()]
    for path, copy in zip(kernels.sources(), copies, strict=True):
        copy.write_bytes(path.read_bytes())
    before = kernels.digest(copies)
    assert before == kernels.digest(kernels.sources())
    for copy in copies:
        text = copy.read_text(encoding="utf-8")
        copy.write_text(text + "# changed\n", encoding="utf-8")
        assert kernels.digest(copies) != before, copy.name
        copy.write_text(text, encoding="utf-8")
    assert kernels.digest(copies) == before


def test_the_cache_key_covers_all_that_the_kernels_import() -> None:
    root = Path(ssamba.__file__).parent
    wanted, known = {path for path in kernels.sources() if path.parent.name == "cpu"}, set(kernels.sources())
    for path in wanted:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssamba.ops.jit"):
                folder = root / "ops" / "jit"
                names = (
                    [node.module.split(".")[-1]] if node.module != "ssamba.ops.jit" else [a.name for a in node.names]
                )  # type: ignore[union-attr]
                assert {folder / f"{name}.py" for name in names} <= known, path
    assert {p.name for p in known} >= {"numba_simd.py", "openmp.py", "scan_common.py", "scan_forward.py", "conv.py"}
