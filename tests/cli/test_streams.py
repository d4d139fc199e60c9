"""Standard streams that are closed, full, narrow or left by their reader, and what foreign text does to a terminal.

The commands run in processes of their own, started by a shell that sets the streams up.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

import ssamba
from ssamba.inference.model import make_encoder
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model

SSAMBA = f"{shlex.quote(sys.executable)} -m ssamba"
ESCAPES = "a\x1b]0;owned\x07\u202eb\nc"
"""Sets a window's title, turns text around and breaks the line."""
pytestmark = pytest.mark.skipif(os.name != "posix", reason="streams are set up by a POSIX shell")


def shell(line: str, folder: Path, encoding: str = "utf-8", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding=encoding,
        errors="surrogateescape",
        timeout=300,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recordings, one of which cannot be read, and a model with a class of bad manners."""
    t = np.arange(8000) / 16000
    (tmp_path / "data").mkdir()
    soundfile.write(tmp_path / "data/one.wav", 0.3 * np.sin(2000 * t), 16000)
    (tmp_path / "data/日本 é.wav").write_text("no sound")
    classes = Classification(("plain", ESCAPES), recipe="test")
    save_model(tmp_path / "model", make_encoder(Config(width=32, depth=2, frames=64), classification=classes))
    return tmp_path


def clips_of(path: Path) -> list[str]:
    with np.load(path) as found:
        assert np.isfinite(found["embedding"]).all()
        return [Path(name).name for name in found["paths"]]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(folder: Path, closed: str) -> None:
    """A closed descriptor's number would go to the next file opened: here to the output, and then the bytes printed."""
    done = shell(f"{SSAMBA} embed data --model model --device cpu --out x.npz {closed}", folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert ("x.npz" in done.stdout) == (">&- " not in f" {closed} ".replace("2>&-", ""))
    assert ("left out" in done.stderr) == ("2>&-" not in closed)
    assert clips_of(folder / "x.npz") == ["one.wav"]


@pytest.mark.parametrize("words", ["--version", "--help", "embed --help", "info model", "nonsense"])
def test_closed_streams_of_short_commands(folder: Path, words: str) -> None:
    done = shell(f"{SSAMBA} {words} >&- 2>&-", folder)
    assert (done.returncode, done.stdout, done.stderr) == (2 if words == "nonsense" else 0, "", "")


def test_worker_processes_of_a_run_with_closed_streams(folder: Path) -> None:
    for number in range(70):
        soundfile.write(folder / f"data/{number}.wav", np.random.default_rng(number).normal(0, 0.1, 16000), 16000)
    options = "--width 32 --depth 2 --frames 64 --mask 16 --validation-mask 16 --batch 32 --steps 3 --workers 4"
    done = shell(f"{SSAMBA} pretrain data --out run --device cpu {options} <&- >&- 2>&-", folder)
    assert done.returncode == 0, done
    assert json.loads((folder / "run/state.json").read_text())["finished"]
    with open(folder / "run/log.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)][-1] == "3"
    with open(folder / "run/skipped.csv", newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["path", "data/日本 é.wav"]


@pytest.mark.parametrize(("encoding", "name"), [("ascii", r"\u65e5\u672c \xe9.wav"), ("cp1252", r"\u65e5\u672c é.wav")])
def test_narrow_encodings_escape(folder: Path, encoding: str, name: str) -> None:
    line = f"{SSAMBA} embed data --model model --device cpu --out 日本.npz"
    done = shell(line, folder, encoding, PYTHONIOENCODING=encoding)
    assert done.returncode == 1
    assert done.stderr.startswith(f"ssamba: left out data/{name}: is not audio")
    assert done.stdout.startswith(r"\u65e5\u672c.npz: 1 x 32")
    assert clips_of(folder / "日本.npz") == ["one.wav"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_a_stream(folder: Path) -> None:
    done = shell(f"{SSAMBA} embed data --model model --device cpu --out x.npz >/dev/full", folder)
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert lines[-1] == "ssamba: error: standard output: No space left on device"
    assert clips_of(folder / "x.npz") == ["one.wav"]
    done = shell(f"{SSAMBA} embed data --model model --device cpu --out x.npz 2>/dev/full", folder)
    assert (done.returncode, done.stdout) == (1, "x.npz: 1 x 32 from 1 files\n")
    for words in ("--version", "--help", "predict --help", "info model --json"):
        done = shell(f"{SSAMBA} {words} >/dev/full", folder)
        assert (done.returncode, done.stderr) == (2, "ssamba: error: standard output: No space left on device\n")


@pytest.mark.parametrize("words", ["--help", "info model", "predict data/one.wav --model model --device cpu"])
def test_a_reader_that_has_gone(folder: Path, words: str) -> None:
    done = shell(f"set -o pipefail; {{ {SSAMBA} {words}; echo $? >code; }} | exec 0<&-; sleep 0.1", folder)
    assert (folder / "code").read_text() == "141\n"
    assert done.stderr == ""
    done = shell(f"{{ {SSAMBA} stats data/*.wav; echo $? >code; }} 2> >(exec 0<&-)", folder)
    assert (folder / "code").read_text() == "2\n"  # 1 of 2 files cannot be read: too many


def test_foreign_text_does_not_reach_the_terminal(folder: Path) -> None:
    (folder / "data" / f"{ESCAPES}.wav").write_text("no sound")
    soundfile.write(folder / f"data/good {ESCAPES.replace('.', '')}.flac", np.sin(np.arange(16000) / 9) / 3, 16000)
    quoted = shlex.quote(f"out {ESCAPES}.npz")
    outputs = []
    for line, code in (
        (f"embed data --model model --device cpu --out {quoted}", 1),
        ("predict data --model model --device cpu", 1),
        ("predict data --model model --device cpu --every 0.5", 1),
        (f"embed data --model {shlex.quote(ESCAPES)} --out y.npz", 2),
        (f"embed {shlex.quote(ESCAPES)} --out y.npz", 2),
        (f"{shlex.quote(ESCAPES)}", 2),
        (f"info {shlex.quote(ESCAPES)}", 2),
        (f"finetune {shlex.quote(ESCAPES)} --data data --out run", 2),
        (f"embed data --level {shlex.quote(ESCAPES)}", 2),
    ):
        done = shell(f"{SSAMBA} {line}", folder)
        assert done.returncode == code, done
        if code == 2:
            assert len(done.stderr.splitlines()) == 1, done.stderr
        outputs.append(done.stdout + done.stderr)
    for text in outputs:
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), text
        assert r"\x1b]0;owned\x07\u202eb" in text
    assert outputs[0].splitlines()[0].endswith(r"\x0ac.npz: 2 x 32 from 2 files")
    assert (folder / f"out {ESCAPES}.npz").exists()


def test_values_of_json_and_tables_are_escaped(folder: Path) -> None:
    values = json.loads((folder / "model/config.json").read_text())
    for change in ({"encoder": ESCAPES}, {"heads": ESCAPES}):
        (folder / "model/config.json").write_text(json.dumps(values | change))
        done = shell(f"{SSAMBA} info model", folder)
        assert len(done.stderr.splitlines()) == (done.returncode == 2), done
        assert "\x1b" not in done.stderr + done.stdout
    (folder / "list.csv").write_text(f'path,label\n"{ESCAPES}.wav",x\n')
    done = shell(f"{SSAMBA} stats list.csv", folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert r"\x1b]0;owned\x07\u202eb" in done.stderr


def terminal_run(words: Sequence[str], folder: Path, wait_for: str = "", number: int = 0) -> tuple[int, str]:
    """What a terminal of 80 columns receives of a command; at ``wait_for`` it is sent the signal ``number``."""
    here, there = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "ssamba", *words],
        cwd=folder,
        stdout=there,
        stderr=there,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests that run in the background ignore it
    )
    os.close(there)
    received = b""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        ready, _, _ = select.select([here], [], [], 1.0)
        try:
            part = os.read(here, 65536) if ready else b" "
        except OSError:  # the other end is closed
            break
        received += part if ready else b""
        if wait_for and wait_for.encode() in received:
            wait_for = ""
            process.send_signal(number)
        if not part:
            break
    os.close(here)
    try:
        return process.wait(60), received.decode()
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def test_progress_fits_a_terminal_and_ctrl_c_is_one_line(folder: Path) -> None:
    t = np.arange(16000 * 600) / 16000
    for number in range(8):
        soundfile.write(folder / f"data/long {number}.flac", 0.3 * np.sin(1000 * t + number), 16000)
    words = ["embed", "data", "--model", "model", "--device", "cpu", "--out", "x.npz"]
    code, text = terminal_run(words, folder, "x real time", signal.SIGINT)
    text = text.removesuffix("\x1b[0m")  # where colorama is installed, which Numba then uses
    bars = [line for line in re.split(r"[\r\n]", text) if "embedding" in line]
    assert code == 130
    assert max(map(len, bars)) <= 80
    assert re.search(r"embedding +\d+% \|.{10}\| [0-9:?]+ left, \d+/10 files, [\d,]+ x real time", bars[-1])
    assert "Traceback" not in text
    assert text.rstrip().splitlines()[-1].split("\r")[-1].lstrip("\x1b[A ") == "ssamba: error: interrupted"
    assert not (folder / "x.npz").exists()


def test_lines_of_logging_and_of_warnings(folder: Path) -> None:
    script = (
        "import sys, logging, warnings; from ssamba.cli import main; from ssamba.cli.commands import COMMANDS;"
        "import dataclasses;"
        "COMMANDS['info'] = dataclasses.replace(COMMANDS['info'], run=lambda a: (warnings.warn('w\\x1b\\nx'),"
        "logging.getLogger('ssamba.x').warning('%s', 'l\\x1b\\ny'), 0)[-1]);"
        "sys.exit(main.main(['info']))"
    )
    done = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}", folder)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [r"ssamba: warning: w\x1b x", r"ssamba: warning: l\x1b y"]


def test_nothing_bypasses_the_streams() -> None:
    """One module prints, one passes on what processes of ours have printed, and a server has a log."""
    package = Path(ssamba.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if (
                name == "print"
                or re.match(r"sys\.(__)?std(out|err)(__)?\.(write|buffer)", name)
                or name == "tqdm.write"
            ):
                found.add(path.relative_to(package).as_posix())
    assert found == {"cli/streams.py", "serve/http/request_log.py", "training/launch.py"}


def test_a_caller_in_python_keeps_its_streams(capsys: pytest.CaptureFixture[str]) -> None:
    from ssamba.cli import main

    before, show, threads = sys.stderr, warnings.showwarning, threading.active_count()
    assert main.main(["--version"]) == 0
    assert (sys.stderr, warnings.showwarning, threading.active_count()) == (before, show, threads)
    assert capsys.readouterr().out == f"ssamba {ssamba.__version__}\n"
