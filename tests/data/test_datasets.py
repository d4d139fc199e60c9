"""Every layout read whole from a small tree of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import layout_trees as trees
import pytest
import soundfile
from layout_cases import BUILDERS, everything, refused, rewrite, sizes, without

from ssamba.data.datasets import LAYOUTS, read_layout
from ssamba.data.datasets.speech_commands import WORDS_V1, WORDS_V2

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def test_every_layout_has_a_tree() -> None:
    assert {name for name, _ in BUILDERS.values()} == set(LAYOUTS)


@pytest.mark.parametrize("builder", BUILDERS)
def test_the_whole_set_is_read(built: Callable[[str], Path], builder: str) -> None:
    name = BUILDERS[builder][0]
    data = read_layout(name, built(builder))
    assert data.layout == name
    assert data.multi_label == name.startswith("audioset")
    for fold in data.folds:
        keys = [example.key for example in (*fold.train, *fold.validation, *fold.test)]
        assert len(set(keys)) == len(keys)
        assert fold.train
        assert fold.test
        for example in (*fold.train, *fold.validation, *fold.test):
            assert example.parts
            assert all(Path(part.path).is_file() for part in example.parts)
            assert all(0 <= label < len(data.classes) for label in example.labels)
            assert bool(example.labels) != bool(example.per_second)
            assert "\\" not in example.key
    assert read_layout(name, built(builder)) == data


def test_esc(built: Callable[[str], Path]) -> None:
    data = read_layout("esc50", built("esc50"))
    assert (len(data.classes), data.classes[7]) == (50, "class_07")
    assert sizes(data) == [(200, 0, 50)] * 5
    assert [fold.name for fold in data.folds] == ["1", "2", "3", "4", "5"]
    assert {example.key[0] for example in data.folds[2].test} == {"3"}
    assert data.notes == ("250 clips; the published set has 2,000",)
    ten = read_layout("esc10", built("esc50"))
    assert ten.classes == tuple(f"class_{target:02d}" for target in trees.ESC10_TARGETS)
    assert sizes(ten) == [(40, 0, 10)] * 5
    assert all(example.key.endswith(f"-{trees.ESC10_TARGETS[example.labels[0]]}.wav") for example in everything(ten))
    meta = read_layout("esc10", built("esc10-meta"))
    assert meta.classes[0] == "sound_9"
    assert sizes(meta) == [(80, 0, 20)] * 5


def test_speech_commands(built: Callable[[str], Path]) -> None:
    for name, words in (("speech-commands-v1", WORDS_V1), ("speech-commands-v2", WORDS_V2)):
        data = read_layout(name, built(name))
        assert data.classes == words
        assert sizes(data) == [(len(words),) * 3]
        assert not any("background" in example.key for example in everything(data))
        assert all(data.classes[example.labels[0]] == example.key.split("/")[0] for example in everything(data))
    assert (len(WORDS_V1), len(WORDS_V2)) == (30, 35)


def test_audioset(built: Callable[[str], Path]) -> None:
    data = read_layout("audioset-20k", built("audioset-20k"))
    assert data.classes[1] == "Male speech, man speaking"
    assert sizes(data) == [(7, 0, 7)]
    assert [example.labels for example in data.folds[0].train[:4]] == [(0,), (0, 1), (1, 2), (1, 3)]
    assert data.notes[:2] == (
        "4 classes; the published set has 527",
        "balanced_train_segments.csv: 1 of 8 clips (12.5%) are not there",
    )
    full = read_layout("audioset-2m", built("audioset-20k"))
    assert sizes(full) == [(14, 0, 7)]
    assert len([note for note in full.notes if "are not there" in note]) == 3


def test_audioset_times_in_names_must_be_the_clips(tree: Callable[[str], Path]) -> None:
    root = tree("audioset-20k")
    path = next(root.glob("balanced_train/*/*_40000_50000.wav"))
    path.rename(path.with_name(path.name.replace("40000_50000", "41000_51000")))
    assert sizes(read_layout("audioset-20k", root)) == [(6, 0, 7)]


def test_urbansound8k_and_dasl(built: Callable[[str], Path]) -> None:
    clips = read_layout("urbansound8k", built("urbansound8k"))
    assert sizes(clips) == [(90, 0, 10)] * 10
    data = read_layout("dasl", built("urbansound8k"))
    assert len(data.folds) == 10
    for fold in data.folds:
        scenes = fold.test
        # Each clip's seconds, rounded up, are labelled with its class: none is lost at a scene's end.
        expected: Counter[int] = Counter()
        for example in clips.folds[int(fold.name) - 1].test:
            info = soundfile.info(example.parts[0].path)
            expected[example.labels[0]] += -(-info.frames // info.samplerate)
        labelled = Counter(second for scene in scenes for second in scene.per_second or () if second >= 0)
        assert labelled == expected
        assert all(len(scene.per_second or ()) == 60 for scene in scenes)
        assert {scene.key.split("/")[0] for scene in scenes} == {f"fold{fold.name}"}
    other = read_layout("dasl", built("urbansound8k"), seed=1)
    assert other.folds[0].test != data.folds[0].test


def test_dasl_leaves_unreadable_clips_out(tree: Callable[[str], Path]) -> None:
    root = tree("dasl")
    path = sorted((root / "audio/fold3").iterdir())[0]
    path.unlink()
    path.write_bytes(b"no audio")
    data = read_layout("dasl", root)
    assert [note for note in data.notes if str(path) in note and "left out" in note]
    assert not any(part.path == str(path) for scene in data.folds[2].test for part in scene.parts)


@pytest.mark.parametrize("form", ["wav", "dev/wav", "."])
def test_voxceleb1(tmp_path: Path, form: str) -> None:
    data = read_layout("voxceleb1", trees.voxceleb1(tmp_path, speakers=2, form=form, seconds=0.1))
    assert data.classes == ("id10001", "id10002")
    assert sizes(data) == [(6, 2, 2)]
    assert "2 speakers; the published set has 1,251" in data.notes


def test_iemocap(built: Callable[[str], Path]) -> None:
    data = read_layout("iemocap", built("iemocap"))
    assert data.classes == ("neutral", "happy", "angry", "sad")
    assert [fold.name for fold in data.folds] == [f"Session{n}" for n in range(1, 6)]
    assert sizes(data) == [(31, 9, 10)] * 5  # of 8, 16, 8 and 8 clips: 2, 3, 2 and 2
    for fold in data.folds:
        assert {example.key.split("/")[0] for example in fold.test} == {fold.name}
        assert fold.name not in {example.key.split("/")[0] for example in (*fold.train, *fold.validation)}
        assert Counter(example.labels[0] for example in fold.test) == {0: 2, 1: 4, 2: 2, 3: 2}
    assert sizes(read_layout("iemocap", built("iemocap"), validation=0.0)) == [(40, 0, 10)] * 5


def test_arabic_speech_commands(built: Callable[[str], Path], tree: Callable[[str], Path]) -> None:
    for name in ("arabic", "arabic-meta"):
        data = read_layout("arabic-speech-commands", built(name))
        assert (len(data.classes), data.classes[-1]) == (40, "zoom out")
        assert sizes(data) == [(80, 40, 40)]
    root = tree("arabic")  # Kaggle's form
    (root / "valid.csv").rename(root / "val.csv")
    (root / "dataset").rename(root / "inner")
    (root / "dataset").mkdir()
    (root / "inner").rename(root / "dataset/dataset")
    assert sizes(read_layout("arabic-speech-commands", root)) == [(80, 40, 40)]


def test_custom_table(tmp_path: Path) -> None:
    root = trees.custom_table(tmp_path / "split")
    data = read_layout("custom", root)
    assert data.classes == ("kind0", "kind1", "kind2")
    assert sizes(data) == [(18, 6, 6)]
    assert read_layout("custom", root / "labels.csv") == data
    folds = read_layout("custom", trees.custom_table(tmp_path / "fold", split="fold"))
    assert sizes(folds) == [(24, 0, 6)] * 5
    plain = read_layout("custom", trees.custom_table(tmp_path / "none", split=None))
    assert sizes(plain) == [(24, 3, 3)]
    assert "divided by class into 24 / 3 / 3" in plain.notes[0]
    assert Counter(example.labels[0] for example in plain.folds[0].test) == {0: 1, 1: 1, 2: 1}
    assert read_layout("custom", tmp_path / "none", seed=1).folds != plain.folds


def test_custom_multi_label(tmp_path: Path) -> None:
    root = trees.custom_table(tmp_path, multi_label=True)
    data = read_layout("custom", root)
    assert data.multi_label
    assert {example.labels for example in everything(data)} == {(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)}
    refused("custom", root, "line 3", "2 labels", multi_label=False)
    rewrite(root / "labels.csv", lambda text: text.replace("|", ";").replace("0_0.wav,kind0", "0_0.wav,"))
    assert () in {example.labels for example in everything(read_layout("custom", root))}


def test_custom_split_names(tmp_path: Path) -> None:
    root = trees.custom_table(tmp_path)
    rewrite(root / "labels.csv", lambda text: text.replace(",val", ",DEV").replace(",test", ",eval"))
    assert sizes(read_layout("custom", root)) == [(18, 6, 6)]
    rewrite(root / "labels.csv", without(",eval"))
    data = read_layout("custom", root)
    assert sizes(data) == [(18, 0, 6)]
    assert "validation split is used as the test split" in data.notes[0]
    rewrite(root / "labels.csv", without(",DEV"))
    refused("custom", root, "the test split is empty")
    rewrite(root / "labels.csv", lambda text: text.replace("train", "trian"))
    refused("custom", root, "line 2", "'trian' is unknown, did you mean 'train'?")


def test_custom_folders(tmp_path: Path) -> None:
    root = trees.custom_folders(tmp_path / "plain")
    data = read_layout("custom", root)
    assert data.classes == ("kind0", "kind1", "kind2")
    assert sizes(data) == [(24, 3, 3)]
    for split in ("train", "test"):
        trees.custom_folders(tmp_path / "splits" / split, per_class=2)
    data = read_layout("custom", tmp_path / "splits")
    assert data.classes == ("kind0", "kind1", "kind2")
    assert sizes(data) == [(6, 0, 6)]
    trees.write_clip(root / "stray.wav", 0)
    refused("custom", root, "stray.wav lies in no class's folder")


def test_custom_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    for label in (2, 10, 1):
        for number in range(3):
            trees.write_clip(tmp_path / f"{label}/{number}.wav", label, number)
    assert read_layout("custom", tmp_path).classes == ("1", "2", "10")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real sets do not lie beside this checkout")
def test_real_sets() -> None:
    esc = read_layout("esc10", SHARED / "esc10")
    assert sizes(esc) == [(320, 0, 80)] * 5
    assert esc.classes[0] == "dog_bark"
    assert esc.notes == ()
    arabic = read_layout("arabic-speech-commands", SHARED / "arabic_speech_commands")
    assert sizes(arabic) == [(7200, 2400, 2400)]
    assert arabic.notes == ()
    fold = arabic.folds[0]
    speakers = [{Path(e.key).name[:8] for e in split} for split in (fold.train, fold.validation, fold.test)]
    assert not speakers[0] & speakers[1]
    assert not speakers[1] & speakers[2]
