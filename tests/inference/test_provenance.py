"""Outputs on disk say which model, weights and options made them, and name files as asked."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.cli import main
from ssamba.inference.embed_files import EmbedOptions
from ssamba.inference.model import make_encoder
from ssamba.inference.outputs.provenance import read_provenance, sidecar_of
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.digest import model_key
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("work")
    (path / "sounds").mkdir()
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        soundfile.write(path / "sounds" / f"{name}.wav", 0.1 * generator.standard_normal(24000), 16000)
    config = Config(width=16, depth=2, frames=128, patch_frequency=32, stride_frequency=32)
    model = make_encoder(config, classification=Classification(("dog", "rain"), recipe="test"))
    save_model(path / "one", model)
    assert model.classifier is not None
    with torch.no_grad():
        for tensor in model.classifier.parameters():
            tensor.add_(0.5)
    save_model(path / "other-classifier", model)
    with torch.no_grad():
        model.positions.add_(0.5)
    save_model(path / "other-encoder", model)
    return path


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run(*words: object) -> int:
    return main.main([*map(str, words), "--device", "cpu"])


@pytest.mark.parametrize("name", ["x.npz", "x.parquet"])
def test_embeddings_say_where_they_come_from(folder: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    assert run("embed", "sounds", "--model", "one", "--level", "frame", "--whole", "--out", name) == 0
    assert read_provenance(Path(name)) == {
        "ssamba": ssamba.__version__,
        "output": "embedding",
        "model": "one",
        "model_digest": model_key(ssamba.load("one", "cpu")),
        "encoder": "ssamba",
        "layer": 2,
        "dtype": "float32",
        "sample_rate": 16000,
        "grid": {"rows": 4, "columns": 8, "frames": 128, "stride_frequency": 32, "stride_time": 16},
        "options": {"level": "frame", "whole": True, "pooling": "mean", "paths": "given"},
    }


def test_numpy_alone_reads_it(folder: Path) -> None:
    assert run("embed", "sounds", "--model", "one", "--stride", 32, "--out", "n.npz") == 0
    with np.load("n.npz", allow_pickle=False) as arrays:
        text = json.loads(str(arrays["provenance"]))
    assert text["grid"]["stride_time"] == 32
    assert text["model_digest"] != model_key(ssamba.load("one", "cpu"))  # the grid and its positions are others


@pytest.mark.parametrize("name", ["p.json", "p.csv", "e.json", "e.csv", "e.jams", "e.txt"])
def test_predictions_say_where_they_come_from(folder: Path, name: str) -> None:
    events = name.startswith("e")
    files = "sounds/a.wav"
    more = ["--events", "--threshold", 0.2] if events else ["--every", 0.5, "--top", 1]
    assert run("predict", files, "--model", "one", "--out", name, *more) == 0
    found = read_provenance(Path(name))
    model = ssamba.load("one", "cpu")
    assert (found["model"], found["model_digest"]) == ("one", model_key(model))
    assert found["output"] == ("events" if events else "scores")
    if events:
        assert (found["options"]["threshold"], found["options"]["without"]) == (0.2, [])
    else:
        assert found["options"] == {"every": 0.5, "window": None, "top": 1, "reject": False, "threshold": 0.0}


def test_digests_tell_encoders_and_classifiers_apart(folder: Path) -> None:
    found = {}
    for name in ("one", "other-classifier", "other-encoder"):
        assert run("predict", "sounds", "--model", name, "--out", f"{name}.json") == 0
        found[name] = read_provenance(Path(f"{name}.json"))
    assert found["one"]["model_digest"] == found["other-classifier"]["model_digest"]
    assert found["one"]["model_digest"] != found["other-encoder"]["model_digest"]
    assert found["one"]["classifier_digest"] != found["other-classifier"]["classifier_digest"]
    assert found["other-encoder"]["classifier_digest"] == found["other-classifier"]["classifier_digest"]


def test_csv_stays_a_plain_table_and_its_neighbour_knows_its_bytes(folder: Path) -> None:
    out = folder / "t.csv"
    assert run("predict", "sounds", "--model", "one", "--out", out) == 0
    with out.open(newline="") as file:
        assert next(csv.reader(file)) == ["path", "rank", "class", "score"]
    assert sidecar_of(out).name == "t.csv.provenance.json"
    assert read_provenance(out)["model"] == "one"
    out.write_text(out.read_text() + "c.wav,1,dog,0.5\n")
    with pytest.raises(DataError, match=r"t\.csv\.provenance\.json: is of another content of t\.csv"):
        read_provenance(out)


@pytest.mark.parametrize("name", ["s.json", "s.csv"])
def test_several_models_have_an_entry_each(folder: Path, name: str) -> None:
    models = ["--model", "one", "--model", "other-classifier"]
    assert run("predict", "sounds", *models, "--out", name) == 0
    found = read_provenance(Path(name))["models"]
    assert [entry["model"] for entry in found] == ["one", "other-classifier"]
    assert found[0]["classifier_digest"] != found[1]["classifier_digest"]


def test_an_output_without_it_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", embedding=np.zeros((1, 4)))
    (tmp_path / "old.json").write_text('{"files": []}')
    (tmp_path / "old.csv").write_text("path,rank\n")
    for name in ("old.npz", "old.json", "old.csv"):
        with pytest.raises(DataError, match="does not say where it comes from"):
            read_provenance(tmp_path / name)
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"bad\.npz: is no \.npz"):
        read_provenance(tmp_path / "bad.npz")


def test_paths_are_given_relative_or_absolute(folder: Path) -> None:
    wanted = {
        (): ["sounds/a.wav", "sounds/b.wav"],
        ("--relative",): ["../../sounds/a.wav", "../../sounds/b.wav"],
        ("--absolute",): [str(folder / "sounds/a.wav"), str(folder / "sounds/b.wav")],
    }
    rows = []
    for options, paths in wanted.items():
        assert run("embed", "sounds", "--model", "one", "--out", "deep/er/x.npz", *options) == 0
        with np.load("deep/er/x.npz") as arrays:
            assert list(map(os.path.normpath, arrays["paths"])) == list(map(os.path.normpath, paths))
            rows.append(arrays["embedding"])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert run("embed", "sounds", "--relative", "--absolute") == 2
    with pytest.raises(ConfigError, match="paths 'absolut': choose one of given, relative, absolute"):
        EmbedOptions(paths="absolut")


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege there")
def test_relative_paths_lead_back_through_links(folder: Path) -> None:
    (folder / "far" / "away").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "far" / "away")
    assert run("embed", "sounds", "--model", "one", "--out", "link/x.npz", "--relative") == 0
    with np.load("link/x.npz") as arrays:
        assert all((folder / "link" / path).resolve().is_file() for path in arrays["paths"])
        assert list(arrays["paths"]) == ["../../sounds/a.wav", "../../sounds/b.wav"]


def test_the_longest_name_of_a_table_has_a_neighbour_too(folder: Path) -> None:
    out = Path("x" * 251 + ".csv")
    assert run("predict", "sounds", "--model", "one", "--out", out) == 0
    assert read_provenance(out)["model"] == "one"


def test_two_runs_write_the_same_bytes(folder: Path) -> None:
    contents = []
    for _ in range(2):
        assert run("embed", "sounds", "--model", "one", "--out", "same.parquet") == 0
        assert run("predict", "sounds", "--model", "one", "--out", "same.csv") == 0
        contents.append([Path(n).read_bytes() for n in ("same.parquet", "same.csv", "same.csv.provenance.json")])
    assert contents[0] == contents[1]
