"""What finished runs leave on disk stays as it is: files, layouts, and bit for bit the numbers of fixed runs."""

from __future__ import annotations

import warnings
from pathlib import Path

import guard_runs
import pytest
from guard_snapshots import runs_folder
from guard_support import assert_same, read_golden


@pytest.fixture(scope="module")
def runs() -> Path:
    return runs_folder()


@pytest.mark.parametrize("run", list(guard_runs.COMMANDS))
def test_files_of_a_run(runs: Path, run: str) -> None:
    assert_same(guard_runs.layouts(runs)[run], read_golden("run_layouts")[run], f"run_layouts/{run}")


def test_state_dicts_of_runs(runs: Path) -> None:
    assert_same(guard_runs.loaded(runs), read_golden("run_state_dicts"), "run_state_dicts")


def test_outputs_of_commands(runs: Path) -> None:
    assert_same(guard_runs.outputs(runs), read_golden("outputs"), "outputs")


def test_numbers_of_fixed_runs(runs: Path) -> None:
    """On every machine: within a tolerance that the order of summation does not reach."""
    wrong = guard_runs.differences(guard_runs.numbers(runs), read_golden("numbers"))
    assert not wrong, "\n".join(wrong[:20])


def test_bits_of_fixed_runs(runs: Path) -> None:
    """On a machine with golden digests; ``test_numbers_of_fixed_runs`` compares on all."""
    golden = read_golden("bits").get(guard_runs.machine())
    if golden is None:
        warnings.warn(
            f"no golden bits for {guard_runs.machine()}: the runs are compared in numbers alone", stacklevel=1
        )
        test_numbers_of_fixed_runs(runs)
    else:
        assert_same(guard_runs.bits(runs), golden, "bits")


def test_embeddings_of_the_packaged_model() -> None:
    found, golden = guard_runs.embedded(), read_golden("embedded")
    assert set(found) == set(golden)
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=guard_runs.TOLERANCE, abs=guard_runs.TOLERANCE), name
