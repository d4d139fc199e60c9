from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssamba.data.manifest import read_source, read_sources, split_weight
from ssamba.utils.errors import DataError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(800), 16000)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/two.WAV", "b/one.flac", "a.wav", ".hidden.wav", ".git/three.wav", "c/deep/er/four.wav"):
        touch(tmp_path / "set" / name)
    (tmp_path / "set/notes.txt").write_text("not audio")
    return tmp_path / "set"


def test_folder_is_searched_sorted_without_hidden_files(folder: Path) -> None:
    clips = read_source(folder)
    assert [clip.key for clip in clips] == ["a.wav", "b/one.flac", "b/two.WAV", "c/deep/er/four.wav"]
    assert all(Path(clip.path).is_file() and clip.seconds is None for clip in clips)


def test_folder_with_a_link_to_itself_ends(folder: Path) -> None:
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    assert len(read_source(folder)) == 4


def test_single_file(folder: Path) -> None:
    (clip,) = read_source(folder / "a.wav")
    assert (clip.path, clip.key) == (str(folder / "a.wav"), "a.wav")


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("list.csv", "path,label,fold", "a.wav,dog;bark,3"),
        ("list.tsv", "fold\tcategory\tfilename", "3\tdog;bark\ta.wav"),
        ("bom.csv", "\ufeffpath, label ,fold", "a.wav,dog; bark,3"),
    ],
)
def test_table(folder: Path, name: str, header: str, row: str) -> None:
    (folder / name).write_text(f"{header}\n{row}\n\n", encoding="utf-8")
    (clip,) = read_source(folder / name)
    assert clip.path == str(folder / "a.wav")
    assert clip.labels == ("dog", "bark")
    assert clip.fields["fold"] == "3"


def test_table_states_lengths(folder: Path) -> None:
    (folder / "list.csv").write_text("path,seconds\na.wav,1.5\nb/one.flac,\nb/two.WAV,nan\n")
    assert [clip.seconds for clip in read_source(folder / "list.csv")] == [1.5, None, None]


def test_ast_json(folder: Path) -> None:
    rows = [{"wav": "a.wav", "labels": "/m/1,/m/2", "video_id": "x"}, {"wav": str(folder / "b/one.flac"), "labels": ""}]
    (folder / "list.json").write_text(json.dumps({"data": rows}))
    first, second = read_source(folder / "list.json")
    assert first.labels == ("/m/1", "/m/2")
    assert first.fields == {"video_id": "x"}
    assert second.path == str(folder / "b/one.flac")
    assert second.labels == ()


def manifests(folder: Path) -> dict[str, tuple[str, str]]:
    """file name -> (content, what the message must say)."""
    return {
        "header_only.csv": ("path,label\n", "no files"),
        "empty.csv": ("", "is empty"),
        "near.csv": ("paths,label\na.wav,x\n", "rename paths to path"),
        "far.csv": ("x,y\n1,2\n", "no column path (columns: x, y)"),
        "headless.csv": ("a.wav,dog\nb.wav,cat\n", "no header line"),
        "missing.csv": (
            "path\na.wav\nno.wav\nnor.wav\n",
            f"2 of 3 files are missing, the first is {folder}/no.wav",
        ),
        "broken.json": ("{", "not valid JSON"),
        "list.json": ("[]", "no list"),
        "norow.json": ('{"data": []}', "no files"),
        "nowav.json": ('{"data": [{"path": "a.wav"}]}', 'has no "wav" (it has: path)'),
    }


def test_bad_manifests(folder: Path) -> None:
    for name, (content, words) in manifests(folder).items():
        (folder / name).write_text(content)
        with pytest.raises(DataError) as caught:
            read_source(folder / name)
        assert words in str(caught.value), name
        assert str(caught.value).startswith(str(folder / name))
        assert "\n" not in str(caught.value)


def test_manifest_that_is_not_utf8(folder: Path) -> None:
    (folder / "latin.csv").write_bytes("path,label\na.wav,\xfcber\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_source(folder / "latin.csv")


def test_bad_paths(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder; did you mean .*a\.wav"):
        read_source(folder / "a.waw")
    with pytest.raises(DataError, match=r"ending \.txt is neither"):
        read_source(folder / "notes.txt")
    (folder / "nothing").mkdir()
    with pytest.raises(DataError, match=r"no audio files.*\.flac"):
        read_source(folder / "nothing")
    with pytest.raises(DataError, match="no data given"):
        read_sources([])


def test_weights(folder: Path) -> None:
    first, second = read_sources([f"{folder}=0.7", f"{folder / 'a.wav'}=3e-1"])
    assert (first.name, first.weight, len(first.clips)) == (str(folder), 0.7, 4)
    assert (second.weight, len(second.clips)) == (0.3, 1)
    assert read_sources([str(folder)])[0].weight is None
    for spec, words in ((f"{folder}=0", "above 0"), (f"{folder}=-1", "above 0"), (f"{folder}=nan", "above 0")):
        with pytest.raises(DataError, match=words):
            read_sources([spec])
    with pytest.raises(DataError, match="has no weight"):
        read_sources([f"{folder}=0.7", str(folder / "a.wav")])


def test_existing_path_wins_over_a_weight(tmp_path: Path) -> None:
    touch(tmp_path / "lr=0.7/a.wav")
    assert split_weight(str(tmp_path / "lr=0.7")) == (str(tmp_path / "lr=0.7"), None)
    assert split_weight(str(tmp_path / "lr=0.7=2")) == (str(tmp_path / "lr=0.7"), 2.0)
    assert split_weight("data/a=b") == ("data/a=b", None)
