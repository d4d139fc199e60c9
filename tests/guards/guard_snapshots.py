"""Every golden value by name, and how it is made anew."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import guard_commands
import guard_runs
import guard_surface
from guard_support import GOLDEN, as_text, environment, read_golden

UNITS_SCRIPT = Path(__file__).with_name("cuda_units.py")


@cache
def runs_folder() -> Path:
    """A folder with all runs, made once in a process."""
    return guard_runs.make_runs(Path(tempfile.mkdtemp(prefix="guards-")))


def exit_codes() -> dict[str, Any]:
    """Exit codes and error lines."""
    with tempfile.TemporaryDirectory() as folder:
        return guard_commands.outcomes(Path(folder))


def bits() -> dict[str, Any]:
    """Digests for this machine, added to those of other machines."""
    path = GOLDEN / "bits.json"
    known = read_golden("bits") if path.exists() else {}
    return known | {guard_runs.machine(): guard_runs.bits(runs_folder())}


def cuda_units(what: str) -> dict[str, Any]:
    """The CUDA units; ``what``: list or compile."""
    command = [sys.executable, str(UNITS_SCRIPT), what]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=1500)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout)


SNAPSHOTS: dict[str, Callable[[], Any]] = {
    "surface": guard_surface.surface,
    "state_dicts": guard_surface.state_dicts,
    "options": guard_commands.options,
    "exit_codes": exit_codes,
    "run_layouts": lambda: guard_runs.layouts(runs_folder()),
    "run_state_dicts": lambda: guard_runs.loaded(runs_folder()),
    "outputs": lambda: guard_runs.outputs(runs_folder()),
    "bits": bits,
    "numbers": lambda: guard_runs.numbers(runs_folder()),
    "embedded": guard_runs.embedded,
    "cuda_units": lambda: cuda_units("compile"),
}
"""JSON files by name. ``help``, a folder of texts, comes on top."""


def write_help() -> None:
    """One text for each command, and the Python that laid them out."""
    folder = guard_commands.HELP_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.txt"):
        old.unlink()
    for name, text in guard_commands.help_texts().items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "python-version.txt").write_text(guard_commands.PYTHON + "\n")


def write(name: str) -> None:
    """Make one golden value anew."""
    GOLDEN.mkdir(exist_ok=True)
    if name == "help":
        write_help()
    else:
        (GOLDEN / f"{name}.json").write_text(as_text(SNAPSHOTS[name]()), encoding="utf-8")
