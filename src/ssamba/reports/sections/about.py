"""What was trained on what, at the top of the page."""

from __future__ import annotations

import os
from typing import Any

from ssamba.evaluation.metrics import wilson
from ssamba.models.pretrained.describe import describe
from ssamba.reports.drawing.scale import number_text, percent
from ssamba.reports.material import Material
from ssamba.reports.page import KeyFigure, Page, Section, data_table, details, facts
from ssamba.reports.runs import FINETUNING, FIT, INDEX, PRETRAINING, PROBE, Run, read_summary_of
from ssamba.training.log import read_log

KIND_TEXTS = {
    PRETRAINING: "Pretraining",
    FINETUNING: "Fine-tuning",
    FIT: "Classifier on a frozen model",
    PROBE: "Probe of frozen features",
    INDEX: "Index of recordings",
}


def new_page(material: Material) -> Page:
    """The page with title, state, summary and key figures."""
    run = material.run
    page = Page(os.path.basename(os.path.abspath(run.folder)), KIND_TEXTS[run.kind], _status(run), run.finished)
    if run.kind == PRETRAINING:
        _pretraining_figures(material, page)
    elif run.kind in (FINETUNING, FIT):
        _classifier_figures(material, page)
    elif run.kind == PROBE:
        _probe_figures(material, page)
    else:
        _index_figures(material, page)
    return page


def _status(run: Run) -> str:
    if run.finished:
        return "finished"
    if run.kind == PRETRAINING:
        state = read_summary_of(run.folder)
        return f"unfinished: step {state.get('step', 0):,} of {state['total_steps']:,}" if state else "unfinished"
    if run.kind == FINETUNING and run.folds:
        rows = read_log(run.folds[-1])
        step = f", step {int(float(rows[-1]['step'])):,}" if rows else ""
        return f"unfinished: {run.folds[-1].name.replace('-', ' ')}{step}"
    return "unfinished"


def _pretraining_figures(material: Material, page: Page) -> None:
    state, recordings = read_summary_of(material.run.folder), material.recordings
    if recordings.items:
        held = sum(item.held_out for item in recordings.items)
        page.summary = f"Trained on {len(recordings.items) - held:,} recordings without labels, {held:,} held out."
        page.figures.append(KeyFigure(f"{recordings.hours:.2f} h", "audio", f"{len(recordings.items):,} recordings"))
    if state:
        done = f"{number_text(state['epochs_done'])} epochs"
        page.figures.append(KeyFigure(f"{state['step']:,}", "steps", done))
        best = state.get("best")
        if isinstance(best, dict):
            named = [k for k in ("val_accuracy", "accuracy") if best.get(k) is not None]
            if named:
                where = f"hidden patches named, best, step {best['step']:,}"
                page.figures.append(KeyFigure(percent(best[named[0]]), "validation accuracy", where))
            for key in ("val_loss", "loss"):
                if best.get(key) is not None:
                    page.figures.append(KeyFigure(number_text(best[key]), "validation loss", "of the same step"))
                    break
    page.figures += _parameters(material.run)


def _parameters(run: Run) -> list[KeyFigure]:
    if not run.has_model:
        return []
    counts = describe(run.folder)["parameters"]
    total = sum(counts.values()) - counts["unused extras"]
    return [KeyFigure(f"{total / 1e6:.2f} M", "parameters", f"{counts['encoder'] / 1e6:.2f} M in the encoder")]


def _classifier_figures(material: Material, page: Page) -> None:
    results = material.run.results
    if results is not None:
        page.summary = _trained_on(material, results)
        name, mean = results["metric"], results["mean"][results["metric"]]
        counted = results.get("counted")
        if counted is not None and name == "accuracy":
            low, high = wilson(counted["right"], counted["clips"])
            share = counted["right"] / max(counted["clips"], 1)
            detail = f"{counted['right']} of {counted['clips']} test clips, 95 %: {100 * low:.0f} to {100 * high:.0f} %"
            page.figures.append(KeyFigure(percent(share), "accuracy", detail))
        elif mean is not None:
            page.figures.append(KeyFigure(percent(mean), str(name), f"mean of {len(results['folds'])} folds"))
        page.figures.append(KeyFigure(str(results["classes"]), "classes", _clips(results)))
        calibration = results.get("calibration")
        if calibration is not None and calibration.get("ece_after") is not None:
            before = f"{percent(calibration['ece_before'])} before the temperature"
            before = "not calibrated: few held-out clips" if "note" in calibration else before
            page.figures.append(KeyFigure(percent(calibration["ece_after"]), "calibration error", before))
    else:
        page.summary = "The run has not come to its end: it has no results yet."
    page.figures += _parameters(material.run)


def _trained_on(material: Material, results: dict[str, Any]) -> str:
    how = "fitted on" if material.run.kind == FIT else "fine-tuned on"
    data = ", ".join(os.path.basename(os.path.abspath(path)) for path in material.run.data)
    source = f"the model {results['from']}" if results["from"] else "a model of random weights"
    return f"{results['classes']} classes of {data}, {how} {source}."


def _clips(results: dict[str, Any]) -> str:
    folds = results["folds"]
    if not folds:
        return ""
    total = sum(fold["clips"]["test"] for fold in folds)
    return f"{total:,} test clips in {len(folds)} fold{'s' * (len(folds) != 1)}"


def _probe_figures(material: Material, page: Page) -> None:
    results = material.run.results
    if results is None:
        page.summary = "The probe has not come to its end: it has no results yet."
        return
    rows = [row for row in results["rows"] if row["layer"] is not None]
    best = max(rows, key=lambda row: row["linear"]["mean"])
    plain = next((row for row in results["rows"] if row["layer"] is None), None)
    page.summary = f"Features of {results['model']} on {results['layout']}, without training the model."
    page.figures.append(
        KeyFigure(percent(best["linear"]["mean"]), str(results["metric"]), f"linear, {best['features']}")
    )
    if plain is not None:
        page.figures.append(KeyFigure(percent(plain["linear"]["mean"]), "log-mel", "the yardstick, linear"))
    page.figures.append(KeyFigure(f"{results['examples']:,}", "recordings", f"{results['classes']} classes"))


def _index_figures(material: Material, page: Page) -> None:
    index = material.index
    assert index is not None
    page.summary = f"Recordings compared by what sounds at the same times, with {index.header.model}."
    page.figures += [
        KeyFigure(f"{len(index):,}", "recordings", f"{material.recordings.hours:.2f} h of audio"),
        KeyFigure(f"{_size(material.run)} MB", "on disk", f"{len(index.header.blocks)} blocks"),
    ]


def _size(run: Run) -> str:
    total = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    return number_text(total / 1e6)


def about_section(material: Material) -> Section:
    """Model, data and values."""
    run = material.run
    rows = [("folder", str(run.folder))]
    rows += [("data", ", ".join(run.data))] if run.data else []
    rows += _data_rows(material)
    if run.kind in (PRETRAINING, FINETUNING, FIT):
        rows.append(("started from", run.source or "random weights"))
    rows += _model_rows(material)
    body = facts(rows)
    if run.recipe:
        values = [[key.replace("_", " "), _plain(value)] for key, value in sorted(run.recipe.items())]
        body += details(
            f"All {len(values)} values of the recipe", data_table(["value", "of this run"], values, "Recipe")
        )
    skipped = run.folder / "skipped.csv"
    if skipped.exists():
        lines = skipped.read_bytes().count(b"\n") - 1
        if lines > 0:
            body += facts([("left out", f"{lines} files that could not be read, named in {skipped.name}")])
    title = {INDEX: "What is in it", PROBE: "Model and data"}.get(run.kind, "What was trained on what")
    return Section("about", title, body, "Model and data")


def _data_rows(material: Material) -> list[tuple[str, str]]:
    recordings, data = material.recordings, material.recordings.data
    rows = []
    if data is not None:
        names = ", ".join(data.classes[:12]) + (f" and {len(data.classes) - 12} more" if len(data.classes) > 12 else "")
        rows = [("layout", data.layout), ("recordings", f"{len(recordings.items):,}"), ("classes", names)]
        rows += [("note", line) for line in data.notes]
    elif recordings.items:
        rows = [("recordings", f"{len(recordings.items):,}, {recordings.hours:.2f} h")]
    if recordings.problem:
        rows.append(("recordings", recordings.problem))
    return rows


def _model_rows(material: Material) -> list[tuple[str, str]]:
    run = material.run
    if run.kind == INDEX:
        assert material.index is not None
        header, space = material.index.header, material.index.space
        return [
            ("model", header.model),
            ("layer", str(header.layer)),
            (
                "space",
                f"{header.space}: {space.column_map.shape[1]} values a column, {space.piece_map.shape[1]} a piece",
            ),
            ("column", f"{1000 * header.column_seconds:.0f} ms"),
        ]
    if run.kind == PROBE:
        return (
            []
            if run.results is None
            else [("model", str(run.results["model"])), ("layout", str(run.results["layout"]))]
        )
    if not run.has_model:
        return []
    found = describe(run.folder)
    c, grid = found["config"], found["grid"]
    return [
        ("encoder", f"{c['encoder'].upper()} {found['size']}: width {c['width']}, {c['depth']} blocks"),
        (
            "patches",
            f"{grid['frequency']} x {grid['time']} of {c['patch_frequency']} mel bins x {c['patch_time']} frames",
        ),
        ("window", f"{found['seconds']:.2f} s ({found['frames']} frames)"),
        (
            "front end",
            f"{c['sample_rate']} Hz, {c['mel_bins']} log-mel bins, mean {c['mean']:.4g}, deviation {c['std']:.4g}",
        ),
    ]


def _plain(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else str(value)
