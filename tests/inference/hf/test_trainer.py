"""``Trainer`` takes real steps, resumes exactly, and leaves folders that ssamba loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import CLASSES
from test_models import auto

import ssamba

SECONDS = (0.4, 0.6, 0.9)


class Tones(torch.utils.data.Dataset[dict[str, Any]]):
    """Clips of three pitches and unequal length."""

    def __init__(self, extractor: Any, count: int, seed: int, labels: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.items = []
        for i in range(count):
            t = np.arange(round(16000 * SECONDS[rng.integers(3)])) / 16000
            wave = 0.3 * np.sin(2 * np.pi * 300 * 3 ** (i % 3) * t) + 0.02 * rng.standard_normal(len(t))
            item = {k: v[0] for k, v in extractor(wave, padding=False).items()}
            self.items.append(item | ({"label": i % 3} if labels else {}))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.items[i]


def trainer(folder: Path, out: Path, steps: int, kind: str = "AutoModelForAudioClassification", **settings: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(CLASSES))} if kind == "AutoModelForAudioClassification" else {}
    model, extractor = auto(folder, kind, drop_path=0.1, **named), auto(folder, "AutoFeatureExtractor")

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = {"labels": torch.tensor([i["label"] for i in items])} if "label" in items[0] else {}
        inputs = [{k: v for k, v in item.items() if k != "label"} for item in items]
        return {**extractor.pad(inputs, return_tensors="pt"), **labels}

    arguments = TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=6, learning_rate=6e-3, save_steps=4,
        lr_scheduler_type="constant", report_to=[], disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
        seed=0, logging_steps=20, dataloader_num_workers=0, **settings,
    )  # fmt: skip
    labels = kind == "AutoModelForAudioClassification"
    return Trainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=Tones(extractor, 24, 0, labels),
        eval_dataset=Tones(extractor, 12, 1, labels),
        processing_class=extractor,
        compute_metrics=(lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())})
        if labels
        else None,
    )


def test_training_resume_and_load(hf: Any, folder: Path, tmp_path: Path) -> None:
    full = trainer(folder, tmp_path / "full", 80)
    before = full.evaluate()
    full.train()
    after = full.evaluate()
    assert after["eval_loss"] < 0.5 * before["eval_loss"]
    assert after["eval_accuracy"] > 0.9
    resumed = trainer(folder, tmp_path / "again", 80)
    resumed.train(resume_from_checkpoint=str(tmp_path / "full" / "checkpoint-4"))
    for name, value in full.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    checkpoint = tmp_path / "full" / "checkpoint-80"
    reference = ssamba.load(checkpoint, "cpu")
    assert reference.classifier is not None
    assert reference.classifier.task.classes == CLASSES
    answers = full.predict(full.eval_dataset).predictions
    for i, item in enumerate(full.eval_dataset.items[:3]):
        x = torch.from_numpy(np.asarray(item["input_values"]))[None]
        silence = -reference.config.mean / (2 * reference.config.std)
        padded = torch.nn.functional.pad(x, (0, 0, 0, 128 - x.shape[1]), value=silence)
        with torch.no_grad():
            assert np.abs(reference.classify(padded)[0].numpy() - answers[i]).max() < 1e-4


def test_the_best_checkpoint_comes_back(hf: Any, folder: Path, tmp_path: Path) -> None:
    run = trainer(
        folder, tmp_path / "run", 8, eval_strategy="steps", eval_steps=4, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=True, save_total_limit=2,
    )  # fmt: skip
    run.train()  # the higher loss is called the best: that of step 4
    best = ssamba.load(run.state.best_model_checkpoint, "cpu").state_dict()
    assert run.state.best_model_checkpoint.endswith("checkpoint-4")
    assert all(torch.equal(run.model.encoder.state_dict()[k], v) for k, v in best.items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_pretraining_steps(hf: Any, ssast_folder: Path, folder: Path, tmp_path: Path, checkpointing: bool) -> None:
    for source in (folder, ssast_folder):
        out = tmp_path / source.name
        run = trainer(source, out, 12, "AutoModelForPreTraining", gradient_checkpointing=checkpointing)
        before = run.evaluate()["eval_loss"]
        run.train()
        assert run.evaluate()["eval_loss"] < before
        run.save_model(str(out / "final"))
        assert ssamba.load(out / "final", "cpu", heads=True).heads is not None
