"""Similarity measured: degraded copies among a collection, near-duplicates; and how the space in the package is made.

    python experiments/similarity.py space UNLABELLED tiny_space.safetensors
    python experiments/similarity.py measure ESC10 [--folds 1 2 3] [--scores X.csv]

``measure`` indexes the clips of ESC-10 and degraded copies of each (12 dB less gain, 8 kHz, white noise at 20 and 10
dB, MP3, Vorbis, a stretch of 60 %), and looks for each copy among the originals, as ``Index.search`` does but for its
several phases: copies go through the model in batches. ``space`` learns from pairs of clean and degraded crops of a
folder of audio; ESC-10 must not be in it.
"""

from __future__ import annotations

import argparse
import csv
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.inference.search.columns import Level, column_vectors
from ssamba.inference.search.query import Phase
from ssamba.inference.search.space import Space, save_space, weights_digest

Floats = npt.NDArray[np.float32]

RATE = 16000
LAYER, PIECE_VALUES, COLUMN_VALUES, SHRINKAGE = 8, 128, 64, 0.03
COLUMN, COLUMNS, MARGIN = 2560, 19, 4
"""Samples of a patch column, columns of a crop, and columns by which a crop may move."""
COPIES = ("gain", "8k", "noise20", "noise10", "mp3", "vorbis", "cut")
LONGEST = 0.6
"""Share of a clip that a stretch has."""


def resampled(x: Floats, rate: float) -> Floats:
    """Without what lies above half of ``rate``."""
    there = soxr.resample(soxr.resample(x, RATE, rate), rate, RATE).astype(np.float32)
    return np.pad(there, (0, max(0, len(x) - len(there))))[: len(x)]


def noisy(x: Floats, snr: float, rng: np.random.Generator, colour: float = 0.0) -> Floats:
    """With noise of a power spectrum 1 / f**colour, ``snr`` dB below the recording's mean power."""
    spectrum = np.fft.rfft(rng.normal(size=len(x)))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20) ** (colour / 2)
    noise = np.fft.irfft(spectrum, len(x))
    power = max(float(np.mean(x.astype(np.float64) ** 2)), 1e-12)
    return (x + noise / noise.std() * np.sqrt(power) * 10 ** (-snr / 20)).astype(np.float32)


def coded(x: Floats, rng: np.random.Generator) -> Floats:
    """Through MP3 or Vorbis at a random quality."""
    kind = ("MP3", "MPEG_LAYER_III") if rng.random() < 0.5 else ("OGG", "VORBIS")
    file = io.BytesIO()
    soundfile.write(file, x, RATE, format=kind[0], subtype=kind[1], compression_level=float(rng.uniform(0.3, 0.95)))
    file.seek(0)
    there = soundfile.read(file, dtype="float32")[0]
    return np.pad(there, (0, max(0, len(x) - len(there))))[: len(x)]


def crops(path: Path, rng: np.random.Generator) -> tuple[list[Floats], int] | None:
    """Six versions of a crop, and by how many columns the last one lies behind; None for a file of silence."""
    n, pad = COLUMNS * COLUMN + 240, MARGIN * COLUMN
    audio = read_audio(path)
    audio = np.pad(audio, (0, max(0, n + 2 * pad - len(audio))))
    for _ in range(10):
        at = int(rng.integers(pad, len(audio) - n - pad + 1))
        clean = audio[at : at + n]
        if clean.std() > 1e-3:
            break
    if clean.std() < 1e-4:
        return None

    half = COLUMN // 2
    far = int(rng.integers(-MARGIN, MARGIN + 1)) * COLUMN + int(rng.integers(-half, half + 1))
    far = max(-at, min(far, len(audio) - n - at))
    versions = [clean, resampled(clean, rng.uniform(5000, 13000))]
    near = at + int(rng.integers(-half, half + 1))
    versions.append(noisy(audio[near : near + n], rng.uniform(5, 30), rng))
    colour = rng.uniform(0, 2)
    versions.append(noisy(clean, rng.uniform(5, 30), rng, colour))
    versions += [coded(clean, rng), audio[at + far : at + far + n]]
    return versions, round(far / COLUMN)


def training_columns(model: ssamba.Encoder, folder: Path) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]:
    """Column vectors (files, versions, columns, v) of the crops of all files, and where each last version lies."""
    found = [
        crops(path, np.random.default_rng([i % 2, i // 2])) for i, path in enumerate(sorted(folder.rglob("*.opus")))
    ]
    kept = [versions for versions in found if versions is not None]
    waves = [torch.from_numpy(w) for versions, _ in kept for w in versions]
    rows: dict[int, list[Floats]] = {}
    begin = time.monotonic()
    for segment, vectors, _ in column_vectors(model, ((i, [w]) for i, w in enumerate(waves)), LAYER, Level()):
        rows.setdefault(segment.recording, []).append(vectors.astype(np.float16))
        if segment.last and segment.recording % 600 == 0:
            print(f"{segment.recording} of {len(waves)} crops, {time.monotonic() - begin:.0f} s", flush=True)
    stacked = np.stack([np.concatenate(rows[i])[:COLUMNS] for i in range(len(waves))])
    return stacked.reshape(len(kept), -1, *stacked.shape[1:]), np.array([far for _, far in kept])


def discriminant(within: Floats, total: Floats, values: int) -> Floats:
    """The map (v, values) onto the directions with the most spread between sounds for that within versions of one.

    Each direction is scaled to spread 1 over all; ``within`` has a share of its mean variance added.
    """
    within = within + SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))
    scale, directions = np.linalg.eigh(within.astype(np.float64))
    whiten = directions / np.sqrt(scale)
    ratio, rotation = np.linalg.eigh(whiten.T @ total.astype(np.float64) @ whiten)
    best = np.argsort(-ratio)[:values]
    return (whiten @ rotation[:, best] / np.sqrt(ratio[best])).astype(np.float32)


def piece_spreads(x: npt.NDArray[np.float16]) -> tuple[Floats, Floats, Floats]:
    """Mean, spread within the versions of a crop and spread of all, of the means over a crop's columns."""
    rng = np.random.default_rng(0)
    means = x.astype(np.float32).mean(axis=2)
    parts = [(int(a), int(a + n)) for a, n in zip(rng.integers(0, 8, len(x)), rng.integers(9, 12, len(x)), strict=True)]
    stretches = np.stack([x[i, 0, a:b].astype(np.float32).mean(axis=0) for i, (a, b) in enumerate(parts)])
    means = np.concatenate([means, stretches[:, None]], axis=1)
    mean = means[:, 0].mean(axis=0)
    apart = (means - means.mean(axis=1, keepdims=True)).reshape(-1, means.shape[-1])
    versions = means.shape[1]
    return mean, apart.T @ apart / len(apart) * versions / (versions - 1), np.cov(means[:, 0].T, bias=True)


def column_spreads(x: npt.NDArray[np.float16], far: npt.NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """As ``piece_spreads``, of single columns: each with the column of every version that lies at its time."""
    values = x.shape[-1]
    mean = x[:, 0].reshape(-1, values)[::5].astype(np.float32).mean(axis=0)
    within, total = np.zeros((2, values, values), np.float32)
    n_within = n_total = 0.0
    for i in range(0, len(x), 200):
        part = x[i : i + 200].astype(np.float32) - mean
        still = part[:, :-1]
        apart = (still - still.mean(axis=1, keepdims=True)).reshape(-1, values)
        within += apart.T @ apart * still.shape[1] / (still.shape[1] - 1)
        n_within += len(apart)
        for versions, columns in zip(part, far[i : i + 200].tolist(), strict=True):
            ours = versions[0, max(0, columns) : COLUMNS + min(0, columns)]
            theirs = versions[-1, max(0, -columns) : COLUMNS + min(0, -columns)]
            within += (ours - theirs).T @ (ours - theirs) / 2
            n_within += len(ours) / 2
        clean = part[:, 0].reshape(-1, values)
        total += clean.T @ clean
        n_total += len(clean)
    return mean, within / n_within, total / n_total


def make_space(folder: Path, out: Path) -> None:
    """Learn the space of the model in the package."""
    model = ssamba.load(device="cpu")
    x, far = training_columns(model, folder)
    print(f"{len(x)} files")
    if len(x) <= PIECE_VALUES:  # their means span fewer directions than the map is to have
        raise SystemExit(f"{folder}: has {len(x)} files with sound, the map of pieces takes more than {PIECE_VALUES}")
    x = x.reshape(*x.shape[:3], -1)
    piece_mean, within, total = piece_spreads(x)
    piece_map = discriminant(within, total, PIECE_VALUES)
    column_mean, within, total = column_spreads(x, far)
    column_map = discriminant(within, total, COLUMN_VALUES)
    digest = weights_digest(model)
    space = Space("learned", digest, LAYER, Level(), piece_mean, piece_map, column_mean, column_map)
    save_space(out, space, torch.float16)


def write_copy(kind: str, clip: Path, number: int, folder: Path) -> tuple[Path, float]:
    """A degraded copy of a clip as a file, and the second of the clip at which it begins."""
    rng = np.random.default_rng([number, COPIES.index(kind)])
    x, begin = read_audio(clip), 0.0
    if kind == "gain":
        x = x * np.float32(10 ** (-12 / 20))
    elif kind == "8k":
        x = resampled(x, 8000)
    elif kind.startswith("noise"):
        x = noisy(x, float(kind.removeprefix("noise")), rng)
    elif kind == "cut":
        n = round(LONGEST * len(x))
        at = int(rng.integers(0, len(x) - n + 1))
        x, begin = x[at : at + n], at / RATE
    ending = {"mp3": "mp3", "vorbis": "ogg"}.get(kind, "wav")
    path = folder / f"{clip.stem}.{kind}.{ending}"
    if path.exists():  # of an earlier run with the same --work, whose index has it
        return path, begin
    if kind in ("mp3", "vorbis"):
        soundfile.write(path, x, RATE)
    else:
        soundfile.write(path, x, RATE, subtype="FLOAT")
    return path, begin


def measure(root: Path, folds: list[int], work: Path, scores_file: Path | None) -> None:
    """Print the share of copies whose original comes first, and precision and recall of near-duplicates."""
    with open(root / "meta.csv", newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if int(r["fold"]) in folds]
    # Designs were chosen by folds 1 to 3: these come first, so that their copies are the same in a run over all.
    clips = [root / r["filename"] for r in sorted(rows, key=lambda r: int(r["fold"]) > 3)]
    chosen = np.array([int(clip.name[0]) <= 3 for clip in clips])
    copies = work / "copies"
    copies.mkdir(exist_ok=True)
    begins = {}
    for number, clip in enumerate(clips):
        for kind in COPIES:
            _, begins[clip.stem, kind] = write_copy(kind, clip, number, copies)
    begin = time.monotonic()
    originals = ssamba.index(clips, work / "originals", device="cpu")
    print(f"{len(clips)} clips indexed in {time.monotonic() - begin:.0f} s; {originals.report}", flush=True)
    degraded = ssamba.index([copies], work / "degraded", device="cpu")
    there = {Path(r.path).name.rsplit(".", 1)[0]: r for r in degraded.recordings()}
    names = ("copy", "first (folds 1-3, 4-5)", "of the first 5", "offset to 0.1 s", "score: median, lowest tenth")
    print("|", " | ".join(names), "|")
    print("|---" * len(names) + "|")
    like: list[float] = []
    unlike: list[float] = []
    for kind in COPIES:
        ranks, scores, offsets = [], [], []
        for clip in clips:
            columns = np.asarray(there[f"{clip.stem}.{kind}"].columns, np.float32)
            found = originals.match([Phase(0.0, columns)])
            found.sort(key=lambda match: -match.score)
            rank = [Path(match.path).stem for match in found].index(clip.stem)
            ranks.append(rank)
            scores.append(found[rank].score)
            offsets.append(abs(found[rank].offset - begins[clip.stem, kind]) < 0.1)
            unlike += [m.score for m in found if source(m.path) != source(str(clip))]
        like += scores
        right, five = np.array(ranks) == 0, np.mean(np.array(ranks) < 5)
        first = f"{right.mean():.1%} ({right[chosen].mean():.1%}, {right[~chosen].mean():.1%})"
        print(
            f"| {kind} | {first} | {five:.1%} | {np.mean(offsets):.1%} "
            f"| {np.median(scores):.2f}, {np.quantile(scores, 0.1):.2f} |",
            flush=True,
        )
        missed = [clip.stem for clip, rank in zip(clips, ranks, strict=True) if rank]
        if missed:
            print(f"not first: {' '.join(missed)}")
    print(f"other recordings: quantiles 0.5, 0.99, 0.999, 0.9999 {np.quantile(unlike, [0.5, 0.99, 0.999, 0.9999])}")
    near_duplicates(clips, originals, there)
    if scores_file is not None:
        write_scores(like, unlike, scores_file)


def source(path: str) -> str:
    """The recording on Freesound that a clip of ESC-10 is a part of."""
    return Path(path).name.split("-")[1]


def near_duplicates(clips: list[Path], originals: Any, rows: dict[str, Any]) -> None:
    """A copy of each clip, of the kinds in turn, among all clips: precision and recall at several thresholds."""
    from ssamba.inference.search.duplicates import find_pairs

    planted = [rows[f"{clip.stem}.{COPIES[i % len(COPIES)]}"] for i, clip in enumerate(clips)]
    pairs = find_pairs([*originals.recordings(), *planted], 0.3, originals.header.column_seconds)
    print("| score from | planted pairs found | of the others: of one recording | of different ones | precision |")
    print("|---|---|---|---|---|")
    for threshold in np.arange(0.4, 0.96, 0.05):
        kept = [pair for pair in pairs if pair.score >= threshold]
        true = [pair for pair in kept if stem(pair.first) == stem(pair.second)]
        same = [p for p in kept if stem(p.first) != stem(p.second) and source(p.first) == source(p.second)]
        rest = len(kept) - len(true) - len(same)
        print(
            f"| {threshold:.2f} | {len(true) / len(clips):.1%} | {len(same)} | {rest} "
            f"| {len(true) / max(1, len(kept)):.3f}, {(len(true) + len(same)) / max(1, len(kept)):.3f} |"
        )
    others = [p for p in pairs if source(p.first) != source(p.second)]
    for pair in others[:15]:
        print(f"{pair.score:.3f} {pair.offset:6.2f} s {Path(pair.first).name} {Path(pair.second).name}")


def stem(path: str) -> str:
    """The clip that a file is, or is a copy of."""
    return Path(path).name.split(".")[0]


def write_scores(like: list[float], unlike: list[float], out: Path) -> None:
    """How the scores of copies and of other recordings are distributed: counts in bins of 0.01."""
    edges = np.round(np.linspace(-0.1, 1, 111), 2)
    counts = [np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] for values in (like, unlike)]
    with open(out, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("from", "to", "copies", "other_recordings"))
        table.writerows(zip(edges[:-1].tolist(), edges[1:].tolist(), *(c.tolist() for c in counts), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parts = parser.add_subparsers(dest="part", required=True)
    space = parts.add_parser("space")
    space.add_argument("folder", type=Path)
    space.add_argument("out", type=Path)
    measured = parts.add_parser("measure")
    measured.add_argument("esc10", type=Path)
    measured.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    measured.add_argument("--work", type=Path, help="keep copies and indexes in this folder")
    measured.add_argument("--scores", type=Path, help="write the distribution of scores to this file")
    given = parser.parse_args()
    if given.part == "space":
        make_space(given.folder, given.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        measure(given.esc10, given.folds, work, given.scores)


if __name__ == "__main__":
    main()
