"""What is fuzzed: for each kind of file good inputs to begin with, and the call that must take or refuse what comes.

A call may return, or raise ``SsambaError`` with one short line. Everything else is a finding: another exception, a
wrong or non-finite result (``AssertionError``), a crash, more than the time or memory of ``campaign``.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml

from ssamba.audio.decode import audio_info, read_audio, stream_audio
from ssamba.data.datasets.custom import read_custom
from ssamba.data.manifest import read_source
from ssamba.inference.load import load
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.models.pretrained.convert import convert
from ssamba.models.pretrained.describe import as_text, describe
from ssamba.models.pretrained.load import read_model_source
from ssamba.models.pretrained.model_dir import read_config, save_model
from ssamba.training.finetune.recipe import load_finetune_recipe
from ssamba.training.log import read_log
from ssamba.training.pretrain.recipe import make_recipe
from ssamba.training.run_state import STATE_FILE, RunStates, RunValues, StoredState
from ssamba.utils.errors import SsambaError
from ssamba.utils.tensor_file import write_tensors

RATE = 16000


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        ending: of the file's name.
        seeds: writes good inputs into a folder and returns their bytes.
        call: takes the path of a damaged file.
        text: whether changes of words and lines make sense.
        weight: how many of each hundred or so cases are of this kind.
    """

    ending: str
    seeds: Callable[[Path], list[bytes]]
    call: Callable[[Path], None]
    text: bool = False
    weight: int = 4


def _tone(seconds: float = 0.6, rate: int = RATE) -> np.ndarray[Any, np.dtype[np.float64]]:
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    return 0.3 * np.sin(2 * np.pi * 440 * time) + 0.02 * noise


def _audio(kind: str, subtypes: tuple[str, ...], ending: str) -> Target:
    def seeds(folder: Path) -> list[bytes]:
        inputs = []
        for subtype in subtypes:
            for rate, channels in ((16000, 1), (44100, 2)):
                if subtype == "OPUS" and rate == 44100:
                    rate = 48000
                path = folder / "seed"
                soundfile.write(
                    path, np.repeat(_tone(0.4, rate)[:, None], channels, 1), rate, format=kind, subtype=subtype
                )
                inputs.append(path.read_bytes())
        return inputs

    return Target(ending, seeds, _call_audio, weight=3)


def _call_audio(path: Path) -> None:
    info = audio_info(path)
    assert info.frames > 0
    assert info.sample_rate > 0
    waveform = read_audio(path)
    assert np.isfinite(waveform).all()
    expected = info.frames * RATE / info.sample_rate
    assert abs(len(waveform) - expected) <= 2 + expected * 1e-4, (len(waveform), expected)
    streamed = sum(len(block) for block in stream_audio(path, block_seconds=1.0))
    assert streamed == len(waveform), (streamed, len(waveform))


def _small_model() -> SSAMBA:
    torch.manual_seed(0)
    return SSAMBA(Config(width=32, depth=2, frames=64), heads=False)


def _model_files(folder: Path) -> dict[str, bytes]:
    save_model(folder / "model", _small_model())
    files = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    values = json.loads(files["config.json"])
    values.pop("digest", None)  # with it nearly every change is refused for that reason alone
    files["config.json"] = json.dumps(values, indent=1).encode()
    return files


def _one_of_a_model(name: str) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        return [_model_files(folder)[name]]

    return seeds


def _call_model(name: str) -> Callable[[Path], None]:
    def call(path: Path) -> None:
        folder = path.parent / f"model-{Path(name).stem}"
        if not folder.exists():
            for file, content in _model_files(path.parent).items():
                folder.mkdir(exist_ok=True)
                (folder / file).write_bytes(content)
        shutil.copyfile(path, folder / name)
        if name == "config.json":
            read_config(folder)
        model = load(folder)
        with torch.no_grad():
            tokens = model.encode(torch.zeros(1, 32, model.config.mel_bins))
        assert bool(tokens.isfinite().all()), "tokens are not finite"

    return call


def _call_info(name: str) -> Callable[[Path], None]:
    def call(path: Path) -> None:
        folder = path.parent / f"run-{Path(name).stem}"
        if not folder.exists():
            folder.mkdir()
            for file, content in _model_files(path.parent).items():
                (folder / file).write_bytes(content)
        shutil.copyfile(path, folder / name)
        as_text(describe(folder))

    return call


def _pth_seeds(folder: Path) -> list[bytes]:
    save_model(folder / "m", _small_model())
    convert(folder / "m", folder / "m.pth")
    state = torch.load(folder / "m.pth", weights_only=True)
    inputs = [(folder / "m.pth").read_bytes()]
    few = dict(list(state.items())[:6])
    for content, legacy in ((state, True), (few, False), ({"state_dict": state, "epoch": 3}, False), ({}, False)):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
        inputs.append(buffer.getvalue())
    return inputs


def _call_pth(path: Path) -> None:
    _, tensors = read_model_source(path)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


VALUES = RunValues(
    3, {"best": 0.25, "waited": 1}, {"step": 2, "score": 0.5, "loss": 1.0}, {"loss": 2.0}, 1, 0, {}, None
)


def _state_seeds(folder: Path) -> list[bytes]:
    RunStates(folder).save({"model.w": torch.randn(3, 4), "adam.step": torch.tensor(3)}, VALUES)
    return [(folder / STATE_FILE).read_bytes()]


def _call_state(path: Path) -> None:
    folder = path.parent / "state"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / STATE_FILE)
    _check_values(RunStates(folder).load())


def _values_seeds(folder: Path) -> list[bytes]:
    return [json.dumps(dataclasses.asdict(VALUES)).encode()]


def _call_values(path: Path) -> None:
    """Values of a state whose digest is right: written by another version, or by hand."""
    folder = path.parent / "values"
    folder.mkdir(exist_ok=True)
    text = path.read_bytes().decode("utf-8", "replace")
    write_tensors(folder / STATE_FILE, {"model.w": torch.zeros(2)}, {"state": text})
    _check_values(RunStates(folder).load())


def _check_values(found: StoredState | None) -> None:
    assert found is not None
    values = found[1]
    assert all(type(number) is int and number >= 0 for number in (values.step, values.summed, values.averaged))


FILES = ("b/c.wav", "é.wav", *(f"{letter}.wav" for letter in "adefghik"))


def _table_seeds(folder: Path) -> list[bytes]:
    """Tables with each delimiter, line ending and encoding; the last gives each clip its split."""
    rows = [(name, ("dog", "cat")[i % 2], ("0.6", "")[i % 5 == 0]) for i, name in enumerate(FILES)]
    texts = []
    for delimiter in ",\t;":
        lines = [delimiter.join(row) for row in (("path", "label", "seconds"), *rows)]
        texts.append("\n".join(lines) + "\n")
    parts = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    lines = ["path,labels,split", *(f"{row[0]},{row[1]}|x,{part}" for row, part in zip(rows, parts, strict=True))]
    texts.append("\n".join(lines) + "\n")
    texts.append(texts[0].replace("\n", "\r\n"))
    return [text.encode() for text in texts] + [texts[0].encode("utf-16"), b"\xef\xbb\xbf" + texts[1].encode()]


def _json_seeds(folder: Path) -> list[bytes]:
    rows = [{"wav": "a.wav", "labels": "dog,cat"}, {"wav": "b/c.wav", "labels": ["x", "y"], "seconds": 0.6}]
    return [json.dumps({"data": rows}).encode(), json.dumps({"data": rows}, indent=1).encode()]


def _call_manifest(path: Path) -> None:
    for name in FILES:
        file = path.parent / name
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            soundfile.write(file, _tone(), RATE)
    clips = read_source(path)
    assert clips
    assert all(clip.stated_seconds is None or 0 < clip.stated_seconds < float("inf") for clip in clips)


def _call_labelled(path: Path) -> None:
    _call_manifest(path)
    data = read_custom(path)
    assert data.classes


def _recipe_seeds(folder: Path) -> list[bytes]:
    pretraining = {"size": "tiny", "lr": 1e-4, "steps": 100, "objective": "reference", "warmup_steps": 10}
    return [
        yaml.safe_dump(pretraining).encode(),
        b"lr: 0.001\nbatch: 8\nseed: 3\nfreeze_epochs: 1\n",
        b"lr: 1e-3\nbatch: 8\nepochs: 3 # few\n",
        b"{lr: 0.1, batch: 4}\n",
        b'"lr": 1.0e-3\n? seed\n: 3\n',
    ]


def _call_pretraining_recipe(path: Path) -> None:
    make_recipe(path)


def _call_finetuning_recipe(path: Path) -> None:
    load_finetune_recipe(str(path))


def _log_seeds(folder: Path) -> list[bytes]:
    return [b"step,seconds,loss,lr\n1,0.5,2.25,0.001\n2,0.9,2.0,0.001\n3,1.5,1.5,0.0009\n"]


def _call_log(path: Path) -> None:
    folder = path.parent / "log"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / "log.csv")
    read_log(folder)


def _summary_seeds(folder: Path) -> list[bytes]:
    return [
        b'{"step": 3, "steps": 10, "best_loss": 0.5, "best_step": 2, "seconds": 12.5}',
        b'{"score": 0.5, "folds": []}',
    ]


TARGETS: dict[str, Target] = {
    "wav": _audio("WAV", ("PCM_16", "FLOAT", "PCM_U8", "IMA_ADPCM"), ".wav"),
    "wavex": _audio("WAVEX", ("PCM_24",), ".wav"),
    "rf64": _audio("RF64", ("PCM_16",), ".rf64"),
    "w64": _audio("W64", ("PCM_16", "DOUBLE"), ".w64"),
    "flac": _audio("FLAC", ("PCM_16", "PCM_24"), ".flac"),
    "vorbis": _audio("OGG", ("VORBIS",), ".ogg"),
    "opus": _audio("OGG", ("OPUS",), ".opus"),
    "mp3": _audio("MP3", ("MPEG_LAYER_III",), ".mp3"),
    "aiff": _audio("AIFF", ("PCM_16", "FLOAT"), ".aiff"),
    "au": _audio("AU", ("PCM_16", "ULAW"), ".au"),
    "caf": _audio("CAF", ("PCM_16", "ALAC_16"), ".caf"),
    "config": Target(".json", _one_of_a_model("config.json"), _call_model("config.json"), text=True, weight=8),
    "weights": Target(".safetensors", _one_of_a_model("model.safetensors"), _call_model("model.safetensors")),
    "state": Target(".safetensors", _state_seeds, _call_state, weight=6),
    "values": Target(".json", _values_seeds, _call_values, text=True, weight=6),
    "pth": Target(".pth", _pth_seeds, _call_pth, weight=8),
    "table": Target(".csv", _table_seeds, _call_manifest, text=True, weight=8),
    "tsv": Target(".tsv", _table_seeds, _call_manifest, text=True),
    "json": Target(".json", _json_seeds, _call_manifest, text=True, weight=6),
    "labelled": Target(".csv", _table_seeds, _call_labelled, text=True, weight=6),
    "recipe": Target(".yaml", _recipe_seeds, _call_pretraining_recipe, text=True, weight=8),
    "finetuning": Target(".yaml", _recipe_seeds, _call_finetuning_recipe, text=True, weight=6),
    "log": Target(".csv", _log_seeds, _call_log, text=True, weight=6),
    "summary": Target(".json", _summary_seeds, _call_info("state.json"), text=True),
    "results": Target(".json", _summary_seeds, _call_info("results.json"), text=True),
}
"""Name -> kind of file."""


def order() -> Iterator[str]:
    """The names of targets, endlessly, each as often as its weight says."""
    plan = [name for name, target in TARGETS.items() for _ in range(target.weight)]
    np.random.default_rng(0).shuffle(plan)
    while True:
        yield from plan


def check(target: Target, path: Path) -> str:
    """Call a target on a file: "taken" or "refused". Raises whatever is a finding."""
    try:
        target.call(path)
    except SsambaError as error:
        message = str(error)
        assert "\n" not in message, f"a message of several lines: {message!r}"
        assert len(message) < 1000, f"a message of {len(message)} characters"
        return "refused"
    return "taken"
