"""``ssamba.report``: from the folder of a run to one HTML page that needs nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ssamba.utils.atomic_write import check_output_name, write_text
from ssamba.utils.errors import ConfigError

if TYPE_CHECKING:
    from ssamba.evaluation.probe.probe import ProgressBars
    from ssamba.inference.search.duplicates import Pair
    from ssamba.reports.material import Material
    from ssamba.reports.page import Page, Section

REPORT_FILE = "report.html"
DEFAULT_CLIPS = 400
MAX_CLIPS = 5000
"""Recordings that a page may read."""


def report(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    clips: int = DEFAULT_CLIPS,
    audio: bool = True,
    data: str | os.PathLike[str] | None = None,
    device: str = "auto",
    bars: ProgressBars | None = None,
) -> Path:
    """Write what a run shows as one HTML page without any link to elsewhere, and return its path.

    ``run`` is the folder of a pretraining, a fine-tuning, a fit, a probe or an index, whole or unfinished. ``out`` is
    the page, by default report.html in that folder. ``clips``: how many recordings are read at most, for the map and
    to be played; 0 reads none. ``audio`` False leaves all players out. ``data`` is where the recordings lie now, if
    they moved: they are read only if they are those that the run recorded. ``bars(label)`` opens a progress bar
    (docs/report.md).

    Raises ``ConfigError`` for what is no run, ``CheckpointError`` for a damaged one, ``DataError`` for a folder
    ``data`` that holds other recordings, ``WriteError`` when the page cannot be written. Nothing is half-written.
    """
    folder = Path(run)
    target = folder / REPORT_FILE if out is None else Path(out)
    check_output_name(target, (".html", ".htm"))
    if not 0 <= clips <= MAX_CLIPS:
        raise ConfigError(f"clips is {clips}: give a number from 0 to {MAX_CLIPS}")
    material = _gather(folder, clips, audio, None if data is None else Path(data), device, bars)
    write_text(target, _page(material).render())
    return target


def _gather(
    folder: Path, clips: int, audio: bool, data: Path | None, device: str, bars: ProgressBars | None
) -> Material:
    """The run, checked, and its recordings, found."""
    from ssamba.evaluation.probe.probe import no_bar
    from ssamba.inference.search.query import Index
    from ssamba.reports.clips import ClipStore
    from ssamba.reports.material import Material
    from ssamba.reports.recordings import Recordings, find_recordings
    from ssamba.reports.runs import INDEX, read_run
    from ssamba.utils.device import pick_device

    found = read_run(folder)
    index = Index(folder) if found.kind == INDEX else None
    if clips or data is not None or index is not None:
        recordings = find_recordings(found, data, index)
    else:
        recordings = Recordings(problem="no recordings were looked for (--clips 0)")
    return Material(found, recordings, ClipStore(audio), clips, str(pick_device(device)), bars or no_bar, index)


def _page(material: Material) -> Page:
    """All sections in the order of reading. What is featured is read first, since the room for audio is bounded."""
    from ssamba.reports.sections import about, curves, embeddings, layers, origin
    from ssamba.reports.sections.duplicates import duplicates_section, find_duplicates
    from ssamba.reports.sections.reconstructions import reconstructions_section
    from ssamba.reports.sections.timelines import timelines_section

    pairs = find_duplicates(material)
    page = about.new_page(material)
    rebuilt, timelines = reconstructions_section(material), timelines_section(material)
    material.read_clips(_first(material, pairs))
    page.add(about.about_section(material))
    for part in (
        curves.curves_section(material),
        layers.layers_section(material),
        *_classifier_parts(material),
        rebuilt,
        embeddings.map_section(material),
        timelines,
        duplicates_section(material, pairs),
    ):
        page.add(part)
    page.add(origin.reproduce_section(material))
    page.clips = material.store.as_json()
    if not material.store.players:
        page.left_out.append("Players: the page was asked for without audio, or the decoding library writes no MP3.")
    elif material.store.refused:
        page.left_out.append(_full(material))
    return page


def _classifier_parts(material: Material) -> list[Section | str]:
    """What a run with a classifier shows; one line for runs without."""
    from ssamba.reports.runs import FINETUNING, FIT
    from ssamba.reports.sections import calibration, classes

    if material.run.kind not in (FINETUNING, FIT):
        return [f"Confusion matrix, classes, calibration: {material.run.article} keeps no predictions of clips."]
    return [
        classes.folds_section(material),
        classes.confusion_section(material),
        classes.classes_section(material),
        classes.mistakes_section(material),
        calibration.calibration_section(material),
    ]


def _first(material: Material, pairs: list[Pair]) -> list[str]:
    """Names of the recordings that are read before others: those of duplicates."""
    return list(dict.fromkeys(path for pair in pairs for path in (pair.first, pair.second)))


def _full(material: Material) -> str:
    store = material.store
    return (
        f"Players: {store.refused:,} of {store.refused + store.playable:,} excerpts found no room, the page holds "
        f"at most {store.limit / 1e6:.1f} MB of audio; --clips with a smaller number gives longer excerpts of fewer."
    )
