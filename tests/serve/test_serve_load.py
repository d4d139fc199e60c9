"""Many clients at once: every request is answered rightly, and memory stays where it was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"


@pytest.mark.slow
def test_a_short_load_loses_nothing() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    words = ("--clients", "100", "--seconds", "15", "--clip", "0.5", "--device", "cpu")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answered = re.search(r"answered, lost or refused, wrong \| ([\d,]+), (\d+), (\d+) \|", done.stdout)
    assert answered is not None
    assert int(answered[1].replace(",", "")) >= 100
    assert (answered[2], answered[3]) == ("0", "0")
    memory = re.search(r"at the end \| [\d,]+, ([\d,]+), ([\d,]+) MiB", done.stdout)
    assert memory is not None
    early, late = (int(n.replace(",", "")) for n in memory.groups())
    assert late - early < 100
    group = re.search(r"in a group, mean \| ([\d.]+)", done.stdout)
    assert group is not None
    assert float(group[1]) > 4
