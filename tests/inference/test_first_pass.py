"""A new process's first pass, once the kernels have been compiled: what it imports, and that the result is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssamba.ops.jit import machine_code

EMBED = """
import hashlib, sys
import numpy as np
import ssamba

sound = np.random.default_rng(0).standard_normal(16000).astype("float32") / 10
model = ssamba.load("tiny")
before = set(sys.modules)
found = model.embed(sound, 16000)
print(hashlib.sha256(found.clip.numpy().tobytes()).hexdigest())
print(*[name for name in {names!r} if name in sys.modules])
print(len(set(sys.modules) - before))
"""
SLOW = ("sympy", "torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "numba", "scipy", "cffi", "triton")
"""Each takes 0.1 s or more of a first pass, as imported by the next or the one before."""


@pytest.mark.skipif(not machine_code.SUPPORTED, reason="Numba loads its machine code itself here")
def test_the_first_pass_imports_no_compiler(tmp_path: Path) -> None:
    environment = {**os.environ, "SSAMBA_CACHE_DIR": str(tmp_path / "kernels"), "NUMBA_CACHE_DIR": str(tmp_path / "n")}
    environment.pop("SSAMBA_BACKEND", None)
    runs = []
    for _ in range(2):
        command = [sys.executable, "-c", EMBED.format(names=SLOW)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        runs.append(done.stdout.split("\n"))
    (compiled, imported, _), (kept, slow, count) = (run[:3] for run in runs)
    assert "numba" in imported.split()
    assert kept == compiled
    assert slow == ""
    assert int(count) < 200
