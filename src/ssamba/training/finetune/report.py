"""What a fine-tuning run reports: results.json and .md, scores of each class, predictions, a picture of confusions."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ssamba.data.examples import LabelledData
from ssamba.evaluation import metrics
from ssamba.evaluation.calibration import Calibration
from ssamba.evaluation.rejection_fit import BackgroundCounts
from ssamba.models.config import Config
from ssamba.models.pretrained.file_checks import record_files
from ssamba.models.pretrained.model_dir import CONFIG_FILE, RESULTS_FILE
from ssamba.models.pretrained.transformers_files import PREPROCESSOR_FILE
from ssamba.training.finetune.evaluate import ClassifierOutputs
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.training.run_folder import RECIPE_FILE
from ssamba.utils.atomic_write import write_text
from ssamba.utils.json_text import read_json

TABLE_FILE, CLASSES_FILE = "results.md", "classes.csv"
PREDICTIONS_FILE, CONFUSION_FILE = "predictions.csv", "confusion.png"
MIN_FOR_PERCENT, MAX_COUNTED = 10, 100
"""Test clips of a fold below which its accuracy is no percentage in the headline, and none in the table."""
CHOICE_TEXTS = {
    "folds": "one epoch for all folds, the best by the average of their test scores",
    "validation": "the best epoch on validation clips",
    "last": "the last epoch",
    "average": "weights averaged over epochs",
}


class ReportedRecipe(Protocol):
    """What a report says of a recipe."""

    @property
    def name(self) -> str:
        """The recipe's name."""

    @property
    def metric(self) -> str:
        """``accuracy`` or ``mAP``."""

    @property
    def choose(self) -> str:
        """What chose the model that is reported."""

    @property
    def loss(self) -> str:
        """``ce`` or ``bce``."""


def chosen_text(recipe: FinetuneRecipe) -> str:
    """Which epoch is reported, in words."""
    average = f" {recipe.average_from} to {recipe.average_to}" if recipe.choose == "average" else ""
    return CHOICE_TEXTS[recipe.choose] + average


@dataclass(frozen=True)
class FoldResult:
    """One fold: its name, numbers of clips, the epoch that is reported (None: averaged weights), test metrics."""

    name: str
    train: int
    validation: int
    test: int
    epoch: int | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class Results:
    """All folds of a run, with the resolved recipe, the weights' source, the data and the model's dimensions.

    ``chosen`` says what is reported, ``model`` which of the models the run keeps, ``fitted`` more of a fit,
    ``calibration`` what the kept model's logits were divided by, ``background`` what came of background recordings.
    """

    recipe: ReportedRecipe
    source: str | None
    data: LabelledData
    folds: tuple[FoldResult, ...]
    config: Config
    chosen: str
    model: str
    fitted: dict[str, Any] | None = None
    calibration: Calibration | None = None
    background: BackgroundCounts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for results.json; a value that does not exist is null."""
        names = list(self.folds[0].metrics) if self.folds else [self.recipe.metric]
        table = {name: np.array([fold.metrics[name] for fold in self.folds]) for name in names}
        many = len(self.folds) > 1
        recipe = self.recipe
        return {
            "recipe": recipe.name,
            "layout": self.data.layout,
            "from": self.source,
            "encoder": {"kind": self.config.encoder, "width": self.config.width, "depth": self.config.depth},
            "classes": len(self.data.classes),
            "metric": recipe.metric,
            "choose": recipe.choose,
            "chosen": self.chosen,
            "mean": {name: _plain(values.mean()) if self.folds else None for name, values in table.items()},
            "sample_deviation": {n: _plain(_deviation(v)) for n, v in table.items()} if many else None,
            "folds": [
                {
                    "name": fold.name,
                    "clips": {"train": fold.train, "validation": fold.validation, "test": fold.test},
                    "epoch": fold.epoch,
                    "metrics": {name: _plain(value) for name, value in fold.metrics.items()},
                }
                for fold in self.folds
            ],
            "model": self.model,
            **({} if self.fitted is None else {"fit": self.fitted}),
            **({} if self.calibration is None else {"calibration": self.calibration.to_dict()}),
            **({} if self.background is None else {"background": self.background.to_dict()}),
        }


def _deviation(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Sample deviation over the folds; none (NaN) where one of them is infinite, as d' of a perfect order is."""
    with np.errstate(invalid="ignore"):
        return float(values.std(ddof=1))


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def read_results(out: Path) -> dict[str, Any]:
    """The results of a finished run. Raises ``ConfigError`` for a damaged file."""
    return read_json(out / RESULTS_FILE)


def write_results(out: Path, results: Results, outputs: Sequence[ClassifierOutputs]) -> dict[str, Any]:
    """Write all reports into ``out``, results.json last: it says that the run is finished. List them in checks.json."""
    if not outputs:
        return _write_last(out, results.to_dict())
    rows = [a.rows(results.recipe.loss) for a in outputs]
    scores = np.concatenate([s for s, _ in rows])
    truth = np.concatenate([t for _, t in rows])
    multi_label = results.data.multi_label
    counts = None if multi_label else metrics.confusion(scores, truth)
    write_text(out / CLASSES_FILE, _class_table(results.data.classes, scores, truth, counts))
    if not multi_label and outputs[0].logits.dim() == 2:
        write_text(out / PREDICTIONS_FILE, _predictions(results, outputs))
    values = results.to_dict()
    if counts is not None and outputs[0].logits.dim() == 2:  # seconds of one scene are no independent trials
        values["counted"] = {"right": int(counts.trace()), "clips": int(counts.sum())}
    drawn = (out / RESULTS_FILE).exists() and (out / CONFUSION_FILE).exists()
    if counts is not None and not drawn and importlib.util.find_spec("matplotlib") is not None:
        from ssamba.utils.plots import confusion_picture

        confusion_picture(counts, results.data.classes, out / CONFUSION_FILE, headline(values))
    return _write_last(out, values)


def record_results(out: Path, rewritten: bool = True) -> None:
    """List the files of a finished run in ``checks.json``: as they are where they were ``rewritten``."""
    files = [RESULTS_FILE, TABLE_FILE, CLASSES_FILE, PREDICTIONS_FILE, CONFIG_FILE, PREPROCESSOR_FILE]
    kept = [RECIPE_FILE, CONFUSION_FILE]
    record_files(out, files if rewritten else (), kept if rewritten else [*files, *kept])


def _write_last(out: Path, values: dict[str, Any]) -> dict[str, Any]:
    write_text(out / TABLE_FILE, as_table(values))
    write_text(out / RESULTS_FILE, json.dumps(values, indent=2) + "\n")
    record_results(out)
    return values


def _class_table(classes: Sequence[str], scores: metrics.Array, truth: metrics.Array, counts: Any) -> str:
    """Scores of each class over the test rows of all folds together."""
    columns: dict[str, Any] = {"class": classes, "rows": truth.sum(axis=0).astype(int)}
    if counts is not None:
        columns["accuracy"] = metrics.class_accuracy(counts)
    columns["average_precision"] = metrics.average_precision(scores, truth)
    columns["AUC"] = metrics.auc(scores, truth)
    return _csv(list(columns), zip(*columns.values(), strict=True))


def _predictions(results: Results, outputs: Sequence[ClassifierOutputs]) -> str:
    """Each test clip with its class, what was predicted and the score of that."""
    names, rows = results.data.classes, []
    for fold, answer in zip(results.data.folds, outputs, strict=True):
        scores, truth = answer.rows(results.recipe.loss)
        for number, score, target in zip(answer.examples.tolist(), scores, truth, strict=True):
            best = int(score.argmax())
            rows.append(
                (fold.name, fold.test[number].key, names[int(target.argmax())], names[best], float(score[best]))
            )
    return _csv(["fold", "clip", "class", "predicted", "score"], rows)


def _csv(columns: Sequence[str], rows: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if v != v else f"{v:.6g}" if isinstance(v, float) else v for v in row])
    return text.getvalue()


def headline(values: dict[str, Any]) -> str:
    """One line: the metric, its mean, over several folds its deviation; accuracy as a count and its 95 % interval."""
    name, mean = values["metric"], values["mean"][values["metric"]]
    text = f"{values['recipe']}: {name} {_percent(mean)}"
    if not values["folds"]:
        return f"{values['recipe']}: {name} not measured, no clip was held out"
    counted = values.get("counted")  # a run of an earlier version has none
    if counted is not None and name == "accuracy":
        low, high = metrics.wilson(counted["right"], counted["clips"])
        text = (
            f"{values['recipe']}: {name} {counted['right']} of {counted['clips']}, {100 * low:.0f}-{100 * high:.0f} %"
        )
        if len(values["folds"]) > 1 and min(fold["clips"]["test"] for fold in values["folds"]) < MIN_FOR_PERCENT:
            return f"{text} (the test clips of {len(values['folds'])} folds)"
        text += "" if len(values["folds"]) == 1 else f"; {_percent(mean)}"
    if values["sample_deviation"] is None:
        return text
    deviation = values["sample_deviation"][name]
    return f"{text} ± {_percent(deviation)} (mean and sample deviation of {len(values['folds'])} folds)"


def as_table(values: dict[str, Any]) -> str:
    """results.md: the headline and a row for each fold."""
    names = [name for name in values["mean"] if name != "loss"]
    encoder = values["encoder"]
    lines = [
        f"# {headline(values)}",
        "",
        f"{encoder['kind']}, width {encoder['width']}, depth {encoder['depth']}, from "
        f"{values['from'] or 'random weights'}; {values['classes']} classes. Reported: {values['chosen']}. "
        f"The model of this run is that of {values['model']}.",
        "",
        "| fold | clips: train, validation, test | epoch | loss | " + " | ".join(names) + " |",
        "|---" * (4 + len(names)) + "|",
    ]
    for fold in values["folds"]:
        clips = fold["clips"]
        cells = [
            fold["name"],
            f"{clips['train']}, {clips['validation']}, {clips['test']}",
            _epoch(fold, "fit" in values),
            _number(fold["metrics"]["loss"]),
            *(_fold_cell(name, fold, "counted" in values) for name in names),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if values["sample_deviation"] is not None:
        for label, row in (("mean", values["mean"]), ("sample deviation", values["sample_deviation"])):
            cells = [label, "", "", _number(row["loss"]), *(_cell(name, row[name]) for name in names)]
            lines.append("| " + " | ".join(cells) + " |")
    if (calibration := values.get("calibration")) is not None:
        lines += ["", _calibrated(calibration)]
    if (background := values.get("background")) is not None:
        line = BackgroundCounts(**background).line()
        lines += ["", f"{line[0].upper()}{line[1:]}."]
    return "\n".join(lines) + "\n"


def _calibrated(values: dict[str, Any]) -> str:
    """What was done to make probabilities true, in a line."""
    if "note" in values:
        return f"Calibration: {values['note']}."
    return (
        f"Calibration: the kept model's logits are divided by {values['temperature']:.3g}, fitted on {values['clips']} "
        f"clips of {values['fitted_on']}; expected calibration error {_percent(values['ece_before'])} before, "
        f"{_percent(values['ece_after'])} after, negative log-likelihood {_number(values['nll_before'])} before, "
        f"{_number(values['nll_after'])} after. The table above is before."
    )


def _epoch(fold: dict[str, Any], fitted: bool) -> str:
    return "-" if fitted else "averaged" if fold["epoch"] is None else str(fold["epoch"])


def _cell(name: str, value: float | None) -> str:
    return _number(value) if name == "d_prime" else _percent(value)


def _fold_cell(name: str, fold: dict[str, Any], counted: bool) -> str:
    """A metric of a fold; the accuracy of few clips as a count, unless some of them could not be read."""
    value, clips = fold["metrics"][name], fold["clips"]["test"]
    if name == "accuracy" and counted and clips < MAX_COUNTED and abs(value * clips - round(value * clips)) < 1e-6:
        return f"{round(value * clips)} of {clips}"
    return _cell(name, value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
