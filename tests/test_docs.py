"""Documents hold together: links, citations and file names lead somewhere, and the README's Python runs."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import ssamba

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference.md"
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
CITATION = re.compile(r'docs/reference\.md,[\s#"]*?"([^"]+)"(?:\s+and\s+"([^"]+)")?')
NAMED_FILE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|cu|cuh)|(?:[\w.-]+/)+[\w.-]+\.(?:md|yaml))(?:::\w+)?`")
PLACES = ("", "src/ssamba")
"""Folders that a file name with a folder may be relative to; a bare name is that of any file."""


@cache
def tracked() -> tuple[Path, ...]:
    """Files of the repository; in an unpacked archive without git, every file of the folders that are read."""
    result = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode == 0:
        return tuple(ROOT / name for name in result.stdout.splitlines() if (ROOT / name).is_file())
    folders = ("src", "tests", "docs", "dev", "experiments", "tools", "benchmarks")
    return (*ROOT.glob("*.md"), *(path for name in folders for path in (ROOT / name).rglob("*") if path.is_file()))


def documents() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


def text_files() -> list[Path]:
    return [p for p in tracked() if p.suffix in (".py", ".yaml", ".md", ".cu", ".cuh") and p != Path(__file__)]


def anchors(document: Path) -> set[str]:
    """Headings as GitHub names them in links."""
    found = re.findall(r"^#+ (.+)$", without_code(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_no_merge_is_half_done() -> None:
    """Of all files that are text: each begins no line as git marks two versions of it."""
    marks = re.compile(rb"^(?:<{7}|>{7})(?: |$)", re.MULTILINE)
    assert not [path for path in tracked() if path.stat().st_size < 1_000_000 and marks.search(path.read_bytes())]


def without_code(document: Path) -> str:
    return re.sub(r"^( *```).*?^\1", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", documents(), ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    dead = []
    for target in LINK.findall(without_code(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize("document", documents(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_documents_name_exist(document: Path) -> None:
    names = set(NAMED_FILE.findall(without_code(document)))
    places = [document.parent, *(ROOT / place for place in PLACES)]
    bare = {path.name for path in tracked()}
    missing = {n for n in names if n not in bare and not any((place / n).exists() for place in places)}
    assert not missing


def test_citations_of_the_reference_name_its_headings() -> None:
    headings = set(re.findall(r"^## (.+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE))
    cited = {}
    for path in text_files():
        for names in CITATION.findall(path.read_text(encoding="utf-8")):
            cited.update({name: path for name in names if name})
    assert len(cited) >= 5
    assert not {name: path for name, path in cited.items() if name not in headings}


def test_nothing_cites_the_reference_by_its_former_name() -> None:
    assert not [path for path in text_files() if "REFERENCE" + ".md" in path.read_text(encoding="utf-8")]


def test_the_readme_fits_in_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
    assert len((ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_first_python_of_the_readme_runs() -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    names: dict[str, object] = {"audio": np.sin(np.arange(2 * 44100) / 30).astype(np.float32)}
    exec(compile(block[1], "README.md", "exec"), names)  # our own text, of this repository
    (out,) = (value for value in names.values() if type(value).__name__ == "Embeddings")
    assert out.clip.shape == (1, 192)  # type: ignore[attr-defined]
    assert ssamba.__version__
