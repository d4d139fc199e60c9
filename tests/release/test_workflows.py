"""The workflows: structure, rights, and that what they run is there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
KEYS = {
    "workflow": {"name", "on", "permissions", "concurrency", "env", "jobs"},
    "job": {
        "runs-on",
        "needs",
        "timeout-minutes",
        "strategy",
        "env",
        "steps",
        "environment",
        "permissions",
        "defaults",
    },
    "step": {"name", "uses", "with", "run", "env"},
}


def load(path: Path) -> dict[str, Any]:
    """Without YAML's own types: ``on`` is a word here."""
    return yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # type: ignore[no-any-return]


def jobs() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path.stem, name, job) for path in WORKFLOWS for name, job in load(path)["jobs"].items()]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_only_known_keys_and_no_rights_by_default(path: Path) -> None:
    workflow = load(path)
    assert set(workflow) <= KEYS["workflow"]
    assert {"name", "on", "permissions", "jobs"} <= set(workflow)
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize(("workflow", "name", "job"), jobs(), ids=lambda v: v if isinstance(v, str) else "")
def test_jobs_end_and_their_steps_are_whole(workflow: str, name: str, job: dict[str, Any]) -> None:
    assert set(job) <= KEYS["job"]
    assert 0 < int(job["timeout-minutes"]) <= 90
    assert set(job.get("needs", "").split()) <= set(load(ROOT / f".github/workflows/{workflow}.yml")["jobs"])
    for step in job["steps"]:
        assert set(step) <= KEYS["step"]
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])
        else:
            check_command(step["run"])


def check_command(run: str) -> None:
    """Shell syntax, no untrusted text in the shell, and files of the repository that exist."""
    assert subprocess.run(["bash", "-n", "-c", run], capture_output=True).returncode == 0, run
    assert not re.search(r"\$\{\{\s*github\.(event|head_ref|ref_name)", run), "give it as an environment variable"
    for word in shlex.split(run, comments=True):
        if re.fullmatch(r"(\.ci|dev|tests|src)/[\w./-]+", word):
            assert (ROOT / word).exists(), word


def test_every_expression_is_of_a_known_context() -> None:
    known = r"(matrix\.\w+|vars\.\w+|github\.(workflow|ref|ref_name))"
    for path in WORKFLOWS:
        for expression in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", path.read_text(encoding="utf-8")):
            assert re.fullmatch(known, expression), expression
        values = load(path)
        for name, job in values["jobs"].items():
            matrix = job.get("strategy", {}).get("matrix", {})
            axes = set(matrix) - {"include"} | {k for row in matrix.get("include", []) for k in row}
            used = set(re.findall(r"matrix\.(\w+)", str(job)))
            assert used <= axes, name


def test_a_release_is_published_without_a_password() -> None:
    """An identity token for the publishing job alone, an environment, after the trials, and no secret anywhere."""
    release = load(ROOT / ".github/workflows/release.yml")
    publish = release["jobs"]["publish"]
    assert release["on"] == {"push": {"tags": ["v*"]}}
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"]
    assert publish["needs"] == "try"
    assert release["jobs"]["try"]["needs"] == "build"
    assert all("permissions" not in job for name, job in release["jobs"].items() if name != "publish")
    assert [s["uses"] for s in publish["steps"]][-1] == "pypa/gh-action-pypi-publish@release/v1"
    assert not any("secrets." in path.read_text(encoding="utf-8") for path in WORKFLOWS)


def test_continuous_integration_runs_all_tests() -> None:
    ci = load(ROOT / ".github/workflows/ci.yml")
    assert [s["run"] for s in ci["jobs"]["all"]["steps"] if "run" in s] == ["bash .ci/run"]
    assert set(ci["on"]) == {"push", "pull_request"}


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem)
def test_issue_forms_are_whole(path: Path) -> None:
    values = load(path)
    if path.stem == "config":
        assert values == {"blank_issues_enabled": "true"}
        return
    assert {"name", "description", "body"} <= set(values)
    identifiers = [field["id"] for field in values["body"] if field["type"] != "markdown"]
    assert len(set(identifiers)) == len(identifiers) >= 2
    for field in values["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "dropdown")
        assert field["attributes"]["value" if field["type"] == "markdown" else "label"]
