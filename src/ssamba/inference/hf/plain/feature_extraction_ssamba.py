"""Recordings -> normalised log-mel features (Kaldi's filter bank), the input of SSAMBA and SSAST models."""

import io
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

FRAME_MILLISECONDS, HOP_MILLISECONDS = 25, 10
PRE_EMPHASIS, LOW_FREQUENCY = 0.97, 20.0
AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974


class SsambaFeatureExtractor(SequenceFeatureExtractor):
    """Arrays, files or rows of ``datasets`` -> ``input_values`` (B, frames, mel_bins) and ``attention_mask``.

    A batch is padded to whole patch columns of its longest recording with ``padding_value``, which is silence (a
    log-mel value of 0.0, normalised). ``mean`` and ``std`` are the log-mel statistics of the model's training data.
    Recordings are brought to ``sampling_rate``; a frame takes 25 ms of it and the next one begins 10 ms later, both
    rounded down to whole samples.
    """

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012 - as in the base class

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 16000,
        padding_value: float | None = None,
        mean: float = AUDIOSET_MEAN,
        std: float = AUDIOSET_STD,
        patch_time: int = 16,
        stride_time: int = 16,
        return_attention_mask: bool = True,
        **kwargs: Any,
    ) -> None:
        if padding_value is None:
            padding_value = float(np.float32(-mean) / np.float32(2 * std))
        super().__init__(
            feature_size, sampling_rate, padding_value, return_attention_mask=return_attention_mask, **kwargs
        )
        self.mean, self.std, self.patch_time, self.stride_time = mean, std, patch_time, stride_time

    @property
    def frame_length(self) -> int:
        """Samples in a frame."""
        return self.sampling_rate * FRAME_MILLISECONDS // 1000

    @property
    def hop(self) -> int:
        """Samples between the beginnings of two frames."""
        return self.sampling_rate * HOP_MILLISECONDS // 1000

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: Any = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Features of one recording or a list.

        A recording is a (samples,) array, list or tensor at ``sampling_rate`` (None: the model's), a path, the bytes of
        a file, or a dict: ``array`` or ``raw`` with ``sampling_rate``, or ``bytes`` and ``path`` as ``datasets`` gives
        with ``Audio(decode=False)``. ``max_length`` is in frames of 10 ms; ``truncation`` cuts at it.
        """
        logs = [self.log_mel(wave) for wave in self.waveforms(raw_speech, sampling_rate)]
        if padding in (True, "longest"):
            longest = max(len(x) for x in logs)
            longest = min(longest, max_length) if truncation and max_length else longest
            columns = -(-max(longest - self.patch_time, 0) // self.stride_time) + 1
            padding, length = "max_length", (columns - 1) * self.stride_time + self.patch_time
            if truncation and max_length:
                logs = [x[:max_length] for x in logs]
            truncation, max_length = False, length
        return self.pad(
            BatchFeature({self.model_input_names[0]: [np.asarray(x) for x in logs]}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    def waveforms(self, raw_speech: Any, sampling_rate: int | None = None) -> list[Tensor]:
        """A list of (samples,) float32 tensors at ``self.sampling_rate``."""
        if isinstance(raw_speech, (np.ndarray, Tensor)) and raw_speech.ndim == 2:
            raw_speech = list(raw_speech)
        single = not isinstance(raw_speech, (list, tuple))
        if not single and len(raw_speech):
            single = isinstance(raw_speech[0], (int, float, np.number))
        recordings = [raw_speech] if single else raw_speech
        if not recordings:
            raise ValueError("raw_speech is an empty list: give one recording or more")
        return [self.waveform(one, sampling_rate) for one in recordings]

    def waveform(self, audio: Any, sampling_rate: int | None = None) -> Tensor:
        """One recording of any kind -> (samples,) float32 at ``self.sampling_rate``."""
        if isinstance(audio, dict):
            audio, sampling_rate = _from_row(audio)
        if isinstance(audio, (str, bytes, os.PathLike)):
            audio, sampling_rate = _decode(audio)
        samples = torch.from_numpy(np.array(audio, dtype=np.float32))
        if samples.dim() != 1:
            raise ValueError(f"audio of shape {tuple(samples.shape)}: give one channel as (samples,)")
        rate = sampling_rate or self.sampling_rate
        if rate != self.sampling_rate:
            try:
                import soxr
            except ImportError:
                raise ValueError(
                    f"sampling rate {rate}: give {self.sampling_rate} Hz, or pip install soxr to have it resampled"
                ) from None
            samples = torch.from_numpy(soxr.resample(samples.numpy(), rate, self.sampling_rate))
        if len(samples) < self.frame_length:
            raise ValueError(f"audio of {len(samples)} samples at {self.sampling_rate} Hz: give 25 ms or more")
        if not torch.isfinite(samples).all():
            raise ValueError("audio holds NaN or infinite samples: repair or leave out the recording")
        return samples

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(samples,) at ``self.sampling_rate`` -> normalised log-mel (frames, mel_bins)."""
        waveform = waveform - waveform.mean()
        frames = waveform.unfold(0, self.frame_length, self.hop)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        window = torch.hann_window(self.frame_length, periodic=False, dtype=torch.float32, device="cpu")
        fft_size = 1 << (self.frame_length - 1).bit_length()
        spectrum = torch.fft.rfft((frames - PRE_EMPHASIS * previous) * window, n=fft_size)
        power = spectrum.real.square() + spectrum.imag.square()
        energies = power @ mel_filters(self.feature_size, self.sampling_rate, fft_size)
        return (energies.clamp_min(torch.finfo(torch.float32).eps).log() - self.mean) / (2 * self.std)


def mel_filters(mel_bins: int, sampling_rate: int, fft_size: int) -> Tensor:
    """Kaldi's triangular filters on the HTK mel scale, (fft_size / 2 + 1, mel_bins); the last row, Nyquist, is 0."""

    def mel(hertz: Any) -> Any:
        return 1127.0 * np.log1p(np.asarray(hertz, dtype=np.float64) / 700.0)

    edges = np.linspace(mel(LOW_FREQUENCY), mel(sampling_rate / 2), mel_bins + 2)
    bins = mel(np.arange(fft_size // 2) * sampling_rate / fft_size)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0.0)
    return torch.from_numpy(np.concatenate([triangles, np.zeros((1, mel_bins))]).astype(np.float32))


def _from_row(row: dict[str, Any]) -> tuple[Any, int | None]:
    """What a dict holds: samples and their rate, or a file and None."""
    for name in ("array", "raw"):
        if row.get(name) is not None:
            if row.get("sampling_rate") is None:
                raise ValueError(f"a dict with '{name}' needs 'sampling_rate' as well")
            return row[name], row["sampling_rate"]
    for name in ("bytes", "path"):
        if row.get(name) is not None:
            return row[name], None
    raise ValueError(f"a dict with {sorted(row)}: give 'array' and 'sampling_rate', or 'bytes' or 'path'")


def _decode(file: str | bytes | os.PathLike[str]) -> tuple[Any, int]:
    """Mean of the channels and the rate of an audio file or of its bytes."""
    try:
        import soundfile
    except ImportError:
        raise ValueError("audio files need soundfile: pip install soundfile, or give arrays") from None
    source: Any = io.BytesIO(file) if isinstance(file, bytes) else os.fspath(file)
    try:
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        name = "the given bytes" if isinstance(file, bytes) else file
        raise ValueError(f"{name}: cannot be decoded ({error})") from None
    return samples.mean(axis=1), rate
