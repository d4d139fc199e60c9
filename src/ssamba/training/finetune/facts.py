"""Fill in what a recipe leaves open: from facts about data, model and machine, or from the run that is there."""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ssamba.data.background import background_place, read_background
from ssamba.data.datasets import read_layout
from ssamba.data.examples import Example, LabelledData
from ssamba.data.loaders.audio_cache import bytes_on_disk
from ssamba.data.loaders.read_example import example_seconds
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.load import read_model_source
from ssamba.training.finetune import auto
from ssamba.training.finetune.recipe import FinetuneRecipe
from ssamba.training.loop import precision
from ssamba.training.run_folder import RECIPE_FILE
from ssamba.utils.errors import AudioError, ConfigError
from ssamba.utils.terminal import duration
from ssamba.utils.yaml_text import read_yaml

MAX_LENGTHS = 2000
"""Most clips whose lengths are read."""

Say = Callable[[str], None]


def read_data(
    recipe: FinetuneRecipe, root: Path, options: Mapping[str, Any] | None = None
) -> tuple[FinetuneRecipe, LabelledData]:
    """The labelled set, cross-validated where the recipe leaves the folds open and the set is small without splits.

    ``options`` are the reader's, of labels with times (``timed_labels``).
    """
    if recipe.layout != "custom":
        return recipe, read_layout(recipe.layout, root, **(options or {}))
    data = read_layout("custom", root, folds=recipe.folds, **(options or {}))
    if "folds" in recipe.open and (folds := auto.choose_folds(data)) > 1:
        data = read_layout("custom", root, folds=folds, **(options or {}))
        recipe = dataclasses.replace(recipe, folds=folds)
    if data.divided and len(data.folds) > 1 and recipe.choose == "auto":
        # An epoch chosen by its test clips would seem better than it is.
        recipe = dataclasses.replace(recipe, choose="last")
    return recipe, data


def timed_labels(recipe: FinetuneRecipe, labels: Path | None, background: str | Path | None) -> dict[str, Any]:
    """What the reader of ``custom`` sets takes about labels with times; ``recipe`` is as the user gave it.

    Clips are as long as the recipe says, or None where it leaves that to the labels. Raises ``ConfigError`` for other
    sets, whose labels are their own.
    """
    front_end = recipe.config().front_end
    seconds = None if "frames" in recipe.open else recipe.window or front_end.seconds_of_frames(recipe.frames)
    return label_options(recipe.layout, labels, background, seconds)


def with_background(data: LabelledData, background: str | Path | None, seconds: float) -> LabelledData:
    """The set with clips of ``seconds`` of the background recordings, where ``background`` is a place of such.

    Raises ``DataError`` as ``read_background``.
    """
    place = background_place(background)
    if place is None:
        return data
    clips, note = read_background(place, data, seconds)
    return dataclasses.replace(data, background=clips, notes=(*data.notes, note))


def recording_numbers(examples: Sequence[Example], owners: torch.Tensor) -> torch.Tensor:
    """A number for the recording of each of the examples ``owners`` (n,): (n,) int64."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(examples[n].parts[0].path, len(numbers)) for n in owners.tolist()]
    return torch.tensor(found, dtype=torch.int64, device="cpu")


def label_options(
    layout: str, labels: Path | None, background: str | Path | None, seconds: float | None
) -> dict[str, Any]:
    """Options of the reader of ``custom`` sets; none for other layouts. Raises ``ConfigError`` for their labels.

    A ``background`` that is a place of recordings is no class of stretches without label.
    """
    background = background if background_place(background) is None else None
    if layout == "custom":
        return {"labels": labels, "seconds": seconds, "background": background}
    if labels is not None or background is not None:
        raise ConfigError(f"labels with times go with the recipe custom; {layout} has its own labels")
    return {}


def stored_values(recipe: FinetuneRecipe, out: Path) -> FinetuneRecipe:
    """The recipe with what it leaves open as in the run in ``out``; unchanged where there is none."""
    try:
        stored = read_yaml(out / RECIPE_FILE)["recipe"]
        if "layout" not in stored:  # of another command: refused where it is entered
            return recipe
        known = {name: stored[name] for name in recipe.open if name in stored}
        if recipe.choose == "auto":
            known["choose"] = stored["choose"]
    except (ConfigError, KeyError, TypeError, ValueError):
        return recipe  # a damaged run is refused where it is entered
    return dataclasses.replace(recipe, **known, auto="") if recipe.open else recipe


def fill_open(
    recipe: FinetuneRecipe, data: LabelledData, source: str | None, device: torch.device
) -> tuple[FinetuneRecipe, auto.Facts]:
    """The recipe with numbers for all that it leaves open, and the facts that they follow from."""
    facts = gather_facts(recipe, data, source, device)
    given = {k: v for k, v in recipe.to_dict().items() if k not in recipe.open}
    values = auto.choose_values(facts, given)
    chosen = {name: values[name] for name in recipe.open if name in values}
    return dataclasses.replace(recipe, **chosen, auto=""), facts


def gather_facts(recipe: FinetuneRecipe, data: LabelledData, source: str | None, device: torch.device) -> auto.Facts:
    """The facts of a run; reads the headers of at most 2000 clips. Raises as ``read_model_source`` for a bad source."""
    config = recipe.config() if source is None else read_model_source(source)[0].config
    fold = data.folds[0]
    examples = [*fold.train, *fold.validation, *fold.test]
    return auto.Facts(
        clips=len(examples),
        train=max(len(fold.train) for fold in data.folds),
        folds=len(data.folds),
        seconds=clip_lengths(examples),
        multi_label=data.multi_label,
        per_second=fold.train[0].per_second is not None,
        pretrained=source is not None,
        width=config.width,
        depth=config.depth,
        patch=(recipe.patch_frequency, recipe.patch_time),
        mel_bins=config.mel_bins,
        memory=free_memory(device),
        gpu=device.type == "cuda",
        threads=torch.get_num_threads(),
        disk=bytes_on_disk({part.path for example in examples[:MAX_LENGTHS] for part in example.parts})
        * (len(examples) / len(examples[:MAX_LENGTHS])),
    )


def clip_lengths(examples: list[Example]) -> tuple[float, ...]:
    """Seconds of evenly chosen clips, 2000 at most. Unreadable ones are left out here and reported in training."""
    found = []
    for example in examples[:: -(-len(examples) // MAX_LENGTHS)]:
        try:
            found.append(example_seconds(example))
        except AudioError:
            continue
    return tuple(found)


def free_memory(device: torch.device) -> float:
    """Bytes that the device has free."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
        return 1024.0 * int(line.split()[1])
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2
    except (AttributeError, OSError, ValueError):
        return 4e9


def report_choices(recipe: FinetuneRecipe, facts: auto.Facts, model: Encoder, device: torch.device, say: Say) -> None:
    """Lines about what was chosen, and the memory and time to expect; the time is from a real step on the device."""
    values = recipe.to_dict()
    window = f" in windows of {recipe.window:g} s" if recipe.window else ""
    say(f"chosen for {facts.train} training clips: {recipe.frames} frames{window}, stride {recipe.stride},")
    say(f"  {recipe.epochs} epochs, steps of {recipe.batch * recipe.accumulate} clips in passes of {recipe.batch},")
    say(f"  lr {recipe.lr:g}, {recipe.pooling} pooling, {recipe.head_init} head, statistics: {recipe.statistics}")
    per_clip = step_seconds(recipe, model, device)
    memory = auto.expected_bytes(facts, values, sum(p.numel() for p in model.parameters()))
    where = "GPU and main memory" if facts.gpu else "memory"
    total = duration(auto.expected_seconds(facts, values, per_clip))
    say(f"expected: {memory / 1e9:.1f} GB of {where}, {total} (from a step taken now)")


def step_seconds(recipe: FinetuneRecipe, model: Encoder, device: torch.device) -> float:
    """A clip's share of a real training pass of a copy of the model: the second, after one to warm up."""
    features = torch.zeros(recipe.batch, recipe.frames, model.config.mel_bins, device=device, dtype=torch.float32)
    model = copy.deepcopy(model).to(device)
    taken = 0.0
    for _ in range(2):
        _wait(device)
        begin = time.perf_counter()
        with precision(recipe.precision, device):
            loss = model.classify(features).float().square().mean()
        loss.backward()
        _wait(device)
        taken = time.perf_counter() - begin
    return taken / recipe.batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
