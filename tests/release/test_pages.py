"""The pages that a newcomer reads first: their Python runs as it stands, their commands exist with these options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.cli.commands import COMMANDS
from ssamba.cli.parser import Parser

ROOT = Path(__file__).parent.parent.parent
PAGES = ("docs/package.md", "docs/index.md", "docs/deploy.md")


@pytest.mark.parametrize("page", ["docs/package.md", "docs/index.md"])
def test_the_first_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    audio = np.sin(np.arange(44100) / 30).astype(np.float32)
    soundfile.write(tmp_path / "recording.wav", audio, 44100)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"audio": audio}
    exec(compile(block[1], page, "exec"), names)  # our own text, of this repository
    assert names["out"].clip.shape == (1, 192)  # type: ignore[attr-defined]


def commands() -> list[tuple[str, list[str]]]:
    """Each ``ssamba COMMAND ...`` of the pages, with its words."""
    found = []
    for page in PAGES:
        for line in re.findall(
            r"(?:^|`|\bssamba )ssamba ([a-z][^`\n]*)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE
        ):
            name, *words = shlex.split(line, comments=True)
            if words and not name.endswith(":"):
                found.append((name, words))
    return found


def test_the_commands_of_the_pages_exist_with_these_options() -> None:
    found = commands()
    assert {"embed", "fit", "predict", "index", "search", "pretrain", "export"} <= {name for name, _ in found}
    for name, words in found:
        parser = Parser(prog=f"ssamba {name}")
        COMMANDS[name].add_options(parser)
        parser.parse_args(words)
