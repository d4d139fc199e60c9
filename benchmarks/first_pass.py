"""The first result in a new process: import, load, first and second embedding, by the clock.

    python benchmarks/first_pass.py [--device cuda] [--model tiny] [--dtype bf16] [--rounds 3]

Each round is a new process that imports ssamba, loads the model and embeds noise twice. The first round of a
machine compiles kernels and fills the kernel cache; those after it show a warm one. benchmarks/cpu_deploy.py has more
lengths, and memory, on a CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time


def measure(a: argparse.Namespace) -> None:
    """Print one row of the table."""
    begin = time.perf_counter()
    import numpy as np

    import ssamba

    imported = time.perf_counter()
    model = ssamba.load(a.model, a.device, dtype=a.dtype)
    loaded = time.perf_counter()
    audio = np.random.default_rng(0).normal(0, 0.1, a.seconds * 16000).astype(np.float32)
    marks = [time.perf_counter()]
    for _ in range(2):
        model.embed(audio, 16000)  # an array on the host: whatever ran has ended
        marks.append(time.perf_counter())
    spans = imported - begin, loaded - imported, marks[1] - marks[0], marks[2] - marks[1]
    print(f"| {' | '.join(f'{span:.3f}' for span in spans)} |", flush=True)


def main() -> None:
    """One process for each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="what ssamba.load takes")
    parser.add_argument("--model", default="tiny", help="what ssamba.load takes")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--seconds", type=int, default=10, help="of audio")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.here:
        measure(a)
        return
    print("| import, s | load | first embedding | second |\n|---|---|---|---|", flush=True)
    for _ in range(a.rounds):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--here"], check=True)


if __name__ == "__main__":
    main()
