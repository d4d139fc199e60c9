"""A scikit-learn transformer: recordings in, one vector for each out, to be put in front of any estimator."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ssamba.adapters.recordings import check_pooling, pooled_values, pooled_vectors
from ssamba.audio.checks import check_rate, numbered
from ssamba.audio.encoded import is_encoded
from ssamba.audio.log_mel import to_waveforms
from ssamba.inference.load import load
from ssamba.utils.device import pick_device
from ssamba.utils.errors import AudioError
from ssamba.utils.terminal import shorten

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ModuleNotFoundError as problem:
    if problem.name != "sklearn":
        raise
    raise ModuleNotFoundError(
        "ssamba.adapters.sklearn needs scikit-learn: pip install 'ssamba[sklearn]'", name="sklearn"
    ) from None

FORMS = "give (recordings, samples), or a list of arrays or of paths"


class RecordingError(AudioError, ValueError):
    """An ``AudioError`` that scikit-learn knows for what it is: bad input is a ``ValueError`` there."""


class SsambaTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Recordings -> (recordings, values) float32.

    ``X`` is an array (recordings, samples), or a list, a Series or one column of recordings of any lengths: arrays
    (samples,), paths, or whatever else ``model.embed`` takes. ``fit`` loads the model and learns nothing.

    Args:
        source: anything that ``ssamba.load`` takes; None: the model in the package.
        sample_rate: Hz of the arrays (None: 16 kHz, with a warning); files have their own.
        pool: mean (d values), mean_std (2 d), or rows (2 F d, for each of the F rows of patches by itself).
        whole: read recordings beyond the model's window in one pass.
        device: auto, cpu or cuda.

    Attributes:
        model_: the loaded model. A pickled transformer holds its weights.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | None = None,
        sample_rate: int | None = None,
        pool: str = "mean",
        whole: bool = False,
        device: str = "auto",
    ) -> None:
        self.source = source
        self.sample_rate = sample_rate
        self.pool = pool
        self.whole = whole
        self.device = device

    def fit(self, X: Any, y: Any = None) -> SsambaTransformer:
        """Load the model. ``X`` is looked at and files in it are not opened; ``y`` has no effect.

        Raises ``RecordingError`` for what is no recordings, ``ConfigError`` for unknown parameters, ``CheckpointError``
        for a model that cannot be loaded.
        """
        check_pooling(self.pool)
        if self.sample_rate is not None:
            check_rate(self.sample_rate)
        model = load(self.source, self.device)
        for _ in self._waveforms(_recordings(X), model.config, files=False):
            pass
        self.model_ = model
        self._n_features_out = pooled_values(self.pool, model.config)
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """The vectors of recordings, (recordings, values) float32. Raises ``RecordingError``."""
        check_is_fitted(self)
        recordings = _recordings(X)
        out = np.empty((len(recordings), self._n_features_out), dtype=np.float32)
        waveforms = self._waveforms(recordings, self.model_.config)
        for i, vector in pooled_vectors(self.model_, waveforms, self.pool, self.whole):
            out[i] = vector.numpy()
        return out

    def _waveforms(self, recordings: Sequence[Any], config: Any, files: bool = True) -> Iterator[Tensor]:
        """At the model's rate; without ``files`` those alone that are arrays."""
        for i, item in enumerate(recordings):
            if not files and is_encoded(item):
                continue
            try:
                with numbered(i, len(recordings)):
                    if not is_encoded(item) and np.ndim(item) != 1:
                        raise AudioError(None, f"shape {np.shape(item)}: {FORMS}")
                    found = to_waveforms([item], self.sample_rate, config.sample_rate, config.front_end)
            except AudioError as error:
                raise RecordingError(error.path, error.reason) from None
            yield from found

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "model_" in state:  # of any device: it may not be there where this is read
            state["model_"] = copy.deepcopy(state["model_"]).cpu()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "model_" in state:
            self.model_ = self.model_.to(pick_device(self.device))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True  # lists of paths
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _recordings(X: Any) -> Sequence[Any]:
    """One item for each recording. Raises ``RecordingError``."""
    if hasattr(X, "toarray"):
        raise RecordingError(None, f"sparse input: {FORMS}")
    if is_encoded(X):
        raise RecordingError(None, f"{shorten(X)} is one recording: give it in a list")
    if hasattr(X, "__array__") and not isinstance(X, Tensor):  # pandas, polars, and others
        X = np.asarray(X)
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] == 1 and X.dtype.kind in "OUST":
        X = X[:, 0]  # a column of paths, as ColumnTransformer gives it
    if isinstance(X, (np.ndarray, Tensor)):
        if X.ndim == 1 and (isinstance(X, Tensor) or X.dtype.kind not in "OUST"):
            raise RecordingError(None, f"Expected 2D array, got 1D array instead: {FORMS}; Reshape your data")
        if X.ndim == 0 or X.ndim > 2:
            raise RecordingError(None, f"shape {tuple(X.shape)}: {FORMS}")
        if isinstance(X, np.ndarray) and np.iscomplexobj(X):
            raise RecordingError(None, f"Complex data not supported: {FORMS}")
        if X.ndim == 2 and X.shape[1] == 0 and len(X):
            raise RecordingError(
                None, f"0 feature(s) (shape={tuple(X.shape)}) while a minimum of 1 is required: {FORMS}"
            )
    elif not isinstance(X, (list, tuple)):
        raise RecordingError(None, f"{shorten(type(X).__name__)}: {FORMS}")
    if len(X) == 0:
        raise RecordingError(None, f"Found array with 0 sample(s): {FORMS}")
    return X
