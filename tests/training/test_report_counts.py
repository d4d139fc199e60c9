"""Accuracy of few clips is a count, not a percentage."""

from __future__ import annotations

from typing import Any

from ssamba.training.finetune.report import as_table, headline


def values(clips: int, accuracies: list[float]) -> dict[str, Any]:
    """What results.json holds of a run with folds of so many test clips."""
    right = round(sum(a * clips for a in accuracies))
    mean = sum(accuracies) / len(accuracies)
    folds = [
        {
            "name": str(n),
            "clips": {"train": 4 * clips, "validation": 0, "test": clips},
            "epoch": None,
            "metrics": {"loss": 0.5, "accuracy": accuracy, "mAP": 0.75},
        }
        for n, accuracy in enumerate(accuracies)
    ]
    return {
        "recipe": "fit",
        "metric": "accuracy",
        "chosen": "C",
        "model": "all clips",
        "classes": 2,
        "from": "tiny",
        "encoder": {"kind": "ssamba", "width": 192, "depth": 24},
        "mean": {"loss": 0.5, "accuracy": mean, "mAP": 0.75},
        "sample_deviation": {"loss": 0.1, "accuracy": 0.1, "mAP": 0.1} if len(folds) > 1 else None,
        "folds": folds,
        "fit": {},
        "counted": {"right": right, "clips": clips * len(folds)},
    }


def test_few_clips_are_counted() -> None:
    five = values(4, [0.75, 1.0, 1.0, 0.5, 0.75])
    assert headline(five) == "fit: accuracy 16 of 20, 58-92 % (the test clips of 5 folds)"
    rows = [line for line in as_table(five).splitlines() if line.startswith("| ")][1:6]
    assert [row.split(" | ")[4] for row in rows] == [f"{n} of 4" for n in (3, 4, 4, 2, 3)]
    assert headline(values(4, [0.75])) == "fit: accuracy 3 of 4, 30-95 %"


def test_many_clips_have_a_percentage() -> None:
    folds = values(200, [0.9, 0.8])
    assert headline(folds).endswith("; 85.00 % ± 10.00 % (mean and sample deviation of 2 folds)")
    assert "| 90.00 % |" in as_table(folds)
    assert "| 90 of 100 |" not in as_table(values(100, [0.9]))


def test_unreadable_clips_are_not_counted_as_tested() -> None:
    """Two of three that could be read of a fold of four."""
    assert "| 66.67 % |" in as_table(values(4, [2 / 3, 1.0]))
