"""The feature extractor for transformers: every kind of recording that ssamba reads, at any rate."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssamba.audio import log_mel
from ssamba.audio.decode import read_audio
from ssamba.audio.feature_stream import FeatureStream
from ssamba.audio.front_end import FrontEnd
from ssamba.inference.hf.folder import code_file
from ssamba.inference.hf.plain import feature_extraction_ssamba as plain
from ssamba.models.pretrained.model_dir import read_config
from ssamba.models.pretrained.transformers_files import EXTRACTOR_MAP, PREPROCESSOR_FILE
from ssamba.utils.errors import AudioError, SsambaError


class SsambaFeatureExtractor(plain.SsambaFeatureExtractor):
    """Arrays, files or rows of ``datasets`` -> ``input_values`` (B, frames, mel_bins) and ``attention_mask``.

    Files are decoded with libsndfile and other rates resampled with soxr: neither ffmpeg nor torchaudio nor torchcodec
    is needed. A batch is padded to whole patch columns of its longest recording. Raises ``AudioError`` for recordings
    that cannot be used.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; warns where the model of the same folder was trained with another front end."""
        made = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        extractor = made[0] if isinstance(made, tuple) else made
        _compare_with_model(extractor, Path(str(pretrained_model_name_or_path)))
        return made

    def waveforms(self, raw_speech: Any, sampling_rate: int | None = None) -> list[Tensor]:
        """A list of (samples,) float32 tensors at ``self.sampling_rate``. Raises ``AudioError``."""
        if isinstance(raw_speech, (list, tuple)) and not len(raw_speech):
            raise AudioError(None, "an empty list: give one recording or more")
        found: list[Tensor] = super().waveforms(raw_speech, sampling_rate)
        return found

    def waveform(self, audio: Any, sampling_rate: int | None = None) -> Tensor:
        """One recording of any kind -> (samples,) float32 at ``self.sampling_rate``. Raises ``AudioError``."""
        if isinstance(audio, dict):
            audio, rate = _from_row(audio)
            sampling_rate = sampling_rate if rate is None else rate
        if isinstance(audio, (str, bytes, os.PathLike)):
            rate = self.sampling_rate
            samples = _read_bytes(audio, rate) if isinstance(audio, bytes) else read_audio(audio, rate)
            return torch.from_numpy(samples)
        rate = self.sampling_rate if sampling_rate is None else sampling_rate
        return log_mel.to_waveform(audio, rate, self.sampling_rate)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(samples,) at ``self.sampling_rate`` -> normalised log-mel (frames, mel_bins), as ``embed`` makes it."""
        front_end = FrontEnd(self.sampling_rate, self.feature_size, mean=self.mean, std=self.std)
        log_mel.require_frames(len(waveform), front_end)
        stream = FeatureStream(front_end, torch.device("cpu"))
        return torch.cat([stream.feed(waveform), stream.finish()])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``preprocessor_config.json``; other machines find the class in the folder's own module."""
        return {**super().to_dict(), "auto_map": EXTRACTOR_MAP}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> list[str]:
        """As in transformers; the plain module that loads without ssamba comes with it."""
        done: list[str] = super().save_pretrained(save_directory, *args, **kwargs)
        source = code_file("feature_extraction_ssamba.py")
        shutil.copyfile(source, Path(save_directory) / source.name)
        return done


def _compare_with_model(extractor: SsambaFeatureExtractor, folder: Path) -> None:
    """Warn where ``config.json`` of a folder has another rate, other mel bins or statistics than the extractor."""
    try:
        front_end = read_config(folder).config.front_end
    except SsambaError:  # no folder here, or none of a model; loading the model says so
        return
    mine = {
        "sampling_rate": (extractor.sampling_rate, front_end.sample_rate),
        "feature_size": (extractor.feature_size, front_end.mel_bins),
        "mean": (extractor.mean, front_end.mean),
        "std": (extractor.std, front_end.std),
    }
    other = [f"{name} {here}, the model {there}" for name, (here, there) in mine.items() if here != there]
    if other:
        warnings.warn(
            f"{folder / PREPROCESSOR_FILE}: has {'; '.join(other)}; features would not be those that the model was "
            "trained with",
            stacklevel=3,
        )


def _from_row(row: dict[str, Any]) -> tuple[Any, int | None]:
    """What a dict holds: samples and their rate, or a file and None."""
    for name in ("array", "raw"):
        if row.get(name) is not None:
            if row.get("sampling_rate") is None:
                raise AudioError(None, f"a dict with '{name}' needs 'sampling_rate' as well")
            return row[name], row["sampling_rate"]
    for name in ("bytes", "path"):
        if row.get(name) is not None:
            return row[name], None
    raise AudioError(None, f"a dict with {sorted(row)}: give 'array' and 'sampling_rate', or 'bytes' or 'path'")


def _read_bytes(content: bytes, sample_rate: int) -> Any:
    """The samples of a file's bytes; libsndfile takes some formats from files alone."""
    with tempfile.NamedTemporaryFile(prefix="ssamba-") as file:
        file.write(content)
        file.flush()
        try:
            return read_audio(file.name, sample_rate)
        except AudioError as error:
            raise AudioError(None, f"the given bytes: {error.reason}") from None
