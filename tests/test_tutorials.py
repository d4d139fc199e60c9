"""The tutorials: their fenced ``sh`` blocks run as they stand, in a folder of made-up recordings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from ssamba.data.labels.event import Event, RecordingEvents
from ssamba.data.labels.formats import LABEL_FORMATS, read_label_file
from ssamba.data.synthetic.sounds import RATE, SOUND_MAKERS

TUTORIALS = Path(__file__).parent.parent / "docs" / "tutorials"
MAKERS = {"bird": "bird", "drums": "drum_loop", "siren": "siren", "vowel": "vowel"}
TIMEOUT = 900
"""Seconds of a block, on cores that much else wants."""


def blocks(name: str) -> list[str]:
    """The fenced ``sh`` blocks of a tutorial."""
    return re.findall(r"^```sh\n(.*?)^```", (TUTORIALS / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def outputs(name: str) -> dict[int, str]:
    """What a tutorial says that its ``sh`` blocks print, by their numbers."""
    text = (TUTORIALS / name).read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    stated, number = {}, -1
    for kind, content in fences:
        if kind == "sh":
            number += 1
        elif not kind:
            stated[number] = content
    return stated


def cells(text: str) -> list[list[str]]:
    """The cells of each line, in an order that equal scores do not change."""
    return sorted((re.split(r"[ ,]+", line.strip()) for line in text.splitlines()), key=lambda row: row[::-1])


def same_cell(printed: str, stated: str) -> bool:
    """Equal, and numbers with decimals by 0.03: other processors round otherwise."""
    if re.fullmatch(r"-?\d+\.\d+", stated):
        return abs(float(printed) - float(stated)) <= 0.03
    return printed == stated


def run_blocks(name: str, folder: Path) -> list[str]:
    """What each block prints; fails with the output of one that does not end well."""
    scripts = folder.parent / "scripts"
    scripts.mkdir(exist_ok=True)
    for program, words in (("ssamba", " -m ssamba"), ("python", "")):
        (scripts / program).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (scripts / program).chmod(0o755)
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    printed = []
    for block in blocks(name):
        command = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return printed


def sound(name: str, seconds: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A sound of a class, 0.3 at its loudest."""
    made = SOUND_MAKERS[MAKERS[name]](rng, np.arange(round(seconds * RATE)) / RATE)
    return 0.3 * made / np.abs(made).max()


def recording(path: Path, seconds: float, events: Iterable[Event], rng: np.random.Generator) -> None:
    """Quiet noise with the sounds of the events in it."""
    audio = rng.normal(0, 0.004, round(seconds * RATE))
    for event in events:
        made = sound(event.label, event.seconds, rng)
        first = round(event.start * RATE)
        audio[first : first + len(made)] += made
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.astype(np.float32), RATE)


def share_found(truth: Iterable[Event], found: Iterable[Event]) -> float:
    """Share of the time of true events in which an event of the same name is found."""
    truth, found = list(truth), list(found)
    shared = sum(
        max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a in truth for b in found if a.label == b.label
    )
    return shared / sum(event.seconds for event in truth)


def events_of(path: Path) -> list[Event]:
    return [row.event for row in read_label_file(path)]


def test_each_tutorial_has_commands() -> None:
    assert {path.name: len(blocks(path.name)) for path in TUTORIALS.glob("*.md")} == {
        "labelling.md": 4,
        "own-sounds.md": 3,
        "search.md": 9,
    }


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_own_sounds(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    rng = np.random.default_rng(0)
    for name in MAKERS:
        for number in range(6):
            recording(folder / "sounds" / name / f"{number:02d}.wav", 1, [Event(0, 1, name)], rng)
    order = ("bird", "siren", "drums", "vowel", "siren", "bird", "vowel", "drums")
    truth = [Event(3.0 * i, 3.0 * i + 3.0, name) for i, name in enumerate(order)]
    recording(folder / "evening.wav", 24, truth, rng)
    trained, printed, _ = run_blocks("own-sounds.md", folder)
    accuracy = re.search(r"accuracy (\d+) of 24", trained)
    assert accuracy is not None
    assert int(accuracy[1]) >= 18
    assert printed.startswith("evening.wav (24.00 s)\n")
    assert (folder / "evening.png").stat().st_size > 20_000
    found = events_of(folder / "evening.csv")
    assert [(e.start, e.end, e.label) for e in events_of(folder / "evening.txt")] == [
        (e.start, e.end, e.label) for e in found
    ]
    assert share_found(truth, found) > 0.7


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_labelling(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    rng = np.random.default_rng(1)
    truth = {}
    for number in range(1, 6):
        names = ["bird", "siren"] * 3
        rng.shuffle(names)
        truth[number] = tuple(Event(1.0 + 3.0 * i, 2.0 + 3.0 * i, name) for i, name in enumerate(names))
        recording(folder / "recordings" / f"marsh-{number}.wav", 19, truth[number], rng)
    (folder / "labels").mkdir()
    for number, form, ending in (
        (1, "audacity", ".txt"),
        (2, "audacity", ".txt"),
        (3, "raven", ".Table.1.selections.txt"),
    ):
        text = LABEL_FORMATS[form].write([RecordingEvents(f"marsh-{number}.wav", 19.0, truth[number])])
        (folder / "labels" / f"marsh-{number}{ending}").write_text(text, encoding="utf-8")
    first, predicted, _, second = run_blocks("labelling.md", folder)
    assert first.startswith("fit: accuracy ")
    assert predicted == "labels: 2 files\n"
    found = {number: events_of(folder / "labels" / f"marsh-{number}.txt") for number in (4, 5)}
    assert all(event.end - event.start >= 0.5 for event in found[4])
    assert all(share_found(truth[number], found[number]) > 0.7 for number in (4, 5))
    assert not [event for events in found.values() for event in events if event.label == "nothing"]
    assert "found.csv: 5 files" in second
    rows = read_label_file(folder / "found.csv")
    for number in truth:
        mine = [row.event for row in rows if row.recording == f"recordings/marsh-{number}.wav"]
        assert share_found(truth[number], mine) > 0.7


def test_search(tmp_path: Path) -> None:
    """All that search.md says of its output is printed."""
    folder = tmp_path / "work"
    folder.mkdir()
    printed, stated = run_blocks("search.md", folder), outputs("search.md")
    assert sorted(stated) == list(range(1, len(printed)))
    assert printed[0] == ""
    for number, text in stated.items():
        rows, wanted = cells(printed[number].replace(str(folder), "/home/me")), cells(text)
        assert [len(row) for row in rows] == [len(row) for row in wanted], printed[number]
        for row, row_wanted in zip(rows, wanted, strict=True):
            assert all(map(same_cell, row, row_wanted)), f"printed {row}, the page says {row_wanted}"
    pairs = json.loads((folder / "pairs.json").read_text())
    assert {Path(pair["second"]).name for pair in pairs} == {"night-03.flac", "night-07.flac"}
    cut, rate = soundfile.read(folder / "found-0.wav")
    query, _ = soundfile.read(folder / "unknown.wav")
    assert max_correlation(cut, query[round(4.5 * rate) : round(7.5 * rate)]) > 0.8


def max_correlation(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """The largest correlation at any lag of two signals of one length."""
    size = 2 * len(first)
    product = np.fft.irfft(np.fft.rfft(first, size) * np.conj(np.fft.rfft(second, size)), size)
    return float(np.abs(product).max() / np.linalg.norm(first) / np.linalg.norm(second))
