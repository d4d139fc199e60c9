"""Lists for approximate search: with all lists the answers of all pieces, kept in step, and read with checks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from search_sounds import RATE, melody, write_melodies

import ssamba
from ssamba.inference.search import store
from ssamba.inference.search.approximate import library, piece_lists
from ssamba.inference.search.nearest import nearest_rows
from ssamba.utils.errors import DataError, SsambaError
from ssamba.utils.tensor_file import read_tensors, write_tensors

pytest.importorskip("faiss")
pytestmark = pytest.mark.usefixtures("one_thread")

MADE_UP = 2000
"""Recordings of one piece that are added to those that the model has read."""


@pytest.fixture(scope="module")
def model() -> ssamba.SSAMBA:
    config = ssamba.Config(width=16, depth=2, frames=64, state_size=4)
    return ssamba.SSAMBA(config, generator=torch.Generator().manual_seed(0)).eval()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def add_made_up(folder: Path, count: int, seed: int = 0) -> None:
    """Random vectors as a block more: each recording has 3 columns and one piece."""
    header = store.read_index_header(folder)
    rng = np.random.default_rng(seed)
    entries = [store.FileEntry(f"/none/{seed}/{i}.wav", 1, 1, 0.5, 3) for i in range(count)]
    pieces = unit(rng.normal(size=(count, 1, header.piece_values))).astype(np.float16)
    columns = unit(rng.normal(size=(count, 3, header.column_values))).astype(np.float16)
    block = store.write_block(folder, entries, list(pieces), list(columns))
    store.write_header(folder, replace(header, blocks=(*header.blocks, block)))


def add_lists(folder: Path) -> None:
    """Lists for what an index holds, its made-up files too, which ``ssamba.index`` would drop."""
    opened = ssamba.Index(folder)
    info = piece_lists.make_lists(folder, opened._blocks)
    store.write_header(folder, replace(opened.header, approximate=info))


@pytest.fixture(scope="module")
def made(model: ssamba.SSAMBA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve melodies, a copy of one at another gain, and 2,000 made-up recordings, with lists."""
    folder = tmp_path_factory.mktemp("approximate")
    write_melodies(folder / "sounds", 12, 1.2)
    soundfile.write(folder / "sounds" / "copy.wav", 0.3 * melody(1.2, 4), RATE)
    ssamba.index([folder / "sounds"], folder / "index", model)
    add_made_up(folder / "index", MADE_UP)
    add_lists(folder / "index")
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


def queries(opened: ssamba.Index, count: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the index with noise, and their numbers; all pieces."""
    rows = np.concatenate([np.asarray(block.pieces, np.float32) for block in opened._blocks])
    rng = np.random.default_rng(1)
    number = rng.permutation(len(rows))[:count]
    return unit(rows[number] + 0.2 * rng.normal(size=(count, rows.shape[1])) / rows.shape[1] ** 0.5).astype("f"), rows


def test_all_lists_give_what_all_pieces_give(made: Path, model: ssamba.SSAMBA) -> None:
    opened = ssamba.Index(made / "index", model)
    opened._open_lists("")
    asked, rows = queries(opened)
    exact = nearest_rows(asked, [rows], 10)
    every = opened._nearest_pieces(asked, 10, probes=10**6)
    assert np.abs(every.score - exact.score).max() < 1e-3
    assert (every.row == exact.row).mean() > 0.99
    some = opened._nearest_pieces(asked, 10)
    assert (some.row[:, 0] == exact.row[:, 0]).mean() > 0.9
    few = opened._nearest_pieces(asked, 10, probes=1)
    shared = np.mean([len(set(a) & set(b)) for a, b in zip(few.row.tolist(), exact.row.tolist(), strict=True)])
    assert 1 <= shared < 9  # one list of 179 does not hold them all, so the lists are what is searched


def test_search_uses_the_lists(made: Path, model: ssamba.SSAMBA, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ssamba.Index(made / "index", model)
    query = made / "sounds" / "001.flac"
    exact = opened.search(query, top=3, fast=False)
    assert opened._lists is None
    assert len(opened.search(query, top=5000)) <= 100 < len(opened.search(query, top=5000, fast=False))
    assert opened._lists is not None
    found = opened.search(query, top=3)
    assert found[0] == exact[0]
    assert found[0].path == str(query)


def test_duplicates_use_the_lists(made: Path, model: ssamba.SSAMBA) -> None:
    opened = ssamba.Index(made / "index", model)
    exact = opened.duplicates(0.99, exact=True)
    assert opened._lists is None
    assert opened.duplicates(0.99) == exact
    assert opened._lists is not None
    assert {str(made / "sounds" / name) for name in ("004.wav", "copy.wav")} in [{p.first, p.second} for p in exact]


def test_new_blocks_are_found_and_gone_ones_are_not(index: Path, model: ssamba.SSAMBA) -> None:
    add_made_up(index, 20, seed=7)
    header = store.read_index_header(index)
    store.write_header(index, store.drop(header, {header.blocks[1].name: set(range(MADE_UP))}))
    opened = ssamba.Index(index, model)
    opened._open_lists("")
    assert [block.info.files for block in opened._blocks] == [13, 20]
    asked, rows = queries(opened, 33)
    exact, found = nearest_rows(asked, [rows], 33), opened._nearest_pieces(asked, 33, probes=10**6)
    assert (found.row[:, 0] == exact.row[:, 0]).all()
    assert sorted(found.row[0].tolist()) == list(range(33))


def test_dropped_recordings_are_no_answers(index: Path, made: Path, model: ssamba.SSAMBA) -> None:
    header = store.read_index_header(index)
    number = next(n for n, path in enumerate(ssamba.Index(index).paths) if path.endswith("copy.wav"))
    store.write_header(index, store.drop(header, {header.blocks[0].name: {number}}))
    opened = ssamba.Index(index, model)
    assert "copy.wav" not in [Path(m.path).name for m in opened.search(made / "sounds" / "004.wav", top=100)]
    assert not [p for p in opened.duplicates(0.9) if p.second.endswith("copy.wav") or p.first.endswith("copy.wav")]


def test_updates_keep_the_lists_in_step(model: ssamba.SSAMBA, tmp_path: Path) -> None:
    paths = write_melodies(tmp_path / "sounds", 20, 0.8)
    first = ssamba.index(paths[:15], tmp_path / "index", model, approximate=True)
    assert first.report.approximate
    assert (first.report.pieces, first.header.approximate.blocks) == (15, ((first.header.blocks[0].name, 15),))
    second = ssamba.index(paths[:16], tmp_path / "index", model)  # one of sixteen pieces is compared by itself
    assert second.header.approximate == first.header.approximate
    assert second.search(paths[15], top=1)[0].path == str(paths[15])
    third = ssamba.index(paths, tmp_path / "index", model)
    assert [n for _, n in third.header.approximate.blocks] == [15, 1, 4]
    files = {path.name for path in (tmp_path / "index").glob("lists-*")}
    assert files == {third.header.approximate.file_name}
    assert [ssamba.Index(tmp_path / "index", model).search(p, top=1)[0].path for p in paths] == list(map(str, paths))
    for path in paths:
        path.unlink()
    empty = ssamba.index([], tmp_path / "index", model)
    assert (empty.header.approximate, list((tmp_path / "index").glob("lists-*"))) == (None, [])


def test_the_lists_are_the_same_each_time(index: Path) -> None:
    before = store.read_index_header(index).approximate
    add_lists(index)
    assert store.read_index_header(index).approximate == before


def rewritten(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """Another content of the lists under the name and with the digest and size that ``index.json`` then says."""

    def act(folder: Path) -> None:
        header = store.read_index_header(folder)
        info = header.approximate
        tensors, _ = read_tensors(folder / info.file_name)
        change(tensors)
        (folder / info.file_name).unlink()
        digest = write_tensors(folder / "new", tensors)
        new = replace(info, digest=digest, size=(folder / "new").stat().st_size)
        (folder / "new").rename(folder / new.file_name)
        store.write_header(folder, replace(header, approximate=new))

    return act


def stated(**changes: object) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        values = json.loads((folder / "index.json").read_text())
        values["approximate"].update(changes)
        (folder / "index.json").write_text(json.dumps(values))

    return act


def lists_file(folder: Path) -> Path:
    (path,) = folder.glob("lists-*")
    return path


def flip(folder: Path) -> None:
    content = bytearray(lists_file(folder).read_bytes())
    content[-9] ^= 1
    lists_file(folder).write_bytes(content)


def other_lists(folder: Path) -> None:
    """A sound file of lists, of the same size, that is not the one of this index."""
    path = lists_file(folder)
    tensors, _ = read_tensors(path)
    tensors["centres"] = -tensors["centres"]
    write_tensors(path, tensors)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda f: lists_file(f).unlink(), "cannot be read"),
    "truncated": (lambda f: lists_file(f).write_bytes(lists_file(f).read_bytes()[:-1]), "bytes, index.json says"),
    "a bit": (flip, "does not fit its digest"),
    "another file": (other_lists, "is not the one that index.json names"),
    "no digest": (lambda f: lists_file(f).write_bytes(b"x" * lists_file(f).stat().st_size), "no safetensors file"),
    "twice the same piece": (rewritten(lambda t: t["rows"].__setitem__(0, t["rows"][1])), "each piece once"),
    "beyond the pieces": (rewritten(lambda t: t["rows"].__setitem__(0, 10**12)), "each piece once"),
    "negative": (rewritten(lambda t: t["rows"].__setitem__(0, -1)), "each piece once"),
    "sizes": (rewritten(lambda t: t["sizes"].__setitem__(0, t["sizes"][0] + 1)), "each piece once"),
    "a NaN": (rewritten(lambda t: t["centres"].__setitem__((0, 0), float("nan"))), "hold NaN"),
    "another type": (rewritten(lambda t: t.update(rows=t["rows"].int())), "does not hold the lists"),
    "wider": (rewritten(lambda t: t.update(centres=torch.ones(len(t["sizes"]), 3))), "does not hold the lists"),
    "count of lists": (stated(lists=10**15), "does not hold the lists"),
    "a path as digest": (stated(digest="../../x"), "is damaged"),
    "blocks twice": (lambda f: stated(blocks=[["block-" + "0" * 16, 1]] * 2)(f), "is damaged"),
    "block with other counts": (lambda f: stated(blocks=[["block-" + "0" * 16, 2013]])(f), ""),
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_damaged_and_hostile_lists(index: Path, made: Path, model: ssamba.SSAMBA, damage: str) -> None:
    """One line that names the file; what still fits gives nothing but true answers."""
    act, words = HOSTILE[damage]
    act(index)
    if damage == "block with other counts":  # lists of blocks that are not there: all pieces are compared by themselves
        assert ssamba.Index(index, model).search(made / "sounds" / "001.flac", top=1)[0].path.endswith("001.flac")
        return
    with pytest.raises(DataError, match=words) as caught:
        ssamba.Index(index, model).search(made / "sounds" / "001.flac")
    assert str(index) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counts_of_blocks_are_checked(index: Path, model: ssamba.SSAMBA) -> None:
    """Lists that say other numbers of pieces for two blocks, with the right total, would find the wrong recordings."""
    names = [block.name for block in store.read_index_header(index).blocks]
    stated(blocks=[[names[0], 2000], [names[1], 13]])(index)
    with pytest.raises(DataError, match="does not hold the lists of these blocks"):
        ssamba.Index(index, model)._open_lists("")


def test_without_the_library(made: Path, model: ssamba.SSAMBA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    opened = ssamba.Index(made / "index", model)
    query = made / "sounds" / "001.flac"
    asks = {
        "--exact": [lambda: opened.search(query), lambda: opened.search(query, fast=True), opened.duplicates],
        "leave it out": [lambda: ssamba.index([made / "sounds"], tmp_path / "new", model, approximate=True)],
    }
    for otherwise, acts in asks.items():
        for act in acts:
            with pytest.raises(SsambaError, match=r"takes the package faiss: pip install 'ssamba\[search\]', or") as e:
                act()
            assert otherwise in str(e.value)
            assert "\n" not in str(e.value)
    assert not (tmp_path / "new").exists()
    assert opened.search(query, top=1, fast=False)[0].path == str(query)
    assert opened.duplicates(0.99, exact=True)
    # An update does what it can: the new files are compared by themselves.
    ssamba.index([query], tmp_path / "plain", model)
    assert not ssamba.Index(tmp_path / "plain", model).header.approximate


def test_nothing_is_imported_before_it_is_needed(made: Path) -> None:
    code = "import sys, ssamba; ssamba.Index(sys.argv[1]); assert 'faiss' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, str(made / "index")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_silent_pieces_are_no_trouble(index: Path, model: ssamba.SSAMBA) -> None:
    header = store.read_index_header(index)
    entries = [store.FileEntry(f"/none/silent{i}.wav", 1, 1, 0.5, 3) for i in range(300)]
    zeros = [np.zeros((1, header.piece_values), np.float16)] * 300, [np.zeros((3, header.column_values), "e")] * 300
    block = store.write_block(index, entries, *zeros)
    store.write_header(index, replace(header, blocks=(*header.blocks, block)))
    add_lists(index)
    opened = ssamba.Index(index, model)
    opened._open_lists("")
    asked, rows = queries(opened, 1)
    found = opened._nearest_pieces(asked, 10, probes=10**6)
    assert np.array_equal(found.row, nearest_rows(asked, [rows], 10).row)
