"""``ssamba index``, ``search`` and ``duplicates``: what they print, their formats, and bad input in one line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import soundfile
import torch
from search_sounds import RATE, melody

import ssamba
from ssamba.cli import main
from ssamba.models.pretrained.model_dir import save_model

pytestmark = pytest.mark.usefixtures("one_thread")


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sounds, a quiet MP3 of the first, an Ogg of the last 2 s of the second, and an index of all with tiny."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "sounds").mkdir()
    for i in range(4):
        soundfile.write(folder / "sounds" / f"{i}.wav", melody(3.0, i), RATE)
    soundfile.write(folder / "sounds" / "quiet.mp3", 0.3 * melody(3.0, 0), RATE)
    soundfile.write(folder / "sounds" / "part.ogg", melody(3.0, 1)[RATE:], RATE)
    assert main.main(["index", str(folder / "sounds"), "--out", str(folder / "index"), "--device", "cpu"]) == 0
    return folder


def test_index_says_what_it_did(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "index"
    some = [folder / "sounds" / "0.wav", folder / "sounds" / "1.wav"]
    assert run(capsys, "index", *some, some[0], "--out", out, "--relative") == (
        0,
        f"{out}: 2 recordings (2 read, 0 as they were, 0 gone, 1 given twice), learned space\n",
        "",
    )
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"nothing")
    code, text, error = run(capsys, "index", *some, bad, "--out", out)
    assert code == 1
    assert text == f"{out}: 2 recordings (0 read, 2 as they were, 0 gone), learned space\n"
    assert error.startswith(f"ssamba: left out {bad}: ")
    assert str(folder) not in (out / "index.json").read_text()


def test_a_precision_for_the_index_and_for_queries(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sounds = tmp_path / "index", folder / "sounds"
    assert run(capsys, "index", sounds, "--out", out, "--dtype", "bf16")[::2] == (0, "")
    assert json.loads((out / "index.json").read_text())["provenance"]["dtype"] == "bfloat16"
    code, text, _ = run(capsys, "index", "--out", out)
    assert (code, text) == (0, f"{out}: 6 recordings (0 read, 6 as they were, 0 gone), learned space\n")
    for given in ((), ("--dtype", "fp32"), ("--model", "tiny", "--dtype", "fp16")):
        code, text, error = run(capsys, "search", sounds / "2.wav", "--index", out, "--top", 1, *given)
        assert (code, error, text.split()[-1]) == (0, "", str(sounds / "2.wav"))
    line = f"ssamba: error: {out}: its vectors are of passes in bf16, not fp32; give dtype bf16, or another --out\n"
    assert run(capsys, "index", sounds, "--out", out, "--dtype", "fp32") == (2, "", line)


def test_search_prints_score_offset_and_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query, index = folder / "sounds" / "1.wav", folder / "index"
    code, text, error = run(capsys, "search", query, "--index", index, "--start", 1.5, "--seconds", 1, "--top", 2)
    assert (code, error) == (0, "")
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["score", "offset", "path"]
    found = {Path(path).name: (float(score), float(offset)) for score, offset, path in lines[1:]}
    assert set(found) == {"1.wav", "part.ogg"}
    assert found["1.wav"][1] == pytest.approx(1.5, abs=0.06)
    assert found["part.ogg"][1] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("fast", [(), ("--fast",)])
def test_search_as_json_and_csv(folder: Path, capsys: pytest.CaptureFixture[str], fast: tuple[str, ...]) -> None:
    words = ("search", folder / "sounds" / "quiet.mp3", "--index", folder / "index", "--top", 3, *fast, "--format")
    code, text, _ = run(capsys, *words, "json")
    rows = json.loads(text)
    assert code == 0
    assert [set(row) for row in rows] == [{"path", "score", "offset"}] * 3
    assert {Path(row["path"]).name for row in rows[:2]} == {"quiet.mp3", "0.wav"}
    _, text, _ = run(capsys, *words, "csv")
    table = list(csv.DictReader(io.StringIO(text)))
    assert [(row["path"], float(row["score"])) for row in table] == [(row["path"], row["score"]) for row in rows]


def test_duplicates_as_pairs_and_groups(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, error = run(capsys, "duplicates", "--index", folder / "index", "--threshold", 0.6, "--format", "json")
    assert (code, error) == (0, "")
    pairs = {(Path(row["first"]).name, Path(row["second"]).name): row for row in json.loads(text)}
    assert set(pairs) == {("0.wav", "quiet.mp3"), ("1.wav", "part.ogg")}
    assert pairs["1.wav", "part.ogg"]["offset"] == pytest.approx(1.0, abs=0.06)
    _, text, _ = run(capsys, "duplicates", "--index", folder / "index", "--threshold", 0.6, "--groups")
    lines = [line.split() for line in text.splitlines()]
    assert [(number, Path(path).name) for number, path in lines[1:]] == [
        ("1", "0.wav"), ("1", "quiet.mp3"), ("2", "1.wav"), ("2", "part.ogg"),
    ]  # fmt: skip
    code, text, _ = run(capsys, "duplicates", "--index", folder / "index", "--threshold", "1", "--format", "csv")
    assert (code, text) == (0, "first,second,score,offset\n")


def test_bad_input_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ssamba.Config(width=16, depth=2, frames=64, state_size=4)
    save_model(tmp_path / "other", ssamba.SSAMBA(config, generator=torch.Generator().manual_seed(0)))
    sound, index = folder / "sounds" / "0.wav", folder / "index"
    cases: dict[str, tuple[object, ...]] = {
        "holds no index.json": ("search", sound, "--index", tmp_path),
        "no such file": ("search", tmp_path / "none.wav", "--index", index),
        "was made with model tiny": ("index", sound, "--out", index, "--model", tmp_path / "other"),
        "is another": ("search", sound, "--index", index, "--model", tmp_path / "other"),
        "has absolute paths": ("index", sound, "--out", index, "--relative"),
        "the crop starts at 9 s": ("search", sound, "--index", index, "--start", 9),
        "--seconds 0: give a length above 0": ("search", sound, "--index", index, "--seconds", 0),
        "threshold is 2": ("duplicates", "--index", index, "--threshold", 2),
        "no audio files given": ("index", "--out", tmp_path / "new"),
        "is no index": ("index", sound, "--out", folder / "sounds"),
    }
    for words, argv in cases.items():
        code, out, error = run(capsys, *argv)
        assert (code, out) == (2, ""), words
        assert words in error
        assert error.count("\n") == 1


def test_approximate_lists(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    index, query = tmp_path / "index", folder / "sounds" / "1.wav"
    code, text, error = run(capsys, "index", folder / "sounds", "--out", index, "--approximate")
    assert (code, error) == (0, "")
    assert text.endswith("0 gone), learned space, lists for approximate search\n")
    fast, exact = (run(capsys, "search", query, "--index", index, *words)[1] for words in ((), ("--exact",)))
    assert fast.splitlines()[:3] == exact.splitlines()[:3]
    pairs = [run(capsys, "duplicates", "--index", index, *words) for words in ((), ("--exact",))]
    assert pairs[0] == pairs[1]
    assert "quiet.mp3" in pairs[0][1]
    (lists,) = index.glob("lists-*.safetensors")
    lists.write_bytes(b"nothing")
    for argv in (("search", query, "--index", index), ("duplicates", "--index", index)):
        code, text, error = run(capsys, *argv)
        assert (code, text) == (2, "")
        assert str(lists) in error
        assert error.count("\n") == 1
        assert run(capsys, *argv, "--exact")[0] == 0
    assert run(capsys, "search", query, "--index", index, "--fast", "--exact")[0] == 2


def test_large_indexes_are_pointed_to_the_lists(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssamba.cli.commands.archive.index.MANY_PIECES", 5)
    code, _, error = run(capsys, "index", "--out", folder / "index")
    assert (code, error.count("\n")) == (0, 1)
    assert "6 vectors of pieces; --approximate makes lists" in error
