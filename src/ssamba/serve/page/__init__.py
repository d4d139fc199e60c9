"""The page: plain files that are read once; no path that a client names is ever looked up."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE_FILES = ("index.html", "style.css", "app.js", "audio.js", "labels.js", "icon.svg")


def page_files() -> dict[str, tuple[str, bytes]]:
    """Path -> content type and content; ``/`` is the page itself."""
    folder = files("ssamba.serve.page")
    found = {}
    for name in PAGE_FILES:
        content = (folder / name).read_bytes()
        path = "/" if name == "index.html" else f"/page/{name}"
        found[path] = TYPES["." + name.rpartition(".")[2]], content
    return found
