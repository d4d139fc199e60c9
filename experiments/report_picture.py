"""A picture of a page that ``ssamba report`` made, light and dark, wide and narrow, by a browser without a network.

    python experiments/report_picture.py REPORT.html OUT.png

Needs playwright, chromium and matplotlib's Pillow. The picture of docs/report.md is that of a fit of ESC-10:

    ssamba fit --layout esc10 --data ESC10 --out runs/esc10
    ssamba report runs/esc10
    python experiments/report_picture.py runs/esc10/report.html docs/images/report.png
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW, HEIGHT = 1180, 390, 900
GAP = 24


def take(browser: Any, page: Path, width: int, scheme: str, section: str) -> Image.Image:
    """The window of that width with a section at its top and the first wrong point of the map chosen."""
    context = browser.new_context(
        viewport={"width": width, "height": HEIGHT}, color_scheme=scheme, offline=True, reduced_motion="reduce"
    )
    opened = context.new_page()
    opened.goto(page.absolute().as_uri())
    if section:
        wrong = opened.locator(".point.wrong")
        if wrong.count():
            wrong.first.focus()
        opened.locator(f"#{section}").evaluate("e => window.scrollTo(0, e.offsetTop - 44)")
    content = opened.screenshot()
    context.close()
    return Image.open(io.BytesIO(content)).convert("RGB")


def main() -> None:
    """Two windows side by side: the map, wide and light, and the classes, narrow and dark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, metavar="REPORT.html", help="what ssamba report wrote")
    parser.add_argument("out", type=Path, metavar="OUT.png", help="the picture")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        parts = [
            take(browser, arguments.page, WIDE, "light", "map"),
            take(browser, arguments.page, NARROW, "dark", "classes"),
        ]
        browser.close()
    width = sum(part.width for part in parts) + GAP * (len(parts) - 1)
    whole = Image.new("RGB", (width, HEIGHT), "#8a94a3")
    place = 0
    for part in parts:
        whole.paste(part, (place, 0))
        place += part.width + GAP
    whole.resize((round(0.75 * width), round(0.75 * HEIGHT)), Image.Resampling.LANCZOS).save(arguments.out)


if __name__ == "__main__":
    main()
