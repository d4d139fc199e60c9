"""``make demo``: the whole main job on sounds that the package makes itself, on two CPU cores in a few minutes."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.data.synthetic.generate import make_synthetic
from ssamba.evaluation.knn import log_mel_statistics, mean_and_deviation, neighbour_accuracy
from ssamba.inference.model import SSAMBA, Encoder
from ssamba.inference.plots import reconstruction_picture
from ssamba.training.log import read_log
from ssamba.training.pretrain.recipe import make_recipe
from ssamba.training.pretrain.run import pretrain
from ssamba.training.seeds import torch_generator
from ssamba.utils.atomic_write import write_text
from ssamba.utils.plots import embedding_map, loss_curves
from ssamba.utils.progress import Bar

CLIPS, SECONDS, SEED = 900, 2.0, 0
MASK = 64
RECIPE: dict[str, object] = {
    "width": 96,
    "depth": 6,
    "frames": 192,
    "mask": MASK,
    "validation_mask": MASK,
    "statistics": "measure",
    "batch": 32,
    "steps": 700,
    "lr": 1e-3,
    "warmup_steps": 50,
    "warmup_every": 1,
    "validate_every": 100,
    "validation": 0.08,
    "log_every": 10,
}
"""A small SSAMBA: 3 pairs of blocks on 8 x 12 patches, two thirds of them hidden."""


def run(out: Path) -> str:
    """Make sounds, pretrain, embed, draw; returns the table. All files go into ``out``; a stopped demo goes on.

    Leaves curves.png, reconstruction.png, map.png, neighbours.md, the sounds and the run directory.
    """
    started = time.monotonic()
    with Bar("making sounds") as bar:
        labels = make_synthetic(out / "sounds", clips=CLIPS, seconds=SECONDS, seed=SEED, progress=bar.update)
    rows = _rows(labels)
    train = out / "sounds" / "train.csv"
    write_text(train, "path\n" + "".join(f"{r['path']}\n" for r in rows if r["split"] == "train"))
    pretrain([str(train)], out / "run", make_recipe(None, RECIPE), device="cpu")

    model = ssamba.load(out / "run", device="cpu", heads=True)
    table = compare(model, rows, out)
    loss_curves(read_log(out / "run"), out / "curves.png")
    held_out = next(r for r in rows if r["split"] == "test" and r["label"] == rows[0]["label"])
    reconstruction_picture(model, out / "sounds" / held_out["path"], out / "reconstruction.png", mask=MASK)
    minutes = (time.monotonic() - started) / 60
    text = f"{table}\nTest sounds were not used in pretraining. The demo took {minutes:.1f} minutes.\n"
    write_text(out / "neighbours.md", text)
    return text


def compare(model: Encoder, rows: list[dict[str, str]], out: Path) -> str:
    """Nearest-neighbour accuracy of the trained encoder, an untrained one and log-mel statistics; draws the map.

    All three are the mean and the deviation of what they are made of: patch tokens, or log-mel frames.
    """
    front_end = model.config.front_end
    waveforms = [read_audio(out / "sounds" / r["path"], front_end.sample_rate) for r in rows]
    untrained = SSAMBA(model.config, generator=torch_generator(SEED, "untrained")).eval()
    trained = _clips(model, waveforms, "embedding")
    kinds = {
        "SSAMBA, pretrained (tokens' mean and deviation)": trained,
        "SSAMBA, untrained (the same)": _clips(untrained, waveforms, "embedding, untrained"),
        "log-mel mean and deviation": log_mel_statistics(waveforms, front_end),
    }
    is_train = np.array([r["split"] == "train" for r in rows])
    names = [r["label"] for r in rows]
    train_names = [n for n, t in zip(names, is_train, strict=True) if t]
    test_names = [n for n, t in zip(names, is_train, strict=True) if not t]
    lines = ["| features | nearest-neighbour accuracy |", "|---|---|"]
    for kind, vectors in kinds.items():
        accuracy = neighbour_accuracy(vectors[is_train], train_names, vectors[~is_train], test_names)
        lines.append(f"| {kind} | {100 * accuracy:.1f} % |")
    chance = max(test_names.count(n) for n in set(test_names)) / len(test_names)
    lines.append(f"| chance ({len(set(test_names))} classes) | {100 * chance:.1f} % |")
    embedding_map(two_dimensions(trained[~is_train]), test_names, out / "map.png")
    return "\n".join(lines) + "\n"


def two_dimensions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """t-SNE of standardised vectors, (N, d) -> (N, 2), seeded."""
    from sklearn.manifold import TSNE

    standard = (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-6)
    perplexity = min(20.0, (len(vectors) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=SEED, metric="cosine")
    return np.asarray(tsne.fit_transform(standard), dtype=np.float32)


def _clips(model: Encoder, waveforms: list[NDArray[np.float32]], label: str) -> NDArray[np.float32]:
    parts: list[NDArray[np.float32]] = []
    with Bar(label) as bar:
        for start in range(0, len(waveforms), 32):
            parts.append(mean_and_deviation(model.embed(waveforms[start : start + 32], model.config.sample_rate)))
            bar.update(min(start + 32, len(waveforms)), len(waveforms))
    return np.concatenate(parts)


def _rows(labels: Path) -> list[dict[str, str]]:
    with open(labels, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
