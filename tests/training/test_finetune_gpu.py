"""Fine-tuning on an accelerator: every part that runs there alone (pinned inputs, bf16, fused Adam, device noise)."""

from pathlib import Path

import layout_trees as trees
import pytest
import torch
from test_finetune_resume import MORE

import ssamba
from ssamba.training.finetune.evaluate import ClassifierOutputs
from ssamba.training.finetune.recipe import load_finetune_recipe
from ssamba.training.finetune.run import finetune
from ssamba.training.loop import Loop

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("more", [{}, MORE], ids=["plain", "more"])
@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
def test_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, more: dict[str, object]
) -> None:
    data = trees.custom_table(tmp_path / "data", per_class=24)
    values = {
        "width": 192,
        "depth": 4,
        "frames": 64,
        "freq_mask": 24,
        "time_mask": 16,
        "epochs": 6,
        "batch": 8,
        "mixup": 0.5,
        "save_minutes": 0.0,
    }
    recipe = load_finetune_recipe("custom", values | {"encoder": encoder, "choose": "last", "lr": 1e-3} | more)
    whole = finetune(recipe, data, tmp_path / "whole", device="cuda")
    save = Loop.save

    class Stop(Exception):
        pass

    def save_and_stop(self: Loop) -> None:
        save(self)
        if self.step == 2 * self.task.steps_per_epoch + 3:
            raise Stop

    monkeypatch.setattr(Loop, "save", save_and_stop)
    with pytest.raises(Stop):
        finetune(recipe, data, tmp_path / "broken", device="cuda")
    monkeypatch.undo()
    broken = finetune(recipe, data, tmp_path / "broken", device="cuda")
    # Sums of gradients may be taken in another order on a GPU.
    assert broken["mean"]["loss"] == pytest.approx(whole["mean"]["loss"], rel=0.05)
    weights = [ssamba.load(tmp_path / name, device="cpu").state_dict() for name in ("whole", "broken")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=2e-3, rtol=0.05)


def test_a_classifier_begins_as_a_probe_fitted_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = trees.custom_table(tmp_path / "data", per_class=24)
    values = {"width": 192, "depth": 4, "frames": 64, "freq_mask": 0, "time_mask": 0, "epochs": 1, "batch": 8}
    values |= {"lr": 1e-9, "head_init": "probe", "pooling": "rows", "choose": "last"}
    recipe = load_finetune_recipe("custom", values)
    finetune(recipe, data, tmp_path / "processor", device="cuda")
    monkeypatch.setattr("ssamba.training.finetune.head_init.SINGLE_THREAD_MAX", 0)
    finetune(recipe, data, tmp_path / "gpu", device="cuda")
    one, other = (
        ClassifierOutputs.load(tmp_path / name / "fold-1/answers.safetensors") for name in ("processor", "gpu")
    )
    torch.testing.assert_close(one.logits, other.logits, atol=0.02, rtol=0.02)


def test_scenes(tmp_path: Path) -> None:
    data = trees.urbansound8k(tmp_path / "data", longest=1.0)
    values = {"width": 192, "depth": 2, "frames": 1024, "epochs": 1, "choose": "last"}
    assert finetune(load_finetune_recipe("dasl", values), data, tmp_path / "run", device="cuda")["metric"] == "accuracy"
