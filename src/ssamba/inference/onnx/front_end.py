"""From waveform to normalised log-mel as ONNX nodes: the filter bank of ``ssamba.audio.log_mel``.

Pre-emphasis, window and Fourier transform are linear in a frame's samples: one product with a matrix. The means of the
recording and of each frame are removed before it, as there, so that an offset costs no digits.
"""

from __future__ import annotations

import math

import numpy as np

from ssamba.audio import log_mel
from ssamba.inference.onnx.graph import Graph, Value
from ssamba.models.config import Config

BLOCK = math.gcd(log_mel.FRAME_LENGTH, log_mel.FRAME_SHIFT)
"""Samples of the pieces that frames are put together from: a frame and a shift are whole numbers of them."""


def add_front_end(graph: Graph, config: Config, waveform: Value, least_frames: int = 0) -> Value:
    """Waveforms (B, samples) at 16 kHz -> normalised log-mel (B, frames, mel_bins), padded to whole patch columns.

    The padding is that of ``embed``, and goes up to ``least_frames`` where that is more. At least 400 samples.
    """
    graph.scope = "front_end"
    frames_Bnx, n = _frames(graph, waveform)
    spectrum_Bn2c = graph("MatMul", frames_Bnx, graph.constant(transform(), "front_end.transform"))
    square = graph("Mul", spectrum_Bn2c, spectrum_Bn2c)
    power_Bnc = graph("Add", *graph.several("Split", 2, square, axis=2, num_outputs=2))
    filters = log_mel.mel_filters(config.mel_bins, config.sample_rate).numpy()
    energy = graph("MatMul", power_Bnc, graph.constant(filters, "front_end.mel_filters"))
    logs = graph("Log", graph("Max", energy, graph.number(float(np.finfo(np.float32).eps))))
    missing = graph("Sub", _covering(graph, config, n, least_frames), n)
    padding = graph("Concat", graph.integers(0, 0, 0, 0), missing, graph.integers(0), axis=0)
    logs = graph("Pad", logs, padding, graph.number(0.0))
    return graph("Div", graph("Sub", logs, graph.number(config.mean)), graph.number(2 * config.std))


def _frames(graph: Graph, waveform: Value) -> tuple[Value, Value]:
    """Frames (B, n, FRAME_LENGTH) without their means, and the vector n of one number."""
    length, shift = log_mel.FRAME_LENGTH, log_mel.FRAME_SHIFT
    waveform = graph("Sub", waveform, graph("ReduceMean", waveform, graph.integers(1), keepdims=1))
    samples = graph("Shape", waveform, start=1, end=2)
    n = graph("Div", graph("Sub", samples, graph.integers(length)), graph.integers(shift))
    # Less than a frame still asks for one, whose samples are then not there: an error instead of an answer.
    n = graph("Max", graph("Add", n, graph.integers(1)), graph.integers(1))
    used = graph("Add", graph("Mul", n, graph.integers(shift)), graph.integers(length - shift))
    waveform = graph("Slice", waveform, graph.integers(0), used, graph.integers(1))
    blocks_Bpb = graph.reshape(waveform, 0, -1, BLOCK)
    first_n = graph("Range", graph.integer(0), graph("Squeeze", n, graph.integers(0)), graph.integer(1))
    first_n1 = graph("Unsqueeze", graph("Mul", first_n, graph.integer(shift // BLOCK)), graph.integers(1))
    index = graph("Add", first_n1, graph.integers(*range(length // BLOCK)))
    frames = graph.reshape(graph("Gather", blocks_Bpb, index, axis=1), 0, 0, length)
    return graph("Sub", frames, graph("ReduceMean", frames, graph.integers(2), keepdims=1)), n


def _covering(graph: Graph, config: Config, n: Value, least_frames: int) -> Value:
    """Frames of the patch columns that cover n frames, as ``patches.columns``: a vector of one number."""
    step, patch = config.stride_time, config.patch_time
    n = graph("Max", n, graph.integers(max(least_frames, patch)))
    steps = graph(
        "Div", graph("Add", graph("Sub", n, graph.integers(patch)), graph.integers(step - 1)), graph.integers(step)
    )
    return graph("Add", graph("Mul", steps, graph.integers(step)), graph.integers(patch))


def transform() -> np.ndarray:
    """Pre-emphasis, window and transform of a frame: (FRAME_LENGTH, 2 x 257) float32, the real parts first."""
    length, bins = log_mel.FRAME_LENGTH, log_mel.FFT_SIZE // 2 + 1
    # Column t: x[t] - 0.97 x[t - 1]. What stands before the first sample does not count: the window is 0 there.
    emphasis = np.eye(length) - log_mel.PRE_EMPHASIS * np.eye(length, k=1)
    time = np.arange(length)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * time / (length - 1))
    turns = np.outer(time, np.arange(bins)) % log_mel.FFT_SIZE
    angle = 2 * np.pi / log_mel.FFT_SIZE * turns
    waves = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)
    return (emphasis @ (window[:, None] * waves)).astype(np.float32)
