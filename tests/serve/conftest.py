"""A run of seconds and an index of its sounds, and one server of both for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from serving import KINDS, RATE, Server

import ssamba
from ssamba.cli.main import main


@pytest.fixture(scope="session", autouse=True)
def _packages() -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "sounds"
    for kind, make in KINDS.items():
        (folder / kind).mkdir(parents=True)
        for i in range(6):
            soundfile.write(folder / kind / f"{i}.wav", make(2.0, i), RATE)
    return folder


@pytest.fixture(scope="session")
def run(sounds: Path) -> Path:
    """A classifier of the three kinds on the model that comes with the package."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = sounds.parent / "run"
    assert main(["fit", "--data", str(sounds), "--out", str(out), "--device", "cpu"]) == 0
    torch.set_num_threads(before)
    return out


@pytest.fixture(scope="session")
def index(sounds: Path) -> Path:
    ssamba.index([sounds], sounds.parent / "index", device="cpu")
    return sounds.parent / "index"


@pytest.fixture(scope="session")
def server(run: Path, index: Path) -> Iterator[Server]:
    words = ("--index", index, "--rate", "0", "--max-mib", "8", "--max-seconds", "120", "--log", "json")
    with Server(run.parent, run, *words) as server:
        yield server
