"""A pretraining batch in several forward and backward passes is the batch in one, and takes little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peak_memory import PEAK
from pretrain_runs import log_of

from ssamba.data.manifest import read_sources
from ssamba.data.scan import SkipList
from ssamba.training.pretrain import task as task_module
from ssamba.training.pretrain.data import prepare_data
from ssamba.training.pretrain.model import build_model
from ssamba.training.pretrain.recipe import make_recipe
from ssamba.training.pretrain.run import build_task, pretrain
from ssamba.utils.errors import ConfigError

FORMS: list[dict[str, Any]] = [
    {},
    {"objective": "joint", "passes": 2, "drop_path": 0.3},
    {"masks_per_clip": 3, "decoder_depth": 2},
    {"objective": "generative", "encoder": "ssast", "width": 64},
]


def gradients_of(sounds: Path, tmp_path: Path, values: dict[str, Any]) -> tuple[dict[str, float], torch.Tensor, int]:
    """Losses and all gradients of a step's batch, and its passes."""
    recipe = make_recipe(None, values)
    data = prepare_data(read_sources([str(sounds)]), recipe, SkipList(tmp_path / "skipped.csv"))
    task = build_task(recipe, data, build_model(recipe, data, None))
    task.model.train()
    inputs = task.inputs(0, next(task.batches(0)))
    sums: dict[str, float] = {}
    parts = list(task.passes(inputs))
    for part, share in parts:
        losses = task.losses(part)
        (losses["loss"] * share).backward()
        sums = {key: sums.get(key, 0.0) + float(value.detach()) * share for key, value in losses.items()}
    return sums, torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None]), len(parts)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("clips", [1, 2, 3, 4])
def test_parts_have_the_gradient_of_the_whole(
    sounds: Path, tmp_path: Path, tiny: dict[str, Any], form: dict[str, Any], clips: int
) -> None:
    whole, gradient, passes = gradients_of(sounds, tmp_path, tiny | form)
    assert passes == 1
    parts, sum_of_parts, passes = gradients_of(sounds, tmp_path, tiny | form | {"clips_per_pass": clips})
    assert passes == -(-5 // clips)
    assert parts == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(sum_of_parts, gradient, rtol=1e-4, atol=1e-6)


def test_a_processor_takes_as_many_clips_as_fit(
    sounds: Path, tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain([str(sounds)], tmp_path / "one", make_recipe(None, tiny), device="cpu")
    monkeypatch.setattr(task_module, "ACTIVATIONS", 84 * 32 * 2 * 33 * 2.5)  # 2 clips of 32 patches and a CLS token
    assert gradients_of(sounds, tmp_path, tiny)[2] == 3
    pretrain([str(sounds)], tmp_path / "three", make_recipe(None, tiny), device="cpu")
    for row, other in zip(log_of(tmp_path / "one"), log_of(tmp_path / "three"), strict=True):
        for key in row.keys() - {"seconds", "clips_per_second", "step_ms"}:
            if row[key]:
                assert float(row[key]) == pytest.approx(float(other[key]), rel=1e-3), key


def test_targets_of_the_whole_batch_are_not_split(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="clips_per_pass: 2, but the averaged model's targets"):
        make_recipe(None, tiny | {"ema": 0.9, "latent": 1.0, "clips_per_pass": 2})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_the_default_recipe_fits_a_laptop(sounds: Path, tmp_path: Path) -> None:
    """One step of 64 clips of 10.24 s: 13.7 GB in one pass."""
    script = f"""{PEAK}
import sys
from pathlib import Path
from ssamba.training.pretrain.recipe import make_recipe
from ssamba.training.pretrain.run import pretrain
pretrain([sys.argv[1]], Path(sys.argv[2]), make_recipe(None, {{"steps": 1, "validation_clips": 1}}), device="cpu")
print(peak())"""
    words = [sys.executable, "-c", script, str(sounds), str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1500
