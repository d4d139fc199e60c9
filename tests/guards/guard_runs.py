"""Fixed training runs, each in a process of its own, and what they leave: layouts of files, bits and numbers."""

from __future__ import annotations

import csv
import json
import math
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from guard_support import call, files_of, process, sha256, write_sound, write_sounds
from safetensors import safe_open

SMALL = "--width 32 --depth 2 --frames 64 --mask 16 --validation-mask 16 --batch 4 --validation 0.1 --log-every 2"
SMALL += " --warmup-steps 4 --warmup-every 1 --save-minutes 60 --workers 1 --precision fp32 --device cpu"
PRETRAIN = f"pretrain sounds --steps 20 --lr 1e-4 --validate-every 10 {SMALL}"
LATENT = f"pretrain sounds --steps 2 --validate-every 2 --decoder-depth 2 --latent 1 --ema 0.9 --contrast 0.1 {SMALL}"
RECIPE = "layout: custom\nframes: 64\nstride: 16\nstatistics: measure\nlr: 1.0e-4\ndecay_start: 6\ndecay_every: 1\n"
RECIPE += "decay: 0.85\nepochs: 2\nbatch: 8\nfreq_mask: 8\ntime_mask: 8\nnoise: true\n"
RECIPE += "loss: auto\nmetric: auto\nchoose: auto\n"
"""A recipe of a user's own, which depends on no recipe that comes with the package."""
FINETUNE = "finetune fixed.yaml --data sounds --workers 1 --save-minutes 60 --precision fp32 --device cpu"
COMMANDS = {
    "pretrain-reference": ("reference", f"{PRETRAIN} --out pretrain-reference"),
    "pretrain-cpu": ("cpu", f"{PRETRAIN} --out pretrain-cpu"),
    "pretrain-latent": ("cpu", f"{LATENT} --out pretrain-latent"),
    "finetune-cpu": ("cpu", f"{FINETUNE} --from pretrain-reference --out finetune-cpu"),
    "finetune-reference": ("reference", f"{FINETUNE} --from pretrain-reference --out finetune-reference --ema 0.9"),
    "finetune-ssast": ("cpu", f"{FINETUNE} --from none --encoder ssast --width 32 --depth 2 --out finetune-ssast"),
}
"""Backend and command line of each run, in the order in which they can be made."""
EXACT = [name for name in COMMANDS if name != "pretrain-latent"]
"""Runs whose bits are kept."""
TIMES = ("seconds", "clips_per_second")
TOLERANCE = 1e-5
ROUNDING = re.compile(r"heads\.discriminative\.\d\.bias|blocks\.\d\.attn\.qkv\.bias")
"""Tensors with a gradient that is 0 but for rounding, in all or some of their values: Adam makes steps of it,
which differ between machines. Of these only the size is compared."""
PROBES = 3
"""Random directions on which each tensor is projected: numbers that stand for all of its values."""


def make_runs(folder: Path) -> Path:
    """All runs, below a folder."""
    write_sounds(folder / "sounds")
    (folder / "fixed.yaml").write_text(RECIPE)
    for name, (backend, words) in COMMANDS.items():
        done = process(words.split(), folder, SSAMBA_BACKEND=backend)
        if done.returncode:
            raise RuntimeError(f"{name} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return folder


def machine() -> str:
    """What the bits of a run on the CPU depend on: vector instructions, processor, libraries."""
    import llvmlite.binding

    parts = [platform.machine(), torch.backends.cpu.get_cpu_capability(), llvmlite.binding.get_host_cpu_name()]
    names = ("torch", "numpy", "numba", "llvmlite")
    return " ".join([*parts, *(f"{name}-{version(name)}" for name in names)])


# Layouts


def tensors_in(path: Path) -> dict[str, Any]:
    """Types and shapes of a safetensors file in its order, and its metadata's keys."""
    with safe_open(path, "pt") as file:
        tensors = {k: f"{file.get_slice(k).get_dtype()}{file.get_slice(k).get_shape()}" for k in file.keys()}  # noqa: SIM118
        return {"tensors": tensors, "metadata": sorted(file.metadata() or {})}


def shape_of(value: Any) -> Any:
    """A JSON value with types in place of its values; lists by the forms of their entries."""
    if isinstance(value, dict):
        return {k: shape_of(v) for k, v in value.items()}
    if isinstance(value, list):
        forms = {json.dumps(shape_of(v)): None for v in value}
        return [json.loads(form) for form in forms]
    return type(value).__name__


def layout_of(path: Path) -> Any:
    """What can be read from a file without its numbers; recipes and config.json as they are."""
    if path.suffix == ".safetensors":
        return tensors_in(path)
    if path.name == "config.json":
        return json.loads(path.read_text())
    if path.name == "checks.json":  # the names of events hold a time and a process
        return sorted(re.sub("tfevents.*", "tfevents", name) for name in json.loads(path.read_text())["files"])
    if path.suffix == ".json":
        return shape_of(json.loads(path.read_text()))
    if path.suffix == ".csv":
        return path.read_text().splitlines()[0]
    if path.suffix in (".yaml", ".yml"):
        return path.read_text().splitlines()  # with the digest of the plan, which a run that goes on must meet
    if path.suffix == ".md":
        return [re.sub(r"[\d.]+", "0", line) for line in path.read_text().splitlines() if line.strip()]
    return None


def layouts(folder: Path) -> dict[str, Any]:
    """Files of all runs."""
    return {run: {name: layout_of(path) for name, path in files_of(folder / run)} for run in COMMANDS}


def loaded(folder: Path) -> dict[str, Any]:
    """State dicts of the runs as ``ssamba.load`` gives them."""
    from guard_surface import tensors_of

    import ssamba

    return {run: tensors_of(ssamba.load(folder / run, device="cpu").state_dict()) for run in COMMANDS}


# Bits and numbers


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def log_rows(run: Path) -> list[dict[str, str]]:
    """Rows of all logs of a run, without the columns that are times."""
    rows = []
    for _, path in files_of(run):
        if path.name == "log.csv":
            with path.open(newline="") as file:
                rows += [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    return rows


def bits(folder: Path) -> dict[str, Any]:
    """Digests of the weights of each run, of its training state and of its log."""
    found = {}
    for run in EXACT:
        files = {}
        for name, path in files_of(folder / run):
            if path.suffix == ".safetensors" and path.name != "state.previous.safetensors":
                parts = [f"{k} {v.dtype} {tuple(v.shape)} ".encode() + raw(v) for k, v in sorted(tensors(path).items())]
                files[name] = sha256(b"".join(parts))
        found[run] = files | {"log": sha256(json.dumps(log_rows(folder / run)).encode())}
    return found


def raw(value: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def numbers(folder: Path) -> dict[str, Any]:
    """Norm and projections of each tensor of each run's model, and the numbers of its log."""
    found: dict[str, Any] = {}
    for run in EXACT:
        model = tensors(folder / run / "model.safetensors")
        projected = {}
        for key, value in sorted(model.items()):
            values = value.double().reshape(-1).numpy()
            random = np.random.Generator(np.random.PCG64(len(values))).standard_normal((PROBES, len(values)))
            projected[key] = [float(f"{x:.9g}") for x in (np.linalg.norm(values), *(random @ values))]
        found[run] = {"tensors": projected, "log": log_rows(folder / run)}
    return found


def differences(found: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """Where numbers differ by more than the tolerance, of the norm of a tensor or of a value in a log."""
    wrong = []
    for run, values in golden.items():
        if run not in found or set(found[run]["tensors"]) != set(values["tensors"]):
            wrong.append(f"{run}: other tensors")
            continue
        for key, wanted in values["tensors"].items():
            numbers = found[run]["tensors"][key]
            worst = max(abs(a - b) for a, b in zip(numbers, wanted, strict=True))
            if ROUNDING.fullmatch(key):
                worst = 0.0 if 0.5 < numbers[0] / wanted[0] < 2 else worst
            if not worst <= TOLERANCE * max(wanted[0], 1e-3):
                wrong.append(f"{run}: {key}: off by {worst:.2g} of a norm of {wanted[0]:.4g}")
        wrong += _log_differences(run, found[run]["log"], values["log"])
    return wrong


def _log_differences(run: str, found: list[dict[str, str]], golden: list[dict[str, str]]) -> list[str]:
    if [list(row) for row in found] != [list(row) for row in golden]:
        return [f"{run}: the log has other rows or columns"]
    wrong = []
    for one, other in zip(found, golden, strict=True):
        for column, wanted in other.items():
            same = one[column] == wanted
            if not same and "" not in (one[column], wanted):
                same = math.isclose(float(one[column]), float(wanted), rel_tol=TOLERANCE, abs_tol=1e-9)
            if not same:
                wrong.append(f"{run}: log, {column}: {one[column]} instead of {wanted}")
    return wrong


# Outputs of embed, predict and others


def array_layouts(path: Path) -> dict[str, str]:
    """Types and shapes in a .npz, in its order."""
    with np.load(path) as file:
        return {name: f"{file[name].dtype.str}{list(file[name].shape)}" for name in file.files}


def parquet_layout(path: Path) -> dict[str, Any]:
    """Schema, row count and metadata of a .parquet."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    schema = [f"{f.name}: {f.type}{'' if f.nullable else ' not null'}" for f in file.schema_arrow]
    metadata = sorted(k.decode() for k in (file.schema_arrow.metadata or {}))
    return {"columns": schema, "rows": file.metadata.num_rows, "metadata": metadata}


def outputs(folder: Path) -> dict[str, Any]:
    """Layouts of what ``embed``, ``predict``, ``info``, ``stats``, ``convert`` and ``probe`` write and print."""
    for number, seconds in ((1, 1.0), (2, 2.5)):
        write_sound(folder / f"sound{number}.wav", number, seconds)
    sounds, cpu = ["sound1.wav", "sound2.wav"], ["--device", "cpu"]
    found: dict[str, Any] = {}

    def ssamba(*words: str) -> str:
        code, out, err = call(words, folder, SSAMBA_BACKEND="reference")
        assert code == 0, err
        return out

    for level in ("clip", "frame", "patch"):
        for ending, layout in (("npz", array_layouts), ("parquet", parquet_layout)):
            out = f"{level}.{ending}"
            text = ssamba("embed", *sounds, "--model", "pretrain-reference", "--level", level, "--out", out, *cpu)
            found[f"embed {out}"] = {"prints": text, "holds": layout(folder / out)}
    for name, more in (("whole", []), ("in time", ["--every", "0.5"])):
        model = ["--model", "finetune-cpu", *cpu, "--top", "2", *more]
        for ending in ("json", "csv"):
            ssamba("predict", *sounds, *model, "--out", f"p.{ending}")
            found[f"predict {name}, {ending}"] = layout_of(folder / f"p.{ending}")
        text = ssamba("predict", *sounds, *model)
        found[f"predict {name}, table"] = [re.sub(r"[\d.]+", "0", " ".join(row.split())) for row in text.splitlines()]
    for source in ("tiny", "pretrain-latent", "finetune-cpu", "finetune-ssast"):
        found[f"info {source}"] = shape_of(json.loads(ssamba("info", source, "--json")))
        found[f"info {source}, text"] = re.findall(r"^(\S.*?)(?:  |$)", ssamba("info", source), re.MULTILINE)
    found["stats"] = shape_of(json.loads(ssamba("stats", "sounds", "--json")))
    ssamba("convert", "pretrain-reference", "half", "--half")
    ssamba("convert", "half", "official.pth")
    found["convert"] = {name: layout_of(path) for name, path in files_of(folder / "half")}
    official = torch.load(folder / "official.pth", map_location="cpu", weights_only=True)
    found["convert, official"] = {k: f"{v.dtype}{list(v.shape)}" for k, v in official.items()}
    ssamba("probe", "custom", "--data", "sounds", "--model", "pretrain-reference", "--out", "probed", "--c", "1", *cpu)
    found["probe"] = {re.sub(r"[0-9a-f]{8,}", "#", name): layout_of(path) for name, path in files_of(folder / "probed")}
    return found


def embedded() -> dict[str, list[float]]:
    """Numbers of the packaged model for a plain sound, by level."""
    import ssamba

    noise = np.random.Generator(np.random.PCG64(5)).integers(-9000, 9000, 40000).astype("int16")
    with ssamba.ops.use_backend("reference"):
        out = ssamba.load(device="cpu").embed(noise)
    values = {"clip": out.clip[0], "frames": out.frames[0].norm(dim=-1), "times": out.times}
    values |= {"patches": out.patches[0].norm(dim=-1).reshape(-1), "lengths": out.lengths.float()}
    return {name: [float(f"{x:.8g}") for x in value.double().reshape(-1)[:32]] for name, value in values.items()}
