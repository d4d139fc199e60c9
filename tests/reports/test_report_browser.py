"""Pages in a real browser without a network: players play, the keyboard reaches everything, narrow and dark fit."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, LONG, MARKUP

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
KINDS = ("pretraining", "fine-tuning", "fit", "probe", "index")
SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]

CONTRASTS = """
() => {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => {
    const text = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16) / 255);
  };
  const light = (name) => {
    const [r, g, b] = rgb(name).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const found = {};
  for (const paper of ["--paper", "--sheet"])
    for (const ink of ["--ink", "--quiet", "--accent", ...[0, 1, 2, 3, 4, 5, 6, 7].map((i) => "--c" + i)])
      found[ink + " on " + paper] = ratio(ink, paper);
  found["--good on --good-paper"] = ratio("--good", "--good-paper");
  found["--open on --open-paper"] = ratio("--open", "--open-paper");
  return found;
}
"""
NAMELESS = """
() => [...document.querySelectorAll('a, button, audio, summary, [role], nav, section, svg:not([aria-hidden])')]
  .filter((e) => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim()))
  .map((e) => e.outerHTML.slice(0, 100))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--mute-audio"])
        yield found
        found.close()


class Opened:
    """A page that was opened, and all that it said or asked for."""

    def __init__(
        self, browser: Any, path: Path, width: int = 1280, scheme: str = "light", scripts: bool = True
    ) -> None:
        size = {"width": width, "height": 900}
        self.context = browser.new_context(
            viewport=size, color_scheme=scheme, offline=True, java_script_enabled=scripts, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.path = path

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()

    def check(self) -> None:
        """Nothing was said on the console, nothing was asked of a network, and no markup of a name has run."""
        assert self.said == []
        assert [url for url in self.asked if not url.startswith("data:")] == [self.path.as_uri()]
        assert self.page.evaluate("window.hacked === undefined")

    def wait_for(self, condition: str) -> None:
        """Wait for a condition in JavaScript; the page's policy lets nothing in it be evaluated again and again."""
        end = time.monotonic() + 20
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"not within 20 s: {condition}"
            self.page.wait_for_timeout(30)

    def wait_until_it_plays(self) -> None:
        self.wait_for("document.getElementById('audio').currentTime > 0.05")


@pytest.mark.parametrize(("width", "scheme"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_without_errors_and_fits(
    kind: str, width: int, scheme: str, browser: Any, page_files: dict[str, Path]
) -> None:
    with Opened(browser, page_files[kind], width, scheme) as opened:
        page = opened.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        low = {name: ratio for name, ratio in page.evaluate(CONTRASTS).items() if ratio < 4.5}
        assert not low, f"contrast below 4.5: {low}"
        assert page.evaluate(NAMELESS) == []
        heads = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
        assert heads[0] == 1
        assert heads.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(heads))
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        opened.check()


@pytest.mark.parametrize("kind", ["pretraining", "fit", "index"])
def test_a_player_plays_and_stops(kind: str, browser: Any, page_files: dict[str, Path]) -> None:
    with Opened(browser, page_files[kind]) as opened:
        page = opened.page
        assert page.locator("#player").is_hidden()
        button = page.locator(".play").first
        button.click()
        opened.wait_until_it_plays()
        assert page.locator("#player").is_visible()
        name = button.get_attribute("aria-label").removeprefix("Play ")
        assert page.locator("#now").inner_text().startswith(name)
        assert button.get_attribute("aria-pressed") == "true"
        button.click()
        opened.wait_for("document.getElementById('audio').paused")
        page.locator("#close").click()
        assert page.locator("#player").is_hidden()
        opened.check()


def test_the_map_is_reached_and_played_by_keyboard(browser: Any, page_files: dict[str, Path]) -> None:
    with Opened(browser, page_files["fit"]) as opened:
        page = opened.page
        assert page.locator('.point[tabindex="0"]').count() == 1  # one stop of the Tab key
        page.locator('.point[tabindex="0"]').focus()
        visited = set()
        for key in ("ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
            visited.add(page.evaluate("document.activeElement.dataset.clip"))
        assert len(visited) >= 3
        assert page.locator('.point[tabindex="0"]').count() == 1
        said = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert page.locator(".info").inner_text().startswith(said.split(", ")[0])
        page.keyboard.press("Enter")
        opened.wait_until_it_plays()
        opened.check()


def test_all_controls_are_reached_with_the_tab_key(browser: Any, page_files: dict[str, Path]) -> None:
    with Opened(browser, page_files["fit"]) as opened:
        page = opened.page
        wanted = page.evaluate("document.querySelectorAll('a, button:not(#close), summary').length")
        reached = set()
        for _ in range(wanted + 40):
            page.keyboard.press("Tab")
            mark = page.evaluate(
                "(() => { const e = document.activeElement;"
                " return e.matches('a, button, summary') ?"
                " [...document.querySelectorAll('a, button, summary')].indexOf(e) : -1 })()"
            )
            reached.add(mark)
        assert len(reached - {-1}) == wanted


def test_groups_come_to_the_front(browser: Any, page_files: dict[str, Path]) -> None:
    with Opened(browser, page_files["fit"]) as opened:
        page = opened.page
        total = page.locator(".point").count()
        group = page.locator(".group").first
        group.click()
        assert group.get_attribute("aria-pressed") == "true"
        assert 0 < page.locator(".point.dim").count() < total
        group.click()
        assert page.locator(".point.dim").count() == 0


def test_a_cell_of_the_matrix_lists_its_clips(browser: Any, page_files: dict[str, Path]) -> None:
    with Opened(browser, page_files["fit"]) as opened:
        page = opened.page
        cell = page.locator("td.miss .cell").first
        count = int(cell.inner_text())
        cell.focus()
        page.keyboard.press("Enter")
        assert page.locator("#cell-clips li").count() == count
        page.locator("#cell-clips .play").first.click()
        opened.wait_until_it_plays()
        opened.check()


def test_a_timeline_follows_and_seeks(browser: Any, page_files: dict[str, Path]) -> None:
    with Opened(browser, page_files["fit"]) as opened:
        page = opened.page
        strip = page.locator("#timelines .strip").nth(1)
        assert LONG in page.locator("#timelines figcaption").inner_text()
        box = strip.bounding_box()
        strip.click(position={"x": box["width"] / 2, "y": 10})
        opened.wait_for("document.getElementById('audio').currentTime > 7.02")
        place = page.evaluate("parseFloat(document.querySelectorAll('#timelines .cursor')[1].getAttribute('x1'))")
        assert 49 < place < 75
        opened.check()


def test_names_that_hold_markup_are_text(browser: Any, page_files: dict[str, Path]) -> None:
    with Opened(browser, page_files["fit"]) as opened:
        page = opened.page
        assert page.locator(f"text={MARKUP}").count() >= 2
        point = page.locator(f'.point[aria-label^="{HOSTILE}"]')
        point.focus()
        assert page.locator(".info").inner_text().startswith(HOSTILE)
        page.keyboard.press("Enter")
        opened.wait_until_it_plays()
        assert page.locator("#now").inner_text().startswith(HOSTILE)
        opened.check()


def test_foreign_script_is_refused_by_the_policy(browser: Any, page_files: dict[str, Path], tmp_path: Path) -> None:
    """Even if a name were not escaped: a script that was put into the page does not run."""
    text = page_files["fit"].read_text(encoding="utf-8").replace("<main>", f"<main><p>{MARKUP}</p><img src=//x.test/y>")
    changed = tmp_path / "changed.html"
    changed.write_text(text, encoding="utf-8")
    with Opened(browser, changed) as opened:
        assert opened.page.evaluate("window.hacked === undefined")
        assert len([line for line in opened.said if "Content Security Policy" in line]) >= 2


def test_it_reads_without_scripts(browser: Any, page_files: dict[str, Path]) -> None:
    with Opened(browser, page_files["fit"], scripts=False) as opened:
        assert "players need JavaScript" in opened.page.locator("body").inner_text()
        assert opened.page.locator("svg").count() > 5
