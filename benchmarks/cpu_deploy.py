"""Start, latency and memory of embedding on a CPU, in a process for each length: the numbers of docs/deploy.md.

    python benchmarks/cpu_deploy.py --threads 1
    python benchmarks/cpu_deploy.py --threads 2 --model runs/mine

Each process imports ssamba, loads the model and embeds noise of one length. Printed are the seconds until the first
result, the shortest of several further passes, and the most memory that the process had. Times are those of the
processor, which on a machine without other work and with one thread are those of the clock.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

LENGTHS = (1, 10, 60, 600)
"""Seconds of audio."""
REPEATS = 5


def measure(seconds: int, threads: int, model: str) -> None:
    """Print one row of the table."""
    begin = time.process_time()
    import numpy as np
    import torch

    import ssamba

    torch.set_num_threads(threads)
    loaded = ssamba.load(model, "cpu")
    ready = time.process_time() - begin
    audio = np.random.default_rng(0).normal(0, 0.1, seconds * 16000).astype(np.float32)
    start = time.process_time()
    loaded.embed(audio, 16000)
    first = time.process_time() - start
    best = float("inf")
    for _ in range(REPEATS if seconds < 600 else 1):
        start = time.process_time()
        loaded.embed(audio, 16000)
        best = min(best, time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)
    print(f"| {seconds} s | {ready:.1f} s | {first:.2f} s | {best * 1000:.0f} ms | {peak:.0f} MB |", flush=True)


def main() -> None:
    """One process for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of the kernels")
    parser.add_argument("--model", default="tiny", help="what ssamba.load takes")
    parser.add_argument("--seconds", type=int, help="measure this length here")
    a = parser.parse_args()
    if a.seconds is not None:
        measure(a.seconds, a.threads, a.model)
        return
    print("| audio | import and load | first result | further ones | memory |\n|---|---|---|---|---|", flush=True)
    for seconds in LENGTHS:
        words = ["--seconds", str(seconds), "--threads", str(a.threads), "--model", a.model]
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
