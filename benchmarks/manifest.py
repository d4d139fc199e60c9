"""Time and memory to open a manifest of many rows, and to read the lengths of many files, twice.

    PYTHONPATH=src python benchmarks/manifest.py rows FOLDER [--rows N] [--folders N] [--kind csv|json]
    PYTHONPATH=src python benchmarks/manifest.py scan FOLDER [--files N]

The first makes N empty files in so many folders below FOLDER, and a manifest that names them; the second makes files of
0.1 s. What is there already is used again; delete FOLDER afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path


def make_rows(folder: Path, rows: int, folders: int, kind: str) -> Path:
    """A manifest of ``rows`` files spread over ``folders``."""
    manifest = folder / f"list-{rows}.{kind}"
    if manifest.exists():
        return manifest
    names = [f"{i % folders:04d}/recording-{i:07d}.wav" for i in range(rows)]
    for i in range(min(folders, rows)):
        (folder / f"{i:04d}").mkdir(parents=True, exist_ok=True)
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
    if kind == "json":
        rows_json = ",\n".join(json.dumps({"wav": name, "labels": f"class{len(name) % 7}"}) for name in names)
        manifest.write_text('{"data": [\n' + rows_json + "\n]}\n")
    else:
        manifest.write_text("path,label\n" + "".join(f"{name},class{i % 50}\n" for i, name in enumerate(names)))
    return manifest


def make_files(folder: Path, files: int) -> None:
    """``files`` WAV files of 0.1 s, by 1,000 a folder."""
    import numpy as np
    import soundfile

    if (folder / f"{(files - 1) // 1000:04d}/{files - 1:07d}.wav").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "one.wav", np.zeros(800), 8000)
    content = (folder / "one.wav").read_bytes()
    (folder / "one.wav").unlink()
    for i in range(files):
        place = folder / f"{i // 1000:04d}"
        if i % 1000 == 0:
            place.mkdir(exist_ok=True)
        (place / f"{i:07d}.wav").write_bytes(content)


def measure(what: str, path: Path) -> None:
    """One line: seconds, CPU seconds, and the process's largest memory."""
    if what == "scan":
        import torch  # noqa: F401 (every command that scans has it; not part of the time)

    from ssamba.data.manifest import read_source, read_sources
    from ssamba.data.scan import scan_sources

    begin, cpu = time.perf_counter(), time.process_time()
    if what == "rows":
        count = len(read_source(path))
    else:
        count = sum(len(source.clips) for source in scan_sources(read_sources([str(path)])))
    seconds, used = time.perf_counter() - begin, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count:,} clips: {seconds:.2f} s, {used:.2f} CPU s, {memory:.0f} MiB at the peak")


def main() -> None:
    """Make what is missing, then measure in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rows", "scan", "measure-rows", "measure-scan"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=1_000)
    parser.add_argument("--kind", default="csv", choices=("csv", "json"))
    parser.add_argument("--files", type=int, default=100_000)
    a = parser.parse_args()
    if a.what.startswith("measure-"):
        return measure(a.what.removeprefix("measure-"), a.folder)
    if a.what == "rows":
        path = make_rows(a.folder, a.rows, a.folders, a.kind)
    else:
        make_files(a.folder, a.files)
        path = a.folder
    for _ in range(2):
        subprocess.run([sys.executable, __file__, f"measure-{a.what}", str(path)], check=True)


if __name__ == "__main__":
    main()
