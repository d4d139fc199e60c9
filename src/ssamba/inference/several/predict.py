"""Classes of several models for the same recordings, where the models have the same encoder.

Classifiers fitted on one frozen encoder (``ssamba fit``) differ in their last layer alone. The way is that of one model
(``ssamba.inference.predict``) but for the end of a pass: the tokens go to every classifier.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.inference.batches import by_recording, group_segments, run_passes
from ssamba.inference.model import Encoder
from ssamba.inference.outputs.excerpt import take_excerpts
from ssamba.inference.predict import (
    Answer,
    Prediction,
    PredictOptions,
    ScoreAverager,
    answers_of,
    check_options,
    classifier_task,
    prediction_plan,
)
from ssamba.inference.windows import Segment, cut_recordings
from ssamba.models import patches
from ssamba.models.pretrained.digest import model_key
from ssamba.models.pretrained.load import ModelSource
from ssamba.utils.errors import ConfigError


def load_classifiers(
    sources: Sequence[ModelSource], device: str | torch.device = "auto", dtype: str | torch.dtype = "fp32"
) -> dict[str, Encoder]:
    """Fine-tuned or fitted models with one encoder, by the names given.

    Raises ``ConfigError`` for models whose encoders differ, or one given twice; as ``load_classifier``.
    """
    from ssamba.inference.predict_files import load_classifier  # writers and plots, which arrays need not

    models: dict[str, Encoder] = {}
    for source in sources:
        name = os.fspath(source)
        if name in models:
            raise ConfigError(f"{name}: is given twice as a model; give it once")
        models[name] = load_classifier(source, device, dtype)
    check_shared(models)
    return models


def check_shared(models: dict[str, Encoder]) -> None:
    """Refuse models whose encoders differ in any weight or dimension, or that answer for different times.

    Raises ``ConfigError`` with the first difference.
    """
    if not models:
        raise ConfigError("no models given: give one or more")
    (first, model), *others = models.items()
    key, per_second = model_key(model), classifier_task(model).per_second
    for name, other in others:
        if model_key(other) != key:
            here, there = other.config.to_dict(), model.config.to_dict()
            differing = [f"{k} {v}, there {there[k]}" for k, v in here.items() if there[k] != v]
            what = differing[0] if differing else "other weights"
            raise ConfigError(
                f"{name}: its encoder is not that of {first} ({what}); classify with one model at a time, or fit both "
                "from the same source with the same frames"
            )
        if classifier_task(other).per_second != per_second:
            answers = name if per_second is False else first
            raise ConfigError(f"{answers}: answers for each second, the other does not; classify with one at a time")


def check_options_of_each(
    models: Sequence[Encoder],
    every: float | None = None,
    window: float | None = None,
    reject: bool = False,
    threshold: float | None = None,
) -> PredictOptions:
    """Options that fit all of these models, one or more. Raises ``ConfigError`` as ``check_options``."""
    for model in models[1:]:
        check_options(model, every, window, reject, threshold)
    return check_options(models[0], every, window, reject, threshold)


def predict_segments_of_each(
    models: Sequence[Encoder],
    segments: Iterable[Segment],
    options: PredictOptions,
    batch: int | None = None,
    top: int | None = None,
    failed: Collection[int] = (),
) -> Iterator[tuple[int, list[Prediction]]]:
    """Pairs of a recording's number and its predictions, one of each model, as ``predict_segments`` gives one's.

    The first model's encoder serves all: ``check_shared`` says whether it may.
    """
    encoder = models[0]

    def answers(features: Tensor) -> list[tuple[Answer, ...]]:
        tokens = encoder.infer(features)
        columns = patches.full_columns(features.shape[1], encoder.config)
        found = []
        for model in models:
            assert model.classifier is not None
            found.append(answers_of(model, model.classifier.pool_and_norm(tokens, encoder.prefix_tokens, columns)))
        return list(zip(*found, strict=True))

    def averagers() -> list[ScoreAverager]:
        return [ScoreAverager(model, options) for model in models]

    passes = run_passes(group_segments(encoder, segments, batch, passes_waiting=math.inf), answers)
    for segment, found, states in by_recording(passes, averagers, failed):
        for averager, part in zip(states, found, strict=True):
            averager.add(segment, part)
        if segment.end is not None:
            yield segment.recording, [averager.result(segment.end, top) for averager in states]


@torch.no_grad()
def predict_each(
    models: Sequence[ModelSource | Encoder],
    audio: Any,
    sample_rate: int | None = None,
    top: int | None = None,
    every: float | None = None,
    window: float | None = None,
    reject: bool = False,
    threshold: float | None = None,
) -> list[list[Prediction]]:
    """Classify recordings with several models of one encoder, which runs once: ``predictions[recording][model]``.

    ``models`` are loaded models or what ``ssamba.load`` takes; the rest is as in ``model.predict``, whose values these
    are, bit for bit. Raises ``ConfigError`` for models whose encoders differ, and as ``model.predict``.
    """
    from ssamba.inference.predict_files import load_classifier

    named = {
        f"model {i + 1}" if isinstance(m, Encoder) else os.fspath(m): m
        if isinstance(m, Encoder)
        else load_classifier(m)
        for i, m in enumerate(models)
    }
    check_shared(named)
    loaded = list(named.values())
    options = check_options_of_each(loaded, every, window, reject, threshold)
    waveforms = log_mel.to_waveforms(audio, sample_rate, loaded[0].config.sample_rate)
    blocks = enumerate([waveform] for waveform in waveforms)
    segments = cut_recordings(loaded[0], blocks, prediction_plan(loaded[0], options))
    found = [each for _, each in predict_segments_of_each(loaded, segments, options, top=top)]
    excerpts = take_excerpts(audio, waveforms, loaded[0].config.front_end)
    return [[replace(p, excerpt=excerpt) for p in each] for each, excerpt in zip_longest(found, excerpts)]
