"""Long recordings through the run's classifier: spectrogram and scores against time, with labels and a player."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssamba.audio.decode import read_audio
from ssamba.audio.log_mel import filter_bank, to_waveform
from ssamba.data.scan import cached_info
from ssamba.inference.outputs.html import escape
from ssamba.inference.predict import default_every
from ssamba.reports.clips import PageClip
from ssamba.reports.drawing.scale import number_text, readable_duration
from ssamba.reports.drawing.strips import LabelSpan, levels_of, score_strip, spectrogram_strip, time_axis
from ssamba.reports.material import Material
from ssamba.reports.page import Section, remark
from ssamba.reports.recordings import RunRecording
from ssamba.reports.runs import FINETUNING, FIT
from ssamba.utils.errors import AudioError

TIMELINES = 3
LONGEST_SECONDS = 90.0
"""What is drawn, and can be played, of a recording: its beginning."""
SHORTEST_TIMELINE = 12.0
TIMELINE_CLASSES = 8


@dataclass(frozen=True)
class LongFile:
    """A file that is longer than two of the model's windows, and the recordings of the set that are stretches of it."""

    path: str
    seconds: float
    recordings: tuple[RunRecording, ...]


def timelines_section(material: Material) -> Section | str:
    """The section, or why there is none."""
    run = material.run
    if run.kind not in (FINETUNING, FIT):
        return f"Timelines: {run.article} has no classifier whose scores could be drawn against time."
    if not run.has_model or not run.finished:
        return "Timelines: the run has kept no classifier yet."
    if not material.clips or not material.recordings.items:
        return f"Timelines: {material.recordings.problem or 'no recordings were read (--clips 0)'}."
    least = max(SHORTEST_TIMELINE, 2 * material.model.config.window_seconds)
    files = _long_files(material, least)
    if not files:
        return f"Timelines: no recording is longer than {number_text(least)} s, two windows of the model."
    parts = []
    with material.bars("timelines") as progress:
        for done, file in enumerate(files):
            parts.append(_figure(material, file))
            progress(done + 1, len(files), file.path)
    said = (
        f"Scores of the kept model in time (pale 0, dark 1), for the {len(files)} longest recordings; outlined are "
        "labelled stretches. A click plays from there. "
        "The model may have been fitted on these recordings: this is no test."
    )
    return Section("timelines", "Timelines", remark(said) + "".join(parts))


def _long_files(material: Material, least: float) -> list[LongFile]:
    by_path: dict[str, list[RunRecording]] = {}
    for item in material.recordings.items:
        for path in {part.path for part in item.example.parts}:
            by_path.setdefault(path, []).append(item)
    found = []
    for path, items in by_path.items():
        try:
            seconds = cached_info(path).seconds
        except AudioError:
            continue
        if seconds > least:
            found.append(LongFile(path, seconds, tuple(items)))
    return sorted(found, key=lambda f: (-f.seconds, f.path))[:TIMELINES]


def _figure(material: Material, file: LongFile) -> str:
    model = material.model
    front_end = model.config.front_end
    try:
        waveform = read_audio(file.path, front_end.sample_rate, 0.0, min(LONGEST_SECONDS, file.seconds))
    except AudioError as problem:
        return remark(str(problem))
    every = default_every(model)
    (found,) = model.predict(waveform, front_end.sample_rate, every=every)
    scores = found.scores.numpy()
    chosen = np.argsort(-scores.max(axis=0), kind="stable")[:TIMELINE_CLASSES]
    names = [found.classes[c] for c in chosen]
    name = file.recordings[0].name if len(file.recordings) == 1 else file.path.replace("\\", "/").rsplit("/", 1)[-1]
    number = material.store.add(PageClip(name, ", ".join(sorted({n for r in file.recordings for n in r.labels}))))
    material.store.put_audio(number, waveform, front_end.sample_rate)
    levels = levels_of(
        filter_bank(to_waveform(waveform, front_end.sample_rate, front_end.sample_rate), front_end).numpy()
    )
    part = (
        ""
        if file.seconds <= found.seconds + 0.05
        else f", the first {readable_duration(found.seconds)} of {readable_duration(file.seconds)}"
    )
    said = f"Highest scores of {name}: " + ", ".join(
        f"{n} {100 * scores[:, c].max():.0f} % at {found.spans[int(scores[:, c].argmax()), 0]:.1f} s"
        for n, c in zip(names, chosen.tolist(), strict=True)
    )
    mark = f' data-timeline="{number}" data-seconds="{found.seconds:.3f}"' if material.store.clips[number].audio else ""
    button = material.store.play_button(number) if mark else ""
    spans = _spans(file, names, found.seconds)
    picture = spectrogram_strip(levels, levels.shape[0], front_end.nyquist, f"Spectrogram of {name}")
    return (
        f'<figure class="timeline"><figcaption>{button} {escape(name)}{part}</figcaption>'
        f'<div class="plot"{mark}>{picture}</div>'
        f'<div class="plot"{mark}>{score_strip(names, scores[:, chosen], every, spans, found.seconds, said)}</div>'
        f'<div class="plot">{time_axis(found.seconds)}</div></figure>'
    )


def _spans(file: LongFile, names: list[str], seconds: float) -> list[LabelSpan]:
    """The labelled stretches of the drawn classes, none of recordings that are whole files."""
    spans = []
    for item in file.recordings:
        for part in item.example.parts:
            if part.path != file.path or part.seconds is None or part.start >= seconds:
                continue
            end = min(part.start + part.seconds, seconds)
            spans += [LabelSpan(part.start, end, names.index(label)) for label in item.labels if label in names]
    return spans
