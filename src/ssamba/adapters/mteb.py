"""An audio encoder for mteb, whose tasks it then runs on: ``mteb.evaluate(SsambaMteb("tiny"), tasks)``.

mteb 2.26 was tried (docs/adapters.md). Arrays, encoded bytes and files are read without torchaudio and torchcodec.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssamba.adapters.recordings import check_pooling, pooled_values, pooled_vectors
from ssamba.audio.log_mel import to_waveforms
from ssamba.inference.load import load
from ssamba.inference.model import Encoder
from ssamba.models.pretrained.digest import model_key
from ssamba.utils.errors import AudioError, ConfigError
from ssamba.utils.terminal import shorten

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
except ModuleNotFoundError as problem:
    if problem.name != "mteb":
        raise
    raise ModuleNotFoundError("ssamba.adapters.mteb needs mteb: pip install mteb", name="mteb") from None

ORGANISATION = "ssamba/"
"""What names in mteb begin with."""
REVISION_DIGITS = 16


class SsambaMteb(AbsEncoder):
    """Clip embeddings for mteb's tasks on audio.

    Attributes:
        model: ``ssamba``'s model.
        mteb_model_meta: what mteb writes with its results: the name, and a revision that is a digest of the weights, so
            that results of other weights under one name are never mixed.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] = "tiny",
        revision: str | None = None,
        *,
        device: str | None = None,
        source: str | os.PathLike[str] | None = None,
        pool: str = "mean",
        **kwargs: Any,
    ) -> None:
        """``source`` is anything that ``ssamba.load`` takes, by default ``model_name`` without ``ssamba/`` in front.

        ``revision``: refuse other weights than those of that digest. ``pool``: mean, mean_std or rows, as in the other
        adapters. Raises ``CheckpointError``, ``ConfigError``.
        """
        source = os.fspath(model_name).removeprefix(ORGANISATION) if source is None else source
        self.pool = check_pooling(pool)
        self.model = load(source, device or "auto")
        digest = model_key(self.model)[:REVISION_DIGITS]
        if revision is not None and revision != digest:
            raise ConfigError(
                f"{source}: its revision is {digest}, not {shorten(revision)}: leave it out, or load that"
            )
        self.mteb_model_meta = _meta(self.model, os.fspath(source), digest, self.pool)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> npt.NDArray[np.float32]:
        """Embeddings (recordings, values) of a DataLoader's batches, which have a column ``audio``.

        Its items are {"array", "sampling_rate"}, {"bytes", "path"}, paths, bytes or decoders of ``datasets``. The other
        arguments are mteb's and have no effect. Raises ``AudioError`` naming the recording, ``ConfigError`` for batches
        without audio.
        """
        if hasattr(inputs, "collate_fn"):
            inputs.collate_fn = _columns  # mteb's own would stack the rows into tensors
        found = dict(pooled_vectors(self.model, self._waveforms(inputs), self.pool))
        if not found:
            return np.empty((0, pooled_values(self.pool, self.model.config)), dtype=np.float32)
        return torch.stack([found[i] for i in range(len(found))]).numpy()

    def _waveforms(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Tensor]:
        config, done = self.model.config, 0
        for batch in batches:
            if "audio" not in batch:
                raise ConfigError(f"a batch has {', '.join(batch) or 'nothing'}: give tasks whose input is audio")
            for item in batch["audio"]:
                done += 1
                try:
                    audio, rate = _recording(item)
                    found = to_waveforms([audio], rate, config.sample_rate, config.front_end)
                except AudioError as error:
                    raise AudioError(error.path, f"recording {done}: {error.reason}") from None
                yield from found


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows of a data set -> one list for each column."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _recording(item: Any) -> tuple[Any, Any]:
    """What ``to_waveforms`` takes of an item, and the rate of an array."""
    if isinstance(item, Mapping):
        if item.get("array") is not None:
            return _one_channel(item["array"]), item.get("sampling_rate")
        if not (item.get("bytes") or item.get("path")):
            raise AudioError(None, "has neither array, bytes nor path: give one of them")
        return item.get("bytes") or item["path"], None
    if callable(getattr(item, "get_all_samples", None)):  # torchcodec's decoder
        samples = item.get_all_samples()
        return _one_channel(samples.data), samples.sample_rate
    return item, None


def _one_channel(audio: Any) -> npt.NDArray[Any]:
    """(samples,) of (samples,) or (channels, samples), the mean of the channels."""
    array = np.asarray(audio)
    return array.mean(axis=0) if array.ndim == 2 and array.dtype.kind == "f" else array


def _meta(model: Encoder, source: str, digest: str, pool: str) -> ModelMeta:
    parameters = sum(p.numel() for p in model.parameters())
    return ModelMeta(
        loader=SsambaMteb,
        loader_kwargs={"source": source, "pool": pool},
        name=ORGANISATION
        + (Path(source).name.removesuffix(".pth") or "model")
        + ("" if pool == "mean" else f"-{pool}"),
        revision=digest,
        release_date=None,
        languages=None,
        n_parameters=parameters,
        memory_usage_mb=round(parameters * 4 / 2**20, 1),
        max_tokens=None,
        embed_dim=pooled_values(pool, model.config),
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        modalities=["audio"],
    )
