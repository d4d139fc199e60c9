"""What a fine-tuned model says of recordings in memory: equal to ``classify`` on the excerpts that the rules name."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio import log_mel as frontend
from ssamba.audio.front_end import PUBLISHED, normalise_log_mel
from ssamba.inference.model import make_encoder
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.utils.errors import AudioError, ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("rain", "dog", "siren", "clock")


def make(kind: str = "ssamba", frames: int = 128, stride: int = 16, **task: bool | str) -> Encoder:
    """Width 32, with answers that differ from excerpt to excerpt."""
    config = Config(encoder=kind, width=32, depth=2, frames=frames, stride_time=stride, attention_heads=0)
    generator = torch.Generator().manual_seed(5)
    model = make_encoder(config, classification=Classification(CLASSES, **task), generator=generator)  # type: ignore[arg-type]
    assert model.classifier is not None
    with torch.no_grad():
        model.classifier.linear.weight.mul_(8)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Encoder:
    return make()


def noise(seconds: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(round(seconds * 16000)) / 16000
    return 0.1 * torch.randn(len(t), generator=generator) + 0.3 * torch.sin(2 * torch.pi * (200 + 150 * t) * t)


def heard(model: Encoder, log_mel: Tensor) -> Tensor:
    """Probabilities of one excerpt (frames, bins), filled up to the grid as in fine-tuning."""
    c, task = model.config, model.classifier
    assert task is not None
    features = normalise_log_mel(frontend.fit_length(log_mel, c.frames), c.mean, c.std)
    with torch.no_grad():
        logits = model.classify(features[None])[0]
    return logits.sigmoid() if task.task.multi_label else logits.softmax(-1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.float(), b.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["ssamba", "ssast"])
@pytest.mark.parametrize("seconds", [0.03, 0.5, 1.0, 1.295])
def test_a_short_clip_is_padded_as_in_fine_tuning(kind: str, seconds: float) -> None:
    model = make(kind)
    audio = noise(seconds)
    expected = model.classify(frontend.features(audio, target_length=128)).softmax(-1)
    (out,) = model.predict(audio)
    close(out.scores, expected.detach())
    assert out.scores.shape == (1, 4)
    assert out.spans.tolist() == [[0.0, pytest.approx(seconds)]]
    assert out.classes == CLASSES


def test_a_stride_that_leaves_frames_out_needs_no_second_window() -> None:
    """128 frames give 12 columns of stride 10, which read 126 of them: still one pass, as in fine-tuning."""
    model = make(stride=10)
    audio = noise(1.295)
    assert PUBLISHED.frame_count(len(audio)) == 128
    close(model.predict(audio)[0].scores[0], heard(model, frontend.log_mel(audio)))


@pytest.mark.parametrize("seconds", [1.305, 1.9, 2.6, 7.3])
@pytest.mark.parametrize("multi", [False, True])
def test_a_long_recording_is_the_mean_of_half_overlapping_windows(seconds: float, multi: bool) -> None:
    model = make(multi_label=multi)
    log_mel = frontend.log_mel(noise(seconds))
    last = len(log_mel) - 128
    starts = [*range(0, last, 64), last]
    expected = torch.stack([heard(model, log_mel[s : s + 128]) for s in starts]).mean(dim=0)
    scores = model.predict(noise(seconds))[0].scores[0]
    close(scores, expected)
    assert multi or scores.sum().item() == pytest.approx(1)
    assert not multi or scores.sum().item() != pytest.approx(1)


@pytest.mark.parametrize("window", [None, 0.4])
@pytest.mark.parametrize(("seconds", "every"), [(3.3, 0.5), (3.0, 1.0), (0.4, 1.0), (2.45, 0.3)])
def test_scores_in_time_come_from_centred_windows(
    model: Encoder, seconds: float, every: float, window: float | None
) -> None:
    audio = noise(seconds)
    log_mel = frontend.log_mel(audio)
    n, length = len(log_mel), 128 if window is None else 40
    (out,) = model.predict(audio, every=every, window=window)
    rows = math.ceil(n / 100 / every - 1e-9)
    assert out.scores.shape == (rows, 4)
    assert out.spans[:, 0].tolist() == pytest.approx([every * i for i in range(rows)])
    assert out.spans[:, 1].tolist() == pytest.approx([*(every * (i + 1) for i in range(rows - 1)), seconds])
    for i in range(rows):
        centre = (100 * every * i + min(100 * every * (i + 1), n)) / 2
        first = max(0, min(round(centre - length / 2), n - length))
        close(out.scores[i], heard(model, log_mel[first : first + length]))


@pytest.mark.parametrize("seconds", [0.4, 2.0, 3.07, 3.3, 9.6])
def test_a_model_that_labels_seconds_gives_its_own_answers(seconds: float) -> None:
    model = make(frames=320, per_second=True)  # 20 columns: seconds 0, 1, 2 and a part of 3
    log_mel = frontend.log_mel(noise(seconds))
    n = len(log_mel)
    rows = math.ceil(n / 100)
    (out,) = model.predict(noise(seconds), every=1.0)
    assert out.scores.shape == (rows, 4)
    if n <= 320:
        close(out.scores, heard(model, log_mel)[:rows])
    else:
        total, count = torch.zeros(rows, 4), torch.zeros(rows, 1)
        for start in range(rows - 2):  # windows of 3 s, the hop is 1 s
            length = min(3 if start < rows - 3 else 4, rows - start)
            total[start : start + length] += heard(model, log_mel[100 * start :][:320])[:length]
            count[start : start + length] += 1
        close(out.scores, total / count)
    close(model.predict(noise(seconds))[0].scores, out.scores.mean(dim=0, keepdim=True))


def test_a_batch_is_its_members(model: Encoder) -> None:
    recordings = [noise(s, i) for i, s in enumerate((0.3, 4.2, 1.0, 2.1))]
    together = model.predict(recordings, every=0.7)
    for recording, out in zip(recordings, together, strict=True):
        close(out.scores, model.predict(recording, every=0.7)[0].scores)


def test_rates_and_channels_as_for_embedding(model: Encoder) -> None:
    audio = noise(2.0)
    low = F.interpolate(audio[None, None], scale_factor=2, mode="linear")[0, 0]
    (out,) = model.predict(low, sample_rate=32000)
    assert out.seconds == pytest.approx(2.0)
    assert len(model.predict(torch.stack([audio, audio]))) == 2
    with pytest.raises(AudioError, match="25 ms"):
        model.predict(audio[:100])


def test_ranked(model: Encoder) -> None:
    (out,) = model.predict(noise(1.0), top=2)
    ranked = out.ranked()
    order = out.scores[0].argsort(descending=True)
    assert [name for name, _ in ranked] == [CLASSES[i] for i in order[:2]]
    assert [score for _, score in ranked] == out.scores[0][order[:2]].tolist()
    assert len(model.predict(noise(1.0))[0].ranked()) == 4
    assert len(model.predict(noise(1.0), top=99)[0].ranked()) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0.0}, "every is 0 s"),
        ({"every": float("nan")}, "every is nan s"),
        ({"window": 1.0}, "give every as well"),
        ({"every": 1.0, "window": 9.0}, r"window is 9 s: give 0\.025 to 1\.295"),
        ({"every": 1.0, "window": 0.0}, "window is 0 s"),
    ],
)
def test_questions_that_cannot_be(model: Encoder, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.predict(noise(1.0), **settings)  # type: ignore[arg-type]


def test_questions_for_another_model() -> None:
    seconds = make(per_second=True)
    for settings in ({"every": 0.5}, {"every": 1.0, "window": 0.5}):
        with pytest.raises(ConfigError, match="answers for each second"):
            seconds.predict(noise(1.0), **settings)
    with pytest.raises(ConfigError, match="has no classifier"):
        make_encoder(Config(width=32, depth=2, frames=128)).predict(noise(1.0))


@pytest.mark.parametrize(("loss", "several"), [("auto", False), ("ce", False), ("bce", False), ("auto", True)])
def test_scores_follow_the_loss_of_the_training(loss: str, several: bool) -> None:
    model = make("ssamba", loss=loss, multi_label=several)
    audio = noise(1.0)
    logits = model.classify(frontend.features(audio, target_length=128)).detach()
    (out,) = model.predict(audio)
    close(out.scores, logits.sigmoid() if loss == "bce" or several else logits.softmax(-1))


@pytest.mark.parametrize("kind", ["ssamba", "ssast"])
def test_answers_come_by_way_of_inference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which on a GPU repeats passes of one shape as graphs."""
    model = make(kind)
    features = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.infer_classes(features), model.classify(features))
    assert not model.infer_classes(features).requires_grad
    calls = []
    infer = model.infer
    monkeypatch.setattr(model, "infer", lambda x: calls.append(len(x)) or infer(x))
    model.predict(noise(4.0), every=0.5)
    assert sum(calls) == 8


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ssamba", "ssast"])
def test_replayed_answers_are_those_of_classify(kind: str) -> None:
    model = make(kind).cuda()
    for seed in range(4):  # the second pass of a shape is captured, later ones are replayed
        features = torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(seed)).cuda()
        with torch.no_grad():
            torch.testing.assert_close(model.infer_classes(features), model.classify(features), rtol=1e-4, atol=1e-5)
    assert model._graphed is not None
    assert len(model._graphed._graphs) == 1
