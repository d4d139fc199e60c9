"""What an index of passes in 16 bits changes: its vectors, what is found, and the processor time.

    OMP_NUM_THREADS=1 python experiments/index_precision.py ESC10 --work /tmp/precision

Makes an index of each precision in ``--work``, compares the vectors of each recording with those in fp32, and asks both
for stretches of 2 s with white noise at 15 dB.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.utils.errors import DataError

SECONDS, DECIBELS, TOP = 2.0, 15.0, 10
RATE = 16000


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each pair of rows in which neither is zero."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    audible = lengths > 0
    return (x * y).sum(axis=1)[audible] / lengths[audible]


def stretch(path: str, rng: np.random.Generator) -> np.ndarray:
    """Two seconds of a recording from anywhere in it, with noise."""
    waveform = read_audio(path, RATE)
    begin = int(rng.uniform(0, max(1, len(waveform) - SECONDS * RATE)))
    part = waveform[begin : begin + round(SECONDS * RATE)]
    power = np.sqrt(np.mean(np.square(part))) * 10 ** (-DECIBELS / 20)
    return (part + rng.normal(0, power, len(part))).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    made = {}
    for dtype in ("fp32", given.dtype):
        begin = time.process_time()
        made[dtype] = ssamba.index([given.data], given.work / dtype, device=given.device, dtype=dtype)
        print(f"{dtype}: {len(made[dtype])} recordings, {time.process_time() - begin:.1f} s of processor time")
    exact = {r.path: r for r in made["fp32"].recordings()}
    for kind in ("columns", "pieces"):
        found = np.concatenate(
            [cosines(getattr(r, kind), getattr(exact[r.path], kind)) for r in made[given.dtype].recordings()]
        )
        print(f"{kind}: cosine to fp32 {np.median(found):.6f} in the median, {found.min():.6f} at least")

    rng = np.random.default_rng(0)
    asked, first, same, shared, off = 0, dict.fromkeys(made, 0), 0, 0.0, 0.0
    for path in rng.permutation(sorted(exact))[: given.queries].tolist():
        query = stretch(path, rng)
        try:
            answers = {dtype: opened.search(query, RATE, top=TOP) for dtype, opened in made.items()}
        except DataError:  # nothing audible in this stretch
            continue
        asked += 1
        a, b = answers["fp32"], answers[given.dtype]
        for dtype, answer in answers.items():
            first[dtype] += answer[0].path == path
        same += a[0].path == b[0].path
        shared += len({match.path for match in a} & {match.path for match in b}) / TOP
        off = max(off, abs(a[0].score - b[0].score))
    print(f"{asked} queries: the recording is first for {first}, the same is first for {same}")
    print(f"{shared / asked:.3f} of the first {TOP} are the same; best scores differ by {off:.4f} at most")


if __name__ == "__main__":
    main()
