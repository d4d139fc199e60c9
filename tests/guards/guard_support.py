"""What the guards share: golden files, the command line, and plain sounds made of whole numbers.

A guard compares what a user can hold on to with a golden file. It reaches the package through ``import ssamba``, the
command line and files on disk alone, so that it outlives any move inside the package.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import warnings
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("golden")
REWRITE = "python tests/guards/write_golden.py"
RATE = 16000


def read_golden(name: str) -> Any:
    """The golden value of that name."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def as_text(value: Any) -> str:
    """JSON, a line for each innermost list or object that fits into one."""
    return _compact(value, "") + "\n"


def _compact(value: Any, indent: str) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value or len(indent) + len(flat) <= 110:
        return flat
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(str(k), ensure_ascii=False)}: {_compact(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _compact(v, inner) for v in value) + f"\n{indent}]"


def assert_same(found: Any, golden: Any, name: str) -> None:
    """Equal, or a failure that shows the lines that differ and the command that accepts them."""
    found = json.loads(json.dumps(found))
    if found == golden:
        return
    lines = difflib.unified_diff(as_text(golden).splitlines(), as_text(found).splitlines(), "golden", "found", n=1)
    shown = "\n".join(list(lines)[:60])
    raise AssertionError(f"{name} changed; where that is meant: {REWRITE} {name.split('/')[0]}\n{shown}")


def call(words: Sequence[str], folder: Path, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line, run inside this process in a folder."""
    import torch

    from ssamba.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    before, threads, kept = os.getcwd(), torch.get_num_threads(), dict(os.environ)
    try:
        os.chdir(folder)
        torch.set_num_threads(1)
        os.environ.update({"COLUMNS": "100", "NO_COLOR": "1", **environment})
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(list(words))
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(kept)
    return code, out.getvalue(), err.getvalue()


def environment(**more: str) -> dict[str, str]:
    """Of a process that computes in one thread, the same bits each time."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return os.environ | {"COLUMNS": "100", "NO_COLOR": "1"} | single | more


def process(words: Sequence[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """``python -m ssamba`` in a process of its own."""
    command = [sys.executable, "-m", "ssamba", *words]
    return subprocess.run(command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=300)


def own_lines(stderr: str) -> list[str]:
    """The program's lines on stderr, without progress bars and warnings."""
    return [line for line in re.split(r"[\r\n]+", stderr) if line.startswith("ssamba:")]


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def write_sound(path: Path, number: int, seconds: float = 1.0) -> None:
    """A sawtooth and noise, computed in whole numbers: the same bytes on every machine."""
    n = int(seconds * RATE) + 800 * (number % 4)
    noise = np.random.Generator(np.random.PCG64(number)).integers(-2000, 2000, n)
    samples = (np.arange(n, dtype=np.int64) * (150 + 37 * number)) % 16000 - 8000 + noise
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def write_sounds(folder: Path, count: int = 24) -> Path:
    """``count`` clips of about a second, and ``labels.csv`` with three classes and a split."""
    rows = ["path,label,split"]
    for number in range(count):
        write_sound(folder / f"clip{number:02}.wav", number)
        rows.append(f"clip{number:02}.wav,kind{number % 3},{'train' if number < 15 else ('val', 'test')[number % 2]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of each file below a folder, in order; parts that hold a time or a host are replaced."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield re.sub(r"tfevents\..*", "tfevents.*", path.relative_to(folder).as_posix()), path
