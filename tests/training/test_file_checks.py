"""Small files of runs that were damaged or edited, and the list of their digests, ``checks.json``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import layout_trees
import pytest

from ssamba.cli.main import main
from ssamba.models.pretrained.file_checks import CHECKS_FILE, changed_files, forget_files, record_files
from ssamba.training.finetune import facts

WORDS = "finetune custom --from none --frames 32 --stride 16 --epochs 1 --batch 8 --width 32 --depth 2 --workers 1"
WORDS += " --device cpu --choose last"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout_trees.custom_table(tmp_path_factory.mktemp("data"), per_class=6)


def words(data: Path, out: Path) -> list[str]:
    return [*WORDS.split(), "--data", str(data), "--out", str(out)]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(words(data, out)) == 0
    return out


def test_every_bit_of_a_list_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    record_files(tmp_path, ["a", "missing"])
    assert changed_files(tmp_path) == []
    content = (tmp_path / CHECKS_FILE).read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            (tmp_path / CHECKS_FILE).write_bytes(damaged)
            assert changed_files(tmp_path) == [CHECKS_FILE]
    (tmp_path / CHECKS_FILE).write_bytes(content)
    (tmp_path / "a").write_text("2")
    assert changed_files(tmp_path) == ["a"]
    record_files(tmp_path, [], kept=["a"])
    assert changed_files(tmp_path) == ["a"]  # it was not written since
    record_files(tmp_path, ["a"])
    assert changed_files(tmp_path) == []
    forget_files(tmp_path)
    (tmp_path / "a").write_text("3")
    assert changed_files(tmp_path) == []


@pytest.mark.parametrize("name", ["log.csv", "state.json", "preprocessor_config.json", CHECKS_FILE])
def test_a_file_of_a_fold_that_has_ended(
    data: Path, run: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    path = copy / "fold-1" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert main(words(data, copy)) == 0
    assert f"{path}: is damaged or was edited" in caplog.text
    left = {
        p.name
        for p in (copy / "fold-1").iterdir()
        if p.is_file() and p.read_bytes() != (run / "fold-1" / p.name).read_bytes()
    }
    assert left == ({name} if name in ("log.csv", "state.json") else set())


def test_info_names_what_was_edited(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    assert main(["info", str(copy)]) == 0
    assert caplog.text == ""
    results = json.loads((copy / "results.json").read_text())
    results["mean"]["accuracy"] = 0.999
    (copy / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    assert main(["info", str(copy)]) == 0
    assert f"{copy / 'results.json'}: is damaged or was edited" in caplog.text


def test_a_run_of_an_earlier_version_has_no_list(
    data: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for path in copy.rglob(CHECKS_FILE):
        path.unlink()
    assert main(words(data, copy)) == 0
    assert caplog.text == ""
    assert (copy / CHECKS_FILE).exists()


def test_a_resumed_run_keeps_what_followed_from_free_memory(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    recipe = (copy / "recipe.yaml").read_bytes()
    assert b"cache_gb: 0.0" not in recipe
    (copy / "results.json").unlink()
    monkeypatch.setattr(facts, "free_memory", lambda device: 1.5e9)
    assert main(words(data, copy)) == 0
    assert (copy / "recipe.yaml").read_bytes() == recipe
    fresh = tmp_path / "fresh"
    assert main(words(data, fresh)) == 0
    assert b"cache_gb" in (fresh / "recipe.yaml").read_bytes()
    assert (fresh / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
