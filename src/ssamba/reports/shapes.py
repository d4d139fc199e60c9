"""Whether the JSON files of a run hold what a run writes, so that the sections can rely on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssamba.utils.errors import CheckpointError
from ssamba.utils.terminal import shorten

TEXT, COUNT, FINITE, MAYBE_FINITE, MAYBE_TEXT, MAYBE_COUNT = "text", "count", "number", "number?", "text?", "count?"
_RESULTS = {
    **dict.fromkeys(("recipe", "layout", "metric", "chosen", "model"), TEXT),
    "from": MAYBE_TEXT,
    "classes": COUNT,
}
_CALIBRATED = {
    **dict.fromkeys(("ece_before", "ece_after", "nll_before", "nll_after"), MAYBE_FINITE),
    "temperature": FINITE,
    "fitted_on": TEXT,
    "clips": COUNT,
}
_SCORE = {"mean": FINITE, "deviation": FINITE}


def check_results(values: Mapping[str, Any], path: Path) -> None:
    """results.json of a fine-tuning or a fit. Raises ``CheckpointError`` naming the first value that is none."""
    _check(values, _RESULTS, path)
    means = _mapping(values, "mean", path)
    _check(means, dict.fromkeys([*means, values["metric"]], MAYBE_FINITE), path)
    if "sample_deviation" not in values:
        raise _wrong(path, "sample_deviation", None)
    if values["sample_deviation"] is not None:
        _check(_mapping(values, "sample_deviation", path), dict.fromkeys(means, MAYBE_FINITE), path)
    for fold in _list(values, "folds", path):
        _check(fold, {"name": TEXT, "epoch": MAYBE_COUNT}, path)
        _check(_mapping(fold, "clips", path), dict.fromkeys(("train", "validation", "test"), COUNT), path)
        _check(_mapping(fold, "metrics", path), dict.fromkeys(means, MAYBE_FINITE), path)
    if values.get("counted") is not None:
        counted = _mapping(values, "counted", path)
        _check(counted, {"right": COUNT, "clips": COUNT}, path)
        if counted["right"] > counted["clips"]:
            raise _wrong(path, "right", counted["right"])
    if values.get("calibration") is not None:
        calibration = _mapping(values, "calibration", path)
        _check(calibration, _CALIBRATED, path)


def check_probe(values: Mapping[str, Any], path: Path) -> None:
    """results.json of a probe. Raises ``CheckpointError``."""
    _check(values, {"layout": TEXT, "model": TEXT, "metric": TEXT, "examples": COUNT, "classes": COUNT}, path)
    rows = _list(values, "rows", path)
    if not any(isinstance(row, dict) and row.get("layer") is not None for row in rows):
        raise _wrong(path, "rows", rows)
    folds: list[str] | None = None
    for row in rows:
        _check(row, {"features": TEXT, "layer": MAYBE_COUNT, "pooling": TEXT, "values": COUNT}, path)
        for name, setting in (("linear", "C"), ("nearest neighbours", "k")):
            if name != "linear" and name not in rows[0]:
                continue
            score = _mapping(row, name, path)
            _check(score, _SCORE, path)
            folds = list(_mapping(score, "folds", path)) if folds is None else folds
            for part in ("folds", setting):
                _check(_mapping(score, part, path), dict.fromkeys(folds, FINITE), path)


def check_summary(values: Mapping[str, Any], path: Path) -> None:
    """state.json of a pretraining. Raises ``CheckpointError``."""
    _check(values, {"step": COUNT, "total_steps": COUNT, "epochs_done": FINITE}, path)
    if values.get("best") is not None:
        best = _mapping(values, "best", path)
        _check(best, dict.fromkeys(best, MAYBE_FINITE) | {"step": COUNT}, path)


def _check(values: Any, wanted: Mapping[str, str], path: Path) -> None:
    if not isinstance(values, dict):
        raise _wrong(path, "a value", values)
    for name, kind in wanted.items():
        if name not in values or not _fits(values[name], kind):
            raise _wrong(path, name, values.get(name))


def _fits(value: Any, kind: str) -> bool:
    if kind.endswith("?") and value is None:
        return True
    kind = kind.removesuffix("?")
    if kind == TEXT:
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if kind == COUNT:
        return value == int(value) and 0 <= value < 1 << 53 if math.isfinite(value) else False
    return math.isfinite(value)


def _mapping(values: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    found = values.get(name)
    if not isinstance(found, dict):
        raise _wrong(path, name, found)
    return found


def _list(values: Mapping[str, Any], name: str, path: Path) -> list[Any]:
    found = values.get(name)
    if not isinstance(found, list):
        raise _wrong(path, name, found)
    return found


def _wrong(path: Path, name: str, value: Any) -> CheckpointError:
    return CheckpointError(f"{path}: is damaged ({shorten(name)} is {shorten(value)}); restore it from a copy")
