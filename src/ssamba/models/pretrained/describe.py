"""What a model or run holds, and the statistics of a data set: facts as plain values, and as text."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from ssamba.audio.front_end import PUBLISHED
from ssamba.data.manifest import read_sources
from ssamba.data.scan import CountProgress, SkipList
from ssamba.data.statistics import compute_statistics
from ssamba.models.config import ENCODERS, HEAD_WIDTH, WIDTHS, Config
from ssamba.models.patches import covered_frames
from ssamba.models.pretrained.file_checks import changed_files
from ssamba.models.pretrained.load import ModelSource, locate, read_model_source
from ssamba.models.pretrained.model_dir import (
    EXTRAS,
    RESULTS_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    Description,
    read_config,
    read_shapes,
)
from ssamba.models.pretrained.weights.earlier import earlier_weights
from ssamba.utils.json_text import read_json
from ssamba.utils.terminal import printable


def describe(source: ModelSource | None = None, attention_heads: int | None = None) -> dict[str, Any]:
    """Sizes, front end and, for a run, its training state or what it reached.

    Of a directory's weights only the header is read; a warning names files that ``checks.json`` does not fit.
    ``source`` and ``attention_heads`` as for ``ssamba.load``. Raises ``CheckpointError`` or ``ConfigError`` for what is
    no model.
    """
    path = locate(source)
    if path.is_dir():
        description = read_config(path)
        shapes = read_shapes(path / WEIGHTS_FILE)
        kind = "run" if (path / SUMMARY_FILE).exists() else "model directory"
        kind = "fine-tuned run" if (path / RESULTS_FILE).exists() else kind
        changed_files(path)
    else:
        description, tensors = read_model_source(source, attention_heads)
        shapes = {k: tuple(v.shape) for k, v in tensors.items()}
        earlier = earlier_weights(path)
        kind = "official checkpoint" if earlier is None else f"weights of {earlier.name}"
    facts: dict[str, Any] = {"source": str(path), "kind": kind, **_model_facts(description, shapes)}
    if kind == "official checkpoint":
        facts["assumed"] = _assumptions(description.config, set(tensors), attention_heads)
    if kind == "run":
        facts["training"] = read_json(path / SUMMARY_FILE)
    if kind == "fine-tuned run":
        facts["results"] = read_json(path / RESULTS_FILE)
    return facts


def _model_facts(description: Description, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    config, task = description.config, description.classification
    rows, columns = config.grid
    sizes = {v: k for k, v in WIDTHS.items()}

    def count(*prefixes: str) -> int:
        return sum(math.prod(shape) for key, shape in shapes.items() if key.startswith(prefixes))

    extras = count(EXTRAS)
    in_heads, in_classifier = count("heads.", "decoder."), count("classifier.")
    standard = config.depth == ENCODERS[config.encoder] and config.width in sizes
    return {
        "size": sizes[config.width] if standard else "custom",
        "parameters": {
            "encoder": count("") - extras - in_heads - in_classifier,
            "heads": in_heads,
            "classifier": in_classifier,
            "unused extras": extras,
        },
        "heads": description.heads,
        "classification": None if task is None else task.to_dict(),
        "grid": {"frequency": rows, "time": columns, "patches": rows * columns},
        "frames": covered_frames(columns, config),
        "seconds": config.window_seconds,
        "config": config.to_dict(),
    }


def _assumptions(config: Config, names: set[str], attention_heads: int | None) -> list[str]:
    """What an official file does not say, and what stands for it."""
    lines = [f"{config.sample_rate} Hz", f"mean {config.mean:.7g} and std {config.std:.7g}, AudioSet's"]
    if not any(name.endswith("p_input_fdim") for name in names):
        lines.append(f"{config.mel_bins} mel bins")
    if config.encoder == "ssast" and attention_heads is None:
        lines.append(f"{config.attention_heads} attention heads, one for each {HEAD_WIDTH} values of width")
    return lines


def _heads_text(facts: dict[str, Any]) -> str:
    if not facts["heads"]:
        return "none"
    depth = facts["config"]["decoder_depth"]
    return "discriminative and generative" + (f", behind a decoder of {depth} blocks" if depth else "")


def as_json(facts: dict[str, Any]) -> str:
    """Facts as JSON."""
    return json.dumps(facts, indent=2)


def as_text(facts: dict[str, Any]) -> str:
    """Facts as aligned lines for a reader."""
    c, grid, counts, task = facts["config"], facts["grid"], facts["parameters"], facts["classification"]
    used = sum(counts.values()) - counts["unused extras"]
    inside = f"state {c['state_size']}" if c["encoder"] == "ssamba" else f"{c['attention_heads']} attention heads"
    lines = [
        ("source", f"{facts['source']} ({facts['kind']})"),
        (
            "model",
            f"{c['encoder'].upper()} {facts['size']}: width {c['width']}, {c['depth']} blocks, {inside}{forms_text(c)}",
        ),
        (
            "parameters",
            f"{used:,}, of them {counts['heads']:,} in pretraining heads",
        ),
        ("heads", _heads_text(facts)),
        ("unused extras", f"{counts['unused extras']:,} values kept from an official file"),
        *([("classifier", f"{len(task['classes'])} classes, {task['recipe'] or 'custom'}")] if task else []),
        ("patches", _patches_text(c)),
        ("grid", f"{grid['frequency']} x {grid['time']} (frequency x time) = {grid['patches']} patches"),
        ("window", f"{facts['frames']} frames, {facts['seconds']:.2f} s; longer recordings are cut and cross-faded"),
        ("front end", f"{c['sample_rate']} Hz mono, {c['mel_bins']} log-mel bins, 25 ms frames every 10 ms"),
        ("normalisation", f"mean {c['mean']:.7g}, std {c['std']:.7g}"),
    ]
    if "assumed" in facts:
        lines.append(("assumed", "; ".join(facts["assumed"]) + ": the file does not say"))
    if not counts["unused extras"]:
        lines = [line for line in lines if line[0] != "unused extras"]
    if "training" in facts:
        lines += _training_lines(facts["training"])
    if "results" in facts:
        lines += _result_lines(facts["results"])
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:{width}}{printable(text)}" for name, text in lines)


def forms_text(config: dict[str, Any]) -> str:
    """What differs from the reference's decays and scans, to be added to a line, of ``Config.to_dict``'s values."""
    text = ", tied decays" if config.get("decay") == "tied" else ""
    if config["encoder"] == "ssamba" and config["directions"] == 1:
        text += f", {config.get('scan', 'forward')} scans"
    return text


def _patches_text(c: dict[str, Any]) -> str:
    stride = f"{c['stride_frequency']} x {c['stride_time']}"
    return f"{c['patch_frequency']} x {c['patch_time']} (mel bins x frames), stride {stride}"


def _training_lines(state: dict[str, Any]) -> list[tuple[str, str]]:
    step, total = state.get("step", "?"), state.get("total_steps", "?")
    finished = "finished" if state.get("finished") else "not finished"
    lines = [("training", f"step {step} of {total}, {_number(state.get('epochs_done', '?'))} epochs, {finished}")]
    best = state.get("best")
    if isinstance(best, dict):
        lines.append(("best", ", ".join(f"{key} {_number(value)}" for key, value in best.items())))
    return lines


def _result_lines(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The reported metric of a fine-tuned run, over how many folds, and which epoch it is."""
    try:
        metric, folds = results["metric"], len(results["folds"])
        text = f"{metric} {_number(results['mean'][metric])}"
        if results["sample_deviation"] is not None:
            text += f" (sample deviation over {folds} folds {_number(results['sample_deviation'][metric])})"
        return [("result", f"{text}; {results['chosen']}")]
    except (KeyError, TypeError):
        return [("result", f"{RESULTS_FILE} is damaged")]


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def data_statistics(
    data: Sequence[str], progress: CountProgress | None = None
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Log-mel mean and deviation over whole files, and (path, reason) of those, and of folders, that cannot be
    read.

    Raises ``DataError`` for data that cannot be used, or when more than 5 % of the files cannot be read.
    """
    skip = SkipList()
    problems: list[tuple[str, str]] = []
    measured = compute_statistics(
        read_sources(data, problems), PUBLISHED, threads=min(8, os.cpu_count() or 1), skip=skip, progress=progress
    )
    facts = {"mean": measured.mean, "std": measured.std, "files": measured.clips, "frames": measured.frames}
    return facts, [*problems, *skip.reasons.items()]


def statistics_line(facts: dict[str, Any]) -> str:
    """One line: mean, deviation, and over how much they were measured."""
    hours = facts["frames"] / PUBLISHED.frames_per_second / 3600
    return f"mean {facts['mean']:.7g} std {facts['std']:.7g} ({facts['files']} files, {hours:.2f} h)"
