"""``ssamba probe`` on small made-up sets: divisions, features, cache, layers, report, mistakes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssamba.audio.decode import read_audio
from ssamba.cli import main
from ssamba.data.examples import Example, Fold, LabelledData, Part
from ssamba.evaluation.knn import log_mel_statistics, mean_and_deviation
from ssamba.evaluation.probe import cache, probe, protocol
from ssamba.evaluation.probe.cache import cached_features, model_key
from ssamba.evaluation.probe.features import Wanted, choose_layers, extract
from ssamba.evaluation.probe.protocol import Method, all_examples, divisions, evaluate, methods, target_matrix
from ssamba.inference.file_stream import Progress
from ssamba.inference.model import make_encoder
from ssamba.inference.windows import column_windows, cut_recordings
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("low", "middle", "high")


def make_set(root: Path, folds: int = 4, clips: int = 3, split: bool = False, multi: bool = False) -> Path:
    """Tones of three pitches in noise, in folds or splits: ``labels.csv`` beside the sounds."""
    rng = np.random.default_rng(0)
    rows = []
    root.mkdir(parents=True)
    for fold in range(1, folds + 1):
        for number, name in enumerate(NAMES):
            for clip in range(clips):
                file = f"{name}{fold}{clip}.wav"
                t = np.arange(round(16000 * rng.uniform(0.3, 0.7))) / 16000
                x = 0.2 * np.sin(2 * np.pi * 300 * 3**number * rng.uniform(0.9, 1.1) * t)
                soundfile.write(root / file, x + 0.02 * rng.standard_normal(len(t)), 16000)
                place = ("train", "validation", "test")[min(fold - 1, 2)] if split else str(fold)
                rows.append([file, f"{name};any" if multi else name, place])
    with open(root / "labels.csv", "w", newline="", encoding="utf-8") as file_:
        writer = csv.writer(file_)
        writer.writerow(["path", "labels" if multi else "label", "split" if split else "fold"])
        writer.writerows(rows)
    return root


def make_model(kind: str = "ssamba", seed: int = 0) -> Encoder:
    config = Config(encoder=kind, width=32, depth=4, frames=48, attention_heads=0)
    return make_encoder(config, heads=True, generator=torch.Generator().manual_seed(seed)).eval()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """What had to be worked out from audio."""
    seen: list[Wanted] = []

    def spy(examples: object, wanted: Wanted, *rest: object) -> object:
        seen.append(wanted)
        return extract(examples, wanted, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "extract", spy)
    return seen


def examples_of(root: Path) -> list[Example]:
    return all_examples(probe.read_layout("custom", root))


@pytest.mark.parametrize("kind", ["ssamba", "ssast"])
def test_features_are_pooled_tokens(tmp_path: Path, kind: str) -> None:
    model, examples = make_model(kind), examples_of(make_set(tmp_path / "set", folds=2, clips=1))
    layers = choose_layers("all", model)
    out = extract(examples, Wanted(model, layers, log_mel=True))
    assert layers == tuple(range(1, (2 if kind == "ssamba" else 4) + 1))
    name = f"layer.{layers[-1]}"  # alone it comes by way of inference
    torch.testing.assert_close(extract(examples, Wanted(model, layers[-1:], log_mel=False))[name], out[name])
    for i, example in enumerate(examples):
        waveform = read_audio(example.parts[0].path)
        np.testing.assert_allclose(out["log_mel"][i], log_mel_statistics([waveform])[0], atol=1e-5)
        if len(waveform) > 48 * 160 + 240:
            continue
        expected = mean_and_deviation(model.embed(waveform))[0]
        np.testing.assert_allclose(out[f"layer.{layers[-1]}"][i], expected, atol=1e-4)
    # A recording beyond the grid: its half-overlapping windows' tokens, all alike.
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(1).standard_normal(16000) / 20, 16000)
    long = Example("long", (Part(str(tmp_path / "long.wav")),), (0,))
    pooled = extract([long], Wanted(model, layers, log_mel=False, rows=True))
    features = probe_windows(model, tmp_path / "long.wav")
    with torch.no_grad():
        for layer, tokens in zip(layers, model.encode_layers(features), strict=True):
            rows = tokens[:, model.prefix_tokens :].flatten(0, 1)
            both = torch.cat([rows.mean(dim=0), rows.std(dim=0, correction=0)])
            torch.testing.assert_close(pooled[f"layer.{layer}"][0], both, atol=1e-4, rtol=1e-4)
            by_row = rows.unflatten(0, (-1, *model.config.grid)).permute(1, 0, 2, 3).flatten(1, 2)  # (F, windows T, d)
            both = torch.cat([by_row.mean(dim=1).flatten(), by_row.std(dim=1, correction=0).flatten()])
            torch.testing.assert_close(pooled[f"layer.{layer}.rows"][0], both, atol=1e-4, rtol=1e-4)


def probe_windows(model: Encoder, path: Path) -> torch.Tensor:
    recordings = [(0, [torch.from_numpy(read_audio(path))])]
    return torch.stack([s.features for s in cut_recordings(model, recordings, column_windows(model.config))])


def test_the_cache_is_read_again_and_only_then(tmp_path: Path, calls: list[Wanted]) -> None:
    model, root, folder = make_model(), make_set(tmp_path / "set", folds=2, clips=1), tmp_path / "out"
    examples = examples_of(root)

    def features(model: Encoder = model, layers: tuple[int, ...] = (2,)) -> bool:
        found, cached = cached_features(folder, "custom", examples, model, layers)
        fresh = extract(examples, Wanted(model, layers, log_mel=True, rows=len(layers) == 1))
        assert found.keys() == fresh.keys()
        assert all(torch.equal(found[name], fresh[name]) for name in fresh)
        assert cached == (not calls)
        return cached

    assert not features()
    assert (calls[0].model, calls[0].log_mel) == (model, True)
    calls.clear()
    assert features()
    assert features(make_model())  # the same weights
    assert not features(make_model(seed=1))
    assert not calls[0].log_mel  # which no model changes
    calls.clear()
    assert not features(layers=(1, 2))
    calls.clear()
    assert not features(layers=(1,))  # with its rows, which those of several layers come without
    calls.clear()
    for path in folder.glob("layers-*"):
        path.write_bytes(b"damaged")
    assert not features()
    calls.clear()
    first = Path(examples[0].parts[0].path)
    soundfile.write(first, read_audio(first)[::-1], 16000)
    assert not features()
    assert calls[0].log_mel
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_heads_are_no_part_of_the_model_that_is_probed() -> None:
    model = make_model()
    key = model_key(model)
    assert model.heads is not None
    with torch.no_grad():
        next(model.heads.parameters()).add_(1)
    assert model_key(model) == key
    with torch.no_grad():
        model.positions[0, 3, 4] += 1
    assert model_key(model) != key
    assert model_key(make_model().bfloat16()) != key


def examples(*labels: int) -> tuple[Example, ...]:
    return tuple(Example(f"{i}-{label}", (Part(f"/x/{i}"),), (label,)) for i, label in enumerate(labels))


def test_settings_are_chosen_away_from_the_test_set() -> None:
    a, b, c = (tuple(Example(f"{f}{i}", (Part(f"{f}{i}"),), (i % 2,)) for i in range(6)) for f in "abc")
    folds = tuple(
        Fold(name, tuple(e for other in (a, b, c) if other is not test for e in other), (), test)
        for name, test in zip("123", (a, b, c), strict=True)
    )
    data = LabelledData("x", ("p", "q"), False, folds)
    for part in divisions(data, all_examples(data)):
        assert not set(part.fit.tolist()) & set(part.test.tolist())
        assert len(part.choose) == 2
        for train, held in part.choose:
            assert set(train.tolist()) | set(held.tolist()) == set(part.fit.tolist())
            assert len(held) == 6
    (part,) = divisions(LabelledData("x", ("p", "q"), False, (Fold("one", a, b, c),)), [*a, *b, *c])
    assert [pair[0].tolist() for pair in part.choose] == [list(range(6))]
    assert part.fit.tolist() == list(range(12))
    many = tuple(Example(f"d{i}", (Part(f"d{i}"),), (i % 2,)) for i in range(40))
    (part,) = divisions(LabelledData("x", ("p", "q"), False, (Fold("one", many, (), c),)), [*many, *c])
    assert len(part.choose) == 5
    assert sorted(i for _, held in part.choose for i in held.tolist()) == list(range(40))
    with pytest.raises(DataError, match="0 to train"):
        divisions(LabelledData("x", ("p",), False, (Fold("one", (), a, b),)), [*a, *b])


def test_the_best_setting_is_taken_and_the_first_of_equals() -> None:
    a, b, c = (tuple(Example(f"{f}{i}", (Part(f"{f}{i}"),), (i % 2,)) for i in range(4)) for f in "abc")
    data = LabelledData("x", ("p", "q"), False, (Fold("one", a, b, c),))
    found = all_examples(data)
    targets = target_matrix(found, 2)
    x = targets.clone()

    def scores(train: object, t: object, test: torch.Tensor, settings: object) -> list[torch.Tensor]:
        return [test * (1 if s >= 2 else -1) for s in settings]  # type: ignore[attr-defined]

    score = evaluate(x, targets, divisions(data, found), Method("m", "s", (1, 2, 3), scores), False)
    assert (score.folds, score.settings) == ((1.0,), (2,))
    assert (score.mean, score.deviation) == (1.0, 0.0)


@pytest.mark.parametrize("layer", ["last", "all"])
def test_the_command_on_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layer: str, calls: list[Wanted]
) -> None:
    save_model(tmp_path / "m", make_model())
    argv = ["probe", "custom", "--data", make_set(tmp_path / "set"), "--model", tmp_path / "m", "--layer", layer]
    tables = []
    for _ in range(2):
        assert main.main([str(word) for word in [*argv, "--out", tmp_path / "out"]]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert len(calls) == 1
    lines = tables[0].splitlines()
    assert lines[0] == "custom: 36 recordings, 3 classes; accuracy mean and deviation over 4 folds."
    assert lines[2] == "| frozen features | values | linear | nearest neighbours |"
    assert lines[4].startswith("| log-mel, mean and deviation | 256 | 100.0 % ± 0.0 |")
    assert len(lines) == (8 if layer == "last" else 9)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["layer"] for row in results["rows"]] == [None, *((2, 2, 2) if layer == "last" else (1, 1, 2, 2))]
    assert [row["values"] for row in results["rows"]][:3] == [256, 32, 64]
    for row in results["rows"]:
        for name, setting in (("linear", "C"), ("nearest neighbours", "k")):
            score = row[name]
            assert set(score["folds"]) == set(score[setting]) == {"1", "2", "3", "4"}
            assert score["mean"] == pytest.approx(np.mean(list(score["folds"].values())))
            assert score["deviation"] == pytest.approx(np.std(list(score["folds"].values())))
    assert results["dtype"] == "fp32"
    assert main.main([str(word) for word in [*argv, "--out", tmp_path / "out", "--dtype", "bf16"]]) == 0
    assert len(calls) == 2  # other features
    assert json.loads((tmp_path / "out" / "results.json").read_text())["dtype"] == "bf16"
    if layer == "all":
        image = pytest.importorskip("matplotlib.image")
        assert image.imread(tmp_path / "out" / "layers.png").shape[:2] == (810, 1275)
    else:
        assert not (tmp_path / "out" / "layers.png").exists()


def test_splits_several_labels_and_recipes(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", folds=3, split=True, multi=True)
    (tmp_path / "recipe.yaml").write_text("layout: custom\nlr: 1e-3\n")
    stages: list[str] = []

    def progress_bar(label: str) -> AbstractContextManager[Progress]:
        stages.append(label)
        return nullcontext(lambda done, total, note: None)

    result = probe.probe(str(tmp_path / "recipe.yaml"), root, make_model(), "1", progress_bar=progress_bar)
    assert (result.metric, result.classes, result.folds) == ("mAP", 4, ("custom",))
    assert stages == ["features", "scoring"]
    assert result.rows[0].scores["linear"].mean == pytest.approx(1.0)
    assert "mAP on the test split" in probe.probe_table(result)
    assert "±" not in probe.probe_table(result)
    assert not result.from_cache


def test_values_of_c(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_set(tmp_path / "set", folds=3)
    save_model(tmp_path / "m", make_model())
    argv = ["probe", "custom", "--data", str(root), "--model", str(tmp_path / "m"), "--out", str(tmp_path / "out")]
    fits: list[tuple[float, ...]] = []
    fit = protocol.fit_linear

    def spy(x: torch.Tensor, t: torch.Tensor, c_values: Sequence[float], multi_label: bool) -> object:
        fits.append(tuple(c_values))
        return fit(x, t, c_values, multi_label)

    monkeypatch.setattr(protocol, "fit_linear", spy)
    assert main.main([*argv, "--c", "0.1"]) == 0
    assert set(fits) == {(0.1,)}  # nothing to choose, so nothing but the three final fits of each kind of features
    assert len(fits) % 3 == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert all(set(row["linear"]["C"].values()) == {0.1} for row in results["rows"])
    assert len(fits) == 3 * len(results["rows"])
    assert main.main([*argv, "--c", "1", "0.01"]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert all(set(row["linear"]["C"].values()) <= {0.01, 1.0} for row in results["rows"])
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["esc51"], "data set 'esc51' is unknown, did you mean 'esc50'?"),
        (["no.yaml"], "no.yaml: is missing"),
        (["custom", "--layer", "3"], "layer '3': give 1 to 2, last or all"),
        (["custom", "--layer", "0"], "layer '0': give 1 to 2"),
        (["esc10"], "has no meta"),
        (["custom", "--c", "0.1", "0"], "C 0, 0.1: give numbers above 0"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    save_model(tmp_path / "m", make_model())
    (tmp_path / "set").mkdir()
    argv = ["probe", *words, "--data", str(tmp_path / "set"), "--model", str(tmp_path / "m")]
    assert main.main([*argv, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("ssamba: error: ")
    assert message in err or message == "has no meta"
    assert not (tmp_path / "out").exists()


def test_sets_that_cannot_be_probed(tmp_path: Path) -> None:
    scene = Example("s", (Part("s.wav"),), (), (0, 1))
    data = LabelledData("dasl", ("p", "q"), False, (Fold("1", (scene,), (), (scene,)),))
    with pytest.raises(DataError, match="one label for each second"):
        all_examples(data)
    (tmp_path / "r.yaml").write_text("layout: [")
    (tmp_path / "s.yaml").write_text("lr: 1\n")
    for name, message in (("r.yaml", "is not YAML"), ("s.yaml", "has no 'layout'")):
        with pytest.raises(ConfigError, match=message):
            probe.layout_of(str(tmp_path / name))
    assert probe.layout_of("esc50") == "esc50"


def test_an_unreadable_recording_stops_the_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_set(tmp_path / "set", folds=2, clips=1)
    save_model(tmp_path / "m", make_model())
    (root / "low10.wav").write_text("no audio")
    argv = ["probe", "custom", "--data", root, "--model", tmp_path / "m", "--out", tmp_path / "out"]
    assert main.main([str(word) for word in argv]) == 2
    assert "low10.wav: is not audio" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_methods_have_names() -> None:
    make: Callable[[bool], tuple[Method, ...]] = methods
    assert [m.name for m in make(False)] == [m.name for m in make(True)] == ["linear", "nearest neighbours"]
