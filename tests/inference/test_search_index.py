"""An index on disk: brought up to date, never half-written, of one model, and read with suspicion."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from search_sounds import RATE, melody, write_melodies

import ssamba
from ssamba.inference.outputs.provenance import read_provenance
from ssamba.inference.search import store
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import ConfigError, DataError, SsambaError
from ssamba.utils.lock import lock_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def small_model(seed: int = 0) -> ssamba.SSAMBA:
    config = ssamba.Config(width=16, depth=2, frames=64, state_size=4)
    return ssamba.SSAMBA(config, generator=torch.Generator().manual_seed(seed)).eval()


@pytest.fixture(scope="module")
def model() -> ssamba.SSAMBA:
    return small_model()


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    write_melodies(tmp_path / "sounds", 6, 0.8)
    return tmp_path / "sounds"


def contents(index: ssamba.Index) -> dict[str, tuple[float, bytes, bytes]]:
    """What an index holds of each recording; bytes of vectors rounded, since batches differ."""
    found = {}
    for r in index.recordings():
        assert r.path not in found
        found[r.path] = (r.seconds, len(r.columns), np.round(r.pieces, 2).tobytes())
    return found


def test_update_reads_what_is_new_or_changed_and_drops_what_is_gone(
    sounds: Path, model: ssamba.SSAMBA, tmp_path: Path
) -> None:
    out = tmp_path / "index"
    first = ssamba.index([sounds], out, model)
    assert (first.report.added, first.report.kept, len(first)) == (6, 0, 6)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    again = ssamba.index([sounds], out, model)
    assert (again.report.added, again.report.kept, again.report.dropped) == (0, 6, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == before

    (sounds / "000.wav").unlink()
    soundfile.write(sounds / "001.flac", melody(1.5, 50), RATE)
    soundfile.write(sounds / "new.wav", melody(1.0, 51), RATE)
    after = ssamba.index([sounds / "new.wav"], out, model)
    assert (after.report.added, after.report.kept, after.report.dropped, after.report.total) == (2, 4, 1, 6)
    fresh = ssamba.index([sounds], tmp_path / "fresh", model)
    assert contents(after) == contents(fresh)
    (best,) = after.search(sounds / "001.flac", top=1)
    assert best.path == str(sounds / "001.flac")

    for path in sounds.iterdir():
        path.unlink()
    empty = ssamba.index([], out, model)
    assert (len(empty), empty.report.dropped, list(out.glob("block-*"))) == (0, 6, [])
    for ask in (lambda: empty.search(melody(1.0, 0)), empty.duplicates):
        with pytest.raises(DataError, match=r"index: holds no recordings"):
            ask()


def test_files_that_cannot_be_read(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    (sounds / "bad.wav").write_bytes(b"no audio at all")
    made = ssamba.index([sounds], tmp_path / "index", model)
    assert [Path(path).name for path, _ in made.report.failures] == ["bad.wav"]
    assert len(made) == 6
    with pytest.raises(DataError, match=r"bad\.wav: is not audio"):
        ssamba.index([sounds / "bad.wav"], tmp_path / "none", model)
    assert not (tmp_path / "none").exists()
    # A file that was good and is no longer does not stand for what it holds now.
    (sounds / "000.wav").write_bytes(b"no audio at all")
    made = ssamba.index([], tmp_path / "index", model)
    assert [Path(path).name for path, _ in made.report.failures] == ["000.wav"]
    assert str(sounds / "000.wav") not in made.paths


def test_two_models_are_not_mixed(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    out = tmp_path / "index"
    ssamba.index([sounds], out, model)
    other = small_model(1)
    for act in (lambda: ssamba.index([sounds], out, other), lambda: ssamba.Index(out, other)):
        with pytest.raises(ConfigError, match="was made with model") as caught:
            act()
        assert "\n" not in str(caught.value)
    with pytest.raises(SsambaError, match="given in memory"):
        ssamba.Index(out).search(melody(1.0, 0))
    for options, words in (({"relative": True}, "absolute paths"), ({"space": "fitted"}, "a plain space")):
        with pytest.raises(ConfigError, match=words):
            ssamba.index([sounds], out, model, **options)
    with pytest.raises(ConfigError, match="'plian': choose one of"):
        ssamba.index([sounds], tmp_path / "new", model, space="plian")


def test_the_index_knows_its_model(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    save_model(tmp_path / "model", model)
    ssamba.index([sounds], tmp_path / "index", tmp_path / "model")
    updated = ssamba.index([sounds], tmp_path / "index")
    assert updated.report.kept == 6
    (best,) = ssamba.Index(tmp_path / "index").search(sounds / "002.mp3", top=1)
    assert best.path == str(sounds / "002.mp3")
    save_model(tmp_path / "model", small_model(2))  # another one under the same path
    with pytest.raises(ConfigError, match="was made with model"):
        ssamba.Index(tmp_path / "index").search(sounds / "002.mp3")


def test_an_index_of_passes_in_16_bits(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    """It knows its model by the weights as they are stored, and goes on in its own precision; queries are free."""
    save_model(tmp_path / "model", model)
    exact = ssamba.index([sounds], tmp_path / "exact", tmp_path / "model", device="cpu")
    out = tmp_path / "index"
    (sounds / "004.wav").rename(tmp_path / "004.wav")
    made = ssamba.index([sounds], out, tmp_path / "model", device="cpu", dtype="bf16")
    assert made.model.positions.dtype == torch.bfloat16
    assert (made.header.dtype, made.header.digest) == ("bf16", exact.header.digest)
    (tmp_path / "004.wav").rename(sounds / "004.wav")
    updated = ssamba.index([sounds], out, device="cpu")
    assert (updated.report.added, updated.report.kept) == (1, 5)
    assert updated.model.positions.dtype == torch.bfloat16
    there = {r.path: r for r in exact.recordings()}
    for r in updated.recordings():
        a, b = (np.asarray(vectors, np.float64) for vectors in (r.columns, there[r.path].columns))
        assert not np.array_equal(a, b)
        assert ((a * b).sum(1) > 0.99).all()

    for dtype, expected in ((None, torch.bfloat16), ("fp32", torch.float32), ("fp16", torch.float16)):
        opened = ssamba.Index(out, device="cpu", dtype=dtype)
        (best,) = opened.search(sounds / "002.mp3", top=1)
        assert opened.model.positions.dtype == expected
        assert (best.path, best.score > 0.99) == (str(sounds / "002.mp3"), True)
    (best,) = ssamba.Index(out, tmp_path / "model", "cpu", "fp32").search(sounds / "004.wav", top=1)
    assert best.path == str(sounds / "004.wav")

    for folder, given, words in (
        (out, {"dtype": "fp32"}, "of passes in bf16, not fp32; give dtype bf16"),
        (tmp_path / "exact", {"dtype": "fp16"}, "of passes in fp32, not fp16"),
        (tmp_path / "new", {"dtype": "int8"}, "dtype 'int8': give auto, fp32"),
        (tmp_path / "new", {"dtype": "bf16", "model": model}, "the one given has its own"),
    ):
        with pytest.raises(ConfigError, match=words):
            ssamba.index([sounds], folder, device="cpu", **given)
    assert not (tmp_path / "new").exists()
    header(lambda v: v["provenance"].update(dtype="x" * 5000))(out)
    with pytest.raises(ConfigError, match="dtype 'xxx") as caught:
        ssamba.Index(out, device="cpu").search(sounds / "002.mp3")
    assert len(str(caught.value)) < 1000


def test_an_index_of_an_earlier_models_vectors(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    """The name in it leads to another model by now: the line says what to do, and the old model's folder helps."""
    index, old = tmp_path / "index", tmp_path / "tiny-0.1"
    ssamba.index([sounds], index, model)
    save_model(old, model)
    header(lambda v: v.update(model="tiny", version="0.2.0"))(index)
    for act in (lambda: ssamba.Index(index).search(sounds / "002.mp3"), lambda: ssamba.index([], index)):
        with pytest.raises(ConfigError, match=r"with model tiny \(\w{12}\) of ssamba 0\.2\.0, that of this ") as caught:
            act()
        assert f"ssamba index --out {index} --model FOLDER, or index the recordings again" in str(caught.value)
        assert "\n" not in str(caught.value)
    (best,) = ssamba.Index(index, ssamba.load(old, "cpu")).search(sounds / "002.mp3", top=1)
    assert best.path == str(sounds / "002.mp3")
    ssamba.index([], index, ssamba.load(old, "cpu"))
    assert ssamba.Index(index).header.model == "tiny"  # a model in memory has no name to go by
    ssamba.index([], index, old)
    assert ssamba.Index(index).header.model == str(old)
    assert ssamba.Index(index).search(sounds / "002.mp3", top=1) == [best]
    shutil.copytree(old, tmp_path / "copy")
    ssamba.index([], index, tmp_path / "copy")
    assert ssamba.Index(index).header.model == str(old)  # which still leads to its model


def test_an_index_says_where_it_comes_from(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    save_model(tmp_path / "model", model)
    made = ssamba.index([sounds], tmp_path / "index", tmp_path / "model")
    found = read_provenance(tmp_path / "index")
    assert found == made.header.provenance
    assert (found["output"], found["ssamba"], found["model"]) == ("index", ssamba.__version__, str(tmp_path / "model"))
    assert found["grid"] == {"rows": 8, "columns": 4, "frames": 64, "stride_frequency": 16, "stride_time": 16}
    assert found["options"] == {"level": "column", "layer": made.header.layer, "space": "plain"}
    ssamba.index([sounds], tmp_path / "other", small_model(1))
    assert read_provenance(tmp_path / "other")["model_digest"] != found["model_digest"]
    # An update keeps it, and an index of an earlier version has none.
    (sounds / "000.wav").unlink()
    assert ssamba.index([], tmp_path / "index").header.provenance == found
    header(lambda v: v.pop("provenance"))(tmp_path / "index")
    assert ssamba.Index(tmp_path / "index").search(sounds / "002.mp3", top=1)[0].path == str(sounds / "002.mp3")
    with pytest.raises(DataError, match="does not say where it comes from"):
        read_provenance(tmp_path / "index")


def test_relative_paths_move_with_the_folder(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    ssamba.index([sounds], tmp_path / "index", model, relative=True)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("sounds", "index"):
        shutil.move(tmp_path / name, moved / name)
    made = ssamba.Index(moved / "index", model)
    assert sorted(made.paths) == sorted(str(path) for path in (moved / "sounds").iterdir())
    assert ssamba.index([], moved / "index", model).report.kept == 6


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_names_that_are_no_utf8(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n.wav")
    shutil.copy(sounds / "000.wav", sounds / name)
    made = ssamba.index([sounds], tmp_path / "index", model)
    assert str(sounds / name) in made.paths
    assert all(os.path.exists(path) for path in ssamba.Index(tmp_path / "index").paths)
    assert ssamba.index([sounds], tmp_path / "index", model).report.kept == 7


KILLED = """
import os, signal, sys
import ssamba
from ssamba.inference.search import block_writer, store

block_writer.BLOCK_FILES = 2
where, times = sys.argv[4], int(sys.argv[5])
original = getattr(store, where)
calls = 0

def dying(*arguments):
    global calls
    calls += 1
    if calls == times:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

setattr(store, where, dying)
ssamba.index([sys.argv[1]], sys.argv[2], sys.argv[3], threads=1)
"""


@pytest.mark.parametrize(
    ("where", "times"), [("write_block", 2), ("write_header", 1), ("write_header", 2), ("write_text", 4), ("clean", 2)]
)
def test_killed_in_the_middle(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path, where: str, times: int) -> None:
    """What was complete stays, nothing half-written counts, and the next run ends as if nothing had happened."""
    save_model(tmp_path / "model", model)
    out = tmp_path / "index"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(sounds), str(out), str(tmp_path / "model"), where, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    held = 0
    if store.is_index(out):
        held = len(ssamba.Index(out, model))
        assert held in (2, 4)
    finished = ssamba.index([sounds], out, tmp_path / "model")
    assert finished.report.kept == held
    assert contents(finished) == contents(ssamba.index([sounds], tmp_path / "fresh", tmp_path / "model"))
    names = {block.name for block in finished.header.blocks}
    assert {path.name for path in out.iterdir()} == {"index.json", "space.safetensors", *names}


def test_one_process_at_a_time(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    ssamba.index([sounds], tmp_path / "index", model)
    with lock_folder(tmp_path / "index"), pytest.raises(SsambaError, match=r"another process writes there \(process"):
        ssamba.index([sounds], tmp_path / "index", model)


def test_a_folder_that_is_no_index(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists and is no index"):
        ssamba.index([sounds], sounds, model)
    with pytest.raises(DataError, match=r"holds no index\.json"):
        ssamba.Index(sounds)
    with pytest.raises(DataError, match="no audio files given"):
        ssamba.index([], tmp_path / "new", model)
    assert not (tmp_path / "new").exists()


def header(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        values = json.loads((folder / "index.json").read_text())
        change(values)
        (folder / "index.json").write_text(json.dumps(values))

    return act


def block_file(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (path,) = folder.glob(f"block-*/{name}")
        path.write_bytes(change(path.read_bytes()))

    return act


def vectors(name: str, array: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (path,) = folder.glob(f"block-*/{name}")
        np.save(path, array(np.load(path)))

    return act


def with_nan(array: np.ndarray) -> np.ndarray:
    array[1, 1] = np.nan
    return array


def claims_terabytes(data: bytes) -> bytes:
    """The header of an array of 10 TB before the data."""
    text = b"{'descr': '<f2', 'fortran_order': False, 'shape': (312500000000, 16), }"
    text += b" " * (118 - len(text) - 1) + b"\n"
    return data[:8] + len(text).to_bytes(2, "little") + text + data[128:]


HOSTILE: dict[str, Callable[[Path], None]] = {
    "no JSON": lambda f: (f / "index.json").write_text("{"),
    "nested": lambda f: (f / "index.json").write_text('{"blocks": ' + "[" * 200000),
    "no object": lambda f: (f / "index.json").write_text("[]"),
    "another format": header(lambda v: v.update(format=2)),
    "blocks missing": header(lambda v: v.pop("blocks")),
    "count of a wrong type": header(lambda v: v["blocks"][0].update(columns="12")),
    "negative count": header(lambda v: v["blocks"][0].update(columns=-1)),
    "huge count": header(lambda v: v["blocks"][0].update(columns=10**15)),
    "path as a name": header(lambda v: v["blocks"][0].update(name="../sounds")),
    "provenance": header(lambda v: v.update(provenance="tiny")),
    "dropped beyond": header(lambda v: v["blocks"][0].update(dropped=[99])),
    "values": header(lambda v: v.update(column_values=7)),
    "NaN seconds": header(lambda v: v.update(column_seconds=float("nan"))),
    "rows of the table": block_file("files.json", lambda b: b.replace(b'"path": [', b'"path": ["x", ')),
    "columns of the table": block_file("files.json", lambda b: b.replace(b'"columns": [', b'"columns": [1')),
    "huge table entry": block_file("files.json", lambda b: b.replace(b'"columns": [', b'"columns": [9999999999999')),
    "truncated vectors": block_file("columns.npy", lambda b: b[:-2]),
    "longer vectors": block_file("pieces.npy", lambda b: b + b"\0"),
    "terabytes": block_file("pieces.npy", claims_terabytes),
    "pickle": block_file("pieces.npy", lambda b: b.replace(b"'<f2'", b"'|O' ")),
    "no array": block_file("columns.npy", lambda b: b"nothing"),
    "another type": vectors("columns.npy", lambda a: a.astype(np.float32)),
    "column order": vectors("columns.npy", lambda a: np.asfortranarray(a)),
    "a NaN": vectors("columns.npy", with_nan),
    "an infinity": vectors("columns.npy", lambda a: a * np.float16(np.inf)),
    "lengths": vectors("columns.npy", lambda a: 3 * a),
    "no space": lambda f: (f / "space.safetensors").unlink(),
    "damaged space": lambda f: (f / "space.safetensors").write_bytes(b"\xff" * 64),
    "table missing": lambda f: next(f.glob("block-*/files.json")).unlink(),
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_damaged_and_hostile_files(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path, damage: str) -> None:
    """One line that names a file; nothing is executed, and no memory is taken for what a file merely claims."""
    ssamba.index([sounds], tmp_path / "index", model)
    HOSTILE[damage](tmp_path / "index")
    with pytest.raises(SsambaError) as caught:
        ssamba.Index(tmp_path / "index", model).search(sounds / "000.wav")
    assert str(tmp_path / "index") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_in_pieces_is_refused_too(sounds: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    ssamba.index([sounds], tmp_path / "index", model)
    vectors("pieces.npy", with_nan)(tmp_path / "index")
    made = ssamba.Index(tmp_path / "index", model)
    for act in (lambda: made.search(sounds / "000.wav", fast=True), made.duplicates):
        with pytest.raises(DataError, match="hold NaN"):
            act()
