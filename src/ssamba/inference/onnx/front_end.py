"""From waveform to normalised log-mel as ONNX nodes: the filter bank of ``ssamba.audio.log_mel``.

Pre-emphasis, window and Fourier transform are linear in a frame's samples: one product with a matrix. The means of the
recording and of each frame are removed before it, as there, so that an offset costs no digits.
"""

from __future__ import annotations

import math

import numpy as np

from ssamba.audio import log_mel
from ssamba.audio.front_end import FrontEnd
from ssamba.inference.onnx.graph import Graph, Value
from ssamba.models.config import Config


def add_front_end(graph: Graph, config: Config, waveform: Value, least_frames: int = 0) -> Value:
    """Waveforms (B, samples) at the model's rate -> normalised log-mel (B, frames, mel_bins), in whole patch columns.

    The padding is that of ``embed``, and goes up to ``least_frames`` where that is more. Less than a frame of samples
    is an error of the runtime.
    """
    graph.scope = "front_end"
    front_end = config.front_end
    frames_Bnx, n = _frames(graph, front_end, waveform)
    spectrum_Bn2c = graph("MatMul", frames_Bnx, graph.constant(transform(front_end), "front_end.transform"))
    square = graph("Mul", spectrum_Bn2c, spectrum_Bn2c)
    power_Bnc = graph("Add", *graph.several("Split", 2, square, axis=2, num_outputs=2))
    filters = log_mel.mel_filters(front_end.mel_bins, front_end.sample_rate, front_end.fft_size).numpy()
    energy = graph("MatMul", power_Bnc, graph.constant(filters, "front_end.mel_filters"))
    logs = graph("Log", graph("Max", energy, graph.number(float(np.finfo(np.float32).eps))))
    missing = graph("Sub", _covering(graph, config, n, least_frames), n)
    padding = graph("Concat", graph.integers(0, 0, 0, 0), missing, graph.integers(0), axis=0)
    logs = graph("Pad", logs, padding, graph.number(0.0))
    return graph("Div", graph("Sub", logs, graph.number(front_end.mean)), graph.number(2 * front_end.std))


def _frames(graph: Graph, front_end: FrontEnd, waveform: Value) -> tuple[Value, Value]:
    """Frames (B, n, frame_length) without their means, and the vector n of one number."""
    length, hop = front_end.frame_length, front_end.hop
    block = math.gcd(length, hop)  # samples of the pieces that frames are put together from
    waveform = graph("Sub", waveform, graph("ReduceMean", waveform, graph.integers(1), keepdims=1))
    samples = graph("Shape", waveform, start=1, end=2)
    n = graph("Div", graph("Sub", samples, graph.integers(length)), graph.integers(hop))
    # Less than a frame still asks for one, whose samples are then not there: an error instead of an answer.
    n = graph("Max", graph("Add", n, graph.integers(1)), graph.integers(1))
    used = graph("Add", graph("Mul", n, graph.integers(hop)), graph.integers(length - hop))
    waveform = graph("Slice", waveform, graph.integers(0), used, graph.integers(1))
    blocks_Bpb = graph.reshape(waveform, 0, -1, block)
    first_n = graph("Range", graph.integer(0), graph("Squeeze", n, graph.integers(0)), graph.integer(1))
    first_n1 = graph("Unsqueeze", graph("Mul", first_n, graph.integer(hop // block)), graph.integers(1))
    index = graph("Add", first_n1, graph.integers(*range(length // block)))
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


def transform(front_end: FrontEnd) -> np.ndarray:
    """Pre-emphasis, window and transform of a frame: (frame_length, 2 x bins) float32, the real parts first."""
    length, bins = front_end.frame_length, front_end.fft_size // 2 + 1
    # Column t: x[t] - 0.97 x[t - 1]. What stands before the first sample does not count: the window is 0 there.
    emphasis = np.eye(length) - log_mel.PRE_EMPHASIS * np.eye(length, k=1)
    time = np.arange(length)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * time / (length - 1))
    turns = np.outer(time, np.arange(bins)) % front_end.fft_size
    angle = 2 * np.pi / front_end.fft_size * turns
    waves = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)
    return (emphasis @ (window[:, None] * waves)).astype(np.float32)
