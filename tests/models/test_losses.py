"""Losses against their definitions, written as loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssamba.models.config import Config
from ssamba.models.encoder import masked_losses
from ssamba.models.losses import OBJECTIVES, classification_loss, info_nce, reconstruction
from ssamba.models.masking import frame_masks
from ssamba.models.registry import make_encoder


def plain_info_nce(prediction: Tensor, target: Tensor) -> tuple[float, float]:
    losses, hits = [], []
    for p, t in zip(prediction.double(), target.double(), strict=True):
        count = len(p)
        logits = [[float(t[i] @ p[j]) for j in range(count)] for i in range(count)]
        log_softmax = []
        for row in logits:
            top = max(row)
            total = top + math.log(sum(math.exp(v - top) for v in row))
            log_softmax.append([v - total for v in row])
        losses += [-log_softmax[i][i] for i in range(count)]
        hits += [max(range(count), key=lambda i: log_softmax[i][j]) == j for j in range(count)]
    return sum(losses) / len(losses), sum(hits) / len(hits)


@pytest.mark.parametrize(("batch", "count", "values"), [(1, 1, 4), (3, 7, 5), (2, 20, 8)])
def test_info_nce_is_its_definition(batch: int, count: int, values: int, rng: torch.Generator) -> None:
    prediction = torch.randn(batch, count, values, generator=rng)
    target = torch.randn(batch, count, values, generator=rng) * torch.rand(batch, count, 1, generator=rng)
    loss, accuracy = info_nce(prediction, target)
    expected_loss, expected_accuracy = plain_info_nce(prediction, target)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    assert accuracy.item() == pytest.approx(expected_accuracy)


def test_accuracy_looks_along_the_other_axis_than_the_loss() -> None:
    # logits [[3, 0], [9, 8]]: by rows the second target is missed, by columns of log-softmax both are found.
    prediction, target = torch.eye(2)[None], torch.tensor([[[3.0, 0.0], [9.0, 8.0]]])
    loss, accuracy = info_nce(prediction, target)
    assert accuracy.item() == 1.0
    assert loss.item() == pytest.approx((math.log1p(math.exp(-3)) + math.log1p(math.exp(1))) / 2, rel=1e-5)


def test_other_clips_are_no_negatives(rng: torch.Generator) -> None:
    prediction, target = torch.randn(2, 5, 4, generator=rng), torch.randn(2, 5, 4, generator=rng)
    alone = [info_nce(prediction[i : i + 1], target[i : i + 1])[0].item() for i in range(2)]
    assert info_nce(prediction, target)[0].item() == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_perfect_predictions() -> None:
    target = 10 * torch.eye(6)[None]
    loss, accuracy = info_nce(target, target)
    assert loss.item() < 1e-6
    assert accuracy.item() == 1.0
    assert reconstruction(target, target).item() == 0.0


def test_reconstruction_is_the_mean_square(rng: torch.Generator) -> None:
    a, b = torch.randn(2, 3, 4, generator=rng), torch.randn(2, 3, 4, generator=rng)
    assert reconstruction(a, b).item() == pytest.approx(sum((float(x) ** 2 for x in (a - b).flatten()), 0.0) / 24)


def test_mixed_precision_does_not_round_the_logits(rng: torch.Generator) -> None:
    prediction, target = torch.randn(2, 9, 32, generator=rng), torch.randn(2, 9, 32, generator=rng)
    plain = info_nce(prediction, target)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = info_nce(prediction, target)[0]
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)
    halves = info_nce(prediction.bfloat16(), target)[0]
    assert halves.dtype == torch.float32
    assert halves.item() == info_nce(prediction.bfloat16().float(), target)[0].item()


def test_smoothed_labels_are_their_definition(rng: torch.Generator) -> None:
    logits, targets = torch.randn(6, 4, generator=rng), torch.rand(6, 4, generator=rng).softmax(dim=1)
    expected = -((0.8 * targets + 0.2 / 4) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(classification_loss(logits, targets, smoothing=0.2), expected)
    assert torch.equal(classification_loss(logits, targets), classification_loss(logits, targets, smoothing=0.0))
    seconds, labels = torch.randn(2, 3, 4, generator=rng), torch.tensor([[1, -1, 3], [0, 2, -1]])
    known = labels >= 0
    vectors = torch.nn.functional.one_hot(labels[known], 4).float()
    torch.testing.assert_close(
        classification_loss(seconds, labels, smoothing=0.2), classification_loss(seconds[known], vectors, smoothing=0.2)
    )


def test_every_objective_gives_the_metrics_that_it_names(rng: torch.Generator) -> None:
    model = make_encoder(Config(width=32, depth=2, frames=64), heads=True)
    features = torch.randn(2, 64, 128, generator=rng)
    mask_a, mask_b = (frame_masks(2, (8, 4), count, rng) for count in (9, 12))
    for name, objective in OBJECTIVES.items():
        assert objective.metrics[0] == "loss"
        for second in (None, mask_b):
            losses, passes = masked_losses(model, features, mask_a, second, name)
            assert set(losses) == set(objective.metrics), name
            assert len(passes) == (2 if objective.uses_two_masks and second is not None else 1), name
            values = {key: value.item() for key, value in losses.items()}
            better = values | {key: 0.9 * values[key] for key in values if key != "accuracy"}
            better |= {"accuracy": values["accuracy"] + 0.1} if "accuracy" in values else {}
            assert objective.score(better) > objective.score(values), name
