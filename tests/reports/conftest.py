from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from report_runs import PRETRAINING, write_sounds
from search_sounds import write_melodies

import ssamba as package
from ssamba.cli.main import main
from ssamba.inference.model import make_encoder
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model


def ssamba(*words: object) -> int:
    """The command line on the CPU."""
    return main([str(word) for word in words])


@pytest.fixture(scope="session", autouse=True)
def quiet_threads() -> Iterator[None]:
    """Thousands of tiny steps run tenfold slower in several threads when other programs want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("report") / "sounds")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report-model") / "small"
    generator = torch.Generator().manual_seed(5)
    save_model(folder, make_encoder(Config(width=16, depth=4, frames=64, state_size=4), generator=generator))
    return folder


@pytest.fixture(scope="session")
def runs(table: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of each kind."""
    out = tmp_path_factory.mktemp("report-runs")
    cpu = ("--device", "cpu")
    values = [word for key, value in PRETRAINING.items() for word in (f"--{key.replace('_', '-')}", value)]
    assert ssamba("pretrain", table.parent, "--out", out / "pretraining", *values, *cpu) == 0
    small = ("--frames", 64, "--stride", 16, "--epochs", 2, "--batch", 8, "--freq-mask", 0, "--time-mask", 0)
    tuned = ("--data", table, "--from", source, "--out", out / "fine-tuning", *small, *cpu)
    assert ssamba("finetune", "custom", *tuned, "--folds", 2) == 0
    assert ssamba("fit", "--data", table, "--from", source, "--out", out / "fit", "--frames", 64, *cpu) == 0
    probed = ("--data", table, "--model", source, "--out", out / "probe", *cpu)
    assert ssamba("probe", "custom", *probed, "--layer", "all") == 0
    melodies = write_melodies(out / "melodies", 6, 1.5)
    audio, rate = soundfile.read(melodies[0])
    soundfile.write(out / "melodies" / "copy.wav", 0.5 * audio, rate)
    assert ssamba("index", out / "melodies", "--out", out / "index", "--model", source, *cpu) == 0
    return {kind: out / kind for kind in ("pretraining", "fine-tuning", "fit", "probe", "index")}


@pytest.fixture(scope="session")
def page_files(runs: dict[str, Path], table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each run, with all its recordings."""
    out = tmp_path_factory.mktemp("report-pages")
    found = {}
    for kind, folder in runs.items():
        data = table if kind == "probe" else None
        found[kind] = package.report(folder, out / f"{kind}.html", clips=30, data=data, device="cpu")
        assert found[kind] == out / f"{kind}.html"
    return found
