"""A waveform whose energies in time and frequency change and whose phase stays: to listen to what a model fills in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ssamba.audio.front_end import FrontEnd
from ssamba.audio.log_mel import LOW_FREQUENCY, mel

LARGEST_RISE = 12.0
"""Most natural log units by which a bin is raised: what is filled in where there was digital silence stays bounded."""


def with_energies(
    waveform: npt.NDArray[np.float32], change: npt.NDArray[np.float32], front_end: FrontEnd
) -> npt.NDArray[np.float32]:
    """A waveform (samples,) whose log-mel energies differ by ``change`` (frames, bins), in natural log units.

    Each windowed frame's spectrum is scaled by what its mel bins say, interpolated, and the frames are added up again.
    The first samples, and those behind the last frame, fade.
    """
    length, hop, size = front_end.frame_length, front_end.hop, front_end.fft_size
    frames = min(len(change), 1 + (len(waveform) - length) // hop)
    if frames < 1:
        return waveform
    low, high = float(mel(LOW_FREQUENCY)), float(mel(front_end.nyquist))
    bins = change.shape[1]
    hertz = np.linspace(0, front_end.nyquist, size // 2 + 1)
    place = (bins + 1) * (mel(hertz) - low) / (high - low) - 1
    window = np.hanning(length).astype(np.float64)
    out, weight = np.zeros(len(waveform)), np.zeros(len(waveform))
    for i in range(frames):
        here = slice(i * hop, i * hop + length)
        gain = np.exp(0.5 * np.minimum(np.interp(place, np.arange(bins), change[i]), LARGEST_RISE))
        spectrum = np.fft.rfft(waveform[here] * window, n=size) * gain
        out[here] += np.fft.irfft(spectrum, n=size)[:length] * window
        weight[here] += np.square(window)
    return (out / np.maximum(weight, 1e-2)).astype(np.float32)
