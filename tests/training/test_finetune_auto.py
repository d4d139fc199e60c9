"""What ``custom`` chooses: as a table of facts and values, in real runs, and within its memory in a real process."""

import dataclasses
import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import layout_trees as trees
import pytest
import torch
import yaml
from peak_memory import PEAK

from ssamba.cli.main import main
from ssamba.data.datasets import read_layout
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model
from ssamba.models.registry import make_encoder
from ssamba.training.finetune import auto
from ssamba.training.finetune.recipe import MAY_BE_OPEN, load_finetune_recipe
from ssamba.training.finetune.run import finetune
from ssamba.training.finetune.task import FinetuneTask
from ssamba.training.log import read_log
from ssamba.utils.errors import ConfigError

CLIPS_5S = auto.Facts(clips=40, train=32, folds=5, seconds=(5.0,) * 40)


def chosen(facts: auto.Facts = CLIPS_5S, given: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return auto.choose_values(dataclasses.replace(facts, **changes), given or {})


@pytest.mark.parametrize(
    ("seconds", "patch_time", "expected"),
    [
        ((1.0,) * 10, 16, (96, 0.0)),  # 98 frames: no patch of padding for two of them
        ((5.0,) * 10, 16, (496, 0.0)),
        ((3.0,) * 10, 16, (304, 0.0)),  # 298 frames
        ((0.1,) * 10, 16, (32, 0.0)),
        ((5.0,) * 99 + (60.0,), 16, (496, 0.0)),  # one long clip in a hundred does not count
        ((5.0,) * 9 + (8.0,), 16, (800, 0.0)),  # one in ten does
        ((60.0,) * 10, 16, (1024, 10.24)),  # read in windows
        ((5.0,) * 10, 2, (498, 0.0)),
        ((), 16, (1008, 0.0)),
    ],
)
def test_frames_follow_the_lengths(seconds: tuple[float, ...], patch_time: int, expected: tuple[int, float]) -> None:
    assert auto.choose_frames(seconds, patch_time) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"batch": 4, "accumulate": 2, "epochs": 3, "lr": 3e-4, "head_init": "probe", "pooling": "rows"}),
        ({}, {"statistics": "source", "speed": 1.15, "label_smoothing": 0.2, "layer_decay": 0.75, "warmup_steps": 0}),
        ({"gpu": True, "memory": 70e9}, {"batch": 8, "accumulate": 1, "epochs": 15}),
        ({"clips": 2000, "train": 1600, "folds": 1}, {"batch": 4, "accumulate": 8, "epochs": 6}),
        ({"memory": 0.5e9}, {"batch": 1, "accumulate": 8}),
        ({"seconds": (60.0,)}, {"batch": 2, "accumulate": 4, "window": 10.24, "epochs": 3}),
        ({"width": 768}, {"batch": 1, "accumulate": 8}),
        ({"multi_label": True}, {"head_init": "probe", "pooling": "rows", "label_smoothing": 0.0, "speed": 1.15}),
        ({"multi_label": True}, {"lr": 3e-4, "head_lr": 0.1, "layer_decay": 0.75, "ema": 0.99, "noise": False}),
        ({"multi_label": True, "pretrained": False}, {"head_init": "random", "pooling": "mean", "noise": True}),
        ({"pretrained": False}, {"head_init": "random", "statistics": "measure", "lr": 1e-4, "time_mask": 96}),
        ({"pretrained": False, "seconds": (0.5,)}, {"frames": 48, "time_mask": 48}),
        ({"per_second": True}, {"head_init": "random", "pooling": "mean", "window": 0.0}),
        (
            {"clips": 9000, "train": 7200, "folds": 1, "seconds": (1.0,), "gpu": True, "memory": 70e9},
            {"lr": 1e-3, "batch": 128, "accumulate": 1, "epochs": 20, "warmup_steps": 100, "freq_mask": 16},
        ),
        ({"patch": (128, 2)}, {"stride": 2, "frames": 498}),
    ],
)
def test_values_follow_the_facts(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    values = chosen(**changes)
    assert {name: values[name] for name in expected} == expected
    assert set(MAY_BE_OPEN) - {"folds"} <= set(values)


@pytest.mark.parametrize("width", [192, 384, 768])
@pytest.mark.parametrize("seconds", [1.0, 5.0, 10.0, 60.0])
@pytest.mark.parametrize("memory", [0.6e9, 2e9, 64e9])
def test_activations_are_bounded(width: int, seconds: float, memory: float) -> None:
    facts = dataclasses.replace(CLIPS_5S, width=width, seconds=(seconds,), memory=memory)
    values = auto.choose_values(facts, {})
    one = auto.activation_bytes(facts, values)
    assert values["batch"] * one <= min(auto.ACTIVATIONS, memory / 4) or values["batch"] == 1
    assert values["batch"] * values["accumulate"] == 8


@pytest.mark.parametrize(("clips", "minutes"), [(40, 2), (200, 10), (2000, 30)])
def test_the_time_is_bounded(clips: int, minutes: float) -> None:
    few = clips <= auto.FEW_CLIPS
    facts = auto.Facts(clips=clips, train=clips * 4 // 5, folds=5 if few else 1, seconds=(5.0,))
    values = auto.choose_values(facts, {})
    assert auto.expected_seconds(facts, values, auto.pass_seconds(facts, values)) < 60 * minutes


def test_what_is_given_wins_and_the_rest_follows() -> None:
    values = chosen(given={"frames": 1024, "epochs": 9, "loss": "bce"})
    assert (values["frames"], values["epochs"], values["label_smoothing"], values["batch"]) == (1024, 9, 0.0, 2)
    assert chosen(given={"loss": "ce"})["label_smoothing"] == 0.2
    assert chosen(given={"batch": 48})["accumulate"] == 1
    several = chosen(multi_label=True, given={"head_init": "random"})
    assert (several["pooling"], several["head_lr"]) == ("mean", 10.0)
    assert chosen(given={"head_init": "random"})["pooling"] == "mean"


@pytest.mark.parametrize(("per_class", "folds"), [(1, 1), (2, 2), (4, 4), (10, 5), (110, 1)])
def test_folds_follow_the_number_of_clips(tmp_path: Path, per_class: int, folds: int) -> None:
    data = read_layout("custom", trees.custom_folders(tmp_path, per_class=max(per_class, 3)))
    if per_class < 3:  # a class of two clips, or of one
        (tmp_path / "kind0/0.wav").unlink()
        if per_class == 1:
            (tmp_path / "kind0/1.wav").unlink()
        data = read_layout("custom", tmp_path)
    assert auto.choose_folds(data) == folds


def test_folds_hold_each_clip_once_and_every_class(tmp_path: Path) -> None:
    root = trees.custom_folders(tmp_path, classes=3, per_class=7)
    data = read_layout("custom", root, folds=5)
    tested = sorted(example.key for fold in data.folds for example in fold.test)
    assert tested == sorted(f"kind{c}/{n}.wav" for c in range(3) for n in range(7))
    assert [len(fold.test) for fold in data.folds] == [5, 4, 4, 4, 4]
    for fold in data.folds:
        assert {example.labels[0] for example in fold.test} == {0, 1, 2}
        assert len(fold.train) == 21 - len(fold.test)
        assert not {e.key for e in fold.train} & {e.key for e in fold.test}
    assert auto.choose_folds(read_layout("custom", trees.custom_table(tmp_path / "split"))) == 1  # its own division


SMALL = {"width": 32, "depth": 2, "workers": 1}


def small(**changes: Any) -> Any:
    return load_finetune_recipe("custom", SMALL | changes)


def test_the_choice_is_stored_as_numbers_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = trees.custom_folders(tmp_path / "data", per_class=5)
    told: list[str] = []
    whole = finetune(small(epochs=2), data, tmp_path / "whole", device="cpu", say=told.append)
    stored = yaml.safe_load((tmp_path / "whole/recipe.yaml").read_text())["recipe"]
    assert (stored["folds"], stored["choose"], stored["auto"]) == (5, "last", "")
    assert {n for n in MAY_BE_OPEN if stored[n] == "auto"} == set()
    assert len(whole["folds"]) == 5
    assert whole["counted"]["clips"] == 15
    assert any(line.startswith("expected: ") and "GB" in line for line in told)
    assert all(len(f"ssamba: note: {line}") <= 85 for line in told)
    # On a machine with other memory the same command goes on with the values that are stored.
    real = auto.choose_values
    monkeypatch.setattr(auto, "choose_values", lambda facts, given: real(dataclasses.replace(facts, threads=64), given))
    (tmp_path / "whole/results.json").unlink()
    assert finetune(small(epochs=2), data, tmp_path / "whole", device="cpu") == whole
    with pytest.raises(ConfigError, match=r"the run there has lr 0\.0001, this command says 0\.5"):
        finetune(small(epochs=2, lr=0.5), data, tmp_path / "whole", device="cpu")


def test_several_labels_a_clip(tmp_path: Path) -> None:
    """From a model the classifier begins as a probe, from nothing at random; a run repeated is the same run."""
    data = trees.custom_table(tmp_path / "data", multi_label=True, split=None)
    config = Config(width=16, depth=2, frames=32, state_size=4)
    save_model(tmp_path / "model", make_encoder(config, generator=torch.Generator().manual_seed(0)))
    told: list[str] = []

    def run(name: str, source: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        values = finetune(small(epochs=1), data, tmp_path / name, source, "cpu", told.append)
        return values, yaml.safe_load((tmp_path / name / "recipe.yaml").read_text())["recipe"]

    values, stored = run("run", str(tmp_path / "model"))
    assert (stored["head_init"], stored["pooling"], stored["label_smoothing"]) == ("probe", "rows", 0.0)
    assert "  lr 0.0003, rows pooling, probe head, statistics: source" in told
    assert values["metric"] == "mAP"
    assert "counted" not in values
    begun = values["mean"]["mAP"]
    assert run("again", str(tmp_path / "model"))[0] == values
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "again")]
    assert files[0] == files[1]
    values, stored = run("nothing", None)
    assert (stored["head_init"], stored["pooling"], values["metric"]) == ("random", "mean", "mAP")
    assert values["mean"]["mAP"] < begun - 0.1  # one epoch teaches it little


def test_only_some_values_may_be_left_open(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("layout: custom\nfreeze: true\nframes: auto\n")
    assert load_finetune_recipe(str(tmp_path / "mine.yaml")).open == ("frames",)
    (tmp_path / "mine.yaml").write_text("layout: custom\nencoder: auto\n")
    with pytest.raises(ConfigError, match="encoder: auto, give a value"):
        load_finetune_recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("choose", ["validation", "folds"])
def test_of_equal_epochs_the_one_of_lower_loss_is_kept(tmp_path: Path, choose: str) -> None:
    """Two clips to judge by: nearly all epochs are equally right."""
    data = trees.custom_table(tmp_path / "data", split="split" if choose == "validation" else "fold")
    values = finetune(small(epochs=5, choose=choose, frames=32, lr=1e-5), data, tmp_path / "run", device="cpu")
    logs = [read_log(folder) for folder in sorted((tmp_path / "run").glob("fold-*"))]
    means = []
    for epoch in range(5):
        rows = [[row for row in log if row["val_loss"]][epoch] for log in logs]
        pairs = [(float(row["val_accuracy"]), float(row["val_loss"])) for row in rows]
        means.append((sum(p[0] for p in pairs) / len(pairs), -sum(p[1] for p in pairs) / len(pairs)))
    ties = [m for m in means if m[0] == max(means)[0]]
    assert len(ties) > 1, "no tie to break"
    assert values["folds"][0]["epoch"] == 1 + means.index(max(means)) != 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory that Linux tells")
def test_a_run_from_the_packages_model_keeps_to_its_memory(tmp_path: Path) -> None:
    """Ten clips of 5 s; with the batches and frames of the published values they would take 4 GB."""
    for number in range(10):
        trees.write_clip(tmp_path / f"data/kind{number % 2}/{number}.wav", number % 2, number, 5.0)
    words = ["finetune", "custom", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    program = (
        "import sys\nfrom ssamba.cli.main import main\n" + PEAK + "code = main(sys.argv[1:])\n"
        "print(peak())\nsys.exit(code)"
    )
    command = [sys.executable, "-c", program, *words, "--epochs", "1", "--folds", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) * 2**20 < 1.5e9
    assert "ssamba predict FILES --model" in done.stdout
    bars = [line for line in done.stderr.replace("\r", "\n").splitlines() if " steps [" in line]
    assert bars
    assert max(map(len, bars)) <= 80
    stored = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["recipe"]
    assert (stored["epochs"], stored["frames"], stored["head_init"]) == (1, 496, "probe")


def test_a_fold_leaves_nothing_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, gradients, optimizer and averages of one fold are gone when the next one begins."""
    data = trees.custom_folders(tmp_path / "data", per_class=4)
    tasks: list[weakref.ref[FinetuneTask]] = []
    alive: list[int] = []
    prepare = FinetuneTask.__init__

    def noted(task: FinetuneTask, *args: Any, **options: Any) -> None:
        alive.append(sum(reference() is not None for reference in tasks))
        tasks.append(weakref.ref(task))
        prepare(task, *args, **options)

    monkeypatch.setattr(FinetuneTask, "__init__", noted)
    gc.disable()  # it would come by at moments of its own
    try:
        finetune(small(epochs=1, folds=4), data, tmp_path / "run", device="cpu")
    finally:
        gc.enable()
    assert alive == [0, 0, 0, 0]
    assert all(reference() is None for reference in tasks)


def test_accuracy_is_told_as_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = trees.custom_folders(tmp_path / "data", per_class=4)
    words = ["finetune", "custom", "--data", str(data), "--from", "none", "--width", "32", "--depth", "2"]
    assert main([*words, "--epochs", "1", "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    counted = json.loads((tmp_path / "run/results.json").read_text())["counted"]
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"custom: accuracy {counted['right']} of 12, ")
    assert (tmp_path / "run/results.md").read_text().startswith(f"# {line}\n")


def test_folds_may_be_given(tmp_path: Path) -> None:
    """No epoch is chosen by the clips that it is tested on, unless the command says so."""
    data = trees.custom_folders(tmp_path / "data", per_class=6)
    values = finetune(small(epochs=2, folds=3), data, tmp_path / "run", device="cpu")
    assert ([fold["clips"]["test"] for fold in values["folds"]], values["choose"]) == ([6, 6, 6], "last")
    values = finetune(small(epochs=2, folds=3, choose="folds"), data, tmp_path / "best", device="cpu")
    assert values["choose"] == "folds"


def test_a_run_of_another_command_is_refused(tmp_path: Path) -> None:
    data = trees.custom_folders(tmp_path / "data", per_class=6)
    (tmp_path / "run").mkdir()
    stored = {"recipe": {"objective": "joint", "lr": 1e-4, "epochs": 2.5, "batch": 8}, "from": None, "plan": ""}
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ConfigError, match="holds a run of another command"):
        finetune(small(), data, tmp_path / "run", device="cpu")
