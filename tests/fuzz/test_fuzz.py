"""Damaged files: every finding of earlier campaigns again, and a short campaign of new ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuzz.campaign import Cases, campaign
from fuzz.targets import TARGETS, check

CORPUS = Path(__file__).parent / "corpus"
FOUND = sorted(path for path in CORPUS.iterdir() if path.name.partition("-")[0] in TARGETS)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_was_found_once(tmp_path: Path, path: Path) -> None:
    target = TARGETS[path.name.partition("-")[0]]
    case = tmp_path / f"case{target.ending}"
    case.write_bytes(path.read_bytes())
    check(target, case)


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_taken(tmp_path: Path, name: str) -> None:
    """Else a campaign would only test refusals."""
    target = TARGETS[name]
    outcomes = []
    for content in target.seeds(tmp_path):
        case = tmp_path / f"case{target.ending}"
        case.write_bytes(content)
        outcomes.append(check(target, case))
    assert "taken" in outcomes


def test_a_case_is_a_function_of_its_number(tmp_path: Path) -> None:
    made = [Cases(tmp_path / str(i), seed=5).make("wav", 77).read_bytes() for i in range(2)]
    assert made[0] == made[1]
    assert Cases(tmp_path / "other", seed=6).make("wav", 77).read_bytes() != made[0]


def test_campaign_in_short() -> None:
    report = campaign(cases=600, seed=1, jobs=2, quiet=True)
    assert [finding[:4] for finding in report.findings] == []
    assert report.cases == 600
    assert report.taken > 50


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_campaign_of_two_processor_minutes() -> None:
    """Other cases for each value of ``SSAMBA_FUZZ_SEED``."""
    report = campaign(cases=10**7, seed=int(os.environ.get("SSAMBA_FUZZ_SEED", "0")), jobs=2, seconds=60, quiet=True)
    assert [finding[:4] for finding in report.findings] == []
    assert report.cases > 3_000
