"""Values of any kind in the place of settings: taken when in range, else refused in one line. Drawn by hypothesis."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from ssamba.audio.front_end import FrontEnd
from ssamba.cli.main import main
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.training.finetune.recipe import FinetuneRecipe, load_finetune_recipe
from ssamba.training.pretrain.recipe import PretrainRecipe, make_recipe
from ssamba.utils.errors import SsambaError
from ssamba.utils.json_text import parse_json
from ssamba.utils.terminal import printable, shorten
from ssamba.utils.yaml_text import parse_yaml

whole = st.one_of(st.integers(), st.sampled_from([0, 1, -1, 16, 2**31, 2**63, 10**30, 10**400]))
number = st.one_of(whole, st.floats(), st.sampled_from([1e-300, 1e308, 1e-45]))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), number, st.text(max_size=20), st.binary(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
many = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def fields(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    names = [field.name for field in dataclasses.fields(kind)]
    return st.dictionaries(st.sampled_from(names), st.one_of(number, anything), min_size=1, max_size=3)


def one_line(error: SsambaError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


@many
@given(fields(Config))
def test_configurations(values: dict[str, Any]) -> None:
    try:
        config = Config.from_dict({**Config().to_dict(), **values}, "config.json")
    except SsambaError as error:
        one_line(error)
        return
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        assert isinstance(value, (int, float, str))
        assert isinstance(value, str) or (math.isfinite(value) and abs(value) <= 10**9)


@many
@given(fields(FrontEnd))
def test_front_ends(values: dict[str, Any]) -> None:
    try:
        front_end = FrontEnd(**values)
    except SsambaError as error:
        one_line(error)
        return
    assert front_end.std > 0
    assert math.isfinite(front_end.mean / front_end.std)


@many
@given(st.one_of(anything, fields(Classification)))
def test_classifications(values: Any) -> None:
    try:
        Classification.from_dict(values, "config.json")
    except SsambaError as error:
        one_line(error)


@many
@given(fields(PretrainRecipe))
def test_pretraining_recipes(values: dict[str, Any]) -> None:
    try:
        recipe = make_recipe(None, values)
    except SsambaError as error:
        one_line(error)
        return
    for name in values:
        value = getattr(recipe, name)
        assert not isinstance(value, float) or math.isfinite(value)


@many
@given(fields(FinetuneRecipe), st.sampled_from(["custom", "esc10", "speechcommands35"]))
def test_finetuning_recipes(values: dict[str, Any], name: str) -> None:
    try:
        load_finetune_recipe(name, values)
    except SsambaError as error:
        one_line(error)


@many
@given(st.text(max_size=200))
def test_texts(text: str) -> None:
    for parse in (parse_json, parse_yaml):
        try:
            parse(text, "file")
        except SsambaError as error:
            one_line(error)
    line = printable(text)
    line.encode()
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)
    assert printable(line) == line


@many
@given(anything)
def test_values_in_messages(value: Any) -> None:
    assert len(shorten(value)) <= 80
    shorten(value).encode()


@pytest.mark.parametrize("command", ["embed", "predict", "pretrain", "finetune", "probe", "convert", "export", "info"])
def test_command_lines(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options with values of any kind never end in a traceback, and never do anything with a file that is not there."""
    options = ["--batch", "--threads", "--lr", "--steps", "--seconds", "--out", "--model", "--device", "--seed", "-x"]

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(st.one_of(st.sampled_from(options), st.text(max_size=8), number.map(str)), max_size=5))
    def run(words: list[str]) -> None:
        if any(word in ("-h", "--help") for word in words):
            return
        code = main([command, "/nowhere/none", *words])
        captured = capsys.readouterr()
        if code:
            assert code == 2
            assert captured.err.count("\n") == 1

    run()
