"""The site: it builds without a warning or a network, lacks no page, and asks nothing of other hosts."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'ssamba[docs]'")
pytest.importorskip("material", reason="mkdocs-material is not installed: pip install 'ssamba[docs]'")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install 'ssamba[docs]'")
ROOT = Path(__file__).parent.parent.parent
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""What a browser fetches by itself, and the attribute that says from where."""


def build(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    """A strict build whose every attempt to reach another host fails."""
    nowhere = "http://127.0.0.1:9"
    variables = {"NO_MKDOCS_2_WARNING": "1", "http_proxy": nowhere, "https_proxy": nowhere}
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(folder),
        "--config-file",
        str(config),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | variables, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder, ROOT / "mkdocs.yml")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Tags(HTMLParser):
    """Addresses that a page loads, and the texts of its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADED.get(tag, ""))
        if address:
            self.loaded.append(address)


def pages(site: Path) -> Iterator[tuple[Path, Tags]]:
    for path in sorted(site.rglob("*.html")):
        tags = Tags()
        tags.feed(path.read_text(encoding="utf-8"))
        yield path, tags


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    found = list(pages(site))
    assert len(found) > 25
    for path, tags in found:
        assert len(tags.loaded) > 3, path
        outside = [a for a in tags.loaded if re.match(r"(https?:)?//", a)]
        assert not outside, path
        if path.name != "404.html":
            missing = [a for a in tags.loaded if not (path.parent / a.partition("?")[0].partition("#")[0]).exists()]
            assert not [a for a in missing if not a.startswith("data:")], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_every_document_is_in_the_navigation() -> None:
    """One that another change will bring may wait as a comment: ``# - Serve: serve.md``."""
    named = re.findall(r"([\w./*-]+\.md)", CONFIG)
    documents = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    forgotten = [d for d in documents if not any(fnmatch.fnmatchcase(d, pattern) for pattern in named)]
    assert not forgotten, "name it under nav in mkdocs.yml"
    active = "".join(line for line in CONFIG.splitlines(keepends=True) if not line.lstrip().startswith("#"))
    waiting = set(named) - set(re.findall(r"([\w./*-]+\.md)", active))
    there = [d for d in documents if any(fnmatch.fnmatchcase(d, pattern) for pattern in waiting)]
    assert not there, "is there now: take the comment sign away in mkdocs.yml"


def test_the_search_finds_calls_and_commands(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    assert len(entries) > 200
    titles = {entry["title"] for entry in entries if entry["location"].startswith("api.html#")}
    for name in ("load", "embed", "predict", "with_grid", "Index", "export_onnx", "SsambaError"):
        assert any(re.search(rf"\b{name}\b", title) for title in titles), name
    text = " ".join(entry["text"] for entry in entries)
    for words in ("ssamba fit", "ssamba pretrain", "private vulnerability reporting", "SSAMBA_CACHE_DIR"):
        assert words in re.sub(r"<[^>]+>", "", text)


def test_every_public_name_is_in_the_reference() -> None:
    import ssamba

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert not [name for name in ssamba.__all__ if f"::: ssamba.{name}\n" not in text + "\n"]


def test_a_dead_link_ends_the_build(tmp_path: Path) -> None:
    """To a page, to a heading, or to a file of the repository that is not there."""
    docs = tmp_path / "docs"
    docs.mkdir()
    text = CONFIG.partition("\nnav:")[0].replace("docs_dir: docs", f"docs_dir: {docs}")
    text = text.replace("dev/site_hooks.py", str(ROOT / "dev" / "site_hooks.py"))
    text = re.sub(r"  - mkdocstrings:\n(    .*\n)*", "", text)
    (tmp_path / "mkdocs.yml").write_text(text)
    for link in ("nowhere.md", "#no-such-heading", "../nowhere/FILE.md"):
        (docs / "index.md").write_text(f"# Page\n\n[a link]({link})\n")
        done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
        assert done.returncode != 0, link
        assert "nowhere" in done.stderr or "no-such-heading" in done.stderr
    (docs / "index.md").write_text(
        "# Page\n\n[a link](#page), [security](../SECURITY.md), [code](../dev/site_hooks.py)\n"
    )
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="project/security.html"' in page
    assert "site_hooks" not in page
