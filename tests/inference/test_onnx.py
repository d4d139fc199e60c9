"""ONNX files in ONNX Runtime: the numbers of the model, for any batch and any length, from features and from sound."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

import ssamba
from ssamba.audio import log_mel
from ssamba.inference.model import Encoder, make_encoder
from ssamba.inference.onnx.export import (
    build_onnx,
    count_nodes,
    export_onnx,
    made_up_sound,
    rounding_errors,
    stored_bytes,
)
from ssamba.inference.onnx.front_end import add_front_end
from ssamba.inference.onnx.graph import OPSET, Graph
from ssamba.inference.onnx.weights import rounded
from ssamba.inference.predict import probabilities
from ssamba.models import patches
from ssamba.models.classifier import Classification
from ssamba.models.config import Config

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = 1e-4
CONFIGS = {
    "default": {},
    "four blocks": {"depth": 4},
    "one direction": {"directions": 1},
    "stream that sums up": {"residual_scale": 1, "depth": 4},
    "one direction that sums up": {"directions": 1, "residual_scale": 1, "depth": 4},
    "tied": {"decay": "tied"},
    "alternating": {"scan": "alternating", "depth": 4},
    "tied, alternating, states, taps": {
        "decay": "tied", "scan": "alternating", "state_size": 5, "conv_width": 3, "residual_scale": 1,
    },
    "alternating, one tap": {"scan": "alternating", "conv_width": 1, "state_size": 1},
    "states, expand, taps": {"state_size": 5, "expand": 3, "conv_width": 3, "dt_rank": 7},
    "one tap": {"conv_width": 1, "expand": 1, "state_size": 1, "dt_rank": 1},
    "overlapping patches": {"stride_frequency": 10, "stride_time": 10},
    "patches with gaps": {"patch_time": 8, "patch_frequency": 8},
    "frame patches": {
        "patch_frequency": 128, "stride_frequency": 128, "patch_time": 2, "stride_time": 2, "frames": 40,
    },
    "other bins": {"mel_bins": 64, "mean": -5.0, "std": 3.0},
    "odd grid": {"frames": 336},
    "ssast": {"encoder": "ssast", "depth": 3},
    "ssast, four heads": {"encoder": "ssast", "depth": 2, "attention_heads": 4, "stride_time": 10},
}  # fmt: skip


def model_of(task: Classification | None = None, heads: bool = False, **values: object) -> Encoder:
    """A small model, none of whose weights are those of a new one: not even norms and biases."""
    config = Config(**{"width": 32, "depth": 2, "frames": 320, **values})  # type: ignore[arg-type]
    model = make_encoder(config, heads, task)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(runtime: onnxruntime.InferenceSession, value: Tensor) -> Tensor:
    (entry,) = runtime.get_inputs()
    return torch.from_numpy(runtime.run(None, {entry.name: value.numpy()})[0])


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = CLOSE) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() <= tolerance


def sounds(batch: int, samples: int) -> Tensor:
    noise = torch.randn(batch, samples, generator=torch.Generator().manual_seed(2))
    return noise / 20 + torch.sin(torch.arange(samples) * torch.linspace(0.01, 0.7, batch)[:, None]) / 5


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_tokens_for_any_batch_and_length(name: str) -> None:
    model = model_of(**CONFIGS[name])
    runtime = session(build_onnx(model, "tokens", "features"))
    columns = model.config.grid[1]
    for n in (1, 16, 17, columns - 1, columns, columns + 1, 2 * columns):
        for batch in (1, 3):
            frames = patches.covered_frames(n, model.config) + (n % 3 if model.config.stride_time > 3 else 0)
            features = torch.randn(batch, frames, model.config.mel_bins)
            assert_close(run(runtime, features), model.encode(features))


@torch.no_grad()
def test_time_steps_of_every_size() -> None:
    model = model_of()
    for name, parameter in model.named_parameters():
        if name.endswith("dt_bias_RKE"):
            parameter.copy_(torch.linspace(-40, 40, parameter.numel()).view_as(parameter))
    runtime = session(build_onnx(model, "tokens", "features"))
    features = torch.randn(1, 640, 128)
    assert_close(run(runtime, features), model.encode(features), 2e-5)


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
@torch.no_grad()
def test_what_pretraining_alone_needs_is_left_out(encoder: str) -> None:
    model = model_of(heads=True, decoder_depth=2, encoder=encoder)
    proto = build_onnx(model, "tokens", "features")
    assert not [c.name for c in proto.graph.initializer if c.name.startswith(("heads", "decoder", "mask"))]
    features = torch.randn(2, 160, 128)
    assert_close(run(session(proto), features), model.encode(features))


@torch.no_grad()
def test_the_model_in_the_package() -> None:
    model = ssamba.load(device="cpu")
    start = time.perf_counter()
    proto = build_onnx(model, "tokens", "features")
    assert time.perf_counter() - start < 5
    runtime = session(proto)
    for frames in (model.config.frames, 1024):
        features = torch.randn(1, frames, 128)
        assert_close(run(runtime, features), model.encode(features))


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
def test_the_graph_is_standard_and_as_large_for_any_length(encoder: str) -> None:
    protos = [build_onnx(model_of(encoder=encoder, frames=frames)) for frames in (160, 1600)]
    assert count_nodes(protos[0]) == count_nodes(protos[1]) < 250
    for proto in protos:
        assert [(o.domain, o.version) for o in proto.opset_import] == [("", OPSET)]
        bodies = [a.g for node in proto.graph.node for a in node.attribute if a.HasField("g")]
        assert len(bodies) == (1 if encoder == "ssamba" else 0)
        assert {node.domain for part in (proto.graph, *bodies) for node in part.node} == {""}
        assert not proto.functions
        read = {name for part in (proto.graph, *bodies) for node in part.node for name in node.input}
        assert {constant.name for constant in proto.graph.initializer} <= read


def front_end(config: Config, least_frames: int = 0) -> onnxruntime.InferenceSession:
    graph = Graph()
    graph.name_output(add_front_end(graph, config, "waveform", least_frames), "features")
    finished = graph.finish("front_end", {"waveform": ["b", "s"]}, {"features": ["b", "f", config.mel_bins]})
    opset = [onnx.helper.make_opsetid("", OPSET)]
    return session(onnx.helper.make_model(finished, opset_imports=opset, ir_version=9))


@pytest.mark.parametrize(
    "values",
    [
        {}, {"mel_bins": 64}, {"stride_time": 10}, {"mean": 1.0, "std": 2.0}, {"sample_rate": 8000, "mel_bins": 64},
        {"sample_rate": 22050}, {"sample_rate": 44100},
    ],
    ids=str,
)  # fmt: skip
def test_the_front_end(values: dict[str, object]) -> None:
    config = Config(**values)  # type: ignore[arg-type]
    runtime = front_end(config)
    length, hop = config.front_end.frame_length, config.front_end.hop
    for samples in (length, length + 1, length + hop - 1, length + hop, 2800, 2959, 2960, 3000, 16001, 40000):
        waveforms = sounds(3, samples)
        waveforms[1] = waveforms[1] * 1e-3 + 0.5  # an offset
        waveforms[2] = 0.0
        logs = log_mel.filter_bank(waveforms, config.front_end)
        frames = patches.covered_frames(patches.columns(logs.shape[1], config), config)
        wanted = config.front_end.normalise(log_mel.fit_length(logs, frames))
        assert_close(run(runtime, waveforms), wanted)


def test_a_recording_under_one_frame_is_an_error() -> None:
    runtime = front_end(Config())
    for samples in (0, 1, 80, 320, 399):
        with pytest.raises(Exception, match=r"Reshape|Gather"):
            run(runtime, torch.ones(1, samples))


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
@torch.no_grad()
def test_from_the_waveform_as_embed(encoder: str) -> None:
    model = model_of(encoder=encoder)
    tokens, clip = (session(build_onnx(model, output)) for output in ("tokens", "clip"))
    for samples in (400, 16000, 51360, 51600, 60000, 100000):
        audio = sounds(2, samples)
        wanted = model.embed(audio, whole=True)
        assert_close(run(clip, audio), wanted.clip)
        found = run(tokens, audio)[:, model.prefix_tokens :].unflatten(1, (model.config.grid[0], -1))
        assert_close(found, wanted.patches)


TASKS = {
    "mean": Classification(("a", "b", "c")),
    "cls": Classification(("a", "b", "c"), pooling="cls"),
    "rows": Classification(("a", "b"), pooling="rows", multi_label=True),
    "per second": Classification(("a", "b", "c", "d"), per_second=True),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
@torch.no_grad()
def test_logits(encoder: str, task: str) -> None:
    model = model_of(TASKS[task], encoder=encoder)
    runtime = session(build_onnx(model, "logits", "features"))
    for batch, columns in ((1, 1), (3, 6), (2, 7), (1, 19), (3, 20), (2, 41)):
        features = torch.randn(batch, 16 * columns, 128)
        assert_close(run(runtime, features), model.classify(features))


@pytest.mark.parametrize("patch", [(16, 16), (16, 10), (8, 4), (2, 2), (1, 1), (30, 25), (40, 50)], ids=str)
@torch.no_grad()
def test_seconds_of_columns_on_their_borders(patch: tuple[int, int]) -> None:
    values = {"patch_time": patch[0], "stride_time": patch[1], "stride_frequency": 64, "patch_frequency": 64}
    model = model_of(TASKS["per second"], **values)
    features = torch.randn(1, 1000, 128)
    assert_close(run(session(build_onnx(model, "logits", "features")), features), model.classify(features))


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_scores_from_the_waveform_as_predict(task: str) -> None:
    model = model_of(TASKS[task])
    runtime = session(build_onnx(model, "logits"))
    for samples in (400, 20000, 51440):
        audio = sounds(2, samples)
        scores = probabilities(run(runtime, audio), TASKS[task])
        for found, wanted in zip(scores, model.predict(audio), strict=True):
            found = found if found.dim() == 2 else found[None]
            if TASKS[task].per_second:
                found = found[: max(1, -(-model.config.front_end.frame_count(samples) // 100))].mean(
                    dim=0, keepdim=True
                )
            assert_close(found, wanted.scores)


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
@pytest.mark.parametrize("kind", ["fp16", "int8"])
@torch.no_grad()
def test_rounded_weights(encoder: str, kind: str, tmp_path: Path) -> None:
    model = model_of(TASKS["rows"], width=64, encoder=encoder)
    whole = export_onnx(model, tmp_path / "whole.onnx", input="features")
    small = export_onnx(model, tmp_path / "small.onnx", input="features", weights=kind)
    assert not whole.errors
    assert small.size < whole.size * {"fp16": 0.65, "int8": 0.5}[kind]
    features = torch.randn(2, 320, 128)
    exact, other = model.encode(features), rounded(model, kind).encode(features)
    assert_close(run(session(onnx.load(small.path)), features), other)
    limits = {"fp16": (1e-5, 3e-3), "int8": (3e-4, 5e-2)}[kind]
    assert set(small.errors) == {"tokens", "clip", "logits"}
    for error in (small.errors["tokens"], small.errors["logits"], float((exact - other).norm() / exact.norm())):
        assert limits[0] < error < limits[1]


@torch.no_grad()
def test_printed_errors_are_those_of_the_file() -> None:
    model = model_of()
    features = log_mel.features(made_up_sound())[:, : model.config.frames]
    found = run(session(build_onnx(model, "tokens", "features", "int8")), features)
    wanted = model.encode(features)
    assert rounding_errors(model, "int8")["tokens"] == pytest.approx(
        float((found - wanted).norm() / wanted.norm()), rel=0.01
    )


def test_half_precision_models_are_exported_as_they_are(tmp_path: Path) -> None:
    model = model_of()
    features = torch.randn(1, 320, 128)
    halves = make_encoder(model.config)
    halves.load_state_dict(model.state_dict())
    halves.bfloat16()
    wanted = rounded(halves, "fp32").encode(features).detach()
    assert_close(run(session(build_onnx(halves, "tokens", "features")), features), wanted)
    assert next(halves.parameters()).dtype == torch.bfloat16


def test_what_the_file_says_about_itself(tmp_path: Path) -> None:
    path = export_onnx(model_of(TASKS["rows"], mean=-3.5), tmp_path / "new" / "x.onnx", "logits").path
    said = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    assert (said["input"], said["output"], said["weights"]) == ("waveform", "logits", "fp32")
    assert (said["mean"], said["sample_rate"], said["classes"], said["scores"]) == (
        "-3.5", "16000", '["a", "b"]', "sigmoid",
    )  # fmt: skip
    assert list(path.parent.iterdir()) == [path]


def test_an_existing_file_stays_when_the_export_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"before")
    with pytest.raises(ssamba.ConfigError, match="no classifier"):
        export_onnx(model_of(), path, "logits")
    big = model_of()
    with torch.no_grad():
        big.pairs[0].out_proj_dKE[0] = 1e6  # type: ignore[index, union-attr]
    with pytest.raises(ssamba.ConfigError, match=r"out_proj_dKE holds values beyond 65504"):
        export_onnx(big, path, weights="fp16")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    export_onnx(model_of(), path, weights="int8")
    assert path.stat().st_size > 1000
    assert np.array_equal(sorted(tmp_path.iterdir()), [path])


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_a_model_beyond_two_gigabytes(kind: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = make_encoder(Config(width=8192, depth=2 if kind == "fp32" else 4))
    with pytest.raises(ssamba.ConfigError, match=rf"x.onnx: weights {kind} make more than 2 GB"):
        export_onnx(model, tmp_path / "x.onnx", weights=kind)
    assert not list(tmp_path.iterdir())


def test_the_size_is_known_before(tmp_path: Path) -> None:
    model = model_of(heads=True, decoder_depth=2, width=128)
    for kind in ("fp32", "fp16", "int8"):
        size = export_onnx(model, tmp_path / "x.onnx", input="features", weights=kind).size
        assert stored_bytes(model, kind) == pytest.approx(size, abs=200_000)
