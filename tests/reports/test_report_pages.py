"""Pages of real runs: what is in them, that their numbers are the run's, and that nothing in them can run or load."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from report_runs import CLASSES, HOSTILE, LONG, MARKUP

import ssamba
from ssamba.cli.main import main
from ssamba.evaluation.metrics import wilson

VOID = {"meta", "img", "br", "input", "link", "hr", "image"}


class Reader(HTMLParser):
    """Section titles, text, tags that were opened, and those that were not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text.append(data)

    @property
    def sections(self) -> list[str]:
        return [str(attrs["id"]) for tag, attrs in self.tags if tag == "section"]


def clips_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="clips">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def pages(page_files: dict[str, Path]) -> dict[str, str]:
    return {kind: path.read_text(encoding="utf-8") for kind, path in page_files.items()}


SECTIONS = {
    "pretraining": ["about", "curves", "reconstructions", "map", "reproduce", "left-out"],
    "fine-tuning": [
        *("about", "curves", "results", "confusion", "classes", "mistakes"),
        *("calibration", "map", "timelines", "reproduce", "left-out"),
    ],
    "fit": [
        *("about", "results", "confusion", "classes", "mistakes"),
        *("calibration", "map", "timelines", "reproduce", "left-out"),
    ],
    "probe": ["about", "layers", "map", "reproduce", "left-out"],
    "index": ["about", "map", "duplicates", "reproduce", "left-out"],
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_each_kind_of_run_has_its_sections(kind: str, pages: dict[str, str]) -> None:
    assert Reader(pages[kind]).sections == SECTIONS[kind]


@pytest.mark.parametrize("kind", SECTIONS)
def test_what_a_kind_lacks_is_named_in_a_line(kind: str, pages: dict[str, str]) -> None:
    text = pages[kind].partition('id="left-out"')[2]
    lines = [html.unescape(line) for line in re.findall(r"<li>(.*?)</li>", text)]
    topics = {line.partition(":")[0] for line in lines}
    names = {
        "curves": "Learning curves",
        "reconstructions": "Reconstructions",
        "timelines": "Timelines",
        "duplicates": "Near-duplicates",
        "confusion": "Confusion matrix, classes, calibration",
    }
    assert topics == {title for name, title in names.items() if name not in SECTIONS[kind]}


@pytest.mark.parametrize("kind", SECTIONS)
def test_nothing_is_loaded_from_elsewhere_and_nothing_foreign_runs(kind: str, pages: dict[str, str]) -> None:
    reader = Reader(pages[kind])
    (policy,) = (a["content"] for t, a in reader.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    for tag, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            assert name not in ("style", "srcset", "action", "formaction"), f"<{tag} {name}>"
            if name in ("src", "href", "xlink:href", "data"):
                assert value is not None
                assert value.startswith(("#", "data:image/png;base64,")), f"<{tag} {name}={value[:40]}>"
    scripts = [a for t, a in reader.tags if t == "script"]
    assert scripts == [{"type": "application/json", "id": "clips"}, {}]
    assert "url(" not in pages[kind]
    assert "@import" not in pages[kind]


@pytest.mark.parametrize("kind", ["fine-tuning", "fit", "probe"])
def test_labels_and_names_that_hold_markup_are_read_as_they_are(kind: str, pages: dict[str, str]) -> None:
    assert MARKUP not in pages[kind]
    assert "<img src=x" not in pages[kind]
    assert MARKUP in "".join(Reader(pages[kind]).text)
    names = {row[0] for row in clips_of(pages[kind])["clips"]}
    assert HOSTILE in names


def test_the_numbers_are_those_of_the_run(pages: dict[str, str], runs: dict[str, Path]) -> None:
    for kind in ("fine-tuning", "fit"):
        results = json.loads((runs[kind] / "results.json").read_text())
        right, total = results["counted"]["right"], results["counted"]["clips"]
        low, high = wilson(right, total)
        text = html.unescape(pages[kind]).replace("\xa0", " ")
        assert f"{right} of {total} test clips, 95 %: {100 * low:.0f} to {100 * high:.0f} %" in text
        with open(runs[kind] / "predictions.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == total
        cells = re.findall(r'data-true="([^"]*)" data-predicted="([^"]*)" aria-label="[^"]*">(\d+)<', pages[kind])
        counted = {(html.unescape(t), html.unescape(p)): int(n) for t, p, n in cells}
        expected: dict[tuple[str, str], int] = {}
        for row in rows:
            pair = row["class"], row["predicted"]
            expected[pair] = expected.get(pair, 0) + 1
        assert counted == expected
        wrong = [row for row in rows if row["class"] != row["predicted"]]
        assert len(wrong) >= 2  # the clips that are labelled wrongly
        listed = re.search(r'id="mistakes".*?</section>', pages[kind], re.DOTALL)
        assert listed is not None
        named = [html.unescape(name) for name in re.findall(r'<th scope="row">([^<]*)</th>', listed[0])]
        assert named == [r["clip"] for r in sorted(wrong, key=lambda r: (-float(r["score"]), r["clip"]))][:24]


def test_the_calibration_is_that_of_the_predictions(pages: dict[str, str], runs: dict[str, Path]) -> None:
    with open(runs["fit"] / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    score = np.array([float(r["score"]) for r in rows])
    right = np.array([r["class"] == r["predicted"] for r in rows])
    place = np.clip(np.ceil(score * 15).astype(int) - 1, 0, 14)
    error = sum(abs(right[place == b].sum() - score[place == b].sum()) for b in range(15)) / len(rows)
    assert f"Expected calibration error {100 * error:.1f}\xa0% (15 bins)" in html.unescape(pages["fit"])
    drawn = re.findall(r"<title>(\d+) clips, confidence", pages["fit"])
    assert sum(map(int, drawn)) == len(rows)


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_player_has_a_real_excerpt(kind: str, pages: dict[str, str]) -> None:
    found = clips_of(pages[kind])
    buttons = {int(n) for n in re.findall(r'class="play" data-clip="(\d+)"', pages[kind])}
    assert buttons <= {int(n) for n in found["audio"]}
    points = re.findall(r'class="point [^"]*" data-clip="(\d+)"', pages[kind])
    assert len(points) == len(set(points)) >= 3
    assert all(int(n) < len(found["clips"]) for n in points)
    assert len(found["audio"]) >= 7
    for data in found["audio"].values():
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert rate == 16000
        assert 0.5 < len(samples) / rate < 15
        assert np.abs(samples).max() > 0.05


def test_an_excerpt_is_of_its_clip(pages: dict[str, str], table: Path) -> None:
    found = clips_of(pages["fit"])
    number = next(i for i, row in enumerate(found["clips"]) if row[0] == HOSTILE)
    excerpt, _ = soundfile.read(io.BytesIO(base64.b64decode(found["audio"][str(number)])))
    original, _ = soundfile.read(table.parent / HOSTILE)
    spectra = [np.abs(np.fft.rfft(x, 16000)) for x in (excerpt, original)]
    assert abs(int(spectra[0].argmax()) - int(spectra[1].argmax())) <= 2  # Hz


def test_timelines_are_of_long_recordings(pages: dict[str, str]) -> None:
    figures = re.findall(r'<figure class="timeline">.*?</figure>', pages["fit"], re.DOTALL)
    assert len(figures) == 1
    assert LONG in figures[0]
    assert 'data-seconds="14.000"' in figures[0]
    assert figures[0].count("data:image/png;base64,") == 2


def test_reconstructions_have_three_pictures_and_players_each(pages: dict[str, str]) -> None:
    figures = re.findall(r'<figure class="timeline">.*?</figure>', pages["pretraining"], re.DOTALL)
    assert len(figures) == 3
    for figure in figures:
        assert figure.count("data:image/png;base64,") == 3
        assert figure.count('class="play"') == 3
        assert "16 of 32 patches hidden" in figure


def test_curves_name_every_series_and_end_where_the_log_ends(pages: dict[str, str], runs: dict[str, Path]) -> None:
    with open(runs["pretraining"] / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    last = float([row["val_loss"] for row in rows if row["val_loss"]][-1])
    label = re.search(r'aria-label="joint loss[^"]*"', pages["pretraining"])
    assert label is not None
    ends = re.findall(r"(training|validation): from \S+ to ([\d.]+),", label[0])
    assert [name for name, _ in ends] == ["training", "validation"]
    assert float(ends[1][1]) == pytest.approx(last, rel=5e-3)


def test_duplicates_are_those_of_the_index(pages: dict[str, str], runs: dict[str, Path]) -> None:
    pairs = ssamba.Index(runs["index"]).duplicates()
    names = {Path(pairs[0].first).name, Path(pairs[0].second).name}
    assert names == {"000.wav", "copy.wav"}
    section = pages["index"].partition('id="duplicates"')[2]
    assert all(name in section.partition("</tr><tr>")[0] for name in names)
    assert f"{len(pairs)} pairs with a score of 0.8 or more" in section


def test_the_same_run_gives_the_same_page(runs: dict[str, Path], pages: dict[str, str], tmp_path: Path) -> None:
    again = ssamba.report(runs["fit"], tmp_path / "again.html", clips=30, device="cpu")
    assert again.read_text(encoding="utf-8") == pages["fit"]


def test_without_audio_or_clips(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "silent.html"
    assert main(["report", str(runs["fit"]), "--out", str(out), "--no-audio", "--device", "cpu", "--clips", "9"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    page = out.read_text(encoding="utf-8")
    assert clips_of(page)["audio"] == {}
    assert 'id="player"' not in page
    assert 'class="play"' not in page
    assert page.count('class="point ') == 9
    assert "Players: the page was asked for without audio" in page
    assert main(["report", str(runs["fit"]), "--out", str(out), "--clips", "0", "--device", "cpu"]) == 0
    page = out.read_text(encoding="utf-8")
    assert "map" not in Reader(page).sections
    assert "Embedding map: no recordings were" in page
    assert all(name in html.unescape(page) for name in CLASSES)


def test_the_page_goes_into_the_run_by_default(runs: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["probe"], tmp_path / "probe")
    assert main(["report", str(run), "--device", "cpu"]) == 0
    assert "Embedding map: a probe does not record where its data lies" in (run / "report.html").read_text()
