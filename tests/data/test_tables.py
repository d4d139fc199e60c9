"""Manifests and tables as other programs and systems write them: read where one reading is possible, else one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from peak_memory import PEAK

from ssamba.data.datasets.common import read_table
from ssamba.data.datasets.custom import read_custom
from ssamba.data.lengths import open_lengths
from ssamba.data.manifest import read_source
from ssamba.utils.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sub/a.wav", "sub/b.wav", "c, d.wav", "e.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(800), 8000)
    return tmp_path


READ = {
    "windows.csv": b"path,label\r\nsub\\a.wav,dog\r\n.\\sub\\b.wav,cat\r\n",
    "semicolons.csv": b"path;label\nsub/a.wav;dog\nsub/b.wav;cat\n",
    "excel.csv": b"sep=;\r\npath;label\r\nsub/a.wav;dog\r\nsub/b.wav;cat\r\n",
    "tabs.csv": b"path\tlabel\nsub/a.wav\tdog\nsub/b.wav\tcat\n",
    "commas.tsv": b"path,label\nsub/a.wav,dog\nsub/b.wav,cat\n",
    "bars.csv": b"label|path\ndog|sub/a.wav\ncat|sub/b.wav\n",
    "bom.csv": b"\xef\xbb\xbfpath,label\nsub/a.wav,dog\nsub/b.wav,cat\n",
    "utf16.csv": "path\tlabel\r\nsub/a.wav\tdog\r\nsub/b.wav\tcat\r\n".encode("utf-16"),
    "utf16le.csv": "path,label\nsub/a.wav,dog\nsub/b.wav,cat\n".encode("utf-16-le"),
    "utf16be.csv": "path,label\nsub/a.wav,dog\nsub/b.wav,cat\n".encode("utf-16-be"),
    "utf32.csv": "path,label\nsub/a.wav,dog\nsub/b.wav,cat\n".encode("utf-32"),
    "mac.csv": b"path,label\rsub/a.wav,dog\rsub/b.wav,cat\r",
    "trailing.csv": b"path,label,,\nsub/a.wav,dog,,\nsub/b.wav,cat,,,\n\n,,,\n",
    "quotes.csv": b'"path","label","note"\n"sub/a.wav","dog","two\nlines"\n"sub/b.wav","cat","a ""word"""\n',
    "unused.csv": b"note,path,note,label\nx,sub/a.wav,y,dog\nx,sub/b.wav,y,cat\n",
}


@pytest.mark.parametrize("name", READ)
def test_read(folder: Path, name: str) -> None:
    (folder / name).write_bytes(READ[name])
    clips = read_source(folder / name)
    assert [(clip.path, clip.key, clip.labels) for clip in clips] == [
        (str(folder / "sub/a.wav"), "sub/a.wav", ("dog",)),
        (str(folder / "sub/b.wav"), "sub/b.wav", ("cat",)),
    ] or (name == "windows.csv" and [Path(clip.path).resolve().name for clip in clips] == ["a.wav", "b.wav"])


@pytest.mark.parametrize("name", [name for name in READ if name != "trailing.csv"])
def test_labelled_tables_are_read_alike(folder: Path, name: str) -> None:
    extra = READ[name]
    (folder / name).write_bytes(extra)
    table = read_table(folder / name)
    assert [(row["path"].replace("\\", "/").removeprefix("./"), row["label"]) for _, row in table.rows] == [
        ("sub/a.wav", "dog"),
        ("sub/b.wav", "cat"),
    ]


def test_a_labelled_set_from_windows(folder: Path) -> None:
    rows = "sub\\a.wav;dog;train\nsub\\b.wav;cat;train\ne.wav;dog;test\n"
    (folder / "labels.csv").write_text("path;label;split\n" + rows)
    data = read_custom(folder)
    assert data.classes == ("cat", "dog")
    assert [Path(e.parts[0].path).exists() for e in data.folds[0].train] == [True, True]


REFUSED = {
    "comma.csv": (b"path,label\nc, d.wav,dog\n", "line 2 has 3 values for 2 columns; put quotes around"),
    "twice.csv": (b"path,label,path\ne.wav,x,y\n", "line 1: the column path stands twice; rename"),
    "labels.csv": (b"path,label,label\ne.wav,x,y\n", "the column label stands twice"),
    "zero.csv": (b"path,label\ne.wav,x\ne.wav,\0\n", "line 3 holds a zero byte"),
    "open.csv": (b'path,label\ne.wav,x\n"e.wav,y\ne.wav,z\n', "line 3: a quote is opened and never closed"),
    "huge.csv": (b'path,label\ne.wav,x\ne.wav,"' + b"x\n" * 100_000, "line 3 is not valid ',"),
    "latin.csv": (
        "path,label\ne.wav,x\ne.wav,über\n".encode("latin-1"),
        r"line 3: label '\udcfcber' is not UTF-8 text",
    ),
    "latin_path.csv": ("path,label\ncafé.wav,x\n".encode("latin-1"), "not UTF-8: save the manifest as UTF-8"),
    "cut16.csv": ("path\ne.wav\n".encode("utf-16") + b"x", "text; save it as UTF-8"),
    "drive.csv": (b"path,label\nC:\\sounds\\a.wav,x\n", "and this one is of a Windows drive"),
    "header.csv": (b"path;label\n", "names no files"),
    "empty.csv": (b"", "is empty"),
    "thousands.csv": (b'path,seconds\ne.wav,"1,500"\n', "line 2: seconds 1,500 may mean 1.500 or 1500"),
    "oneline.csv": (b"x" * (1 << 21), "first line has more than"),
    "other.csv": (b"name;class\na.wav;x\n", "has no column path (columns: name, class)"),
    "twice.json": (b'{"data": [{"wav": "e.wav", "wav": "e.wav"}]}', "a key twice"),
    "deep.json": (b'{"data": ' + b"[" * 100_000, "is not valid JSON"),
    "digits.json": (b'{"data": [{"wav": "e.wav", "n": ' + b"9" * 10_000 + b"}]}", "is not valid JSON"),
    "zero.json": (b'{"data": [{"wav": "e\\u0000.wav"}]}', "1 of 1 files are missing"),
    "latin.json": ('{"data": [{"wav": "e.wav", "labels": "é"}]}'.encode("latin-1"), "is not UTF-8 text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(folder: Path, name: str) -> None:
    content, words = REFUSED[name]
    (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_source(folder / name)
    message = str(caught.value)
    assert message.startswith(f"{folder / name}: ")
    assert words in message
    assert "\n" not in message
    assert len(message) < 600


def test_special_files_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe.csv")
    os.mkfifo(folder / "pipe.json")
    for name in ("pipe.csv", "pipe.json"):
        with pytest.raises(DataError, match="not a regular file"):
            read_source(folder / name)


def test_decimal_commas_and_lengths_that_are_none(folder: Path) -> None:
    values = ["1,5", "0,125", "2", "", "nan", "-1", "soon", "1e999"]
    (folder / "list.csv").write_text("path;seconds\n" + "".join(f"e.wav;{value}\n" for value in values))
    assert [clip.seconds for clip in read_source(folder / "list.csv")] == [1.5, 0.125, 2.0, *[None] * 5]


def test_other_columns_are_a_mapping(folder: Path) -> None:
    (folder / "list.csv").write_text("path,label,split,fold\ne.wav,x,train,3\ne.wav,x\n")
    first, second = read_source(folder / "list.csv")
    assert first.fields == {"split": "train", "fold": "3"}
    assert dict(second.fields) == {"split": "", "fold": ""}
    assert "label" not in first.fields
    with pytest.raises(KeyError):
        first.fields["label"]


def test_json_in_utf16_and_with_lists(folder: Path) -> None:
    rows = [{"wav": "e.wav", "labels": ["a", "b"]}, {"wav": "sub\\a.wav", "labels": "c,d", "seconds": 2.5}]
    (folder / "list.json").write_bytes(json.dumps({"data": rows}).encode("utf-16"))
    first, second = read_source(folder / "list.json")
    assert (first.labels, second.labels, second.seconds) == (("a", "b"), ("c", "d"), 2.5)
    assert second.path == str(folder / "sub/a.wav")


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_memory_and_time_of_a_hundred_thousand_rows(tmp_path: Path, kind: str) -> None:
    """A tenth of a million: 40 MB above the import, where 0.1.0 took 70, and no file is asked for by itself."""
    names = [f"{i % 100:02d}/recording-{i:07d}.wav" for i in range(100_000)]
    for i in range(100):
        (tmp_path / f"{i:02d}").mkdir()
    for name in names:
        os.close(os.open(tmp_path / name, os.O_CREAT | os.O_WRONLY))
    if kind == "csv":
        (tmp_path / "list.csv").write_text(
            "path,label\n" + "".join(f"{name},c{i % 50}\n" for i, name in enumerate(names))
        )
    else:
        (tmp_path / "list.json").write_text(json.dumps({"data": [{"wav": name, "labels": "x"} for name in names]}))
    script = (
        "import sys, time\nfrom ssamba.data.manifest import read_source\n" + PEAK + "before = peak()\n"
        "begin = time.process_time()\n"
        "count = len(read_source(sys.argv[1]))\nprint(count, peak() - before, time.process_time() - begin)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / f"list.{kind}")], capture_output=True, text=True
    )
    count, mebibytes, seconds = map(float, done.stdout.split())
    assert (count, done.stderr) == (100_000, "")
    assert mebibytes * 1024 < 52_000
    assert seconds < 3
    os.unlink(tmp_path / names[77_777])
    with pytest.raises(DataError, match=f"1 of 100000 files are missing, the first is .*{names[77_777]}"):
        read_source(tmp_path / f"list.{kind}")


def test_lengths_are_kept_for_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSAMBA_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    soundfile.write(tmp_path / "data/0.wav", np.zeros(800), 8000)
    content = (tmp_path / "data/0.wav").read_bytes()
    for number in range(1100):
        (tmp_path / f"data/{number}.wav").write_bytes(content)
        os.utime(tmp_path / f"data/{number}.wav", (1e9, 1e9 + number))
    script = (
        "import sys; from ssamba.data import scan; from ssamba.data.manifest import read_source;"
        "from ssamba.audio import decode; read = []; plain = scan.audio_info;"
        "scan.audio_info = lambda path: (read.append(path), plain(path))[1];"
        "clips = scan.scan_clips(read_source(sys.argv[1])); print(len(clips), sum(c.frames for c in clips), len(read))"
    )

    def start() -> list[int]:
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "data")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return list(map(int, done.stdout.split()))

    assert start() == [1100, 880_000, 1100]
    assert start() == [1100, 880_000, 0]
    soundfile.write(tmp_path / "data/7.wav", np.zeros(1600), 8000)
    os.utime(tmp_path / "data/7.wav", (1e9, time.time() + 3600))  # as if changed just now: read, and not kept yet
    assert start() == [1100, 880_800, 1]
    assert start() == [1100, 880_800, 1]
    os.utime(tmp_path / "data/7.wav", (1e9, 1e9))
    assert [start()[2], start()[2]] == [1, 0]
    store = tmp_path / "cache/lengths.sqlite3"
    store.write_bytes(b"damaged" * 1000)
    assert [start()[2], start()[2], start()[2]] == [1100, 1100, 0]
    store.chmod(0o666)
    assert start() == [1100, 880_800, 1100]  # others may have written it


def test_two_processes_fill_the_store_at_once_and_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSAMBA_CACHE_DIR", str(tmp_path))
    script = (
        "import sys, time; from ssamba.data.lengths import open_lengths; from ssamba.audio.decode import AudioInfo\n"
        "who = int(sys.argv[1])\n"
        "with open_lengths() as store:\n"
        "    print('begun', flush=True)\n"
        "    for part in range(40 if who else 2000):\n"
        "        store.keep([((f'/{who}/{part}/{i}', 5, 7), AudioInfo(100 + i, 50, 1, 2.0)) for i in range(200)])\n"
        "        time.sleep(0.01)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(who)], stdout=subprocess.PIPE) for who in (0, 1, 2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
    assert [processes[1].wait(), processes[2].wait()] == [0, 0]
    processes[0].kill()
    processes[0].wait()
    with open_lengths() as store:
        assert store is not None
        for who in (1, 2):
            files = [(f"/{who}/{part}/{i}", 5, 7) for part in range(40) for i in range(200)]
            assert {file: info.frames for file, info in store.recall(files).items()} == {
                file: 100 + int(file[0].rpartition("/")[2]) for file in files
            }
        first = store.recall([(f"/0/0/{i}", 5, 7) for i in range(200)])
        assert len(first) in (0, 200)
