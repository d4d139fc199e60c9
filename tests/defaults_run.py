"""Every journey at a small size under a setting of torch, and digests of what it gives: test_torch_defaults.py runs it.

``python defaults_run.py prepare FOLDER`` writes sounds and two trained runs. ``python defaults_run.py SETTING FOLDER
WORK JOURNEY...`` runs the journeys, writes into WORK and prints a JSON object: digests, or the error, by journey.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import ssamba
from ssamba.cli.main import main
from ssamba.models.classifier import Classification
from ssamba.models.masking import cluster_masks, frame_masks
from ssamba.training.ema import EmaModel

BLOCKS = contextlib.ExitStack()
"""Blocks that stay open to the end of the process."""
SETTINGS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "float64": lambda: torch.set_default_dtype(torch.float64),
    "bfloat16": lambda: torch.set_default_dtype(torch.bfloat16),
    "float16": lambda: torch.set_default_dtype(torch.float16),
    "meta": lambda: torch.set_default_device("meta"),
    "cuda": lambda: torch.set_default_device("cuda"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "inference": lambda: BLOCKS.enter_context(torch.inference_mode()),
    "autocast": lambda: BLOCKS.enter_context(torch.autocast("cpu", torch.bfloat16)),
}
COMMON = "--workers 1 --precision fp32 --device cpu"
SMALL = f"--width 16 --depth 2 --frames 64 --mask 8 --validation-mask 8 --batch 4 --validation 0.1 {COMMON}"
PRETRAIN = f"{SMALL} --steps 2 --log-every 1 --validate-every 2 --lr 1e-3"
RICHER = "--decoder-depth 2 --latent 1 --latent-clip 1 --ema 0.9 --contrast 0.1 --mix 0.5 --gain-db 3 --response-db 3"
RICHER += " --speed 1.1 --reverb 0.5 --statistics measure --drop-path 0.2 --mask-kind frame --clip-norm 1"
RECIPE = "layout: custom\nframes: 64\nstride: 16\nstatistics: measure\nlr: 1.0e-3\nepochs: 1\nbatch: 8\n"
RECIPE += "freq_mask: 8\ntime_mask: 8\nnoise: true\nmixup: 0.5\nloss: auto\nmetric: auto\nchoose: auto\n"
TIMES = ("seconds", "clips_per_second")


# ---- digests


def digest(*values: Any) -> str:
    """Of arrays and tensors with dtype and shape, of other things by their text."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            assert value.device.type == "cpu", value.device
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray):
            found.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        elif isinstance(value, dict):
            found.update(digest(*(x for item in sorted(value.items()) for x in item)).encode())
        elif isinstance(value, (list, tuple)):
            found.update(digest(*value).encode())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()[:16]


def of_file(path: Path) -> str:
    """Of numbers and words, without times."""
    if path.suffix == ".safetensors":
        return digest(load_file(path))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return digest({name: file[name] for name in file.files})
    if path.suffix == ".csv":
        with path.open() as lines:
            return digest([{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(lines)])
    if path.suffix == ".pth":
        return digest(torch.load(path, map_location="cpu"))
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def of_run(folder: Path) -> dict[str, str]:
    """Weights, state and log of a run."""
    names = ("model.safetensors", "state.safetensors", "log.csv", "config.json")
    found = {str(p.relative_to(folder)): of_file(p) for p in sorted(folder.rglob("*")) if p.name in names}
    assert found
    return found


def command(words: str, sounds: Path) -> str:
    """Runs the command line; what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words.split())
    assert code == 0, err.getvalue()[-1500:]
    return out.getvalue()


# ---- journeys: a folder with sounds and runs, and one to write into


def sound(seconds: float) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(1)).normal(0, 0.1, int(16000 * seconds)).astype(np.float32)


def features(given: Path, work: Path) -> Any:
    return [ssamba.features(sound(1.0)), ssamba.features([sound(0.5), sound(0.7)])]


def build(given: Path, work: Path) -> Any:
    config = ssamba.Config(width=16, depth=2, frames=64, drop_path=0.2)
    task = Classification(("a", "b"))
    found = []
    for kind, options in ((ssamba.SSAMBA, {}), (ssamba.SSAST, {"encoder": "ssast", "attention_heads": 2})):
        of_kind = config.replace(**options)
        model = kind(of_kind, heads=True, classification=task)
        other = model.with_grid(frames=96)
        keep = model.draw_keep(3, torch.Generator().manual_seed(2))
        found += [model.state_dict(), other.state_dict(), keep, EmaModel(model, 0.9).model.state_dict()]
    return found


def masks(given: Path, work: Path) -> Any:
    return [kind(3, (8, 4), 9, torch.Generator().manual_seed(1)) for kind in (cluster_masks, frame_masks)]


def step(given: Path, work: Path) -> Any:
    """A training step of a user's own loop."""
    model = ssamba.SSAMBA(ssamba.Config(width=16, depth=2, frames=64), heads=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.from_numpy(sound(2 * 64 * 128 / 16000)).view(2, 64, 128)
    mask = torch.arange(8, device="cpu")[None].repeat(2, 1)
    losses = model.losses(x, mask)
    losses["loss"].backward()
    optimizer.step()
    return [losses, model.state_dict(), model.reconstruct(x, mask)]


def load(given: Path, work: Path) -> Any:
    return [ssamba.load(given / name, device="cpu").state_dict() for name in ("pretrained", "tuned")]


def embed(given: Path, work: Path) -> Any:
    model = ssamba.load(given / "pretrained", device="cpu")
    found = []
    for arguments in ((sound(0.5),), ([sound(0.4), sound(1.7)],), (torch.from_numpy(sound(3.0)),)):
        for options in ({}, {"whole": True}):
            made = model.embed(*arguments, **options)
            found += [made.clip, made.frames, made.patches, made.times, made.lengths]
    return found


def embed_files(given: Path, work: Path) -> Any:
    for level in ("clip", "frame", "patch"):
        words = f"embed {given / 'sounds'} --model {given / 'pretrained'} --device cpu --threads 1 --level {level}"
        command(f"{words} --out {work / level}.npz", given)
    return [of_file(work / f"{level}.npz") for level in ("clip", "frame", "patch")]


def predict(given: Path, work: Path) -> Any:
    words = f"predict {given / 'sounds'} --model {given / 'tuned'} --device cpu --threads 1"
    command(f"{words} --out {work / 'clip.json'}", given)
    command(f"{words} --every 0.5 --out {work / 'time.csv'}", given)
    made = ssamba.load(given / "tuned", device="cpu").predict(sound(1.0))[0]
    return [of_file(work / "clip.json"), of_file(work / "time.csv"), made.scores, made.spans, made.ranked()]


def pretrain(given: Path, work: Path) -> Any:
    found = []
    for i, more in enumerate(("", RICHER, "--encoder ssast")):
        command(f"pretrain {given / 'sounds'} --out {work / str(i)} {PRETRAIN} {more}", given)
        found.append(of_run(work / str(i)))
    return found


def finetune(given: Path, work: Path) -> Any:
    found = []
    for i, more in enumerate(("", "--ema 0.9 --head-init probe --layer-decay 0.8")):
        words = f"finetune {given / 'fixed.yaml'} --data {given / 'sounds'} --from {given / 'pretrained'}"
        command(f"{words} --out {work / str(i)} {COMMON} {more}", given)
        found.append(of_run(work / str(i)))
    return found


def convert(given: Path, work: Path) -> Any:
    command(f"convert {given / 'pretrained'} {work / 'official.pth'}", given)
    command(f"convert {work / 'official.pth'} {work / 'again'}", given)
    return [of_file(work / "official.pth"), of_file(work / "again/model.safetensors")]


def stats(given: Path, work: Path) -> Any:
    return command(f"stats {given / 'sounds'} --json", given)


def probe(given: Path, work: Path) -> Any:
    words = f"probe custom --data {given / 'sounds'} --model {given / 'pretrained'} --device cpu --layer all"
    command(f"{words} --out {work / 'probe'}", given)
    return {str(p.relative_to(work)): of_file(p) for p in sorted(work.rglob("*.safetensors"))} | {
        "results": (work / "probe/results.json").read_text()
    }


JOURNEYS: dict[str, Callable[[Path, Path], Any]] = {
    f.__name__: f
    for f in (
        features, build, masks, step, load, embed, embed_files, predict, pretrain, finetune, convert, stats, probe,
    )
}  # fmt: skip


def prepare(folder: Path) -> None:
    """Sounds with labels, a recipe, and two runs."""
    rows = ["path,label,split"]
    (folder / "sounds").mkdir(parents=True)
    for number in range(24):
        samples = (sound(0.8 + number % 3 / 4) * (1 + number % 3) * 8000).astype("<i2")
        with wave.open(str(folder / f"sounds/clip{number:02}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(np.roll(samples, number).tobytes())
        rows.append(f"clip{number:02}.wav,kind{number % 3},{'train' if number < 15 else ('val', 'test')[number % 2]}")
    (folder / "sounds/labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "fixed.yaml").write_text(RECIPE)
    command(f"pretrain {folder / 'sounds'} --out {folder / 'pretrained'} {PRETRAIN}", folder)
    words = f"finetune {folder / 'fixed.yaml'} --data {folder / 'sounds'} --from {folder / 'pretrained'}"
    command(f"{words} --out {folder / 'tuned'} {COMMON}", folder)


def results(setting: str, given: Path, work: Path, names: list[str]) -> Iterator[tuple[str, Any]]:
    """(journey, digest or error)."""
    before = torch.zeros(1)
    SETTINGS[setting]()
    after = torch.zeros(1)
    changes = (before.dtype, before.device, before.is_inference()) != (after.dtype, after.device, after.is_inference())
    assert changes == (setting not in ("none", "deterministic", "autocast")), setting
    assert torch.is_autocast_enabled("cpu") == (setting == "autocast")
    for name in names:
        (work / name).mkdir(parents=True)
        try:
            yield name, digest(JOURNEYS[name](given, work / name))
        except Exception as error:
            yield name, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    os.environ["NO_COLOR"] = "1"
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]))
    else:
        setting, given, work, *names = sys.argv[1:]
        print(json.dumps(dict(results(setting, Path(given), Path(work), names or list(JOURNEYS)))))
