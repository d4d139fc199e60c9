"""Label files: each format read and written, what spreadsheets make of them, and one line for each fault."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import numpy as np
import pytest

from ssamba.data.labels.event import Event, RecordingEvents
from ssamba.data.labels.formats import LABEL_FORMATS, is_label_file, read_label_file
from ssamba.utils.errors import DataError

EVENTS = (
    Event(0.0, 1.25, "dog", 0.75),
    Event(1.0, 2.5, "Glocke ä, groß; 鳥", 0.5),
    Event(3.0, 3.0, "click", 1.0),
)
AUDACITY = "0.5\t1.5\tdog\n2\t3.25\tsea gull\n"
RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
    "1\tWaveform 1\t1\t0.5\t1.5\t100.0\t4000.0\tdog\n"
    "1\tSpectrogram 1\t1\t0.5\t1.5\t100.0\t4000.0\tdog\n"
    "2\tSpectrogram 1\t1\t2.0\t3.25\t200.0\t5000.0\tsea gull\n"
)
TABLE = "start,end,label\n0.5,1.5,dog\n2,3.25,sea gull\n"
BOTH = [(0.5, 1.5, "dog"), (2.0, 3.25, "sea gull")]


def read(path: Path, content: str | bytes) -> list[tuple[float, float, str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row.event.start, row.event.end, row.event.label) for row in read_label_file(path)]


@pytest.mark.parametrize("name", LABEL_FORMATS)
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    kind = LABEL_FORMATS[name]
    path = tmp_path / f"a{kind.suffix}"
    path.write_text(kind.write([RecordingEvents("sub/a.wav", 5.0, EVENTS, 8000.0)]), encoding="utf-8", newline="")
    rows = read_label_file(path)
    assert [(r.event.start, r.event.end, r.event.label) for r in rows] == [(e.start, e.end, e.label) for e in EVENTS]
    assert [r.event.score for r in rows] == [None if name == "audacity" else e.score for e in EVENTS]
    expected = {"csv": "sub/a.wav", "json": "sub/a.wav", "raven": "a.wav"}.get(name)
    assert {r.recording for r in rows} == {expected}
    assert is_label_file(path)


@pytest.mark.parametrize("name", LABEL_FORMATS)
def test_a_recording_without_events_is_a_file_without_labels(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.x"
    path.write_text(LABEL_FORMATS[name].write([RecordingEvents("a.wav", 5.0)]), encoding="utf-8")
    assert read_label_file(path) == []


@pytest.mark.parametrize("text", [AUDACITY, RAVEN, TABLE], ids=["audacity", "raven", "table"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "bom-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_system_and_spreadsheet_is_read(text: str, encoding: str, end: str, tmp_path: Path) -> None:
    text = text.replace("\n", end)
    data = codecs.BOM_UTF16_BE + text.encode("utf-16-be") if encoding == "bom-be" else text.encode(encoding)
    assert read(tmp_path / "a.txt", data) == BOTH


@pytest.mark.parametrize(
    "text",
    [
        "0,5\t1,5\tdog\n2,0\t3,25\tsea gull\n",
        "0,5;1,5;dog\r\n2;3,25;sea gull\r\n",
        "start;end;label\r\n0,5;1,5;dog\r\n2;3,25;sea gull\r\n",
        "sep=;\r\nstart;end;label\r\n0,5;1,5;dog\r\n2;3,25;sea gull\r\n",
        'start,end,label\n"0,5","1,5",dog\n2,"3,25",sea gull\n',
        "0.5,1.5,dog\n2,3.25,sea gull\n",
        "onset\toffset\tevent_label\n0.5\t1.5\tdog\n\n2\t3.25\tsea gull\n",
        "Start (s),END,Label,score\n0.5,1.5,dog,0.25\n2,3.25,sea gull,\n",
        RAVEN.replace(".5", ",5").replace(".25", ",25").replace(".0", ",0"),
        RAVEN.replace("\t", ";").replace(".5", ",5").replace(".25", ",25").replace(".0", ",0"),
        RAVEN.replace("Species", "My own column"),
    ],
)
def test_separators_decimal_commas_and_names_of_columns(text: str, tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", text) == BOTH


def test_audacity_frequencies_and_points(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0.5\t1.5\tdog\n\\\t100.5\t-1.0\n2\t2\tclick; two\n\\\t300\t4000\n")
    first, second = (row.event for row in read_label_file(path))
    assert first == Event(0.5, 1.5, "dog", None, 100.5, None)
    assert second == Event(2.0, 2.0, "click; two", None, 300.0, 4000.0)
    written = LABEL_FORMATS["audacity"].write([RecordingEvents("a.wav", 9.0, (first, second))])
    path.write_text(written)
    assert [row.event for row in read_label_file(path)] == [first, second]


def test_raven_times_over_several_files_are_those_within_each(tmp_path: Path) -> None:
    path = tmp_path / "all.txt"
    path.write_text(
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tFile Offset (s)\tBegin Path\tAnnotation\n"
        "1\tSpectrogram 1\t1\t0.5\t1.5\t0.5\tC:\\field\\a.wav\tdog\n"
        "2\tSpectrogram 1\t1\t62.0\t63.25\t2.0\tC:\\field\\b.wav\tsea gull\n"
    )
    rows = read_label_file(path)
    assert [(r.recording, r.event.start, r.event.end) for r in rows] == [("a.wav", 0.5, 1.5), ("b.wav", 2.0, 3.25)]


def test_jams_of_other_programs(tmp_path: Path) -> None:
    observations = [{"time": 0.5, "duration": 1.0, "value": "dog", "confidence": None}]
    other = {"namespace": "beat", "data": [{"time": 1.0, "duration": 0.0, "value": 1, "confidence": 1.0}]}
    content = {"annotations": [other, {"namespace": "segment_open", "data": observations}], "file_metadata": {}}
    assert read(tmp_path / "a.jams", json.dumps(content)) == [(0.5, 1.5, "dog")]
    content["annotations"] = [other]
    with pytest.raises(DataError, match=r"a.jams: has no annotation of a tag or segment namespace \(it has: beat\)"):
        read(tmp_path / "a.jams", json.dumps(content))


def test_jams_passes_the_schema(tmp_path: Path) -> None:
    jams = pytest.importorskip("jams")
    path = tmp_path / "a.jams"
    path.write_text(LABEL_FORMATS["jams"].write([RecordingEvents("a.wav", 5.0, EVENTS)]), encoding="utf-8")
    document = jams.load(str(path), validate=True, strict=True)
    assert document.validate(strict=True)
    (annotation,) = document.annotations
    assert [(o.time, o.duration, o.value) for o in annotation.data] == [(e.start, e.seconds, e.label) for e in EVENTS]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0.5\t1.5\tdog\n2\tx\then\n", "line 2: the end is 'x'; give seconds as a number such as 12.5"),
        ("0.5\t1.5\tdog\nnan\t2\then\n", "line 2: the start is 'nan'"),
        ("0.5\t1.5\tdog\n2\tinf\then\n", "line 2: the end is 'inf'"),
        ("0.5\t1.5\tdog\n\n3\t2\then\n", "line 3: the label 'hen' ends at 2 s, before its start at 3 s"),
        ("0.5\t1.5\tdog\n-1\t2\then\n", "line 2: the label 'hen' starts at -1 s; give 0 or more"),
        ("0.5\t1.5\tdog\n2\t3\t\n", "line 2: the label at 2 s has no name"),
        ("0.5\t1.5\tdog\nhen\n", "line 2 is 'hen'; give start, end and label"),
        ("\\\t100\t200\n0.5\t1.5\tdog\n", "begins with"),
        ("0.5\t1.5\tdog\n\\\t100\n", "line 2 begins with a backslash"),
        ("1:02.5\t1:03\tdog\n", "begins with '1:02.5"),
        ("start,end,label\n0.5,1.5,dog\n1,2\n", "line 3: the label at 1 s has no name"),
        ("start,end,label\n0.5,1.5,dog,x\n", "line 2 has 4 values for 3 columns"),
        ("start;end;label\n1.234,5;2;dog\n", "line 2: the start is '1.234,5'"),
        ("start,end,what\n0.5,1.5,dog\n", "has no column label (columns: start, end, what); add it"),
        ("path,start,end,label\n,0.5,1.5,dog\n", "line 2: the column path is empty"),
        (RAVEN.replace("End Time (s)", "End"), "has no column End Time (s)"),
        (RAVEN.replace("Species", "View 2\tMore"), "has no column of labels"),
        (RAVEN.replace("\t2.0\t", "\tNaN\t"), "line 4: the Begin Time (s) is 'NaN'"),
        (b"0.5\t1.5\tdog\n2\t3\tV\xf6gel\n", "line 2 is not UTF-8 text; save the file as UTF-8"),
        (b"0.5\t1.5\tdog\x00\x00\n", "is no text"),
        ("some notes about the dog\n", "begins with 'some notes about the dog', which is neither an Audacity"),
        ('{"files": [{"path": "a.wav", "events": [{"start": 0}]}]}', 'files[0].events[0]: "end" is None'),
        ('{"files": [{"path": "a.wav", "events": 1}]}', 'files[0] has no "path" and list "events"'),
        ('{"annotations": [{"namespace": "tag_open", "data": [{"time": "0"}]}]}', "\"time\" is '0'; give a number"),
        ('{"annotations": [', "is not JSON"),
    ],
)
def test_one_line_names_file_and_line(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    with pytest.raises(DataError) as error:
        read(path, content)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text


def test_other_files_are_no_labels(tmp_path: Path) -> None:
    for name, content in (
        ("notes.txt", "recorded near the river\n"),
        ("a.json", '{"id": 1, "files": [{"path": "a.wav", "rows": []}]}'),
        ("list.csv", "path,label\na.wav,dog\n"),
        ("empty.txt", ""),
        ("bytes.txt", "\0\0\0"),
    ):
        (tmp_path / name).write_text(content)
        assert not is_label_file(tmp_path / name), name
    assert not is_label_file(tmp_path / "missing.txt")
    with pytest.raises(DataError, match="no such file"):
        read_label_file(tmp_path / "missing.txt")


@pytest.mark.parametrize("name", ["audacity", "raven", "csv", "json", "jams", "excel"])
def test_damaged_files_give_labels_or_one_line(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events = [RecordingEvents("a.wav", 5.0, EVENTS)]
    text = RAVEN.replace("\t", ";") if name == "excel" else LABEL_FORMATS[name].write(events)
    whole = text.encode("utf-16" if name == "excel" else "utf-8")
    path = tmp_path / "a.txt"
    refused: list[str] = []
    for _ in range(150):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.integers(2) else whole)
        for place in rng.integers(0, len(damaged), rng.integers(1, 4)):
            damaged[place] = int(rng.choice([rng.integers(256), *b'\t;,\n"\\-{}[]:.9e']))
        path.write_bytes(bytes(damaged))
        is_label_file(path)
        try:
            rows = read_label_file(path)
        except DataError as error:
            refused.append(str(error))
        else:
            assert all(0 <= row.event.start <= row.event.end < float("inf") and row.event.label for row in rows)
    assert len(refused) > 10
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in refused)
