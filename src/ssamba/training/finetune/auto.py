"""Choose what a recipe leaves open from facts about the data and the machine.

``choose_values`` is pure: the same facts give the same values, so that a run repeated on the same machine is the same
run. Nothing is timed here. Times are calibrated with the model of the package on two processor cores; the training
values are those tuned on ESC-10 (sounds of some seconds) and on Arabic Speech Commands (many words of a second).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssamba.data.examples import LabelledData
from ssamba.data.loaders.audio_cache import FREE_BYTES, MAX_UNPACKED
from ssamba.training.task import ACTIVATION_BYTES, ACTIVATIONS, clip_activations

MAX_FRAMES, MIN_FRAMES = 1024, 32
FEW_CLIPS, MAX_FOLDS = 300, 5
MANY_CLIPS = 1000
SHORT_SECONDS = 2.0
PERCENTILE = 0.95
PASS_BYTES = ACTIVATION_BYTES / 6
"""The same without gradients: one pair of blocks at a time, and the features."""
TOKEN_SECONDS = 0.00042 / (192 * 24)
"""One training pass on two cores per token, unit of width and block (``tiny``: 0.11 s for 5 s of audio)."""
GPU_FACTOR = 100
"""How many times as fast a GPU is as two cores."""
FREE_FEATURE_BYTES = 64_000_000
"""Beyond it kept features take at most ``MAX_UNPACKED`` times the size of their files, as the audio cache does."""
TRAINING_SECONDS = 60.0
"""Time allowed for 40 clips; it grows with the power 3/4 of their number."""


@dataclass(frozen=True)
class Facts:
    """What the choice depends on.

    Attributes:
        clips: training, validation and test clips together.
        train: training clips of the largest fold.
        folds: how many models are trained.
        seconds: lengths of the clips, or of some of them.
        multi_label: whether a clip may have several labels.
        per_second: whether each second has a label.
        pretrained: whether training begins with a model, not with random weights.
        width, depth: of the encoder.
        patch: (mel bins, frames) of a patch.
        mel_bins: bins of a clip.
        memory: bytes that are free on the device.
        gpu: whether the device is a GPU.
        threads: processor threads that the model runs on.
        disk: bytes of the clips' files, which bound what is kept of them in memory.
    """

    clips: int
    train: int
    folds: int
    seconds: Sequence[float]
    multi_label: bool = False
    per_second: bool = False
    pretrained: bool = True
    width: int = 192
    depth: int = 24
    patch: tuple[int, int] = (16, 16)
    mel_bins: int = 128
    memory: float = 8e9
    gpu: bool = False
    threads: int = 2
    disk: float = math.inf


def choose_folds(data: LabelledData) -> int:
    """Folds for a set without published splits: 5 for few clips, or as many as the rarest class has clips; else 1."""
    fold = data.folds[0]
    examples = [*fold.train, *fold.validation, *fold.test]
    counts = Counter(label for example in examples for label in example.labels)
    fewest = min(counts.values(), default=0)
    return max(1, min(MAX_FOLDS, fewest)) if data.divided and len(examples) <= FEW_CLIPS else 1


def choose_frames(seconds: Sequence[float], patch_time: int) -> tuple[int, float]:
    """Frames of a clip, and the seconds of windows where clips are longer (else 0.0).

    The 95th percentile of the lengths, rounded up to whole patches unless only an eighth of a patch is left over (a
    second has 98 frames; two of them are not worth a patch of padding).
    """
    ranked = sorted(seconds) or [10.0]
    length = ranked[min(len(ranked) - 1, math.ceil(PERCENTILE * len(ranked)) - 1)]
    real = max(1, round(100 * length) - 2)
    least = math.ceil(MIN_FRAMES / patch_time) * patch_time
    most = MAX_FRAMES // patch_time * patch_time
    frames = max(least, math.ceil((real - patch_time // 8) / patch_time) * patch_time)
    return (frames, 0.0) if frames <= most else (most, most / 100)


def choose_values(facts: Facts, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, and a value for each that a recipe may leave open and ``given`` does not hold.

    Choices follow the given values: with more frames fewer clips go into a pass, with a sigmoid loss no smoothing.
    """
    values: dict[str, Any] = dict(given)

    def fill(more: Mapping[str, Any]) -> None:
        values.update({name: value for name, value in more.items() if name not in values})

    frames, window = choose_frames(facts.seconds, facts.patch[1])
    fill({"frames": frames})
    fill({"window": window if values["frames"] == frames and not facts.per_second else 0.0, "stride": min(facts.patch)})
    fill({"statistics": "source" if facts.pretrained else "measure"})
    fill(_choose_training(facts, values))
    fill(_choose_sizes(facts, values))
    fill({"epochs": _choose_epochs(facts, values)})
    warm = values["epochs"] * facts.train >= 500 * values["batch"] * values["accumulate"]
    fill({"warmup_steps": 100 if values["lr"] >= 1e-3 and warm else 0})
    return values


_OFF: Mapping[str, Any] = {
    "head_init": "random",
    "head_lr": 1.0,
    "layer_decay": 1.0,
    "ema": 0.0,
    "label_smoothing": 0.0,
    "freq_mask": 0,
    "time_mask": 0,
    "noise": False,
    "gain_db": 0.0,
    "response_db": 0.0,
    "speed": 1.0,
    "decay_start": 1000,
    "decay_every": 1,
    "decay": 1.0,
}
_DECAYING: Mapping[str, Any] = {"decay_every": 1, "decay": 0.85}
_TUNED_ON_SOUNDS = {"lr": 3e-4, "head_lr": 0.1, "layer_decay": 0.75, "ema": 0.99, "label_smoothing": 0.2, "speed": 1.15}
_TUNED_ON_WORDS = {"lr": 1e-3, "ema": 0.99, "label_smoothing": 0.1, "speed": 1.15, "gain_db": 6.0, "response_db": 3.0}
_TUNED_ON_WORDS |= {"noise": True, "decay_start": 8, **_DECAYING}


def is_like_words(facts: Facts) -> bool:
    """Whether the set is like Arabic Speech Commands: many clips of about a second."""
    return facts.train >= MANY_CLIPS and choose_frames(facts.seconds, facts.patch[1])[0] <= 100 * SHORT_SECONDS


def _choose_training(facts: Facts, values: Mapping[str, Any]) -> dict[str, Any]:
    """Rates and augmentation: the tuned ones where the classifier begins as a probe, else the published kind."""
    if not facts.pretrained or facts.per_second or values.get("head_init", "probe") != "probe":
        masks = {"freq_mask": 24, "time_mask": min(96, values["frames"])}
        found = {"lr": 1e-4, "noise": True, "decay_start": 6, **_DECAYING, **masks}
        if facts.pretrained:  # few epochs: a random classifier needs a higher rate
            found |= {"lr": 3e-4, "head_lr": 10.0, "ema": 0.99}
        return {**_OFF, "pooling": "mean", **found}
    found = dict(_TUNED_ON_WORDS, freq_mask=16, time_mask=16) if is_like_words(facts) else dict(_TUNED_ON_SOUNDS)
    if facts.multi_label or values.get("loss", "auto") == "bce":  # only softmax smooths labels
        found["label_smoothing"] = 0.0
    return {**_OFF, "pooling": "rows", "head_init": "probe", **found}


def tokens(facts: Facts, values: Mapping[str, Any]) -> int:
    """Patches of a clip, and the CLS token."""
    bins, frames = facts.patch
    stride = values["stride"]
    return max(1, (facts.mel_bins - bins) // stride + 1) * max(1, (values["frames"] - frames) // stride + 1) + 1


def activation_bytes(facts: Facts, values: Mapping[str, Any]) -> float:
    """Bytes that one training clip keeps for the backward pass."""
    return clip_activations(facts.width, facts.depth, tokens(facts, values)) / (2 if facts.gpu else 1)


def _choose_sizes(facts: Facts, values: Mapping[str, Any]) -> dict[str, Any]:
    """Clips of a step, in passes that fit into memory; clips of an evaluation pass; the cache of decoded audio."""
    step = next(n for n, below in ((8, 100), (16, 300), (32, 5000), (128, math.inf)) if facts.train < below)
    room = facts.memory / 4 if facts.gpu else min(ACTIVATIONS, facts.memory / 4)
    per_clip = activation_bytes(facts, values)
    batch = step
    while batch > 1 and batch * per_clip > room:
        batch //= 2
    batch = values.get("batch", batch)
    per_evaluated_clip = PASS_BYTES / ACTIVATION_BYTES * per_clip
    return {
        "batch": batch,
        "accumulate": 1 if "batch" in values else step // batch,
        "eval_batch": max(1, min(4 * step if facts.gpu else 16, int(room / per_evaluated_clip))),
        "cache_gb": max(0.1, min(4.0, round((8e9 if facts.gpu else facts.memory) / 8e9, 1))),
    }


def pass_seconds(facts: Facts, values: Mapping[str, Any]) -> float:
    """Calibrated time of one training clip."""
    speed = GPU_FACTOR if facts.gpu else (facts.threads / 2) ** 0.7
    return TOKEN_SECONDS * facts.width * facts.depth * tokens(facts, values) / speed


def _choose_epochs(facts: Facts, values: Mapping[str, Any]) -> int:
    """The tuned number (15 for sounds, 20 for words, 30 without probe), fewer where they take long, 3 at least."""
    probe = values["head_init"] == "probe"
    tuned = (20 if is_like_words(facts) else 15) if probe else 30
    budget = TRAINING_SECONDS * (facts.clips / 40) ** 0.75 * (1 if probe else 2)
    epoch = facts.folds * facts.train * pass_seconds(facts, values)
    return max(3, min(tuned, int(budget / epoch)))


def windows_per_clip(facts: Facts, values: Mapping[str, Any]) -> float:
    """Windows of a clip in an evaluation, in the mean; 1 without windows."""
    window = values.get("window") or math.inf
    counts = [max(1, math.ceil(seconds / window - 0.05)) for seconds in facts.seconds]
    return sum(counts) / len(counts) if counts else 1.0


def expected_bytes(facts: Facts, values: Mapping[str, Any], parameters: int) -> float:
    """Peak memory of a run: the process, weights and what training adds to them, activations, audio, features."""
    process = 0.6e9
    weights = 4 * parameters * 8  # gradients, Adam's two, the average, the best, copies while they are saved
    audio = 32000 * facts.clips * sum(facts.seconds) / max(1, len(facts.seconds))
    held = min(values["cache_gb"] * 1e9, audio, FREE_BYTES + MAX_UNPACKED * facts.disk)
    features = 4 * values["frames"] * facts.mel_bins * (facts.clips - facts.train) * windows_per_clip(facts, values)
    features = min(features, FREE_FEATURE_BYTES + MAX_UNPACKED * facts.disk)
    return process + weights + values["batch"] * activation_bytes(facts, values) * 1.1 + held + features


def expected_seconds(facts: Facts, values: Mapping[str, Any], per_clip: float) -> float:
    """Time of a run where a training clip takes ``per_clip`` seconds, a third of it without gradients."""
    windows = windows_per_clip(facts, values)
    held = (facts.clips - facts.train) * windows
    trained = values["epochs"] * (facts.train + held / 3)
    probe = facts.train * windows / 3 if values["head_init"] == "probe" else 0.0
    return 8 + facts.folds * (per_clip * (trained + probe + held / 3) + 1 + facts.train / 100)
