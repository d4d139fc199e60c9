"""``ssamba.export_onnx``: a model as one ONNX file, for any batch and any length."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.inference.load import load
from ssamba.models import encoder
from ssamba.models.pretrained.load import ModelSource
from ssamba.models.pretrained.weights import DEFAULT
from ssamba.utils.atomic_write import atomic_write
from ssamba.utils.errors import ConfigError, SsambaError, nearest

if TYPE_CHECKING:
    from onnx import ModelProto

    from ssamba.inference.onnx.graph import Shape
    from ssamba.inference.rejection.score import Rejection

INPUTS = ("waveform", "features")
OUTPUTS = ("tokens", "clip", "logits")
WEIGHTS = ("fp32", "fp16", "int8")
LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights that one ONNX file can hold: 2 GB, less 16 MB for all that is not weights."""
TEST_SOUNDS, TEST_SECONDS = 4, 10.0


@dataclass(frozen=True)
class OnnxFile:
    """What was written.

    Attributes:
        path: the file.
        size: its bytes.
        nodes: operators in the graph, a loop and its body counted once.
        errors: output (``tokens``, ``clip``, ``logits``) -> what rounding the weights does to it on a made-up sound,
            relative to the model: the norm of the difference over the norm. Empty for fp32.
    """

    path: Path
    size: int
    nodes: int
    errors: dict[str, float] = field(default_factory=dict)


def export_onnx(
    model: encoder.Encoder | ModelSource | None,
    path: str | os.PathLike[str],
    output: str = "tokens",
    input: str = "waveform",
    weights: str = "fp32",
    unlike: bool = False,
) -> OnnxFile:
    """Write a model as an ONNX file of standard operators (opset 18), for any batch and any length.

    Args:
        model: a model, or what ``ssamba.load`` takes.
        path: a file that ends in ``.onnx``; it appears when it is complete, and replaces one that is there.
        output: ``tokens`` (batch, prefix + rows x columns, width), as ``encode``; ``clip`` (batch, width), the mean of
            the patch tokens, as ``embed(..., whole=True).clip``; ``logits`` (batch, classes), or (batch, seconds,
            classes) of a model that labels each second, before softmax or sigmoid.
        input: ``waveform`` (batch, samples) float32 at the model's rate, 25 ms or more, or ``features`` (batch, frames,
            mel_bins), normalised log-mel as of ``ssamba.features``. From a waveform the last patch column is padded as
            ``embed`` does; for logits the padding goes up to the model's length, as ``predict`` does.
        weights: ``fp32``, ``fp16`` or ``int8``: how they are stored. All are computed with in float32.
        unlike: a second output after the logits, ``unlike`` (batch,), as of ``predict``: above 1 a sound is unlike the
            training sounds.

    Raises:
        ConfigError: an unknown choice, logits of a model without classifier, ``unlike`` without logits or of a model
            that does not know it, or a file beyond 2 GB.
        CheckpointError: a source that is no model.
        SsambaError: the package onnx is missing, or the file cannot be written.
    """
    _check_choices(output, input, weights)
    path = _check_path(path)
    if importlib.util.find_spec("onnx") is None:
        raise SsambaError("writing ONNX files takes the package onnx: pip install 'ssamba[onnx]'")
    name = "this model" if isinstance(model, encoder.Encoder) else model or DEFAULT
    if not isinstance(model, encoder.Encoder):
        model = load(model, device="cpu")
    if output == "logits" and model.classifier is None:
        raise ConfigError(f"{name}: has no classifier for output logits; fine-tune it first, or take tokens or clip")
    if unlike:
        _check_unlike(model, str(name), output)
    if stored_bytes(model, weights) > LARGEST_FILE:
        raise ConfigError(
            f"{path}: weights {weights} make more than 2 GB, which no ONNX file holds; take a smaller kind"
        )
    proto = build_onnx(model, output, input, weights, unlike)
    errors = {} if weights == "fp32" else rounding_errors(model, weights)
    data = proto.SerializeToString()
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return OnnxFile(path, len(data), count_nodes(proto), errors)


def build_onnx(
    model: encoder.Encoder,
    output: str = "tokens",
    input: str = "waveform",
    weights: str = "fp32",
    unlike: bool = False,
) -> ModelProto:
    """The graph of ``export_onnx``, checked, in memory."""
    from onnx import checker, helper

    from ssamba.inference.onnx.classifier import add_clip, add_logits, add_unlike, add_values
    from ssamba.inference.onnx.encoder import add_encoder
    from ssamba.inference.onnx.front_end import add_front_end
    from ssamba.inference.onnx.graph import IR_VERSION, OPSET, Graph
    from ssamba.inference.onnx.weights import Weights

    config, graph, stored = model.config, Graph(), Weights(model, weights)
    if (name := stored.overflow()) is not None:
        raise ConfigError(f"weights fp16: {name} holds values beyond {np.finfo(np.float16).max:g}; take fp32 or int8")
    features = input
    if input == "waveform":
        features = add_front_end(graph, config, input, config.frames if output == "logits" else 0)
    tokens = add_encoder(graph, model, stored, features)
    result = tokens.tokens_BLd
    shape: list[str | int] = ["batch", "tokens", config.width]
    if output == "clip":
        result, shape = add_clip(graph, model, tokens), ["batch", config.width]
    elif output == "logits":
        assert model.classifier is not None
        task = model.classifier.task
        values = add_values(graph, model, stored, tokens, model.classifier)
        result = add_logits(graph, stored, values)
        shape = ["batch", *(["seconds"] if task.per_second else []), len(task.classes)]
    graph.name_output(result, output)
    results: dict[str, Shape] = {output: shape}
    if unlike:
        graph.name_output(add_unlike(graph, values, _rejection(model)), "unlike")
        results["unlike"] = ["batch"]
    entry: list[str | int] = ["batch", "samples"] if input == "waveform" else ["batch", "frames", config.mel_bins]
    proto = helper.make_model(
        graph.finish("ssamba", {input: entry}, results),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="ssamba",
    )  # fmt: skip
    helper.set_model_props(proto, metadata(model, output, input, weights))
    checker.check_model(proto, full_check=True)
    return proto


def stored_bytes(model: encoder.Encoder, weights: str) -> int:
    """Bytes of the weights in a file, about: those of pretraining alone are not in it."""
    from ssamba.inference.onnx.weights import rounds

    size = {"fp32": 4, "fp16": 2, "int8": 1}[weights]
    parameters = {n: p for n, p in model.named_parameters() if not n.startswith(("heads.", "decoder.", "mask_"))}
    return sum(p.numel() * (size if rounds(name, weights) else 4) for name, p in parameters.items())


def metadata(model: encoder.Encoder, output: str, input: str, weights: str) -> dict[str, str]:
    """What a reader of the file needs besides the graph, as ONNX's custom metadata: plain text, or JSON."""
    config = model.config
    values = {
        "input": input, "output": output, "weights": weights, "sample_rate": config.sample_rate,
        "mean": config.mean, "std": config.std, "prefix_tokens": model.prefix_tokens, "rows": config.grid[0],
        "frames": config.frames, "config": config.to_dict(),
    }  # fmt: skip
    if model.classifier is not None and output == "logits":
        task = model.classifier.task
        values |= {"classes": list(task.classes), "scores": "sigmoid" if task.sigmoid else "softmax"}
        values |= {"per_second": task.per_second}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def count_nodes(proto: ModelProto) -> int:
    """Operators of the graph and of the bodies of its loops."""
    inner = [a.g for node in proto.graph.node for a in node.attribute if a.HasField("g")]
    return len(proto.graph.node) + sum(len(body.node) for body in inner)


@torch.no_grad()
def rounding_errors(model: encoder.Encoder, weights: str) -> dict[str, float]:
    """Relative errors (norm of the difference over the norm) of tokens, clip and logits when weights are rounded so."""
    from ssamba.inference.onnx.weights import rounded

    config = model.config
    waveform = log_mel.to_waveform(made_up_sound(), model_rate=config.sample_rate)
    logs = log_mel.fit_length(log_mel.filter_bank(waveform[None], config.front_end), config.frames)
    features = config.front_end.normalise(logs)
    wanted, found = (_outputs(rounded(model, kind), features) for kind in ("fp32", weights))
    return {name: float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted}


def made_up_sound() -> np.ndarray:
    """A few made-up sounds one after the other, 10 s at 16 kHz, int16: the same always."""
    from ssamba.data.synthetic.generate import CLASS_NAMES, synthesise

    classes = CLASS_NAMES[:: len(CLASS_NAMES) // TEST_SOUNDS][:TEST_SOUNDS]
    return np.concatenate([synthesise(name, TEST_SECONDS / TEST_SOUNDS) for name in classes])


def _outputs(model: encoder.Encoder, features: Tensor) -> dict[str, Tensor]:
    tokens_BLd = model.encode(features)
    found = {"tokens": tokens_BLd, "clip": tokens_BLd[:, model.prefix_tokens :].mean(dim=1)}
    if model.classifier is not None:
        found["logits"] = model.classify(features)
    return found


def _check_choices(output: str, input: str, weights: str) -> None:
    for name, value, known in (("output", output, OUTPUTS), ("input", input, INPUTS), ("weights", weights, WEIGHTS)):
        if value not in known:
            raise ConfigError(f"{name} {value}: choose {', '.join(known)}{nearest(str(value), list(known))}")


def _check_unlike(model: encoder.Encoder, name: str, output: str) -> None:
    if output != "logits":
        raise ConfigError(f"output {output}: unlike goes with logits; take output logits, or leave unlike out")
    if getattr(model, "rejection", None) is None:
        raise ConfigError(
            f"{name}: cannot tell what is unlike its training sounds; leave unlike out, or fit it with ssamba fit"
        )


def _rejection(model: encoder.Encoder) -> Rejection:
    rejection: Rejection = model.rejection  # type: ignore[assignment] # of the public models
    return rejection


def _check_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".onnx":
        raise ConfigError(f"{path}: give a file that ends in .onnx")
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; give a file that ends in .onnx")
    return path
