"""The official names, with a stand-in for the Hugging Face hub: the tests have no network, so no real file is fetched.

What is tested is what we ask the library for and what we make of its answers. The kinds of errors are those that
huggingface_hub 2.4 raised, tried without a network; only their names and ancestors matter.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ssamba
from ssamba.cli import main
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.models.pretrained import hub
from ssamba.models.pretrained.convert import official_state
from ssamba.utils.errors import CheckpointError

PAGE = "https://huggingface.co/attentionisallyouneed369/ssamba"
BY_HAND = f"get ssamba_tiny_400.pth from {PAGE}/tree/main and give its path"


class EntryNotFoundError(Exception):
    pass


class LocalEntryNotFoundError(FileNotFoundError, EntryNotFoundError):
    pass


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return []


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, str]]) -> Callable[..., None]:
    """Sets what the stand-in answers: a file from its cache, a file after a download, or an error."""

    def set_answer(downloaded: Path | Exception | None = None, cached: Path | None = None) -> None:
        def download(repository: str, file: str, revision: str | None) -> str:
            asked.append((repository, file))
            logging.getLogger("huggingface_hub").warning("trying again")
            if isinstance(downloaded, Exception):
                raise downloaded
            return str(downloaded)

        def look(repository: str, file: str, revision: str | None) -> Any:
            return None if cached is None else str(cached)

        constants = SimpleNamespace(HF_HUB_CACHE=str(tmp_path / "cache"))
        fake = SimpleNamespace(hf_hub_download=download, try_to_load_from_cache=look, constants=constants)
        monkeypatch.setitem(sys.modules, "huggingface_hub", fake)

    return set_answer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the official form and the published width, not the published depth."""
    model = SSAMBA(Config.tiny(depth=2), heads=True, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("hub") / "ssamba_tiny_400.pth"
    torch.save(official_state(model.config, model.state_dict()), path)
    return path


def refused(source: str = "ssamba-tiny-400") -> str:
    with pytest.raises(CheckpointError) as caught:
        ssamba.load(source, "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_nine_names() -> None:
    assert len(hub.OFFICIAL) == 9
    assert hub.file_of("ssamba-tiny-400") == "ssamba_tiny_400.pth"
    assert [hub.width_of(f"ssamba-{size}-250") for size in ("tiny", "small", "base")] == [192, 384, 768]


def test_a_name_is_downloaded_and_read_strictly(
    answer: Callable[..., None], asked: list[tuple[str, str]], tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer(tiny)
    before = logging.getLogger("huggingface_hub").level
    model = ssamba.load("ssamba-tiny-400", "cpu", heads=True)
    assert asked == [("attentionisallyouneed369/ssamba", "ssamba_tiny_400.pth")]
    expected = ssamba.load(tiny, "cpu", heads=True).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert "trying again" not in caplog.text
    assert logging.getLogger("huggingface_hub").level == before


def test_what_lies_in_the_cache_needs_no_network(
    answer: Callable[..., None], asked: list[tuple[str, str]], tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(LocalEntryNotFoundError(), cached=tiny)
    assert main.main(["info", "ssamba-tiny-400"]) == 0
    assert "official checkpoint" in capsys.readouterr().out
    assert asked == []


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused() == f"ssamba-tiny-400: to download it, pip install 'ssamba[hf]'; or {BY_HAND}"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LocalEntryNotFoundError("An error happened.\nPlease check."), "huggingface.co cannot be reached"),
        (ConnectionError("no route"), "huggingface.co cannot be reached"),
        (EntryNotFoundError("404 Client Error.\nEntry Not Found"), "has no such file for everyone to read"),
        (OSError("Consistency check failed: file should be of size 9 but has size 5\nmore"), "failed: file should be"),
        (RuntimeError(), "could not be downloaded (RuntimeError)"),
    ],
)
def test_failed_downloads(answer: Callable[..., None], error: Exception, reason: str) -> None:
    answer(error)
    message = refused()
    assert message.startswith("ssamba-tiny-400: ")
    assert reason in message
    assert message.endswith(f"; {BY_HAND}")


def test_a_truncated_file(answer: Callable[..., None], tiny: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "cached.pth"
    damaged.write_bytes(tiny.read_bytes()[:-5000])
    answer(damaged)
    message = refused()
    assert message.startswith(f"ssamba-tiny-400: {damaged}: is not a plain file of tensors")
    assert message.endswith("remove that file to download it again")


def test_a_file_of_another_size(answer: Callable[..., None], tiny: Path) -> None:
    answer(tiny)
    assert "width 192, which is another" in refused("ssamba-base-400")
