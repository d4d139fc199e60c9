"""The map of embeddings: every point a clip that can be listened to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ssamba.reports.clips import PageClip
from ssamba.reports.drawing.points import MapPoint, point_map
from ssamba.reports.drawing.scale import percent
from ssamba.reports.material import Material
from ssamba.reports.page import Section, remark
from ssamba.reports.projection import principal_components
from ssamba.reports.recordings import evenly
from ssamba.reports.runs import INDEX, PROBE

FEWEST, MAX_POINTS = 3, 2000
"""Points of a map; of an index with more recordings evenly chosen ones."""
_Array = npt.NDArray[np.float32]


def map_section(material: Material) -> Section | str:
    """The section, or why there is none."""
    if material.run.kind == INDEX:
        return _of_index(material)
    if material.run.kind == PROBE:
        return _of_probe(material)
    found = [clip for clip in material.read if clip.embedding is not None]
    if len(found) < FEWEST:
        return f"Embedding map: {_why(material)}."
    values = np.stack([clip.embedding for clip in found if clip.embedding is not None])
    return _section(material, values, [clip.recording.group for clip in found], [clip.number for clip in found], "")


def _why(material: Material) -> str:
    if material.run.kind not in (INDEX, PROBE) and not material.run.has_model:
        return "the run has kept no model yet"
    if material.recordings.problem:
        return material.recordings.problem
    return "no recordings were read (--clips 0)" if not material.clips else "fewer than three recordings were read"


def _of_index(material: Material) -> Section | str:
    assert material.index is not None
    vectors = {r.path: r.pieces for r in material.index.recordings() if r.pieces.any()}
    items = [r for r in material.recordings.items if r.name in vectors]
    numbers = {clip.recording.name: clip.number for clip in material.read}
    read = [r for r in items if r.name in numbers]
    rest = evenly((r for r in items if r.name not in numbers), max(0, MAX_POINTS - len(read)))
    chosen = [*read, *rest]
    if len(chosen) < FEWEST:
        return "Embedding map: fewer than three recordings are where the index says, and hold sound."
    for item in rest:
        numbers[item.name] = material.store.add(PageClip(item.name, item.group))
    values = np.stack([vectors[r.name][vectors[r.name].any(axis=1)].mean(axis=0) for r in chosen])
    said = "The mean of the index's vectors of each recording. "
    return _section(
        material, values, [r.group or "recordings" for r in chosen], [numbers[r.name] for r in chosen], said
    )


def _of_probe(material: Material) -> Section | str:
    from ssamba.reports.sections.layers import cached_layer

    found = cached_layer(material.run)
    items = material.recordings.items
    if found is None:
        return "Embedding map: the probe's folder holds no features, or those of several models."
    if len(found[1]) != len(items):
        return f"Embedding map: {material.recordings.problem or 'the features are of other recordings'}."
    numbers = {clip.recording.name: clip.number for clip in material.read}
    rows = [i for i, item in enumerate(items) if item.name in numbers]
    if len(rows) < FEWEST:
        return f"Embedding map: {_why(material)}."
    said = f"Mean and deviation over time of the tokens of layer {found[0]}. "
    chosen = [items[i] for i in rows]
    return _section(material, found[1][rows], [r.group for r in chosen], [numbers[r.name] for r in chosen], said)


def _section(
    material: Material, values: _Array, groups: Sequence[str], numbers: Sequence[int], said: str
) -> Section | str:
    """The map of embeddings (N, d)."""
    if not np.isfinite(values).all():
        return "Embedding map: the model gives values that are not finite."
    found = principal_components(values)
    names = sorted(set(groups))
    place = {name: i for i, name in enumerate(names)}
    points = []
    for (x, y), group, number in zip(found.places.tolist(), groups, numbers, strict=True):
        clip = material.store.clips[number]
        wrong = bool(clip.predicted) and clip.predicted != clip.label
        text = f"{clip.name}, {clip.label}" + (f", taken for {clip.predicted}" if wrong else "")
        points.append(MapPoint(x, y, place[group], number, text, wrong))
    # Wrong ones are drawn last, so that none hides behind others.
    points.sort(key=lambda p: p.wrong)
    first, second = found.shares
    total = len(material.recordings.items)
    count = f"all {len(points):,}" if len(points) == total else f"{len(points):,} of {total:,}"
    ringed = " Ringed: classified wrongly as a test clip." if any(p.wrong for p in points) else ""
    text = (
        f"{said}{count[0].upper()}{count[1:]} recordings, {values.shape[1]} standardised values each, on their two "
        f"principal components ({percent(first, 0)} and {percent(second, 0)} of the variance): what is near may "
        f"still differ in the others.{ringed}"
    )
    playable = material.store.playable
    how = " Choose a point to listen; with the keyboard, arrow keys move and Enter plays." if playable else ""
    label = f"Embedding map of {len(points)} recordings in {len(names)} groups"
    return Section("map", "Embedding map", remark(text + how) + point_map(points, names, label), "Map")
