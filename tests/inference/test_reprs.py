"""How models and outputs look: one line, a notebook's HTML with a player and a picture, figures with units."""

from __future__ import annotations

import base64
import copy
import io
import pickle
import re
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.inference.model import Encoder, make_encoder
from ssamba.inference.outputs import excerpt as excerpts
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import ConfigError, SsambaError

pytestmark = pytest.mark.usefixtures("one_thread")
EVIL = "<script>alert('x')</script>"
CLASSES = (EVIL, "rain & wind", "dog\x1b[31m\u202e", "siren")


def sound(seconds: float, rate: int = 16000) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 * t + 400 * t * t))).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Encoder:
    config = Config(width=16, depth=2, frames=128, patch_frequency=32, stride_frequency=32)
    return make_encoder(config, classification=Classification(CLASSES, recipe="test")).eval()


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def data_of(self, tag: str) -> list[bytes]:
        sources = [attributes["src"] or "" for name, attributes in self.tags if name == tag]
        return [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]


def test_a_model_is_one_line(model: Encoder, tmp_path: Path) -> None:
    count = sum(p.numel() for p in model.parameters())
    assert repr(model) == (
        f"SSAMBA(in memory: width 16, depth 2, {count / 1e6:.3g} M parameters, window 1.28 s at 16000 Hz, 4 classes)"
    )
    save_model(tmp_path / "run", model)
    assert repr(ssamba.load(tmp_path / "run", "cpu")).startswith(f"SSAMBA({tmp_path / 'run'}: width 16")
    tiny = ssamba.load(device="cpu")
    assert repr(tiny).startswith("SSAMBA(tiny: width ")
    assert repr(tiny).endswith(", no classes)")
    published = make_encoder(Config.tiny(depth=2), classification=Classification(("one",)))
    assert "in memory: tiny, width 192" in repr(published)
    assert repr(published).endswith("1 class)")
    assert "(patch_embed): PatchEmbedding(" in torch.nn.Module.__repr__(model)
    for other in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
        assert repr(other) == repr(tiny)


def test_outputs_are_one_line(model: Encoder) -> None:
    out = model.embed([sound(1), sound(2)], 16000)
    few, most = out.lengths.tolist()
    assert repr(out) == f"Embeddings(2 recordings, width 16, 4 rows x {few} to {most} frames, cpu)"
    (whole,) = model.predict(sound(2), 16000)
    ((_, score), *_) = whole.ranked()
    assert repr(whole).startswith("Prediction(2.00 s, 1 row x 4 classes, ")
    assert repr(whole).endswith(f" {100 * score:.1f} %)")
    (in_time,) = model.predict(sound(2), 16000, every=0.5)
    assert repr(in_time).startswith("Prediction(2.00 s, 4 rows x 4 classes, ")
    for text in (repr(out), repr(whole), repr(in_time)):
        assert text.isprintable()
        assert "\n" not in text


@pytest.mark.parametrize("every", [None, 0.5])
def test_a_notebook_plays_and_draws_a_prediction(model: Encoder, tmp_path: Path, every: float | None) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"{EVIL.replace('/', '')}.wav"
    soundfile.write(path, sound(2, 8000), 8000)
    (prediction,) = model.predict(path, every=every)
    page = Page(prediction._repr_html_())
    assert "script" not in [tag for tag, _ in page.tags]
    assert str(path) in page.text  # as it is read, not as markup
    (wav,) = page.data_of("audio")
    played, rate = soundfile.read(io.BytesIO(wav))
    assert rate == 16000
    assert prediction.excerpt is not None
    np.testing.assert_allclose(played, prediction.excerpt.waveform.numpy(), atol=1e-4)
    (png,) = page.data_of("img")
    assert png.startswith(b"\x89PNG")
    if every is None:
        assert "rain & wind" in page.text
        assert EVIL in page.text
        assert r"dog\x1b[31m\u202e" in page.text


def test_a_notebook_plays_and_draws_embeddings(model: Encoder) -> None:
    pytest.importorskip("matplotlib")
    page = Page(model.embed([sound(1)] * 5, 16000)._repr_html_())
    assert len(page.data_of("audio")) == 3
    assert len(page.data_of("img")) == 1
    assert "recording 3, 1.00 s" in page.text


def test_what_is_kept_is_bounded(model: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excerpts, "EXCERPT_SAMPLES", 16000)
    out = model.embed([sound(2.5)] * 10, 16000)
    assert len(out.excerpts) == excerpts.KEPT_RECORDINGS
    kept = out.excerpts[0]
    assert (len(kept.waveform), kept.seconds, kept.covered) == (16000, 2.5, 1.0)
    assert kept.waveform.untyped_storage().nbytes() == 4 * 16000
    assert "2.50 s (the first 1 s)" in Page(out._repr_html_()).text
    found = model.predict([sound(2.5)] * 10, 16000)
    assert [p.excerpt is not None for p in found] == [True] * 8 + [False] * 2
    assert "audio" not in [tag for tag, _ in Page(found[9]._repr_html_()).tags]


def test_without_matplotlib_there_is_text(model: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    (prediction,) = model.predict(sound(1), 16000)
    out = model.embed(sound(1), 16000)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] == "matplotlib":
                raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    for thing in (prediction, out):
        page = Page(thing._repr_html_())
        assert [tag for tag, _ in page.tags if tag in ("img", "audio")] == ["audio"]
        assert repr(thing) in page.text
        with pytest.raises(SsambaError, match=r"drawing needs matplotlib: pip install"):
            thing.plot()


def test_figures_have_units(model: Encoder) -> None:
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    (whole,) = model.predict(sound(2), 16000)
    (in_time,) = model.predict(sound(2), 16000, every=0.5)
    out = model.embed([sound(1), sound(2)], 16000)
    labels = {}
    for name, figure in (("whole", whole.plot()), ("in time", in_time.plot()), ("frames", out.plot(1))):
        assert isinstance(figure, figure_class)
        panels = [panel for panel in figure.axes if panel.get_label() != "<colorbar>"]
        labels[name] = [(panel.get_xlabel(), panel.get_ylabel()) for panel in panels]
        assert panels[0].get_xlim()[1] == pytest.approx(2.0, abs=0.2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of characters that the font has not
            figure.savefig(io.BytesIO())
        assert figure._repr_png_().startswith(b"\x89PNG")
    spectrogram = ("time (s)", "Hz (mel scale)")
    assert labels["whole"] == [spectrogram, ("score", "")]
    assert labels["in time"] == [spectrogram, ("time (s)", "")]
    assert labels["frames"] == [spectrogram, ("time (s)", "time (s)")]
    names = [text.get_text() for text in in_time.plot().axes[1].get_yticklabels()]
    assert len(names) == len(CLASSES)
    with pytest.raises(ConfigError, match="recording is 2: give 0 to 1"):
        out.plot(2)


def test_outputs_without_a_recording_are_drawn_too(model: Encoder) -> None:
    pytest.importorskip("matplotlib")
    (whole,) = model.predict(sound(1), 16000)
    made = ssamba.inference.predict.Prediction(whole.classes, whole.scores, whole.spans, whole.seconds)
    assert len(made.plot().axes) == 1
    assert len(Page(made._repr_html_()).data_of("img")) == 1
    assert re.fullmatch(r"Prediction\(1\.00 s, 1 row x 4 classes, .* %\)", repr(made))
    short = model.embed(sound(0.16), 16000)
    assert len(short.times) == 1
    assert short.plot() is not None
