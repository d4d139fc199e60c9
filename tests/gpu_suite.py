"""Runs the GPU tests in several processes at once: most of their time is compiling, which one process does alone.

    python tests/gpu_suite.py [--jobs 8] [--seconds 540] [--passed gpu-passed.txt] [pytest arguments]

Tests that passed are noted in ``--passed`` and left out by the next run, so a run that was cut short goes on where it
stopped; remove the file after a change.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)))
    parser.add_argument("--seconds", type=float, default=540.0, help="after which what still runs is ended")
    parser.add_argument("--passed", type=Path, default=Path("gpu-passed.txt"))
    options, rest = parser.parse_known_args()
    root = Path(__file__).resolve().parent.parent
    options.passed.touch()
    before, end = len(options.passed.read_text().splitlines()), time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"{i}.log") for i in range(options.jobs)]
        running = []
        for i, log in enumerate(logs):
            shard = [f"--shard={i}/{options.jobs}", f"--passed={options.passed.resolve()}"]
            command = [sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-v", "--durations=3", *shard, *rest]
            with log.open("w") as out:
                running.append(subprocess.Popen(command, cwd=root, stdout=out, stderr=subprocess.STDOUT))
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for i, log in enumerate(logs):
            print(f"--- process {i}\n{log.read_text(errors='replace')[-2000:]}")
    passed = len(options.passed.read_text().splitlines())
    codes = [process.returncode for process in running]
    print(f"{passed - before} tests passed in this run, {passed} in all; exit codes {codes} (-9: out of time)")
    return max((abs(code) for code in codes if code != 5), default=0)  # 5: nothing was left for it


if __name__ == "__main__":
    sys.exit(main())
