"""Names of any bytes, in any locale: opened, printed, written to every kind of output, and read back.

``caf\\xe9.wav`` is what an old system in Latin-1 left on the disk. In the C locale without Python's UTF-8 mode every
name outside ASCII comes as lone surrogates. The commands run in processes of their own, since the locale is settled at
the start.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.inference.model import make_encoder
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.files import native_name, stored_name
from ssamba.utils.yaml_text import read_yaml

LATIN, CLASS = b"caf\xe9", "chât 鳥".encode()
NAMES = (LATIN + b".wav", "grün.wav".encode(), b"plain.wav", "日本 語.wav".encode())
LOCALES = {"utf-8": {"PYTHONUTF8": "1"}, "c": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}}
SMALL = "--width 32 --depth 2 --frames 32 --device cpu --batch 4"
pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")


def ssamba(folder: Path, locale: str, *words: str | bytes) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ssamba", *words],
        cwd=folder,
        env={**os.environ, **LOCALES[locale]},
        capture_output=True,
        timeout=300,
    )
    out, err = done.stdout.decode(), done.stderr.decode()  # what is printed is valid text in any case
    assert "Traceback" not in err
    assert "surrogates not allowed" not in err
    return done.returncode, out, err


def sound(path: bytes, number: int = 0) -> None:
    t = np.arange(8000) / 16000
    with open(path, "wb") as file:
        soundfile.write(file, 0.3 * np.sin((1000 + 300 * number) * t), 16000, format="WAV")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names")
    root = os.fsencode(path)
    os.makedirs(root + b"/data/" + LATIN)
    for number, name in enumerate(NAMES):
        sound(root + b"/data/" + LATIN + b"/" + name, number)
    with open(root + b"/bad \xff.wav", "wb") as file:
        file.write(b"no sound")
    for part in (LATIN, CLASS, b"dog"):
        os.makedirs(root + b"/set/" + part)
        for number in range(6):
            sound(root + b"/set/" + part + b"/%d \xe9.wav" % number, number + len(part))
    classes = Classification((os.fsdecode(LATIN), os.fsdecode(CLASS)), recipe="test")
    save_model(path / "model", make_encoder(Config(width=32, depth=2, frames=64), classification=classes))
    header = [b"path,label", *(b"data/" + LATIN + b"/" + name + b",x" for name in NAMES)]
    (path / "list.csv").write_bytes(b"\n".join(header) + b"\n")
    (path / "list.tsv").write_bytes(b"\n".join(header).replace(b",", b"\t") + b"\n")
    rows = [{"wav": os.fsdecode(b"data/" + LATIN + b"/" + name), "labels": "x"} for name in NAMES]
    (path / "list.json").write_text(json.dumps({"data": rows}))
    return path


EXPECTED = [b"data/" + LATIN + b"/" + name for name in sorted(NAMES)]


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("data", ["data", "list.csv", "list.tsv", "list.json"])
@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_embed(folder: Path, tmp_path: Path, locale: str, data: str, kind: str) -> None:
    if data not in ("data", "list.csv") and kind == "parquet":
        return
    out = os.fsencode(tmp_path) + b"/out \xe9." + kind.encode()
    code, shown, err = ssamba(
        folder, locale, "embed", data, b"bad \xff.wav", "--model", "model", "--device", "cpu", "--out", out
    )
    assert (code, len(shown.splitlines()), len(err.splitlines())) == (1, 1, 1)
    assert err.startswith("ssamba: left out bad \\udcff.wav: ")
    assert "out \\udce9." in shown
    if kind == "npz":
        with np.load(out) as found:
            paths = [os.fsencode(str(name)) for name in found["paths"]]
            assert np.isfinite(found["embedding"]).all()
    else:
        with open(out, "rb") as file:
            table = pytest.importorskip("pyarrow.parquet").read_table(file)
        paths = table["path_bytes"].to_pylist()
        assert "data/caf\\xe9/grün.wav" in table["path"].to_pylist()
    assert sorted(paths) == EXPECTED
    assert all((folder / os.fsdecode(path)).exists() for path in paths)


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("kind", ["json", "csv", ""])
def test_predict(folder: Path, tmp_path: Path, locale: str, kind: str) -> None:
    out = tmp_path / f"out.{kind}"
    words = ["predict", "data", "--model", "model", "--device", "cpu", *(["--out", str(out)] if kind else [])]
    code, shown, err = ssamba(folder, locale, *words)
    assert (code, err) == (0, "")
    if kind == "json":
        written = json.loads(out.read_text(encoding="utf-8"))
        assert [os.fsencode(name) for name in written["classes"]] == [LATIN, CLASS]
        assert sorted(os.fsencode(entry["path"]) for entry in written["files"]) == EXPECTED
        assert {os.fsencode(s["class"]) for e in written["files"] for s in e["scores"]} == {LATIN, CLASS}
    elif kind == "csv":
        with open(out, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        assert sorted({os.fsencode(row["path"]) for row in rows}) == EXPECTED
        assert {os.fsencode(row["class"]) for row in rows} == {LATIN, CLASS}
        manifest = "path\n" + "".join(f"{row['path']}\n" for row in rows)
        (folder / f"{locale}.csv").write_bytes(manifest.encode("utf-8", "surrogateescape"))
        assert ssamba(folder, locale, "stats", f"{locale}.csv")[0] == 0
    else:
        assert "data/caf\\udce9/plain.wav (0.50 s)" in shown
        assert "  caf\\udce9 " in shown


@pytest.mark.parametrize("locale", LOCALES)
def test_stats_and_a_scan_from_several_places(folder: Path, locale: str) -> None:
    code, shown, err = ssamba(
        folder, locale, "stats", "data", "list.csv", "list.json", b"data/" + LATIN + b"/" + NAMES[0]
    )
    assert (code, err) == (0, "")
    assert "(13 files" in shown
    code, _, err = ssamba(folder, locale, "stats", b"no \xe9.wav")
    assert (code, err.splitlines()) == (2, ["ssamba: error: no \\udce9.wav: no such file or folder"])


@pytest.mark.parametrize("locale", LOCALES)
def test_pretrain_and_resume(folder: Path, tmp_path: Path, locale: str) -> None:
    root, run = os.fsencode(tmp_path), tmp_path / "run"
    os.makedirs(root + b"/" + LATIN)
    for number in range(12):
        sound(root + b"/" + LATIN + b"/%d \xe9.wav" % number, number)
    with open(root + b"/" + LATIN + b"/bad \xff.wav", "wb") as file:
        file.write(b"no sound")
    words = [*SMALL.split(), *["--mask", "8", "--validation-mask", "8", "--validation", "0.2", "--log-every", "1"]]
    command = ["pretrain", LATIN, "--out", "run", *words]
    assert ssamba(tmp_path, locale, *command, "--steps", "1")[0] == 2  # 1 of 13 is more than 5 %
    for number in range(12, 24):
        sound(root + b"/" + LATIN + b"/%d \xe9.wav" % number, number)
    code, _, err = ssamba(tmp_path, locale, *command, "--steps", "1")
    assert code == 0, err
    with open(run / "skipped.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert [os.fsencode(row[0]) for row in csv.reader(file)] == [b"path", LATIN + b"/bad \xff.wav"]
    assert [os.fsencode(name) for name in read_yaml(run / "recipe.yaml")["data"]] == [LATIN]
    other = "utf-8" if locale == "c" else "c"  # a run goes on in another locale
    code, _, err = ssamba(tmp_path, other, *command, "--steps", "2")
    assert code == 0, err
    assert json.loads((run / "state.json").read_text())["step"] == 2
    with open(run / "skipped.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert len(list(csv.reader(file))) == 2


@pytest.mark.parametrize("locale", LOCALES)
def test_labelled_folders(folder: Path, tmp_path: Path, locale: str) -> None:
    code, shown, err = ssamba(
        folder,
        locale,
        "probe",
        "custom",
        "--data",
        "set",
        "--model",
        "model",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "p"),
    )
    assert code == 0, err
    assert json.loads((tmp_path / "p/results.json").read_text(encoding="utf-8"))["classes"] == 3
    words = "--from none --stride 16 --epochs 1 --freq-mask 0 --time-mask 0 --folds 1"
    command = ["finetune", "custom", "--data", "set", "--out", str(tmp_path / "run"), *words.split(), *SMALL.split()]
    code, shown, err = ssamba(folder, locale, *command)
    assert code == 0, err
    run = tmp_path / "run"
    with open(run / "classes.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert {os.fsencode(row["class"]) for row in csv.DictReader(file)} == {LATIN, CLASS, b"dog"}
    with open(run / "predictions.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            assert (folder / "set" / row["clip"]).exists()
    other = "utf-8" if locale == "c" else "c"
    assert ssamba(folder, other, "info", str(run))[0] == 0
    assert ssamba(folder, other, *command)[:2] == (0, shown)
    code, shown, err = ssamba(folder, other, "predict", "data", "--model", str(run), "--device", "cpu")
    assert (code, err) == (0, "")
    assert "caf\\udce9" in shown


def test_names_are_stored_alike_in_every_locale(tmp_path: Path) -> None:
    script = (
        "import os, sys; from ssamba.utils.files import stored_name, native_name;"
        "names = sorted(os.listdir('.'), key=os.fsencode);"
        "assert [native_name(stored_name(name)) for name in names] == names;"
        "sys.stdout.buffer.write('|'.join(map(stored_name, names)).encode('utf-8', 'surrogateescape'))"
    )
    for name in NAMES:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb"):
            pass
    expected = b"|".join(sorted(NAMES))
    for values in LOCALES.values():
        environment = {**os.environ, **values}
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True)
        assert (done.stdout, done.stderr) == (expected, b"")
    assert stored_name(native_name("caf\udce9")) == "caf\udce9"
