"""Recordings of any length and rate -> what a fine-tuned model says of them, whole or in time.

A model with a classifier hears excerpts of up to its grid's length, each filled up with 0.0 before normalisation to
``frames``, as in fine-tuning (REFERENCE.md, "Fine-tuning"). Which excerpts those are is the only difference between the
ways to ask: ``_Overlapping`` windows, whose answers are averaged, or one ``_Centred`` excerpt for each stretch of
time. Cutting and classifying work on a stream, so that recordings in memory and files of any length share them:
``ExcerptCutter`` -> ``classify_excerpts`` -> ``Answers``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.inference.embed import TOKENS_AT_ONCE, waveform_features
from ssamba.models.classifier import Classification
from ssamba.models.pooling import seconds_of_columns
from ssamba.utils.errors import ConfigError

if TYPE_CHECKING:
    from ssamba.inference.model import Encoder
    from ssamba.models.config import Config


@dataclass(frozen=True)
class Prediction:
    """What a model says of one recording of ``seconds``.

    scores (rows, classes) float32: probabilities, over each row's classes adding up to 1 unless the model is
    multi-label. spans (rows, 2) float64: second at which each row begins and ends. Without ``every`` there is one row.
    ``top``: how many classes ``ranked`` names, None for all.
    """

    classes: tuple[str, ...]
    scores: Tensor
    spans: Tensor
    seconds: float
    top: int | None = None

    def ranked(self, row: int = 0) -> list[tuple[str, float]]:
        """Classes of one row with their scores, the likeliest first."""
        values, order = self.scores[row].sort(descending=True, stable=True)
        return [(self.classes[c], s) for c, s in zip(order[: self.top].tolist(), values.tolist(), strict=False)]


@dataclass(frozen=True)
class Question:
    """What to ask: ``every`` seconds a row (None: one for the recording), of ``window`` s (None: the grid's length).

    Made by ``ask``, which checks it against the model.
    """

    every: float | None = None
    window: float | None = None


def ask(model: Encoder, every: float | None = None, window: float | None = None) -> Question:
    """A question that this model can answer.

    Raises ``ConfigError`` for a model without classifier, for times out of range, and for a model that labels each
    second, when asked for other times than those.
    """
    task = classifier_task(model)
    front_end = model.config.front_end
    least, longest = front_end.frame_seconds, front_end.seconds_of_frames(model.config.frames)
    if every is not None and not least <= every < math.inf:
        raise ConfigError(f"every is {every:g} s: give {least:g} or more")
    if window is not None and every is None:
        raise ConfigError("a window's length goes with scores in time: give every as well")
    if task.per_second and (window is not None or every not in (None, 1.0)):
        raise ConfigError("this model answers for each second: give every 1 and no window")
    if window is not None and not least <= window <= longest:
        raise ConfigError(f"window is {window:g} s: give {least:g} to {longest:g}, the model's own length")
    return Question(every, window)


def classifier_task(model: Encoder) -> Classification:
    """The task of the model's classifier. Raises ``ConfigError`` without one."""
    if model.classifier is None:
        raise ConfigError("this model has no classifier: fine-tune it first")
    return model.classifier.task


class Span(NamedTuple):
    """Frames [first, stop) of a recording, and the row (or first second) of the answer that they give."""

    first: int
    stop: int
    row: int


class _Plan(Protocol):
    """Which excerpts of a recording are heard."""

    def span(self, i: int, n: int, final: bool) -> Span | None:
        """The i-th excerpt when n frames have come, None while it is unknown; ``final``: None when there is none."""


class _Overlapping:
    """Windows of the grid's length that overlap by half, the last one ending with the recording.

    ``step``: frames between which a window may begin, those of a second for a model that labels seconds.
    """

    def __init__(self, config: Config, step: float) -> None:
        self._frames, self._step = config.frames, step
        self._window = max(1, int(config.frames // step))
        self._hop = max(1, self._window // 2)

    def span(self, i: int, n: int, final: bool) -> Span | None:
        last = max(0, math.ceil(n / self._step) - self._window)
        if n <= self._frames:
            last = 0
        start = min(i * self._hop, last)
        first = round(start * self._step)
        waits = i * self._hop >= last or n < first + self._frames
        if (waits and not final) or (i > 0 and (i - 1) * self._hop >= last):
            return None
        return Span(first, min(n, first + self._frames), start)


class _Centred:
    """Row i lasts from i * every to (i + 1) * every seconds; its window has the same centre.

    At the recording's ends the window is moved inwards: a whole one is what the model was trained on.
    """

    def __init__(self, every: float, window: float | None, config: Config) -> None:
        self._every = every * config.front_end.frames_per_second
        self._frames = config.frames if window is None else max(1, round(window * config.front_end.frames_per_second))

    def span(self, i: int, n: int, final: bool) -> Span | None:
        begin, end = i * self._every, (i + 1) * self._every
        if final and i > 0 and begin >= n - 1e-6:
            return None
        if end >= n and not final:  # perhaps the last row, and then shorter
            return None
        first = max(0, round((begin + min(end, n) - self._frames) / 2))
        if first + self._frames > n and not final:
            return None
        first = max(0, min(first, n - self._frames))
        return Span(first, min(first + self._frames, n), i)


def _plan(model: Encoder, question: Question) -> _Plan:
    if classifier_task(model).per_second:
        return _Overlapping(model.config, model.config.front_end.frames_per_second)
    if question.every is None:
        return _Overlapping(model.config, 1)
    return _Centred(question.every, question.window, model.config)


@dataclass(frozen=True)
class Excerpt:
    """What the model hears at once: which recording, the row of the answer, normalised log-mel (frames, mel_bins)."""

    recording: int
    row: int
    features: Tensor
    last: bool


class ExcerptCutter:
    """Cuts one recording's normalised features, fed in pieces of any size, into excerpts; holds little more than two.

    Attributes:
        frames: how many have come.
    """

    def __init__(self, model: Encoder, question: Question, recording: int = 0) -> None:
        self._plan = _plan(model, question)
        self._recording = recording
        self._held: list[Tensor] = []
        self._base = 0  # number of the first frame held
        self._done = 0  # excerpts
        self.frames = 0

    def feed(self, features: Tensor) -> Iterator[Excerpt]:
        """Take the next (frames, mel_bins); gives the excerpts that are complete and not the recording's last."""
        self._held.append(features)
        self.frames += features.shape[0]
        while (span := self._plan.span(self._done, self.frames, final=False)) is not None:
            yield self._cut(span, last=False)

    def finish(self) -> Iterator[Excerpt]:
        """The excerpts that are left, at least one."""
        span = self._plan.span(self._done, self.frames, final=True)
        while span is not None:
            following = self._plan.span(self._done + 1, self.frames, final=True)
            yield self._cut(span, last=following is None)
            span = following

    def _cut(self, span: Span, last: bool) -> Excerpt:
        if len(self._held) > 1:
            self._held = [torch.cat(self._held)]
        # Excerpts begin one behind the other: nothing before this one is needed again.
        self._held = [self._held[0][span.first - self._base :]]
        self._base = span.first
        self._done += 1
        return Excerpt(self._recording, span.row, self._held[0][: span.stop - span.first], last)


def classify_excerpts(
    model: Encoder, excerpts: Iterable[Excerpt], batch: int | None = None
) -> Iterator[tuple[Excerpt, Tensor]]:
    """Probabilities of each excerpt, in their order, on the CPU: (classes,), or (seconds, classes), float32.

    Excerpts of all recordings share full passes of ``batch`` (None: as many as the device takes well).
    """
    rows, columns = model.config.grid
    limit = TOKENS_AT_ONCE.get(model.device.type, TOKENS_AT_ONCE["cpu"])
    size = batch or max(1, limit // (model.prefix_tokens + rows * columns))
    waiting: deque[Excerpt] = deque()
    for excerpt in excerpts:
        waiting.append(excerpt)
        if len(waiting) == size:
            yield from _classify(model, waiting)
            waiting.clear()
    if waiting:
        yield from _classify(model, waiting)


def _classify(model: Encoder, excerpts: Iterable[Excerpt]) -> Iterator[tuple[Excerpt, Tensor]]:
    excerpts, config = list(excerpts), model.config
    silence = config.front_end.pad_value
    padded = [F.pad(e.features, (0, 0, 0, config.frames - e.features.shape[0]), value=silence) for e in excerpts]
    logits = model.infer_classes(torch.stack(padded)).float()
    return zip(excerpts, probabilities(logits, classifier_task(model)).cpu(), strict=True)


def probabilities(logits: Tensor, task: Classification) -> Tensor:
    """Softmax over the classes, the last dimension, or the sigmoid of each where the classifier was trained so."""
    return logits.sigmoid() if task.sigmoid else logits.softmax(dim=-1)


class Answers:
    """Gathers what the model says of one recording's excerpts."""

    def __init__(self, model: Encoder, question: Question) -> None:
        self._task, self._question = classifier_task(model), question
        self._front_end = model.config.front_end
        self._whole_seconds = max(1, int(model.config.frames // self._front_end.frames_per_second))
        self._seconds = int(seconds_of_columns(model.config.grid[1], model.config)[-1]) + 1
        self._parts: list[tuple[int, Tensor]] = []

    def add(self, excerpt: Excerpt, scores: Tensor) -> None:
        """Take the next excerpt's scores."""
        if self._task.per_second:
            # The grid's last second may be heard in part only: a later window hears it better.
            self._parts.append((excerpt.row, scores if excerpt.last else scores[: self._whole_seconds]))
        else:
            self._parts.append((excerpt.row if self._question.every else 0, scores[None]))

    def result(self, frames: int, seconds: float, top: int | None = None) -> Prediction:
        """The recording's prediction, now that its length is known."""
        every = 1.0 if self._task.per_second else self._question.every
        rows = 1 if every is None else max(row + len(scores) for row, scores in self._parts)
        if self._task.per_second:
            rows = min(rows, max(1, math.ceil(frames / self._front_end.frames_per_second)))
        total = torch.zeros(rows, len(self._task.classes), dtype=torch.float64)
        count = torch.zeros(rows, 1, dtype=torch.float64)
        for row, scores in self._parts:
            here = slice(row, min(row + len(scores), rows))
            total[here] += scores[: here.stop - row]
            count[here] += 1
        mean = total / count
        if self._question.every is None:
            return Prediction(
                self._task.classes,
                mean.mean(dim=0, keepdim=True).float(),
                torch.tensor([[0.0, seconds]], dtype=torch.float64),
                seconds,
                top,
            )
        begin = torch.arange(rows, dtype=torch.float64) * self._question.every
        end = torch.cat([begin[1:], torch.tensor([seconds], dtype=torch.float64)])
        return Prediction(self._task.classes, mean.float(), torch.stack([begin, end], dim=1), seconds, top)


@torch.no_grad()
def predict_audio(
    model: Encoder,
    audio: Any,
    sample_rate: int = 16000,
    top: int | None = None,
    every: float | None = None,
    window: float | None = None,
) -> list[Prediction]:
    """Classify recordings in memory: one ``Prediction`` for each.

    ``audio`` is (samples,), (batch, samples) or a list of different lengths, numpy or torch, at ``sample_rate``. A
    recording that fits the model's grid is heard in one pass; a longer one in windows that overlap by half, whose
    probabilities are averaged. With ``every`` seconds there is a row of scores for each such stretch, from a window
    (of ``window`` s, else of the grid's length) with the same centre; a model that labels each second gives its own
    answers. ``top``: how many classes ``Prediction.ranked`` names. Raises ``AudioError`` for audio that cannot be
    used, ``ConfigError`` as ``ask``.
    """
    question = ask(model, every, window)
    waveforms = log_mel.to_waveforms(audio, sample_rate, model.config.sample_rate)
    answers = [Answers(model, question) for _ in waveforms]
    cutters = [ExcerptCutter(model, question, i) for i in range(len(waveforms))]

    def excerpts() -> Iterator[Excerpt]:
        for cutter, waveform in zip(cutters, waveforms, strict=True):
            yield from cutter.feed(waveform_features(waveform, model))
            yield from cutter.finish()

    for excerpt, scores in classify_excerpts(model, excerpts()):
        answers[excerpt.recording].add(excerpt, scores)
    return [
        answer.result(cutter.frames, len(waveform) / model.config.sample_rate, top)
        for answer, cutter, waveform in zip(answers, cutters, waveforms, strict=True)
    ]
