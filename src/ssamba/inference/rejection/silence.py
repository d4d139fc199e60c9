"""What a classifier's linear layer reads of digital silence, which no class may claim."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssamba.inference.batches import group_segments, run_passes
from ssamba.inference.cuda_graphs import GraphedEncoder
from ssamba.inference.predict import PredictOptions, prediction_plan
from ssamba.inference.windows import cut_recordings

SHARES = (1.0, 0.5, 0.2)
"""Lengths of the silent recordings, in lengths of the model's grid."""


def silence_values(model: GraphedEncoder) -> Tensor:
    """Rows (3, values) on the CPU for recordings of zeros, as ``predict`` reads them."""
    front_end = model.config.front_end
    samples = front_end.seconds_of_frames(model.config.frames) * front_end.sample_rate
    waveforms = [torch.zeros(round(share * samples), dtype=torch.float32, device="cpu") for share in SHARES]
    return recording_values(model, waveforms)


def recording_values(model: GraphedEncoder, waveforms: Sequence[Tensor]) -> Tensor:
    """What the linear layer reads of recordings (samples,) of one window each: (N, values) on the CPU, in no order."""
    segments = cut_recordings(model, enumerate([x] for x in waveforms), prediction_plan(model, PredictOptions()))
    passes = run_passes(group_segments(model, segments), model.infer_values)
    return torch.stack([values.float().cpu() for _, values in passes])
