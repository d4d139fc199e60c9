"""Settings of torch that hold for a whole process, or for a block of it, change nothing that the package gives."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ssamba
from ssamba.utils.torch_defaults import HOST_FLOAT32, of_new_weights

ROOT = Path(__file__).parent.parent
SCRIPT = Path(__file__).with_name("defaults_run.py")
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
QUICK = ["features", "build", "masks", "step", "load", "embed", "predict", "stats", "probe"]
"""Journeys of a second; the others train."""


def run(*words: object) -> str:
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)],
        capture_output=True, text=True, timeout=500, env=os.environ | single | {"SSAMBA_BACKEND": "auto"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("defaults")
    run("prepare", folder)
    return folder


@pytest.fixture(scope="module")
def plain(given: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found: dict[str, str] = json.loads(run("none", given, tmp_path_factory.mktemp("plain")))
    assert all(len(value) == 16 for value in found.values()), found
    return found


@pytest.mark.parametrize(
    ("setting", "journeys"),
    [
        ("float64", []),
        ("meta", []),
        ("bfloat16", QUICK),
        ("float16", QUICK),
        ("deterministic", QUICK),
        ("inference", [name for name in QUICK if name != "step"]),
        ("autocast", ["features", "build", "masks", "load", "embed", "embed_files", "predict", "stats", "probe"]),
        pytest.param("cuda", [], marks=GPU),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_same_bits(setting: str, journeys: list[str], given: Path, plain: dict[str, str], tmp_path: Path) -> None:
    found = json.loads(run(setting, given, tmp_path, *journeys))
    assert found == {name: plain[name] for name in journeys or plain}


# ---- every place that makes a tensor says where, and of what kind

FLOATING = {"empty", "zeros", "ones", "rand", "randn", "linspace", "logspace", "eye", "hann_window", "hamming_window"}
ANY = {"tensor", "full", "scalar_tensor", "as_tensor", "asarray"}
WHOLE = {"arange", "randint", "randperm", "range"}
LAYERS = {"Linear", "LayerNorm", "Conv1d", "Conv2d", "Embedding", "BatchNorm1d"}
TRANSFORMERS = ("encoder_ssamba.py", "modeling_ssamba.py")
"""Models that ``transformers`` builds: it asks for their dtype and device by torch's defaults."""


def unsaid(call: ast.Call) -> list[str]:
    """What a call of torch leaves to the process's defaults."""
    if not isinstance(call.func, ast.Attribute) or not isinstance(call.func.value, ast.Name):
        return []
    said = {keyword.arg for keyword in call.keywords}
    if None in said:  # **HOST_FLOAT32 and the like
        return []
    where, name = call.func.value.id, call.func.attr
    if where == "torch" and name in FLOATING | ANY | WHOLE:
        whole = name in WHOLE or (name == "tensor" and not _may_be_real(call.args[0]))
        return [word for word in ("device", *(() if whole else ("dtype",))) if word not in said]
    return ["dtype and device"] if where == "nn" and name in LAYERS else []


def _may_be_real(value: ast.expr) -> bool:
    """Whether ``torch.tensor`` of it may have a floating dtype: lists of numbers that are written as such."""
    return any(isinstance(x, ast.Constant) and isinstance(x.value, float) for x in ast.walk(value))


def test_no_tensor_is_made_by_default() -> None:
    found = []
    for path in sorted((ROOT / "src/ssamba").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (missing := unsaid(node)):
                if path.name in TRANSFORMERS and (missing == ["dtype and device"] or "empty(" in ast.unparse(node)):
                    continue
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]} says no {missing}")
    assert not found, "\n".join(found)


def test_a_block_may_say_where_new_weights_live() -> None:
    """``with torch.device(...)`` is about the code in it, a process's default about other code."""
    config = ssamba.Config(width=16, depth=2)
    assert of_new_weights()["device"] == "cpu"
    with torch.device("meta"):
        assert of_new_weights()["device"] == torch.device("meta")
        assert all(p.is_meta for p in ssamba.SSAMBA(config).parameters())
    torch.set_default_device("meta")
    try:
        assert of_new_weights() == HOST_FLOAT32
        assert not any(p.is_meta for p in ssamba.SSAMBA(config).parameters())
        with torch.device("meta"):
            assert all(p.is_meta for p in ssamba.SSAMBA(config).parameters())
        assert of_new_weights() == HOST_FLOAT32
    finally:
        torch.set_default_device(None)


def test_embed_does_not_heed_autocast() -> None:
    model = ssamba.SSAMBA(ssamba.Config(width=16, depth=2, frames=64)).eval()
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    plain = model.embed(wave)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.embed(wave)
    with torch.inference_mode():
        frozen = model.embed(wave)
    for name in ("clip", "frames", "patches", "times", "lengths"):
        assert torch.equal(getattr(plain, name), getattr(mixed, name))
        assert torch.equal(getattr(plain, name), getattr(frozen, name))
    model.encode(ssamba.features(wave)).sum().backward()  # what inference mode made and kept is no obstacle
