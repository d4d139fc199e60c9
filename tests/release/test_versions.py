"""One version everywhere, and what is promised of Python and of dependencies is the same in every file that says it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import ssamba

ROOT = Path(__file__).parent.parent.parent
if sys.version_info >= (3, 11):
    import tomllib

    PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
else:
    pytest.skip("tomllib is part of Python from 3.11 on", allow_module_level=True)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pythons() -> list[str]:
    """The versions in the classifiers."""
    found = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in PROJECT["classifiers"]]
    return [match[1] for match in found if match]


def test_one_version() -> None:
    version = ssamba.__version__
    assert PROJECT["version"] == version
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == version
    heading = re.search(r"^## (\d\S*) \((\d{4}-\d\d-\d\d)\)$", text("CHANGELOG.md"), re.MULTILINE)
    assert heading is not None
    assert heading[1] == version
    assert heading[2] == str(citation["date-released"])
    assert text("CHANGELOG.md").startswith("# Changelog\n\n## Unreleased\n")


def test_the_citation_has_what_the_format_asks_for() -> None:
    citation = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "version", "date-released", "license"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == PROJECT["license"]
    for entry in (citation, *citation["references"]):
        assert all({"name"} == set(a) or {"family-names", "given-names"} == set(a) for a in entry["authors"])
    assert {"type", "title", "authors"} <= set(citation["references"][0])


def test_the_pythons_are_the_same_everywhere() -> None:
    versions = pythons()
    assert PROJECT["requires-python"] == f">={versions[0]}"
    numbers = [int(v.partition(".")[2]) for v in versions]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    for name, job in (("ci", "tests"), ("release", "try")):
        workflow = yaml.load(text(f".github/workflows/{name}.yml"), yaml.BaseLoader)
        assert workflow["jobs"][job]["strategy"]["matrix"]["python"] == versions, name
    trials = yaml.load(text(".github/workflows/ci.yml"), yaml.BaseLoader)["jobs"]["wheel"]["strategy"]["matrix"][
        "include"
    ]
    lowest = [t["python"] for t in trials if t["resolution"] == "lowest-direct"]
    assert lowest == [versions[0]]
    assert versions[-1] in {t["python"] for t in trials}
    page = text("docs/versioning.md")
    assert f"| Python | {versions[0]} | {versions[-1]} |" in page
    assert f"Python {versions[0]} to {versions[-1]}" in text("docs/package.md")
    (torch,) = (Requirement(r) for r in PROJECT["dependencies"] if r.startswith("torch>"))
    assert f"| torch | {next(iter(torch.specifier)).version} |" in page


def test_the_notices_name_every_dependency_with_its_licence() -> None:
    """By what the installed packages say of themselves; several have words of their own for the same licence."""
    rows = dict(re.findall(r"^\| ([\w-]+) \| ([^|]+) \|", text("THIRD_PARTY.md"), re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    wanted = [
        *PROJECT["dependencies"],
        *(
            r
            for e in ("plot", "parquet", "hf", "transformers", "onnx", "search", "sklearn", "serve")
            for r in extras[e]
        ),
    ]
    names = {Requirement(r).name for r in wanted}
    assert names == set(rows) - {"package"}
    families = ("Apache", "BSD", "MIT", "LGPL", "MPL", "Python Software Foundation|matplotlib")
    for name in names:
        try:
            values = metadata(name)
        except PackageNotFoundError:
            continue
        licence = (values["License"] or "").strip().partition("\n")[0]
        classifiers = " ".join(c for c in values.get_all("Classifier", []) if c.startswith("License"))
        said = values["License-Expression"] or f"{licence} {classifiers}"
        kinds = {f for f in families if re.search(f, said)}
        ours = {f for f in families if re.search(f.replace("Python Software Foundation", "PSF"), rows[name])}
        assert kinds & ours, (name, said, rows[name])


def test_no_syntax_or_name_is_newer_than_the_oldest_python() -> None:
    """vermin reads every module; what is imported for type checkers alone is left out by name."""
    pytest.importorskip("vermin", reason="vermin is not installed")
    only_types = ["--exclude", "typing.Self", "--exclude", "importlib.resources.abc"]
    words = [f"--target={pythons()[0]}-", "--no-tips", "--violations", "--eval-annotations", "--lint", *only_types]
    command = [sys.executable, "-c", "import vermin; vermin.main()", *words, str(ROOT / "src")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_no_named_tuple_has_a_second_base() -> None:
    """Python 3.10 refuses such a class when its module is imported, and no linter says so."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and len(node.bases) > 1:
                bases = {ast.unparse(base) for base in node.bases}
                if bases & {"NamedTuple", "typing.NamedTuple"}:
                    found.append(f"{path.name}:{node.lineno}: {node.name}")
    assert not found
