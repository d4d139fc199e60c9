"""Exact resume of fine-tuning: a real process killed without warning, in one fold and in the next."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import layout_trees as trees
import pytest
import torch
from pretrain_runs import killed_at, log_of, step_of

from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.model_dir import save_model
from ssamba.training.finetune.evaluate import ClassifierOutputs, Evaluation
from ssamba.training.finetune.recipe import load_finetune_recipe
from ssamba.training.finetune.run import finetune
from ssamba.training.loop import Interrupted
from ssamba.training.run_folder import check_same_weights
from ssamba.utils.errors import ConfigError

VALUES: dict[str, object] = {
    "width": 32,
    "depth": 2,
    "frames": 32,
    "stride": 16,
    "epochs": 3,
    "batch": 8,
    "freq_mask": 8,
    "time_mask": 4,
    "mixup": 0.5,
    "workers": 1,
    "save_minutes": 0.0,
    "choose": "folds",
}
MORE: dict[str, object] = {
    "head_init": "probe",
    "layer_decay": 0.7,
    "ema": 0.9,
    "label_smoothing": 0.1,
    "gain_db": 6.0,
    "response_db": 3.0,
    "speed": 1.2,
    "reverb": 0.5,
}
"""What a published recipe leaves off."""


@pytest.mark.parametrize("values", [pytest.param(VALUES, marks=pytest.mark.slow), VALUES | MORE], ids=["plain", "more"])
def test_killed_runs_end_as_an_unbroken_one(tmp_path: Path, values: dict[str, object]) -> None:
    data = trees.custom_table(tmp_path / "data", split="fold")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finetune(load_finetune_recipe("custom", values), data, whole, device="cpu")
    command = words(values, data, broken)
    for fold, step in ((1, 5), (3, 2)):  # between the epochs of a fold, and in the first of another
        killed_at(command, f"fold-{fold}/state.json", step)
        assert step_of(broken / f"fold-{fold}") == step
        assert not (broken / "results.json").exists()
    done = (broken / "fold-1/log.csv").stat().st_mtime_ns
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert (broken / "fold-1/log.csv").stat().st_mtime_ns == done  # not trained again
    for n in range(1, 6):
        one, other = whole / f"fold-{n}", broken / f"fold-{n}"
        assert log_of(one) == log_of(other)
        for name in ("model.safetensors", "answers.safetensors", "config.json", "state.json"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), (n, name)
    for name in ("model.safetensors", "config.json", "results.json", "results.md", "classes.csv", "predictions.csv"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    assert not [p for p in broken.rglob(".*") if p.is_file()]


def words(values: dict[str, object], data: Path, out: Path) -> list[str]:
    """The command line of a run from random weights."""
    options = [text for key, value in values.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "ssamba", "finetune", "custom", "--data", str(data), "--from", "none"]
    return [*command, "--out", str(out), "--device", "cpu", *options]


@pytest.mark.parametrize("changed", ["weights", "form"])
def test_folds_do_not_start_from_other_weights(tmp_path: Path, changed: str) -> None:
    """A run stopped between folds is not ended from a source that has been replaced under the same name."""
    data, source, out = trees.custom_table(tmp_path / "data", split="fold"), tmp_path / "source", tmp_path / "out"
    config = Config(width=32, depth=2, frames=32)
    save_model(source, SSAMBA(config, generator=torch.Generator().manual_seed(0)))
    recipe = load_finetune_recipe("custom", VALUES | {"epochs": 1})
    finetune(recipe, data, out, device="cpu", source=str(source))
    shutil.rmtree(out / "fold-5")
    (out / "results.json").unlink()
    other = config if changed == "weights" else config.replace(decay="tied")
    shutil.rmtree(source)
    save_model(source, SSAMBA(other, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(ConfigError, match=r"began from other weights than .*source has now"):
        finetune(recipe, data, out, device="cpu", source=str(source))
    assert not (out / "fold-5").exists()
    older = tmp_path / "older"  # a run of an earlier version, without a digest of the weights
    older.mkdir()
    (older / "recipe.yaml").write_text("from: source\n")
    check_same_weights(older, "source", "any")


def test_the_state_holds_averaged_weights(tmp_path: Path) -> None:
    """A run stopped within the averaging window goes on with the same average."""
    data = trees.custom_table(tmp_path / "data")
    values = VALUES | {"choose": "average", "average_from": 1, "average_to": 3}
    recipe = load_finetune_recipe("custom", values)
    finetune(recipe, data, tmp_path / "whole", device="cpu")

    steps = [int(row["step"]) for row in log_of(tmp_path / "whole/fold-1") if row["val_loss"]]
    killed_at(words(values, data, tmp_path / "broken"), "fold-1/state.json", steps[1])  # at the end of the second epoch
    finetune(recipe, data, tmp_path / "broken", device="cpu")
    for name in ("model.safetensors", "results.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


@pytest.mark.parametrize("choose", ["last", "folds"])
def test_stopped_in_a_validation_ends_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choose: str
) -> None:
    """Asked to stop before and after the last step's validation has begun: it is made when the run goes on."""
    data = trees.custom_table(tmp_path / "data", split="fold")
    recipe = load_finetune_recipe("custom", VALUES | {"epochs": 2, "choose": choose})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finetune(recipe, data, whole, device="cpu")
    plain, calls = Evaluation.outputs, itertools.count()

    def outputs(self: Evaluation, model: Encoder, step: Callable[[], None] | None = None) -> ClassifierOutputs:
        if step is not None and next(calls) in (0, 2, 5):
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, model, step)

    monkeypatch.setattr(Evaluation, "outputs", outputs)
    for _ in range(3):
        with pytest.raises(Interrupted, match="before its validation"):
            finetune(recipe, data, broken, device="cpu")
    assert not json.loads((broken / "fold-2/state.json").read_text())["finished"]
    finetune(recipe, data, broken, device="cpu")
    for n in range(1, 6):
        one, other = whole / f"fold-{n}", broken / f"fold-{n}"
        assert log_of(one) == log_of(other)
        for name in ("model.safetensors", "answers.safetensors", "config.json", "state.json"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), (n, name)
    assert (whole / "results.json").read_bytes() == (broken / "results.json").read_bytes()
