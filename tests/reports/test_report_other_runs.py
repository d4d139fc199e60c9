"""Reports of runs with several labels a clip, with labels in time, and with unreadable recordings."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path

import numpy as np
import soundfile
from report_runs import RATE, tone

import ssamba
from ssamba.cli.main import main


def fit(data: Path, source: Path, out: Path) -> Path:
    words = ("fit", "--data", data, "--from", source, "--out", out, "--frames", 64, "--device", "cpu")
    assert main([str(word) for word in words]) == 0
    return out


def read_page(run: Path) -> str:
    return ssamba.report(run, clips=40, device="cpu").read_text(encoding="utf-8")


def write_csv(path: Path, rows: list[tuple[object, ...]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_several_labels_a_clip(source: Path, tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [("path", "labels")]
    for number in range(12):
        kinds = (0, 1, 2) if number % 4 == 0 else (number % 3,)
        soundfile.write(tmp_path / f"{number}.wav", sum(tone(k, number, 0.7) for k in kinds) / 3, RATE)
        rows.append((f"{number}.wav", ";".join(("low", "mid", "high")[k] for k in kinds)))
    page = read_page(fit(write_csv(tmp_path / "labels.csv", rows), source, tmp_path / "run"))
    left_out = html.unescape(page.partition('id="left-out"')[2])
    assert "Confusion matrix: the run has no predictions of single clips" in left_out
    section = re.search(r'id="classes".*?</section>', page, re.DOTALL)
    assert section is not None
    assert all(name in section[0] for name in ("low", "mid", "high"))
    assert page.count('class="point ') == 12
    assert "several" in page  # the group of clips with several labels


def test_labels_in_time_are_outlined_on_timelines(source: Path, tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [("path", "start", "end", "label")]
    for number in range(3):
        parts = []
        for place in range(20):
            kind = (place + number) % 2
            parts.append(tone(kind, 100 * number + place, 1.0))
            rows.append((f"{number}.flac", place + 0.1, place + 0.8, ("low", "mid")[kind]))
        soundfile.write(tmp_path / f"{number}.flac", np.concatenate(parts), RATE)
    table, run = write_csv(tmp_path / "labels.csv", rows), tmp_path / "run"
    words = ("finetune", "custom", "--data", table, "--from", source, "--out", run, "--device", "cpu")
    small = ("--frames", 64, "--stride", 16, "--epochs", 1, "--batch", 8, "--freq-mask", 0, "--time-mask", 0)
    assert main([str(word) for word in (*words, *small)]) == 0
    page = read_page(run)
    figures = re.findall(r'<figure class="timeline">.*?</figure>', page, re.DOTALL)
    assert len(figures) == 3
    for figure in figures:
        spans = re.findall(r'class="span" x="([\d.]+)%" y="\d+" width="([\d.]+)%"', figure)
        assert len(spans) == 20
        begins = sorted(float(x) for x, _ in spans)  # of the clips that labels become, in per cent of 20 s
        assert np.abs(np.diff(begins) - 5).max() < 1
        assert all(2 < float(width) < 6 for _, width in spans)


def test_recordings_that_cannot_be_read_are_passed_over(source: Path, tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [("path", "label")]
    for number in range(24):
        soundfile.write(tmp_path / f"{number}.wav", tone(number % 2, number, 0.7), RATE)
        rows.append((f"{number}.wav", ("low", "mid")[number % 2]))
    (tmp_path / "3.wav").write_bytes(b"RIFF and nothing of a sound")
    page = read_page(fit(write_csv(tmp_path / "labels.csv", rows), source, tmp_path / "run"))
    assert page.count('class="point ') == 23
    assert "1 files that could not be read" in page
    assert "23 of 24 recordings" in page.lower()
