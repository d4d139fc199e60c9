"""Recordings of any length and rate -> class scores of a fine-tuned model, whole or in time.

A model with a classifier reads segments of up to its grid's length, each padded with 0.0 before normalisation to
``frames``, as in fine-tuning (docs/reference.md, "Fine-tuning"). What is asked for decides which segments those are:
overlapping windows, whose scores are averaged, or one centred segment for each stretch of time.

The way is that of embeddings (``ssamba.inference.embed``) up to the model: ``cut_recordings`` -> ``group_segments`` ->
``run_passes``; then ``ScoreAverager`` joins a recording's scores.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.data.labels.event import Event
from ssamba.inference.batches import by_recording, group_segments, run_passes
from ssamba.inference.events.merge import EventOptions, find_events
from ssamba.inference.outputs.excerpt import Excerpt, take_excerpts
from ssamba.inference.windows import CentredWindows, Length, Plan, Segment, cut_recordings, frame_windows
from ssamba.models.classifier import Classification
from ssamba.utils.errors import ConfigError
from ssamba.utils.terminal import printable, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssamba.inference.cuda_graphs import GraphedEncoder

LISTED_CLASSES = 10
"""Classes that a notebook's table lists."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one recording of ``seconds``.

    scores (rows, classes) float32: probabilities, over each row's classes adding up to 1 unless the model is
    multi-label. spans (rows, 2) float64: second at which each row begins and ends. Without ``every`` there is one row.
    ``top``: how many classes ``ranked`` names, None for all. ``multi_label``: whether several classes may be on at
    once. unlike (rows,) float32, None where the model does not know: distance to the training sounds; above 1 the row
    is unlike them (docs/prediction.md). ``reject``: such rows have no class. ``threshold``: nor have scores below it.
    ``excerpt``: the recording's beginning, of the first ones of a call, for pictures and notebooks.
    """

    classes: tuple[str, ...]
    scores: Tensor
    spans: Tensor
    seconds: float
    top: int | None = None
    multi_label: bool = False
    unlike: Tensor | None = None
    reject: bool = False
    threshold: float = 0.0
    excerpt: Excerpt | None = field(default=None, repr=False, compare=False)

    @property
    def rejected(self) -> Tensor:
        """Rows that have no class because they are unlike the training sounds, (rows,) bool."""
        if self.unlike is None or not self.reject:
            return torch.zeros(len(self.scores), dtype=torch.bool, device="cpu")
        return self.unlike > 1

    def __repr__(self) -> str:
        rows, ranked = len(self.scores), self.ranked()
        named = f"{printable(shorten(ranked[0][0], 40))} {100 * ranked[0][1]:.1f} %" if ranked else "no class"
        first = "" if rows == 1 else " in the first"
        size = f"{rows} row{'s' * (rows != 1)} x {len(self.classes)} classes"
        return f"Prediction({self.seconds:.2f} s, {size}, {named}{first})"

    def _repr_html_(self) -> str:
        from ssamba.inference.outputs import html

        parts = [] if self.excerpt is None else [html.player(self.excerpt)]
        parts.append(html.picture(self.plot, "spectrogram, and the class scores below it"))
        if len(self.scores) == 1:
            ranked = self.ranked()[:LISTED_CLASSES]
            parts.append(html.table(("class", "score"), [(name, f"{100 * score:.1f} %") for name, score in ranked]))
        return html.page_part(repr(self), parts)

    def plot(self) -> Figure:
        """The spectrogram (Hz against s; of the beginning, for the first recordings of a call) and the scores below.

        Scores in time are a map against s, one row of scores is bars. Raises ``SsambaError`` without matplotlib.
        """
        from ssamba.inference.outputs.figures import scores_figure

        return scores_figure(self.classes, self.scores.numpy(), self.spans.numpy(), self.seconds, self.excerpt)

    def ranked(self, row: int = 0) -> list[tuple[str, float]]:
        """Classes of one row with their scores, the likeliest first; none of a rejected row."""
        if self.rejected[row]:
            return []
        values, order = self.scores[row].sort(descending=True, stable=True)
        found = zip(order[: self.top].tolist(), values.tolist(), strict=False)
        return [(self.classes[c], s) for c, s in found if s >= self.threshold]

    def events(
        self,
        threshold: float = 0.5,
        low: float | None = None,
        min_seconds: float = 0.0,
        merge_gap: float = 0.0,
        without: Sequence[str] = (),
    ) -> list[Event]:
        """Neighbouring rows of a class as one event, by start (``ssamba.inference.events.merge`` has the rules).

        An event begins with a score of ``threshold`` and goes on down to ``low`` (None: the threshold); those at most
        ``merge_gap`` s apart are joined, then those shorter than ``min_seconds`` dropped, then those of the classes
        ``without``. Rejected rows begin none and end all. Raises ``ConfigError`` for values out of range and unknown
        classes.
        """
        return self.find_events(EventOptions(threshold, low, min_seconds, merge_gap, tuple(without)))

    def find_events(self, options: EventOptions) -> list[Event]:
        """As ``events``."""
        options.check_names(self.classes)
        scores = self.scores.masked_fill(self.rejected[:, None], 0.0)
        found = find_events(scores.numpy(), self.spans.numpy(), options, self.multi_label)
        events = [Event(e.start, e.end, self.classes[e.label], e.score) for e in found]
        return [event for event in events if event.label not in options.without]


@dataclass(frozen=True)
class PredictOptions:
    """What is asked for: ``every`` seconds a row (None: one for the recording), of ``window`` s (None: the grid's).

    ``reject``, ``threshold``: as in ``Prediction``. Made by ``check_options``, which checks it against the model.
    """

    every: float | None = None
    window: float | None = None
    reject: bool = False
    threshold: float = 0.0


def check_options(
    model: GraphedEncoder,
    every: float | None = None,
    window: float | None = None,
    reject: bool = False,
    threshold: float | None = None,
) -> PredictOptions:
    """Options that fit this model.

    Raises ``ConfigError`` for a model without classifier, for times and thresholds out of range, for a model that
    labels each second, when asked for other times than those, and for one that cannot tell unlike sounds, when asked to
    reject them.
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
    if reject and model.rejection is None:
        raise ConfigError(
            "this model cannot tell what is unlike its training sounds: leave reject out, or fit it with this version"
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold:g}: give a score from 0 to 1")
    return PredictOptions(every, window, reject, threshold or 0.0)


def default_every(model: GraphedEncoder) -> float:
    """Seconds of a row for events: 1, 0.5, 0.25 or 0.1, the longest that is a third of the model's window or less."""
    if classifier_task(model).per_second:
        return 1.0
    longest = model.config.front_end.seconds_of_frames(model.config.frames)
    return next((every for every in (1.0, 0.5, 0.25) if every <= longest / 3), 0.1)


def classifier_task(model: GraphedEncoder) -> Classification:
    """The task of the model's classifier. Raises ``ConfigError`` without one."""
    if model.classifier is None:
        raise ConfigError("this model has no classifier: fine-tune it first")
    return model.classifier.task


def prediction_plan(model: GraphedEncoder, options: PredictOptions) -> Plan:
    """Which segments the model reads; a segment's position is the row of scores, or the first second, that it gives."""
    config = model.config
    if classifier_task(model).per_second:
        return frame_windows(config, config.front_end.frames_per_second)
    if options.every is None:
        return frame_windows(config)
    return CentredWindows(config, options.every, options.window)


def predict_segments(
    model: GraphedEncoder,
    segments: Iterable[Segment],
    options: PredictOptions,
    batch: int | None = None,
    top: int | None = None,
    failed: Collection[int] = (),
) -> Iterator[tuple[int, Prediction]]:
    """Pairs of a recording's number and its prediction, in their order, from segments of ``prediction_plan``.

    ``batch`` is segments in a pass (None: as many as the device takes well). Recordings without a last segment have no
    prediction, nor those in ``failed``.
    """

    def answers(features: Tensor) -> list[Answer]:
        return answers_of(model, model.infer_values(features))

    # All segments are equally wide: none waits for others, however large the batch.
    passes = run_passes(group_segments(model, segments, batch, passes_waiting=math.inf), answers)
    for segment, found, averager in by_recording(passes, lambda: ScoreAverager(model, options), failed):
        averager.add(segment, found)
        if segment.end is not None:
            yield segment.recording, averager.result(segment.end, top)


Answer = tuple[Tensor, Tensor | None]
"""Of one segment: scores (classes,) or (seconds, classes), and how unlike the training sounds it is, ()."""


@torch.no_grad()
def answers_of(model: GraphedEncoder, values: Tensor) -> list[Answer]:
    """What a model says of each row (B, values) of what its classifier's linear layer reads."""
    classifier = model.classifier
    assert classifier is not None
    with torch.autocast(values.device.type, enabled=False):
        scores = probabilities(classifier.linear(values).float(), classifier.task).cpu()
    if model.rejection is None:
        return [(row, None) for row in scores]
    return list(zip(scores, model.rejection.unlike(values), strict=True))


def probabilities(logits: Tensor, task: Classification) -> Tensor:
    """Softmax over the classes, the last dimension, or the sigmoid of each where the classifier was trained so."""
    return logits.sigmoid() if task.sigmoid else logits.softmax(dim=-1)


class ScoreAverager:
    """Joins the scores of one recording's segments."""

    def __init__(self, model: GraphedEncoder, options: PredictOptions) -> None:
        self._task, self._options = classifier_task(model), options
        self._front_end = model.config.front_end
        self._whole_seconds = max(1, int(model.config.frames // self._front_end.frames_per_second))
        self._parts: list[tuple[int, Tensor]] = []
        self._unlike: list[tuple[int, Tensor]] = []

    def add(self, segment: Segment, answer: Answer) -> None:
        """Take what the model says of the next segment."""
        scores, unlike = answer
        if unlike is not None:
            self._unlike.append((segment.position if self._options.every else 0, unlike))
        if self._task.per_second:
            # Of the grid's last second the segment may hold a part only: a later window has all of it.
            self._parts.append((segment.position, scores if segment.last else scores[: self._whole_seconds]))
        else:
            self._parts.append((segment.position if self._options.every else 0, scores[None]))

    def result(self, length: Length, top: int | None = None) -> Prediction:
        """The recording's prediction, now that its length is known."""
        frames, seconds = length
        every = 1.0 if self._task.per_second else self._options.every
        rows = 1 if every is None else max(row + len(scores) for row, scores in self._parts)
        if self._task.per_second:
            rows = min(rows, max(1, math.ceil(frames / self._front_end.frames_per_second)))
        total = torch.zeros(rows, len(self._task.classes), dtype=torch.float64, device="cpu")
        count = torch.zeros(rows, 1, dtype=torch.float64, device="cpu")
        for row, scores in self._parts:
            here = slice(row, min(row + len(scores), rows))
            total[here] += scores[: here.stop - row]
            count[here] += 1
        mean = total / count
        if self._options.every is None:
            mean = mean.mean(dim=0, keepdim=True)
            spans = torch.tensor([[0.0, seconds]], dtype=torch.float64, device="cpu")
        else:
            begin = torch.arange(rows, dtype=torch.float64, device="cpu") * self._options.every
            end = torch.cat([begin[1:], torch.tensor([seconds], dtype=torch.float64, device="cpu")])
            spans = torch.stack([begin, end], dim=1)
        options, task = self._options, self._task
        unlike = self._mean_unlike(len(spans))
        answers = top, task.multi_label, unlike, options.reject, options.threshold
        return Prediction(task.classes, mean.float(), spans, seconds, *answers)

    def _mean_unlike(self, rows: int) -> Tensor | None:
        """The mean distance of each row's segments, (rows,), as probabilities are averaged."""
        if not self._unlike:
            return None
        total = torch.zeros(2, rows, dtype=torch.float64, device="cpu")
        for row, unlike in self._unlike:
            total[:, row] += torch.stack([unlike.double(), torch.ones((), dtype=torch.float64, device="cpu")])
        return (total[0] / total[1]).float()


@torch.no_grad()
def predict_audio(
    model: GraphedEncoder,
    audio: Any,
    sample_rate: int | None = None,
    top: int | None = None,
    every: float | None = None,
    window: float | None = None,
    reject: bool = False,
    threshold: float | None = None,
) -> list[Prediction]:
    """Classify recordings: one ``Prediction`` for each.

    ``audio`` and ``sample_rate`` are those of ``embed_audio``: arrays, paths, bytes, binary file objects. A
    recording that fits the model's grid goes through in one pass; a longer one in windows that overlap by half, whose
    probabilities are averaged. With ``every`` seconds there is a row of scores for each such stretch, from a window
    (of ``window`` s, else of the grid's length) with the same centre; a model that labels each second gives its own
    scores. ``top``: how many classes ``Prediction.ranked`` names; ``reject``: none of what is unlike the training
    sounds; ``threshold``: none with a lower score. Raises ``AudioError`` for audio that cannot be
    used, ``ConfigError`` as ``check_options``.
    """
    options = check_options(model, every, window, reject, threshold)
    waveforms = log_mel.to_waveforms(audio, sample_rate, model.config.sample_rate, model.config.front_end)
    blocks = enumerate([waveform] for waveform in waveforms)
    segments = cut_recordings(model, blocks, prediction_plan(model, options))
    found = [prediction for _, prediction in predict_segments(model, segments, options, top=top)]
    excerpts = take_excerpts(audio, waveforms, model.config.front_end)
    return [replace(p, excerpt=e) for p, e in zip_longest(found, excerpts)]
