"""What a pretrained model puts into hidden patches: three spectrograms of recordings, and excerpts to compare."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ssamba.audio.decode import read_audio
from ssamba.inference.outputs.html import escape
from ssamba.inference.reconstruct import Reconstruction, reconstruct
from ssamba.reports.clips import PageClip
from ssamba.reports.drawing.raster import HIDDEN, spectrogram_levels
from ssamba.reports.drawing.scale import number_text
from ssamba.reports.drawing.strips import spectrogram_strip, time_axis
from ssamba.reports.material import Material
from ssamba.reports.page import Section, remark
from ssamba.reports.recordings import evenly
from ssamba.reports.resynthesis import with_energies
from ssamba.reports.runs import PRETRAINING
from ssamba.utils.errors import AudioError, ConfigError

RECONSTRUCTED = 3
MUTED = -30.0
"""Natural log units by which hidden patches are lowered in what is played."""


def reconstructions_section(material: Material) -> Section | str:
    """The section, or why there is none."""
    if material.run.kind != PRETRAINING:
        return "Reconstructions: only a pretraining's model has the head for them."
    if not material.run.has_model:
        return "Reconstructions: the run has kept no model yet."
    if not material.clips:
        return "Reconstructions: no recordings were read (--clips 0)."
    held = [item for item in material.recordings.items if item.held_out]
    if not held:
        return f"Reconstructions: {material.recordings.problem or 'the run holds out no recording'}."
    recipe = material.run.recipe
    parts: list[str] = []
    for seed, item in enumerate(evenly(held, 3 * RECONSTRUCTED)):
        if len(parts) == RECONSTRUCTED:
            break
        try:
            found = reconstruct(material.model, item.path, _mask(material), str(recipe.get("mask_kind")), seed)
            parts.append(_figure(material, found, item.name, item.path))
        except AudioError:
            continue
        except ConfigError as problem:
            return f"Reconstructions: {problem}."
    if not parts:
        return "Reconstructions: no held-out recording can be read."
    said = (
        "Held-out recordings. Grey patches are hidden from the model, which predicts them. What is played has the "
        "recording's phase, and in hidden patches the predicted energy or none: for comparison, it is no synthesis."
    )
    return Section(
        "reconstructions", "Reconstructions of hidden patches", remark(said) + "".join(parts), "Reconstructions"
    )


def _mask(material: Material) -> int | None:
    """Patches to hide: as in validation, in proportion where the recipe says nothing that fits."""
    recipe, (rows, columns) = material.run.recipe, material.model.config.grid
    wanted = recipe.get("validation_mask") or recipe.get("mask")
    return wanted if isinstance(wanted, int) and 0 < wanted < rows * columns else None


def _figure(material: Material, found: Reconstruction, name: str, path: str) -> str:
    low, high = (float(v) for v in np.percentile(found.original, [1, 99.8]))
    original = spectrogram_levels(found.original, low, high)
    hidden = np.where(found.masked.T[::-1], np.uint8(HIDDEN), original)
    rebuilt = spectrogram_levels(np.where(found.masked, found.predicted, found.original), low, high)
    seconds = found.front_end.seconds_between(len(found.original))
    bins, nyquist = found.original.shape[1], found.front_end.nyquist
    numbers = _players(material, found, name, path)
    rows = []
    pictures = (("recording", original), ("hidden", hidden), ("reconstructed", rebuilt))
    for (title, levels), number in zip(pictures, numbers, strict=True):
        label = f"Spectrogram of {name}: {title}"
        button = "" if number is None else material.store.play_button(number)
        mark = "" if number is None else f' data-timeline="{number}" data-seconds="{seconds:.3f}"'
        rows.append(
            f'<div class="head">{button}<span>{title}</span></div>'
            f'<div class="plot"{mark}>{spectrogram_strip(levels, bins, nyquist, label)}</div>'
        )
    rows.append(f'<div class="plot">{time_axis(seconds)}</div>')
    error = f"mean squared error {number_text(found.error)} in normalised units"
    said = f"{found.mask} of {found.patches} patches hidden, {error}"
    return f'<figure class="timeline"><figcaption>{escape(name)}: {escape(said)}</figcaption>{"".join(rows)}</figure>'


def _players(material: Material, found: Reconstruction, name: str, path: str) -> tuple[int | None, ...]:
    if not material.store.players:
        return None, None, None
    front_end = found.front_end
    waveform = read_audio(path, front_end.sample_rate, 0.0, front_end.seconds_of_frames(len(found.original)))
    masked: npt.NDArray[np.bool_] = found.masked
    muted = np.where(masked, MUTED, 0.0).astype(np.float32)
    filled = np.where(masked, found.predicted - found.original, 0.0).astype(np.float32)
    versions = (waveform, with_energies(waveform, muted, front_end), with_energies(waveform, filled, front_end))
    numbers = []
    for title, samples in zip(("recording", "hidden patches silent", "reconstructed"), versions, strict=True):
        number = material.store.add(PageClip(f"{name}, {title}"))
        material.store.put_audio(number, samples, front_end.sample_rate)
        numbers.append(number if material.store.clips[number].audio else None)
    return tuple(numbers)
