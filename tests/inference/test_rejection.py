"""Sounds unlike the training sounds: the distance, its border and file, and what predict says of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.cli.main import main
from ssamba.data.synthetic.generate import synthesise
from ssamba.inference.rejection.file import REJECTION_FILE, read_rejection
from ssamba.inference.rejection.score import fit_rejection
from ssamba.models.pretrained.model_dir import WEIGHTS_FILE, read_model
from ssamba.training.fit.recipe import FitRecipe
from ssamba.training.fit.run import fit
from ssamba.utils.errors import CheckpointError, ConfigError
from ssamba.utils.tensor_file import read_tensors, write_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ("siren", "bird", "drum_loop", "vowel")


def clusters(rows: int, seed: int = 0, classes: int = 3, values: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around one mean a class, of larger deviation along the first five values; and their class vectors."""
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(classes, values, generator=torch.Generator().manual_seed(99))
    spread = torch.ones(values)
    spread[:5] = 4.0
    labels = torch.arange(rows) % classes
    x = means[labels] + spread * torch.randn(rows, values, generator=generator)
    return x, torch.nn.functional.one_hot(labels, classes).double()


def test_distances_by_hand() -> None:
    """Deviations of 1 and 2, class means at (1, 0), (-1, 0) in their units: the nearest mean's cosine counts."""
    x = torch.tensor([[11.0, 7.0], [11.0, 3.0], [9.0, 7.0], [9.0, 3.0]])
    rejection = fit_rejection(x, torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]]))
    assert rejection.scale.tolist() == [1.0, 0.5]
    assert rejection.means.tolist() == [[1, 0], [-1, 0]]
    new = torch.tensor([[12.0, 5.0], [10.0, 9.0], [8.5, 5.0], [13.0, 13.0]])
    expected = torch.tensor([0.0, 1.0, 0.0, 1 - 3 / 5])
    torch.testing.assert_close(rejection.distances(new), expected, rtol=1e-6, atol=1e-6)


def test_the_border_keeps_what_is_known_and_tells_what_is_not() -> None:
    rejection = fit_rejection(*clusters(300))
    held_out = rejection.distances(clusters(400, 1)[0])
    far = torch.full((3,), 1e6)
    bordered = rejection.with_border(held_out, far)
    assert float(bordered.border) == float(held_out.sort().values[380]), "ceil(0.95 x 401) = 381st smallest"
    new = bordered.distances(clusters(2000, 2)[0])
    assert (new <= 1).double().mean() == pytest.approx(0.95, abs=0.025)
    other = clusters(200, 3, classes=5)[0][torch.arange(200) % 5 > 2]
    assert (bordered.distances(other) > 1).double().mean() > 0.9


def test_the_border_lies_before_silence_where_that_costs_little() -> None:
    rejection, held_out = fit_rejection(*clusters(300)), torch.arange(1.0, 101.0)
    assert float(rejection.with_border(held_out, torch.tensor([95.0])).border) == pytest.approx(0.98 * 95)
    assert float(rejection.with_border(held_out, torch.tensor([50.0])).border) == 96, "half of the clips are silent"
    assert float(rejection.with_border(torch.arange(1.0, 13.0), torch.tensor([1e9])).border) == 12


def test_constant_values_and_several_labels() -> None:
    """A value that never changes adds no distance; a clip of two classes counts for both."""
    x, targets = clusters(30)
    x[:, 7] = 4.25
    rejection = fit_rejection(x, targets)
    other = x.clone()
    other[:, 7] = -100
    assert torch.equal(rejection.distances(x), rejection.distances(other))
    targets[0] = torch.tensor([1.0, 1.0, 0.0])
    means = fit_rejection(x, targets).means
    z = (x - rejection.centre) * rejection.scale
    torch.testing.assert_close(means[1].float(), z[targets[:, 1] == 1].mean(dim=0), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run: 40 clips of four kinds of made-up sounds, the model of the package."""
    root = tmp_path_factory.mktemp("set")
    for kind in KINDS:
        (root / kind).mkdir()
        for number in range(10):
            soundfile.write(root / kind / f"{number}.wav", synthesise(kind, 2.0, 0, number), 16000)
    out = tmp_path_factory.mktemp("run") / "mine"
    fit(FitRecipe(), root, out, "tiny", "cpu")
    return out


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    audio = {
        "silence": np.zeros(32000, np.int16),
        "short_silence": np.zeros(8000, np.int16),
        "long_silence": np.zeros(160000, np.int16),
        "dither": rng.integers(-1, 2, 32000).astype(np.int16),
        "noise": (1000 * rng.standard_normal(32000)).astype(np.int16),
        "known": synthesise("siren", 2.0, 0, 77),
    }
    for name, samples in audio.items():
        soundfile.write(folder / f"{name}.wav", samples, 16000)
    return {name: str(folder / f"{name}.wav") for name in audio}


def test_silence_and_noise_are_unlike_and_new_clips_of_known_kinds_are_not(
    run: Path, recordings: dict[str, str]
) -> None:
    model = ssamba.load(run, device="cpu")

    def unlike(samples: np.ndarray) -> float:
        prediction = model.predict(samples.astype(np.float32) / 32768)[0]
        assert prediction.unlike is not None
        return float(prediction.unlike[0])

    for name in ("silence", "short_silence", "long_silence", "dither", "noise"):
        assert unlike(soundfile.read(recordings[name], dtype="int16")[0]) > 1, name
    new = [unlike(synthesise(kind, 2.0, 0, number)) for kind in KINDS for number in range(100, 105)]
    assert sum(distance <= 1 for distance in new) >= 17, f"of 20: {sorted(new)}"
    other = [unlike(synthesise(kind, 2.0, 0, n)) for kind in ("click_train", "steady_noise") for n in range(5)]
    assert np.median(other) > np.quantile(new, 0.9)


def test_nothing_is_named_with_confidence_when_unlike_sounds_are_rejected(
    run: Path, recordings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = [recordings[name] for name in ("silence", "short_silence", "noise")]
    files = [*silent, recordings["known"]]
    assert main(["predict", *files, "--model", str(run), "--out", str(tmp_path / "x.csv")]) == 0  # by default
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows if row["class"] == "-"] == silent
    for row in rows[:3]:
        assert (row["rank"], row["score"]) == ("0", "0.000000")
        assert float(row["unlike"]) > 1
    assert [row["rank"] for row in rows[3:]] == ["1", "2", "3", "4"]
    assert rows[3]["class"] == "siren"
    assert main(["predict", *files, "--model", str(run), "--no-reject", "--out", str(tmp_path / "x.json")]) == 0
    entries = json.loads((tmp_path / "x.json").read_text())["files"]
    assert all(len(entry["scores"]) == 4 for entry in entries), "a flag and no less"
    assert [entry["unlike"] > 1 for entry in entries] == [True, True, True, False]
    capsys.readouterr()
    assert main(["predict", *files, "--model", str(run), "--reject"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "(unlike the training sounds: " in lines[0]
    assert lines[1] == "  -"
    assert "unlike" not in lines[6]
    assert "siren" in lines[7]


def test_rows_in_time_events_and_thresholds(run: Path, tmp_path: Path) -> None:
    """Two seconds of a siren, then six of silence: rejected rows begin no event."""
    audio = np.concatenate([synthesise("siren", 2.0, 0, 78), np.zeros(96000, np.int16)]).astype(np.float32) / 32768
    model = ssamba.load(run, device="cpu")
    plain, rejecting = (model.predict(audio, every=1.0, reject=reject)[0] for reject in (False, True))
    assert torch.equal(plain.scores, rejecting.scores)
    assert torch.equal(plain.unlike, rejecting.unlike)
    assert rejecting.unlike.shape == (8,)
    assert (rejecting.unlike[4:] > 1).all()
    assert all(rejecting.ranked(row) == [] for row in range(4, 8))
    assert rejecting.ranked(0)
    assert max(event.end for event in plain.events(0.3)) > 5
    events = rejecting.events(0.3)
    assert events
    assert max(event.end for event in events) <= 4
    assert events[0].label == "siren"
    (sure,) = model.predict(audio[:32000], threshold=0.5)
    assert [name for name, _ in sure.ranked()] == ["siren"]
    assert all(score >= 0.5 for _, score in sure.ranked())
    assert len(sure.scores[0]) == 4
    (none,) = model.predict(audio[:32000], threshold=1.0)
    assert none.ranked() == [] or none.scores.max() == 1
    with pytest.raises(ConfigError, match="threshold is"):
        model.predict(audio, threshold=1.5)


def test_several_models_have_the_values_of_one(run: Path, recordings: dict[str, str], tmp_path: Path) -> None:
    """One of them cannot tell: its cells stay empty, and it refuses to reject."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in run.iterdir():
        if path.name != REJECTION_FILE:
            (bare / path.name).write_bytes(path.read_bytes())
    audio = soundfile.read(recordings["silence"], dtype="float32")[0]
    ((first, second),) = ssamba.predict_each([run, bare], audio)
    (alone,) = ssamba.load(run, device="cpu").predict(audio)
    assert torch.equal(first.unlike, alone.unlike)
    assert torch.equal(first.scores, alone.scores)
    assert second.unlike is None
    assert torch.equal(second.scores, alone.scores)
    options = ["--model", str(run), "--model", str(bare), "--top", "1", "--out", str(tmp_path / "x.csv")]
    assert main(["predict", recordings["silence"], *options]) == 0
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["unlike"]) for row in rows] == [True, False]
    assert main(["predict", recordings["silence"], *options, "--reject"]) == 2


def test_a_run_without_the_file_is_as_before(
    run: Path, recordings: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", WEIGHTS_FILE):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    out = tmp_path / "x.csv"
    assert main(["predict", recordings["silence"], "--model", str(tmp_path), "--out", str(out)]) == 0
    assert out.read_text().splitlines()[0] == "path,rank,class,score"
    assert main(["predict", recordings["silence"], "--model", str(tmp_path), "--reject"]) == 2
    assert "cannot tell what is unlike" in capsys.readouterr().err
    assert ssamba.load(run, device="cpu", frames=64).rejection is None, "another grid has other features"


def test_a_file_that_does_not_belong_there_is_refused(run: Path, tmp_path: Path) -> None:
    for name in ("config.json", WEIGHTS_FILE, REJECTION_FILE):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    path = tmp_path / REJECTION_FILE
    tensors, metadata = read_tensors(path)
    values = tensors["centre"].numel()
    kept = {key: metadata[key] for key in ("weights",)}
    assert read_rejection(tmp_path, values) is not None
    with pytest.raises(CheckpointError, match=f"{REJECTION_FILE}: centre does not fit"):
        read_rejection(tmp_path, values + 1)
    for name, wrong, text in (
        ("border", torch.tensor(0.0), "not above 0"),
        ("means", tensors["means"][:, 1:], "means does not fit"),
        ("border", torch.tensor(float("nan")), "border does not fit"),
        ("extra", torch.ones(1), "does not hold"),
        ("background_weight", torch.ones(3), "background_weight does not fit"),
        ("background_bias", torch.tensor(float("inf")), "background_bias does not fit"),
        ("background_limit", torch.tensor(0.0), "background_limit is no probability above 0"),
    ):
        write_tensors(path, {**tensors, name: wrong}, kept)
        with pytest.raises(CheckpointError, match=text):
            read_rejection(tmp_path, values)
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("background_")}
    write_tensors(path, without | {"background_bias": tensors["background_bias"]}, kept)
    with pytest.raises(CheckpointError, match="does not hold"):
        read_rejection(tmp_path, values)
    write_tensors(path, without, kept)
    earlier = read_rejection(tmp_path, values)
    assert earlier is not None
    assert earlier.background is None, "as runs before there was a second score"
    write_tensors(path, tensors, kept)
    _, weights = read_model(tmp_path)
    write_tensors(tmp_path / WEIGHTS_FILE, {name: x + 1 for name, x in weights.items()})
    with pytest.raises(CheckpointError, match="was made with other weights"):
        ssamba.load(tmp_path, device="cpu")


def test_an_onnx_file_says_what_is_unlike(run: Path, recordings: dict[str, str], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = ssamba.load(run, "cpu")
    for weights, tolerance in (("fp32", 1e-4), ("int8", 0.05)):
        file = str(tmp_path / f"{weights}.onnx")
        words = ["export", str(run), file, "--output", "logits", "--weights", weights, "--unlike"]
        assert main(words) == 0
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == ["logits", "unlike"]
        names = [name for name in recordings if name != "long_silence"]  # that one is read in windows by predict
        for name in names:
            audio, _ = soundfile.read(recordings[name], dtype="float32")
            logits, unlike = session.run(None, {"waveform": np.stack([audio, audio])})
            (expected,) = model.predict(recordings[name])
            assert expected.unlike is not None
            np.testing.assert_allclose(unlike, expected.unlike.repeat(2), rtol=tolerance, atol=tolerance)
            if weights == "fp32":
                scores = torch.from_numpy(logits[0]).softmax(dim=0)
                torch.testing.assert_close(scores, expected.scores[0], rtol=1e-3, atol=1e-4)
    plain = ssamba.export_onnx(run, tmp_path / "plain.onnx", "logits")
    assert len(onnxruntime.InferenceSession(str(plain.path)).get_outputs()) == 1


def test_only_a_classifier_that_knows_it_writes_what_is_unlike(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    with pytest.raises(ConfigError, match="output clip: unlike goes with logits"):
        ssamba.export_onnx(run, tmp_path / "x.onnx", "clip", unlike=True)
    model = ssamba.load(run, "cpu", frames=100)  # another grid, other features
    with pytest.raises(ConfigError, match="this model: cannot tell what is unlike its training sounds"):
        ssamba.export_onnx(model, tmp_path / "x.onnx", "logits", unlike=True)
    assert not (tmp_path / "x.onnx").exists()
