"""docs/from-reference.md: its commands are read by the real parser, its options exist, its table of lists is read."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.cli.commands import COMMANDS
from ssamba.cli.parser import Parser, UsageError
from ssamba.data.datasets.custom import read_custom
from ssamba.models.pretrained.pth_file import read_pth
from ssamba.training.finetune.recipe import recipe_names
from ssamba.utils.errors import CheckpointError

PAGE = Path(__file__).parent.parent / "docs" / "from-reference.md"
TEXT = PAGE.read_text(encoding="utf-8")
TABLES_OF = {"Pretraining": "pretrain", "Fine-tuning": "finetune"}
"""Heading -> the command that the options in the second column of its tables belong to."""
ELSEWHERE = {"--reference-quirks": "pretrain", "--passes": "pretrain", "--validation": "pretrain", "--data": "finetune"}
"""Options that tables under other headings name, and of which command they are."""


def parser_of(name: str) -> Parser:
    parser = Parser(prog=f"ssamba {name}")
    COMMANDS[name].add_options(parser)
    return parser


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def named_options() -> list[tuple[str, str]]:
    """Heading and option for each that the second column of a table names."""
    found, heading = [], ""
    for line in TEXT.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        cells = re.split(r"(?<!\\)\|", line)
        if line.startswith("|") and len(cells) >= 4:
            found += [(heading, option) for option in re.findall(r"`(--[a-z-]+)", cells[2])]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_read_by_the_parser(words: list[str]) -> None:
    assert words[0] == "ssamba"
    arguments = parser_of(words[1]).read(words[2:])
    if words[1] == "finetune":
        assert arguments.recipe in recipe_names()


def test_the_page_has_commands_of_each_kind() -> None:
    assert {words[1] for words in commands()} == {"pretrain", "finetune", "predict", "info", "convert", "stats"}


def test_a_command_with_a_wrong_option_would_be_found() -> None:
    with pytest.raises(UsageError, match="--mask-patch"):
        parser_of("pretrain").read(["x.json", "--mask-patch", "400", "--out", "y"])


def test_options_in_the_tables_exist() -> None:
    options = named_options()
    assert len(options) > 40
    missing = []
    for heading, option in options:
        command = TABLES_OF.get(heading) or ELSEWHERE.get(option, "finetune")
        if option not in parser_of(command)._option_string_actions:
            missing.append((heading, option))
    assert not missing


def test_recipes_in_the_tables_exist() -> None:
    section = TEXT.split("## Fine-tuning\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| `\w+\.sh`.*?\| (.*?) \|$", section, re.MULTILINE)
    recipes = {name for cell in named for name in re.findall(r"`([\w-]+)`", cell)}
    assert len(recipes) == 8
    assert recipes <= set(recipe_names())


def test_lists_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's Python, on lists in the reference's form."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for side in ("train", "val", "eval"):
        rows = []
        for number, labels in enumerate(("/m/a", "/m/a,/m/b")):
            wav = str(tmp_path / f"{side}{number}.wav")
            soundfile.write(wav, 0.1 * rng.standard_normal(8000), 16000)
            rows.append({"wav": wav, "labels": labels})
        (tmp_path / f"{side}_data.json").write_text(json.dumps({"data": rows}))
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    data = read_custom(tmp_path / "labels.csv")
    assert (data.classes, data.multi_label) == (("/m/a", "/m/b"), True)
    (fold,) = data.folds
    assert [len(side) for side in (fold.train, fold.validation, fold.test)] == [2, 2, 2]


def test_fine_tuned_files_of_the_reference_are_refused(golden: Path, tmp_path: Path) -> None:
    state = dict(read_pth(golden / "ssamba_official.pth"))
    width = next(t.shape[-1] for name, t in state.items() if name.endswith("cls_token"))
    for name, shape in (("0.weight", (width,)), ("0.bias", (width,)), ("1.weight", (4, width)), ("1.bias", (4,))):
        state[f"module.mlp_head.{name}"] = torch.zeros(shape)
    torch.save(state, tmp_path / "best_audio_model.pth")
    with pytest.raises(CheckpointError, match="mlp_head") as caught:
        ssamba.load(tmp_path / "best_audio_model.pth")
    assert "\n" not in str(caught.value)
