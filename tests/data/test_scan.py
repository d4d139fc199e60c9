from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.data.manifest import Clip, Source, read_source
from ssamba.data.scan import SkipList, scan_clips, scan_sources
from ssamba.utils.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(40):
        soundfile.write(tmp_path / f"{number:02d}.wav", np.zeros(800 * (number + 1)), 8000)
    return tmp_path


def test_scan_reads_lengths_in_order(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    clips = scan_clips(read_source(folder), progress=lambda done, total: calls.append((done, total)))
    assert [clip.seconds for clip in clips] == [pytest.approx(0.1 * (n + 1)) for n in range(40)]
    assert (clips[3].frames, clips[3].rate) == (3200, 8000)
    assert calls[-1] == (40, 40)


def test_headers_are_remembered_until_the_file_changes(folder: Path) -> None:
    before = scan_clips(read_source(folder))
    path = folder / "00.wav"
    times, content = path.stat(), path.read_bytes()
    path.write_bytes(b"no sound".ljust(len(content)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert scan_clips(read_source(folder)) == before  # nobody has looked into the file
    soundfile.write(path, np.zeros(4000), 8000)
    after = scan_clips(read_source(folder))
    assert after[0].seconds == 0.5
    assert after[1:] == before[1:]


def test_stated_lengths_are_not_read(folder: Path) -> None:
    (clip,) = scan_clips([Clip(str(folder / "not there.wav"), stated_seconds=2.5)])
    assert clip.seconds == 2.5


def test_unreadable_clips_are_left_out_and_listed(folder: Path) -> None:
    (folder / "07.wav").write_text("no sound")
    soundfile.write(folder / "09.wav", np.zeros(10), 8000)
    skip = SkipList(folder / "run/skipped.csv")
    kept = scan_clips(read_source(folder), skip)
    assert len(kept) == 38
    assert list(skip.reasons) == [str(folder / "07.wav"), str(folder / "09.wav")]
    with open(folder / "run/skipped.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    assert rows[1][0] == str(folder / "07.wav")
    assert "not audio" in rows[1][1]
    assert "25 ms" in rows[2][1]


def test_more_than_five_percent_unreadable_stops(folder: Path) -> None:
    for number in (3, 5, 8):
        (folder / f"{number:02d}.wav").write_text("no sound")
    with pytest.raises(DataError, match=r"3 of 40 clips cannot be read, more than 5%; .*03\.wav: is not audio"):
        scan_sources([Source("set", tuple(read_source(folder)))])


def test_five_percent_rule_waits_for_enough_clips() -> None:
    skip = SkipList(minimum=20)
    skip.record("bad", "why")
    skip.succeeded([f"good {n}" for n in range(18)])
    skip.check()
    with pytest.raises(DataError, match="1 of 19"):
        skip.check(final=True)
    skip.succeeded(["good 18"])
    skip.check(final=True)  # exactly 5 %
    skip.record("worse", "why")
    with pytest.raises(DataError, match="2 of 21"):
        skip.check()


def test_each_path_is_written_once_even_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "skipped.csv"
    for _ in range(2):
        skip = SkipList(path)
        for _ in range(3):
            skip.record('odd, "name".wav', "why, though")
        assert len(skip) == 1
    assert path.read_text() == 'path,reason\n"odd, ""name"".wav","why, though"\n'


def test_torn_last_line_of_a_killed_run(tmp_path: Path) -> None:
    path = tmp_path / "skipped.csv"
    path.write_text("path,reason\na.wav,why\nb.wa")
    skip = SkipList(path)
    skip.record("b.wav", "because")
    skip.record("a.wav", "why")
    assert path.read_text() == "path,reason\na.wav,why\nb.wa\nb.wav,because\n"
