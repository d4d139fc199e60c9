"""A GPU's inference in 16 bits neither imports Triton nor asks for it: that alone takes half a second of a process."""

from __future__ import annotations

import importlib.util

import pytest
from part_script import run_script, skip_without_compiler

from ssamba.ops import dispatch


@pytest.mark.parametrize("form", ["walk", "values", "deferred"])
def test_inference(form: str) -> None:
    if form != "walk":
        skip_without_compiler()
    run_script("without_triton_small.py", form, seconds=300)


def test_the_gpus_forms_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed, they are not taken: training would stop in the middle."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    dispatch.reset()
    for name in ("gpu_inference", "gpu_input"):
        assert dispatch._load(f"ssamba.ops.mamba.{name}") == "Triton is not installed"
    monkeypatch.undo()
    dispatch.reset()
    found = dispatch._load("ssamba.ops.layer_norm.gpu")
    if importlib.util.find_spec("triton") is None:
        assert found == "Triton is not installed"
    else:
        assert found.__name__ == "ssamba.ops.layer_norm.gpu"
