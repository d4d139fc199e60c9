"""Linear probe with folds: frozen embeddings, standardised, logistic regression, one fold held out at a time.

    python experiments/linear_probe.py ESC10/meta.csv runs/small [MORE-RUNS ...]

The CSV has the columns filename, fold, category. Each model is compared with an untrained encoder of the same size and
with the mean and deviation over time of 128 log-mel bands. Prints a markdown table: mean over the folds and deviation.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.evaluation.knn import log_mel_statistics, mean_and_deviation

Floats = NDArray[np.float32]


def folds_accuracy(vectors: Floats, labels: NDArray[np.str_], folds: NDArray[np.str_]) -> NDArray[np.float64]:
    """Accuracy on each fold of a probe fitted on the others."""
    out = []
    for fold in sorted(set(folds)):
        test = folds == fold
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe.fit(vectors[~test], labels[~test])
        out.append(probe.score(vectors[test], labels[test]))
    return np.array(out)


def embed(model: ssamba.SSAMBA, waveforms: list[Floats], label: str) -> Floats:
    """Clip embeddings (N, 2 d): mean and deviation of the patch tokens."""
    starts = tqdm(range(0, len(waveforms), 16), desc=label, leave=False)
    rate = model.config.sample_rate
    parts = [mean_and_deviation(model.embed(waveforms[start : start + 16], rate)) for start in starts]
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("meta", type=Path)
    parser.add_argument("models", nargs="*")
    arguments = parser.parse_args()
    with open(arguments.meta, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([r["category"] for r in rows])
    folds = np.array([r["fold"] for r in rows])
    waveforms = [read_audio(arguments.meta.parent / r["filename"]) for r in tqdm(rows, desc="decoding", leave=False)]
    kinds = {"log-mel mean and deviation": log_mel_statistics(waveforms)}
    for source in arguments.models:
        model = ssamba.load(source)
        kinds[f"{source}, trained"] = embed(model, waveforms, source)
        torch_generator = torch.Generator().manual_seed(0)
        untrained = ssamba.SSAMBA(model.config, generator=torch_generator).to(model.device).eval()
        kinds[f"{source}, untrained"] = embed(untrained, waveforms, f"{source}, untrained")
    print("| features | values | accuracy, mean of the folds | deviation |\n|---|---|---|---|")
    for kind, vectors in kinds.items():
        scores = 100 * folds_accuracy(vectors, labels, folds)
        print(f"| {kind} | {vectors.shape[1]} | {scores.mean():.1f} % | {scores.std():.1f} |")


if __name__ == "__main__":
    main()
