"""The page in a real browser: a file, a microphone, labels that are corrected and exported, keys, narrow and dark."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from serving import RATE, Server, scene

from ssamba.data.labels.formats import read_label_file

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
PATIENCE = 150_000
"""Milliseconds until a page has failed, on a machine with much else to do."""
DONE = re.compile(r" s, \d+ labels?$")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    words = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox"]
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=words)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, opened; a test fails for anything on the browser's console."""
    with browser.new_context(viewport={"width": 1200, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        said: list[str] = []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("response", lambda answer: said.append(answer.url) if answer.status >= 400 else None)
        page.goto(server.url)
        playwright.expect(page.locator("#about")).to_contain_text("3 classes, index of 18 recordings")
        yield page
        assert said == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "scene <b>.flac"
    soundfile.write(path, scene(), RATE)
    return path


def load(page: Any, path: Path) -> None:
    page.set_input_files("#file", str(path))
    playwright.expect(page.locator("#status")).to_have_text(DONE)


def row_named(page: Any, label: str) -> Any:
    """The row of the table of labels whose name is ``label``."""
    rows = page.locator("#labels tbody tr")
    names = [rows.nth(i).get_by_label(re.compile("^Name of")).input_value() for i in range(rows.count())]
    return rows.nth(names.index(label))


def test_a_file_is_seen_labelled_and_compared(page: Any, sound: Path, tmp_path: Path) -> None:
    load(page, sound)
    assert page.inner_text("#name") == "scene <b>.flac"
    mark, whole = page.locator("#timeline button", has_text="hiss"), page.locator("#timeline").bounding_box()
    found = re.fullmatch(r"hiss, ([\d.]+) to ([\d.]+) s, score [01]\.\d\d", mark.get_attribute("aria-label"))
    assert found is not None
    start, end = float(found[1]), float(found[2])
    assert (start, end) == pytest.approx((3.0, 5.5), abs=0.6)
    box = mark.bounding_box()
    assert box["x"] - whole["x"] == pytest.approx(whole["width"] * start / 8.5, abs=2)
    assert box["width"] == pytest.approx(whole["width"] * (end - start) / 8.5, abs=2)
    picture = page.locator("#spectrogram").screenshot(path=str(tmp_path / "s.png"))
    assert len(picture) > 20000, "an empty picture"
    brightness = _columns(tmp_path / "s.png")
    third = len(brightness) // 17  # half a second
    assert brightness[7 * third : 10 * third].mean() > 1.5 * brightness[1 * third : 5 * third].mean()
    assert page.locator("#matches li").count() == 6
    first = page.locator("#matches li").first
    assert first.locator("strong").inner_text().startswith(("tone/", "hiss/", "clicks/"))
    duration = first.locator("audio").evaluate(
        "a => new Promise((done, no) => { a.onloadedmetadata = () => done(a.duration); a.onerror = no; a.load(); })"
    )
    assert duration > 0.5


def _columns(path: Path) -> np.ndarray:
    import matplotlib.image

    return np.asarray(matplotlib.image.imread(path))[..., :3].mean(axis=(0, 2))


@pytest.mark.parametrize("format", ["audacity", "csv"])
def test_a_label_is_corrected_and_exported(page: Any, sound: Path, tmp_path: Path, format: str) -> None:
    load(page, sound)
    row = row_named(page, "hiss")
    start = float(row.get_by_label(re.compile("^Start of label")).input_value())
    row.get_by_label(re.compile("^Name of label")).fill("steam")
    row.get_by_label(re.compile("^Name of label")).press("Tab")
    row = row_named(page, "steam")
    row.get_by_label(re.compile("^End of label")).fill("5.25")
    row.get_by_label(re.compile("^End of label")).press("Enter")
    page.locator("#labels tbody tr").first.get_by_role("button", name=re.compile("^Remove")).click()
    page.select_option("#format", format)
    with page.expect_download() as download:
        page.click("#export")
    suffix = {"audacity": ".txt", "csv": ".csv"}[format]
    assert download.value.suggested_filename.endswith(suffix)
    out = tmp_path / f"labels{suffix}"
    download.value.save_as(out)
    events = [row.event for row in read_label_file(out)]
    (steam,) = (e for e in events if e.label == "steam")
    assert (steam.start, steam.end) == (start, 5.25)
    assert min(e.start for e in events) > 0
    playwright.expect(page.locator("#status")).to_contain_text("written")


def test_a_recording_of_the_microphone_is_decoded_in_the_page(page: Any) -> None:
    page.click("#record")
    playwright.expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
    playwright.expect(page.locator("#clock")).to_have_text(re.compile(r"^([2-9]|\d\d)\.\d s$"))
    page.click("#record")
    playwright.expect(page.locator("#status")).to_have_text(re.compile("^recording.wav: .*" + DONE.pattern))
    seconds = float(re.search(r"([\d.]+) s", page.inner_text("#status"))[1])  # type: ignore[index]
    assert 1.5 < seconds < 100
    assert page.locator("#player").evaluate("a => a.duration") == pytest.approx(seconds, abs=0.1)


def test_the_keyboard_does_what_the_mouse_does(page: Any, sound: Path) -> None:
    load(page, sound)
    before = page.locator("#labels tbody tr").count()
    page.focus("#spectrogram")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#player").evaluate("a => a.currentTime") == pytest.approx(1.0, abs=0.05)
    head, whole = page.locator("#playhead").bounding_box(), page.locator("#views").bounding_box()
    assert head["x"] - whole["x"] == pytest.approx(whole["width"] / 8.5, abs=3)
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    assert page.locator("#selection").is_visible()
    page.keyboard.press("l")
    assert page.locator("#labels tbody tr").count() == before + 1
    values = [page.locator("tr input:focus").input_value()]
    assert values == ["clicks"]
    page.keyboard.type("dog")
    page.keyboard.press("Tab")
    mark = page.locator("#timeline button", has_text="dog")
    assert mark.get_attribute("aria-label") == "dog, 1.00 to 2.50 s"
    page.focus("#spectrogram")
    page.keyboard.press("Escape")
    assert not page.locator("#selection").is_visible()
    mark.focus()
    page.keyboard.press("Enter")
    playwright.expect(page.locator("tr.current")).to_have_count(1)
    page.locator("#player").evaluate("a => a.pause()")
    page.locator("#file").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "record"


def test_everything_that_can_be_used_has_a_name(page: Any, sound: Path) -> None:
    """What a screen reader says: no control of the page is without a name."""
    load(page, sound)
    for selector in ("button", "input", "select", "audio", "meter", "canvas", "section"):
        for handle in page.locator(selector).element_handles():
            if not handle.is_visible():
                continue
            name = handle.evaluate(
                "e => e.getAttribute('aria-label') || (e.labels && e.labels.length && e.labels[0].textContent) || "
                "(e.getAttribute('aria-labelledby') && "
                "document.getElementById(e.getAttribute('aria-labelledby')).textContent) || e.textContent"
            )
            assert (name or "").strip(), handle.evaluate("e => e.outerHTML")
    assert page.evaluate("() => document.documentElement.lang") == "en"
    assert page.locator("[role=status][aria-live=polite]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_schemes(browser: Any, server: Server, sound: Path, scheme: str) -> None:
    with browser.new_context(color_scheme=scheme, viewport={"width": 360, "height": 740}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(server.url)
        load(page, sound)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
        ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        text = page.evaluate("() => getComputedStyle(document.body).color")
        dark, light = sorted(sum(map(int, re.findall(r"\d+", c)[:3])) for c in (ground, text))
        assert light - dark > 400
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 380) is (scheme == "light")


def test_what_cannot_be_read_is_said(browser: Any, server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFF\0\0\0\0WAVE and no more than this")
    (tmp_path / "y.m4a").write_bytes(b"\0\0\0\x20ftypM4A nothing behind it")
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(server.url)
        playwright.expect(page.locator("#about")).to_contain_text("classes")
        page.set_input_files("#file", str(tmp_path / "x.wav"))
        playwright.expect(page.get_by_role("alert")).to_contain_text("x.wav: is not audio")
        page.set_input_files("#file", str(tmp_path / "y.m4a"))
        playwright.expect(page.get_by_role("alert")).to_have_text(
            "y.m4a: neither the server nor this browser can decode it"
        )
