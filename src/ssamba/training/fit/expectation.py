"""The memory and the time that a fit will take, from its numbers of windows and a pass made at that moment."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ssamba.data.examples import Example, LabelledData
from ssamba.inference.model import Encoder
from ssamba.training.finetune.facts import clip_lengths
from ssamba.training.fit.features import MAX_WINDOWS
from ssamba.training.fit.heads import LinearHead
from ssamba.utils.terminal import duration

PROCESS_BYTES = 0.8e9
"""Of the process with the model of the package and a batch of windows, where the kernels are compiled first."""
VALUE_BYTES = 90
"""For each value of all windows: in float32 once, in float64 several times while a regression is fitted."""
OPERATIONS_A_SECOND = 8e9
"""Of a core, in the linear algebra of a fit."""


def expectation(
    head: LinearHead, data: LabelledData, examples: Sequence[Example], model: Encoder, per_window: float
) -> str:
    """A line for the user; ``per_window`` are seconds that a window takes."""
    assert model.classifier is not None
    values = model.classifier.linear.in_features
    passes, rows = (n + len(data.background) for n in count_windows(examples, model))
    weights = 4.0 * sum(p.numel() for p in model.parameters())
    memory = PROCESS_BYTES + 2 * weights + VALUE_BYTES * rows * values
    folds = len(data.folds) if data.folds[0].test else 0
    # To choose the setting within each fold, to test it, to tell background, and for the model that is kept.
    fits = (max(1, folds * (folds - 1) // 2) if len(head.settings) > 1 else 0) + 3 * folds + 3
    fewer, more = sorted((rows * (0.8 if folds else 1.0), float(values)))
    operations = fits * (6 * more * fewer**2 + 12 * fewer**3)  # a basis of the rows, its principal axes
    seconds = passes * per_window + operations / OPERATIONS_A_SECOND
    return f"expected: {memory / 1e9:.1f} GB of memory, {duration(max(seconds, 1))} (from passes made now)"


def count_windows(examples: Sequence[Example], model: Encoder) -> tuple[int, int]:
    """About how many windows all examples have, and how many of them a regression reads.

    Longer examples have windows that overlap by half. Reads the headers of 2000 at most.
    """
    front_end, grid = model.config.front_end, model.config.frames
    lengths = clip_lengths(list(examples))
    frames = [front_end.frame_count(round(seconds * front_end.sample_rate)) for seconds in lengths]
    each = [1 + max(0, math.ceil(2 * (count - grid) / grid)) for count in frames]
    share = len(examples) / max(1, len(lengths))
    return round(sum(each) * share), round(sum(min(n, MAX_WINDOWS) for n in each) * share)
