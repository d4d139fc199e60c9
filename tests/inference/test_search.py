"""Search and near-duplicates: the parts against plain definitions, and the whole with the model in the package."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from search_sounds import RATE, melody, write_melodies

import ssamba
from ssamba.inference.search.columns import Level, column_vectors, shortened
from ssamba.inference.search.duplicates import Pair, groups
from ssamba.inference.search.match import best_offsets
from ssamba.inference.search.nearest import nearest_rows
from ssamba.inference.search.pieces import PIECE_COLUMNS, PIECE_HOP, PieceMeans, piece_count
from ssamba.inference.search.space import fitted_space, learned_space, load_space, save_space, weights_digest, whitening
from ssamba.utils.errors import CheckpointError, ConfigError, DataError
from ssamba.utils.tensor_file import digest_of, read_tensors

pytestmark = pytest.mark.usefixtures("one_thread")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def tiny() -> ssamba.Encoder:
    return ssamba.load(device="cpu")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_melodies(tmp_path_factory.mktemp("search") / "originals", 16)


@pytest.fixture(scope="module")
def index(originals: list[Path], tiny: ssamba.Encoder) -> ssamba.Index:
    return ssamba.index([originals[0].parent], originals[0].parent.parent / "index", tiny)


def piece_starts(columns: int) -> list[int]:
    """First columns of the pieces of a recording: one for a short one, else overlapping by half up to its end."""
    last = columns - PIECE_COLUMNS
    if last <= 0:
        return [0]
    return [*range(0, last, PIECE_HOP), last]


@pytest.mark.parametrize("columns", [1, 5, 61, 62, 63, 92, 93, 94, 124, 125, 200, 311])
@pytest.mark.parametrize("step", [1, 7, 62, 400])
def test_means_of_pieces_do_not_depend_on_how_columns_come(columns: int, step: int) -> None:
    rng = np.random.default_rng(columns)
    vectors = rng.normal(size=(columns, 3)).astype(np.float32)
    audible = (rng.random(columns) < 0.7).astype(np.float32)
    means = PieceMeans()
    for begin in range(0, columns, step):
        means.add(vectors[begin : begin + step], audible[begin : begin + step])
    assert len(piece_starts(columns)) == piece_count(columns)
    expected = []
    for start in piece_starts(columns):
        part = slice(start, start + PIECE_COLUMNS)
        kept = vectors[part][audible[part] > 0]
        expected.append(kept.mean(axis=0) if len(kept) else np.zeros(3))
    np.testing.assert_allclose(means.finish(), np.array(expected), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 9, 64, 65, 150])
def test_offsets_are_those_of_all_alignments(n: int) -> None:
    """Against a loop over every offset of every recording."""
    rng = np.random.default_rng(n)
    query = unit(rng.normal(size=(n, 4)))
    query[rng.random(n) < 0.2] = 0
    lengths = [1, 3, 40, 100, 7]
    files = [unit(rng.normal(size=(length, 4))) for length in lengths]
    files[2][5:20] = 0
    first = np.concatenate([[0], np.cumsum(lengths)])
    found = best_offsets(query, np.concatenate(files), first)
    for i, columns in enumerate(files):
        audible = [int(v.any(axis=1).sum()) for v in (query, columns)]
        least = max(0.5 * min(audible), min(3, n))
        scores = {}
        for offset in range(1 - n, len(columns)):
            pairs = [(query[t], columns[t + offset]) for t in range(n) if 0 <= t + offset < len(columns)]
            both = sum(bool(a.any() and b.any()) for a, b in pairs)
            scores[offset] = sum(float(a @ b) for a, b in pairs) / max(both, least)
        best = max(scores.values())
        assert found.score[i] == pytest.approx(best, abs=1e-5)
        assert scores[round(float(found.offset[i]))] > best - 0.2
        assert min(abs(o - found.offset[i]) for o, s in scores.items() if s > best - 1e-5) <= 0.5


def test_a_stretch_lies_where_it_was_taken_from() -> None:
    rng = np.random.default_rng(3)
    columns = unit(rng.normal(size=(300, 16)))
    first = np.array([0, 100, 101, 300])
    found = best_offsets(columns[150:170], columns, first)
    assert int(found.score.argmax()) == 2
    assert found.score[2] == pytest.approx(1, abs=1e-5)
    assert found.offset[2] == pytest.approx(49, abs=0.5)
    assert found.score[:2].max() < 0.8


@pytest.mark.parametrize("top", [1, 5, 200])
def test_nearest_rows_are_exact(top: int) -> None:
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(150, 8)).astype(np.float16), rng.normal(size=(300, 8)).astype(np.float32)
    found = nearest_rows(queries, (rows[i : i + 40] for i in range(0, 150, 40)), top)
    products = queries @ rows.astype(np.float32).T
    expected = np.sort(products, axis=1)[:, ::-1][:, :top]
    assert found.score.shape == found.row.shape == (300, top)
    np.testing.assert_allclose(found.score[:, :150], expected, atol=1e-5)
    kept = found.row[:, : min(top, 150)]
    np.testing.assert_allclose(np.take_along_axis(products, kept, 1), expected, atol=1e-5)
    assert (found.row[:, 150:] == -1).all()


def test_many_queries_take_no_memory_of_all_products() -> None:
    """As near-duplicates of large indexes ask: 2,048 queries among 20,000 rows, whose products would be 320 MB."""
    rng = np.random.default_rng(0)
    queries, rows = (rng.normal(size=(count, 4)).astype(np.float32) for count in (2048, 20_000))
    tracemalloc.start()
    found = nearest_rows(queries, [rows], 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.row.shape == (2048, 3)
    assert peak < 120e6  # 256 queries at a time: products, their negatives and numbers


def test_gain_changes_nothing(tiny: ssamba.Encoder) -> None:
    """To rounding; without a level it changes the vectors by a third."""
    sound = torch.from_numpy(melody(3.0, 5))

    def vectors(gain: float, level: Level | None) -> np.ndarray:
        return np.concatenate([v for _, v, _ in column_vectors(tiny, [(0, [gain * sound])], 8, level)])

    for level, low, high in ((Level(), 0.0, 0.01), (None, 0.1, 1.0)):
        loud, quiet = vectors(1.0, level), vectors(0.25, level)
        assert low <= np.linalg.norm(loud - quiet) / np.linalg.norm(loud) < high


def test_silence_is_not_audible(tiny: ssamba.Encoder) -> None:
    sound = np.concatenate([melody(2.08, 1), np.zeros(4 * RATE, np.float32)])
    audible = np.concatenate([a for _, _, a in column_vectors(tiny, [(0, [torch.from_numpy(sound)])], 8, Level())])
    assert audible[:12].all()
    assert not audible[20:].any()


def test_the_space_in_the_package_is_that_of_its_model(tiny: ssamba.Encoder) -> None:
    space = learned_space(weights_digest(tiny))
    assert space is not None
    assert (space.kind, space.layer) == ("learned", 8)
    assert learned_space("0" * 64) is None
    shipped = Path(ssamba.__file__).parent / "inference" / "search" / "tiny_space.safetensors"
    tensors, metadata = read_tensors(shipped, digest_required=True)
    assert metadata["sha256"] == digest_of(tensors, metadata)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "piece_mean": (1536,), "piece_map": (1536, 128), "column_mean": (1536,), "column_map": (1536, 64),
    }  # fmt: skip


def test_whitened_vectors_have_unit_spread() -> None:
    rng = np.random.default_rng(0)
    samples = (rng.normal(size=(400, 6)) @ rng.normal(size=(6, 20)) + 5).astype(np.float32)
    mean, mapped = whitening(samples, 4, shrinkage=0.0)
    np.testing.assert_allclose(np.cov(((samples - mean) @ mapped).T, bias=True), np.eye(4), atol=1e-3)
    assert whitening(samples[:6], 20)[1].shape == (20, 3)


def test_a_space_on_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(100, 12)).astype(np.float32)
    space = fitted_space("abc", 3, None, samples, samples)
    save_space(tmp_path / "space.safetensors", space)
    again = load_space(tmp_path / "space.safetensors")
    assert (again.kind, again.digest, again.layer, again.level) == ("fitted", "abc", 3, None)
    np.testing.assert_array_equal(again.pieces(samples), space.pieces(samples))
    assert load_space(tmp_path / "space.safetensors", digest_required=True).kind == "fitted"
    space.piece_map[0, 0] = np.nan
    save_space(tmp_path / "nan.safetensors", space)
    with pytest.raises(CheckpointError, match=r"nan\.safetensors: holds maps"):
        load_space(tmp_path / "nan.safetensors")


def test_a_recording_finds_itself(index: ssamba.Index, originals: list[Path]) -> None:
    for path in originals[:4]:
        best, second = index.search(path, top=2)
        assert best.path == str(path)
        assert best.score > 0.99
        assert abs(best.offset) < 0.02
        assert second.score < 0.7


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("ending", ["mp3", "ogg"])
def test_a_degraded_copy_comes_first(
    index: ssamba.Index, originals: list[Path], tmp_path: Path, ending: str, fast: bool
) -> None:
    """12 dB less gain and noise at 20 dB, through a lossy codec at another rate."""
    for i in (0, 5, 11):
        sound = 0.25 * melody(4.0, i)
        sound += np.random.default_rng(i).normal(0, 0.1 * sound.std(), len(sound)).astype(np.float32)
        copy = tmp_path / f"{i}.{ending}"
        soundfile.write(copy, np.repeat(sound, 2), 2 * RATE)
        (best,) = index.search(copy, top=1, fast=fast)
        assert best.path == str(originals[i])
        assert abs(best.offset) < 0.1


def test_a_stretch_of_a_file_and_of_an_array(index: ssamba.Index, originals: list[Path]) -> None:
    sound = melody(4.0, 9)
    for query in (originals[9], originals[9].read_bytes(), sound):
        (best,) = index.search(query, RATE, start=1.37, seconds=1.5, top=1)
        assert best.path == str(originals[9])
        assert best.offset == pytest.approx(1.37, abs=0.06)
        assert best.score > 0.8


def test_queries_that_cannot_be_compared(index: ssamba.Index, tmp_path: Path) -> None:
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(RATE), RATE)
    with pytest.raises(DataError, match=r"silent\.wav: holds nothing but silence"):
        index.search(silent)
    with pytest.raises(ConfigError, match="top is 0"):
        index.search(silent, top=0)
    with pytest.raises(ssamba.AudioError, match="starts at 9 s"):
        index.search(silent, start=9.0)
    for threshold in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="threshold is"):
            index.duplicates(threshold)


def test_duplicates_with_their_offset(originals: list[Path], tiny: ssamba.Encoder, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    soundfile.write(copies / "late.ogg", np.concatenate([melody(1.6, 99), melody(4.0, 2)]), RATE)
    soundfile.write(copies / "cut.mp3", melody(4.0, 7)[16000:], RATE)
    made = ssamba.index([originals[0].parent, copies], tmp_path / "index", tiny)
    pairs = made.duplicates(0.6)
    found = {(Path(p.first).name, Path(p.second).name): p for p in pairs}
    assert set(found) == {("002.mp3", "late.ogg"), ("007.ogg", "cut.mp3")}
    assert found["002.mp3", "late.ogg"].offset == pytest.approx(-1.6, abs=0.05)
    assert found["007.ogg", "cut.mp3"].offset == pytest.approx(1.0, abs=0.06)


def test_groups_follow_links() -> None:
    pairs = [Pair(a, b, 0.9, 0.0) for a, b in (("a", "b"), ("c", "d"), ("e", "b"), ("e", "f"))]
    assert groups(pairs) == [["a", "b", "e", "f"], ["c", "d"]]
    assert groups([]) == []


def test_a_space_fitted_to_the_collection(tmp_path: Path) -> None:
    """For a model without a learned one; with too few recordings the plain one, which says so."""
    config = ssamba.Config(width=16, depth=4, frames=64, state_size=4)
    model = ssamba.SSAMBA(config, generator=torch.Generator().manual_seed(0)).eval()
    paths = write_melodies(tmp_path / "many", 52, 0.8)
    few = ssamba.index(paths[:10], tmp_path / "few.index", model)
    assert (few.header.space, few.header.layer) == ("plain", 2)
    with pytest.raises(DataError, match="10 recordings with sound: fitting a space takes 50"):
        ssamba.index(paths[:10], tmp_path / "no.index", model, space="fitted")
    assert not (tmp_path / "no.index").exists()
    made = ssamba.index(paths, tmp_path / "many.index", model)
    assert (made.header.space, made.header.layer, made.header.piece_values) == ("fitted", 1, 26)
    (best,) = made.search(paths[20], top=1)
    assert best.path == str(paths[20])
    assert best.score > 0.99


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
def test_a_shortened_model_gives_the_same_columns(encoder: str) -> None:
    """Each layer as ``encode_layers`` of the whole model has it."""
    config = ssamba.Config(encoder=encoder, width=16, depth=8, frames=64, attention_heads=2 * (encoder == "ssast"))
    model = {"ssamba": ssamba.SSAMBA, "ssast": ssamba.SSAST}[encoder](config).eval()
    features = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model.encode_layers(features)
        for layer in range(1, model.n_layers + 1):
            short = shortened(model, layer)
            assert short.n_layers == min(layer + 1, model.n_layers)
            torch.testing.assert_close(short.encode_layers(features)[layer - 1], whole[layer - 1])
