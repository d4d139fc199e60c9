"""``pipeline("audio-classification")`` without ffmpeg or torchaudio."""

from __future__ import annotations

from typing import Any

from transformers import AudioClassificationPipeline

from ssamba.inference.hf.feature_extraction import SsambaFeatureExtractor


class SsambaAudioClassificationPipeline(AudioClassificationPipeline):
    """The pipeline of transformers; for models of ssamba it reads files and resamples by itself.

    It takes an array at the model's rate, a path, the bytes of a file, ``{"array", "sampling_rate"}`` and
    ``{"bytes", "path"}``. Scores are those of ``predict``. Other models go the way of transformers.
    """

    def preprocess(self, inputs: Any) -> Any:
        """Features of one recording. Raises ``AudioError``."""
        online = isinstance(inputs, str) and inputs.startswith(("http://", "https://"))
        if online or not isinstance(self.feature_extractor, SsambaFeatureExtractor):
            return super().preprocess(inputs)
        processed = self.feature_extractor(inputs, return_tensors="pt")
        return processed if self.dtype is None else processed.to(dtype=self.dtype)
