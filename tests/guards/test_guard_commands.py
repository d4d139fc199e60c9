"""Help, options, exit codes and error lines of the command line stay as they are."""

from __future__ import annotations

import importlib.metadata
import signal
import subprocess
import sys
import time
from pathlib import Path

import guard_commands
import pytest
from guard_support import REWRITE, assert_same, environment, process, read_golden, write_sounds


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return guard_commands.help_texts()


def test_each_command_has_a_text(texts: dict[str, str]) -> None:
    listed = guard_commands.listed_commands(texts["ssamba"])
    written = {p.stem for p in guard_commands.HELP_FOLDER.glob("*.txt")} - {"python-version"}
    assert {"ssamba", *listed} == set(texts) == written


@pytest.mark.parametrize("name", ["ssamba", *guard_commands.COMMANDS])
def test_help(texts: dict[str, str], name: str) -> None:
    """To the letter on the Python that wrote the texts; on another, which may break lines elsewhere, by words."""
    golden = (guard_commands.HELP_FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    found = texts[name]
    if (guard_commands.HELP_FOLDER / "python-version.txt").read_text().strip() != guard_commands.PYTHON:
        golden, found = " ".join(golden.split()), " ".join(found.split())
    assert found == golden, f"where that is meant: {REWRITE} help"


def test_options() -> None:
    assert_same(guard_commands.options(), read_golden("options"), "options")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    return guard_commands.outcomes(tmp_path_factory.mktemp("invocations"))


def test_exit_codes(outcomes: dict[str, dict[str, object]]) -> None:
    """Apart from the lines: those may be worded anew, the codes may not change."""
    golden = read_golden("exit_codes")
    codes = {name: value["code"] for name, value in golden.items()}
    assert_same({name: value["code"] for name, value in outcomes.items()}, codes, "exit_codes")
    assert set(codes.values()) == {0, 1, 2}


def test_error_lines(outcomes: dict[str, dict[str, object]]) -> None:
    assert_same(outcomes, read_golden("exit_codes"), "exit_codes")


def test_the_module_and_the_script_are_the_command_line(tmp_path: Path) -> None:
    for words in ("--version", "embd", "info nowhere", "info"):
        golden = next(v for v in read_golden("exit_codes").values() if v["words"] == words)
        done = process(words.split(), tmp_path)
        assert (done.returncode, done.stderr.splitlines()) == (golden["code"], golden["lines"])
    (entry,) = (e for e in importlib.metadata.entry_points(group="console_scripts") if e.name == "ssamba")
    assert entry.load()(["--version"]) == 0


def test_a_reader_that_goes_away_gives_141(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ssamba", "info"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 141


def rows(log: Path) -> int:
    """Complete lines below the header: the run has made so many steps."""
    return max(0, log.read_text().count("\n") - 1) if log.exists() else 0


def test_an_interrupt_gives_130_and_a_saved_state(tmp_path: Path) -> None:
    write_sounds(tmp_path / "sounds", 12)
    words = "pretrain sounds --out run --width 16 --depth 2 --frames 64 --mask 16 --batch 2 --steps 100000"
    process = subprocess.Popen(
        [sys.executable, "-m", "ssamba", *words.split(), "--log-every", "1", "--device", "cpu", "--workers", "1"],
        cwd=tmp_path, env=environment(SSAMBA_BACKEND="reference"), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while rows(tmp_path / "run/log.csv") < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err[-1000:]
    assert "ssamba: error: " in err
    assert "Traceback" not in err
    assert (tmp_path / "run/state.safetensors").exists()
