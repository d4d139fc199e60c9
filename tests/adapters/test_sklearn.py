"""The transformer in scikit-learn's own tools and under its own checks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ssamba.utils.errors import AudioError, CheckpointError, ConfigError, SsambaError

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'ssamba[sklearn]'")

from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from ssamba.adapters.sklearn import RecordingError, SsambaTransformer

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16000
ANY_LENGTH = "recordings have any number of samples, so there is no n_features_in_ to hold later ones to"
FULL_SCALE = "whole numbers of 64 bits have no full scale: which number would be 1.0 is not known"
OBJECTS = "arrays of objects hold paths, not numbers"
NAMED = {
    "check_n_features_in": ANY_LENGTH,
    "check_n_features_in_after_fitting": ANY_LENGTH,
    "check_transformer_general": ANY_LENGTH,
    "check_estimators_dtypes": FULL_SCALE,
    "check_dtype_object": OBJECTS,
}
"""Checks of scikit-learn that do not apply, and why; docs/adapters.md has the same list."""


class Repeating(SsambaTransformer):
    """Takes the checks' tables of a few columns for recordings: each value is held until there are 25 ms."""

    def fit(self, X: Any, y: Any = None) -> SsambaTransformer:
        return super().fit(self._held(X), y)

    def transform(self, X: Any) -> np.ndarray:
        return super().transform(self._held(X))

    @staticmethod
    def _held(X: Any) -> Any:
        table = X if hasattr(X, "toarray") else np.asarray(X)
        if isinstance(table, np.ndarray) and table.ndim == 2 and table.size and table.dtype.kind in "fiu":
            return np.repeat(table, -(-400 // table.shape[1]), axis=1)
        return X


def sounds(n: int = 16) -> tuple[list[np.ndarray], list[int]]:
    """Two classes of tones, of different lengths."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        t = np.arange(rng.integers(4000, 12000)) / RATE
        tone = 0.1 * np.sin(2 * np.pi * (300, 2500)[i % 2] * rng.uniform(0.9, 1.1) * t)
        found.append((tone + 0.01 * rng.standard_normal(len(t))).astype(np.float32))
    return found, [i % 2 for i in range(n)]


def test_scikit_learn_s_checks(folder: str) -> None:
    """All of ``check_estimator`` but those named; its tables of three columns are made long enough to be audio."""
    results = check_estimator(Repeating(folder, sample_rate=RATE, device="cpu"), expected_failed_checks=NAMED)
    status: dict[str, set[str]] = {}
    for result in results:
        status.setdefault(result["status"], set()).add(result["check_name"])
    assert status["xfail"] == set(NAMED)  # each of them fails indeed
    assert len(status["passed"]) >= 35
    assert set(status) <= {"passed", "xfail", "skipped"}
    assert status.get("skipped", set()) <= {"check_array_api_input"}  # without SCIPY_ARRAY_API in the environment


def test_the_vectors_are_those_of_embed(folder: str, tmp_path: Path) -> None:
    X, _ = sounds(5)
    model = SsambaTransformer(folder, RATE, device="cpu").fit(X)
    expected = model.model_.embed(X, RATE)
    found = model.transform(X)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.clip, rtol=1e-4, atol=1e-5)
    for i, x in enumerate(X):
        np.testing.assert_allclose(model.transform([x])[0], found[i], rtol=1e-4, atol=1e-5)
    for pool, values in (("mean_std", 32), ("rows", 256)):
        pooled = SsambaTransformer(folder, RATE, pool, device="cpu").fit_transform(X)
        assert pooled.shape == (5, values)
    patches = expected.patches[3, :, : int(expected.lengths[3])]
    rows = torch.cat([patches.mean(dim=1).flatten(), patches.std(dim=1, correction=0).flatten()])
    np.testing.assert_allclose(pooled[3], rows, rtol=1e-3, atol=1e-4)
    whole = SsambaTransformer(folder, RATE, whole=True, device="cpu").fit_transform([np.tile(X[0], 4)])
    np.testing.assert_allclose(whole, model.model_.embed(np.tile(X[0], 4), RATE, whole=True).clip, rtol=1e-4, atol=1e-5)


def test_every_form_of_recordings_gives_the_same(folder: str, tmp_path: Path) -> None:
    X = np.stack([x[:4000] for x in sounds(3)[0]])
    paths = [str(tmp_path / f"{i}.wav") for i in range(3)]
    for path, x in zip(paths, X, strict=True):
        soundfile.write(path, x, RATE, subtype="FLOAT")
    model = SsambaTransformer(folder, RATE, device="cpu").fit(X)
    expected = model.transform(X)
    objects = np.empty(3, dtype=object)
    objects[:] = list(X)
    contents = [Path(path).read_bytes() for path in paths]
    forms: list[Any] = [list(X), torch.from_numpy(X), paths, [Path(p) for p in paths], np.array(paths), objects]
    forms += [np.array(paths)[:, None], contents, [X[0], paths[1], contents[2]], tuple(X), X.astype(np.float64)]
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    forms += [pandas.Series(paths), pandas.DataFrame({"path": paths}), pandas.DataFrame(X)]
    for form in forms:
        np.testing.assert_allclose(model.transform(form), expected, rtol=1e-4, atol=1e-5)
    int16 = np.round(X * 32768).astype(np.int16)
    np.testing.assert_allclose(model.transform(int16), model.transform(int16 / 32768.0), rtol=1e-4, atol=1e-5)
    other = SsambaTransformer(folder, 8000, device="cpu").fit(X).transform(X)
    np.testing.assert_allclose(other, model.model_.embed(X, 8000).clip, rtol=1e-4, atol=1e-5)


def test_in_the_tools(folder: str) -> None:
    X, y = sounds()
    pipeline = make_pipeline(SsambaTransformer(folder, RATE, device="cpu"), StandardScaler(), LogisticRegression())
    assert cross_val_score(pipeline, X, y, cv=4).mean() > 0.9
    search = GridSearchCV(pipeline, {"ssambatransformer__pool": ["mean", "rows"]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.9
    fitted = clone(pipeline).fit(X, y)
    assert not hasattr(clone(fitted)[0], "model_")
    assert clone(fitted)[0].get_params() == pipeline[0].get_params()
    assert list(fitted[0].get_feature_names_out()) == [f"ssambatransformer{i}" for i in range(16)]


def test_pickled_it_holds_the_model(folder: str, tmp_path: Path) -> None:
    X, y = sounds()
    pipeline = make_pipeline(SsambaTransformer(folder, RATE, device="cpu"), LogisticRegression()).fit(X, y)
    stored = pickle.dumps(pipeline)
    Path(folder).rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(pickle.loads(stored).predict_proba(X), pipeline.predict_proba(X))
    fresh = pickle.loads(pickle.dumps(SsambaTransformer(folder, RATE)))
    assert fresh.get_params() == SsambaTransformer(folder, RATE).get_params()
    with pytest.raises(CheckpointError, match="model"):
        fresh.fit(X)


def test_named_columns(folder: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    X, _ = sounds(3)
    table = pandas.DataFrame({"path": [str(tmp_path / f"{i}.wav") for i in range(3)], "km": [1, 2, 3]}, index=[5, 7, 9])
    for path, x in zip(table["path"], X, strict=True):
        soundfile.write(path, x, RATE)
    model = SsambaTransformer(folder, device="cpu").set_output(transform="pandas")
    out = model.fit_transform(table[["path"]])
    assert list(out.columns[:2]) == ["ssambatransformer0", "ssambatransformer1"]
    assert list(out.index) == [5, 7, 9]
    both = ColumnTransformer([("audio", SsambaTransformer(folder, device="cpu"), ["path"])], remainder="passthrough")
    np.testing.assert_allclose(both.fit_transform(table)[:, :16], out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("X", "problem"),
    [
        ("sound.wav", "'sound.wav' is one recording: give it in a list"),
        (np.zeros(8000), "Expected 2D array, got 1D array"),
        (np.zeros((2, 800, 2)), r"shape \(2, 800, 2\): give \(recordings, samples\)"),
        ([], "0 sample"),
        (np.zeros((3, 0)), r"0 feature\(s\) \(shape=\(3, 0\)\)"),
        (np.zeros((3, 20)), "recording 1 of 3: 20 samples at 16 kHz, one frame takes 400"),
        ([np.zeros(800), np.full(800, np.nan)], "recording 2 of 2: holds NaN"),
        ([np.zeros((800, 2)), np.zeros(800)], r"recording 1 of 2: shape \(800, 2\)"),
        (np.zeros((2, 800), dtype=complex), "Complex data not supported"),
        (42, "'?int'?: give"),
        ([1.0, 2.0], r"recording 1 of 2: shape \(\)"),
        (["a.wav", None], "recording 2 of 2"),
    ],
)
def test_other_input_is_refused_as_a_value_error(folder: str, X: Any, problem: str) -> None:
    with pytest.raises(RecordingError, match=problem) as raised:
        SsambaTransformer(folder, RATE, device="cpu").fit(X)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, AudioError)
    assert "\n" not in str(raised.value)


def test_files_and_parameters_are_refused(folder: str, tmp_path: Path) -> None:
    X, _ = sounds(2)
    model = SsambaTransformer(folder, RATE, device="cpu").fit(X)
    with pytest.raises(RecordingError, match=r"nowhere\.wav: recording 2 of 2: no such file"):
        model.transform([X[0], "nowhere.wav"])
    with pytest.raises(NotFittedError):
        SsambaTransformer(folder, RATE).transform(X)
    for bad, error in (
        ({"pool": "max"}, ConfigError), ({"sample_rate": 44.1}, AudioError), ({"source": "./nowhere"}, CheckpointError),
        ({"device": "tpu"}, SsambaError),
    ):  # fmt: skip
        with pytest.raises(error):
            SsambaTransformer(**{"source": folder, "sample_rate": RATE, **bad}).fit(X)
