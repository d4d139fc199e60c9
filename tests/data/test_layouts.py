from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import layout_trees as trees
import pytest
import soundfile

from ssamba.data.labelled import Example, LabelledData
from ssamba.data.layouts import LAYOUTS, read_layout
from ssamba.data.layouts.speech_commands import WORDS_V1, WORDS_V2
from ssamba.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

BUILDERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "arabic": ("arabic-speech-commands", trees.arabic),
    "arabic-meta": ("arabic-speech-commands", lambda folder: trees.arabic(folder, published=False)),
    "audioset-20k": ("audioset-20k", trees.audioset),
    "audioset-2m": ("audioset-2m", trees.audioset),
    "custom-table": ("custom", trees.custom_table),
    "custom-folders": ("custom", trees.custom_folders),
    "dasl": ("dasl", trees.urbansound8k),
    "esc10-meta": ("esc10", trees.esc10),
    "esc10": ("esc10", trees.esc50),
    "esc50": ("esc50", trees.esc50),
    "iemocap": ("iemocap", trees.iemocap),
    "speech-commands-v1": ("speech-commands-v1", lambda folder: trees.speech_commands(folder, 1)),
    "speech-commands-v2": ("speech-commands-v2", lambda folder: trees.speech_commands(folder, 2)),
    "urbansound8k": ("urbansound8k", trees.urbansound8k),
    "voxceleb1": ("voxceleb1", trees.voxceleb1),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a builder -> its tree, made once. Tests that change a tree take a copy."""
    roots: dict[str, Path] = {}
    base = tmp_path_factory.mktemp("layouts")

    def build(name: str) -> Path:
        maker = BUILDERS[name][1]
        if name not in roots:
            same = next((other for other in roots if BUILDERS[other][1] is maker), None)
            roots[name] = roots[same] if same else maker(base / name)
        return roots[name]

    return build


@pytest.fixture
def tree(built: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy that a test may damage; files are linked, so replace or remove them, do not write into them."""

    def copy(name: str) -> Path:
        root = tmp_path / name
        shutil.copytree(built(name), root, copy_function=lambda a, b: Path(b).hardlink_to(a))
        return root

    return copy


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text()
    path.unlink()
    path.write_text(change(text))


def without(words: str) -> Callable[[str], str]:
    """Drops every line that holds the words."""
    return lambda text: "".join(line for line in text.splitlines(keepends=True) if words not in line)


def sizes(data: LabelledData) -> list[tuple[int, int, int]]:
    return [(len(fold.train), len(fold.validation), len(fold.test)) for fold in data.folds]


def everything(data: LabelledData) -> list[Example]:
    fold = data.folds[0]
    return [*fold.train, *fold.validation, *fold.test]


def refused(name: str, root: Path, *words: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_layout(name, root, **options)
    message = str(caught.value)
    assert "\n" not in message
    for text in words:
        assert text in message, message
    return message


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
    assert data.notes[0] == "balanced_train_segments.csv: 1 of 8 clips (12.5%) are not there"
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
    refused("custom", root, "line 2", "'trian' is unknown; did you mean train?")


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


def test_unknown_names_and_options(built: Callable[[str], Path]) -> None:
    refused("esc-50", built("esc50"), "'esc-50' is unknown; did you mean esc50?", "voxceleb1")
    refused("dasl", built("dasl"), "no option sed; did you mean seed? (options: seed)", sed=1)
    refused("esc50", built("esc50"), "no option seed (options: none)", seed=1)


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_missing_root_is_named(built: Callable[[str], Path], builder: str) -> None:
    root = built(builder)
    wrong = root.with_name(root.name + "x")
    refused(BUILDERS[builder][0], wrong, str(wrong), "no such f", f"did you mean {root}?")


def test_a_root_one_step_off_is_found(built: Callable[[str], Path]) -> None:
    root = built("esc50")
    refused("esc50", root / "meta", "has no meta/esc50.csv", f"did you mean {root}?")
    refused("urbansound8k", built("urbansound8k").parent, f"did you mean {built('urbansound8k')}?")
    refused("esc50", root / "meta/esc50.csv", "is a file; give the folder")


METADATA = {
    "arabic": "train.csv",
    "audioset-20k": "class_labels_indices.csv",
    "dasl": "metadata/UrbanSound8K.csv",
    "esc10": "meta/esc50.csv",
    "esc50": "meta/esc50.csv",
    "speech-commands-v1": "testing_list.txt",
    "urbansound8k": "metadata/UrbanSound8K.csv",
    "voxceleb1": "iden_split.txt",
}


@pytest.mark.parametrize("builder", METADATA)
def test_missing_metadata_is_named(tree: Callable[[str], Path], builder: str) -> None:
    root = tree(builder)
    (root / METADATA[builder]).unlink()
    refused(BUILDERS[builder][0], root, str(root / METADATA[builder]), "no such file")


@pytest.mark.parametrize(
    ("builder", "file"),
    [
        ("arabic", "test.csv"),
        ("audioset-20k", "eval_segments.csv"),
        ("audioset-2m", "unbalanced_train_segments.csv"),
        ("speech-commands-v2", "validation_list.txt"),
    ],
)
def test_every_list_is_needed(tree: Callable[[str], Path], builder: str, file: str) -> None:
    root = tree(builder)
    (root / file).unlink()
    refused(BUILDERS[builder][0], root, str(root / file), "no such file")


@pytest.mark.parametrize(
    ("builder", "file", "old", "new"),
    [
        ("arabic", "train.csv", "class", "clas"),
        ("arabic-meta", "meta.csv", "category", "categories"),
        ("audioset-20k", "class_labels_indices.csv", "display_name", "display_names"),
        ("esc50", "meta/esc50.csv", "fold", "folds"),
        ("esc10", "meta/esc50.csv", "esc10", "ecs10"),
        ("urbansound8k", "metadata/UrbanSound8K.csv", "classID", "class_id"),
        ("custom-table", "labels.csv", "label", "lable"),
        ("custom-table", "labels.csv", "path", "paths"),
    ],
)
def test_a_missing_column_is_named(tree: Callable[[str], Path], builder: str, file: str, old: str, new: str) -> None:
    root = tree(builder)
    rewrite(root / file, lambda text: text.replace(old, new, 1))
    refused(BUILDERS[builder][0], root, f"{root / file}: has no column {old}", f"did you mean {new}?")


@pytest.mark.parametrize(
    "builder",
    [
        "arabic",
        "arabic-meta",
        "custom-table",
        "dasl",
        "esc10",
        "esc50",
        "esc10-meta",
        "iemocap",
        "urbansound8k",
        "voxceleb1",
    ],
)
def test_missing_audio_is_counted(tree: Callable[[str], Path], builder: str) -> None:
    root = tree(builder)
    audio = sorted(path for path in root.rglob("*") if path.suffix in (".wav", ".flac"))
    if builder == "esc10":
        audio = [path for path in audio if int(path.stem.rpartition("-")[2]) in trees.ESC10_TARGETS]
    if builder == "iemocap":
        audio = [path for path in audio if path.stem[-1] == "0"]
    gone = audio[:2]
    for path in gone:
        path.unlink()
    message = refused(BUILDERS[builder][0], root, " audio files are missing, the first is ")
    assert message.split("the first is ")[1].split(";")[0] in {str(path) for path in gone}
    assert ": 2 of " in message or builder == "voxceleb1"


def test_missing_listed_words_are_counted(tree: Callable[[str], Path]) -> None:
    root = tree("speech-commands-v2")
    (root / "bird/00000001_nohash_0.wav").unlink()
    refused("speech-commands-v2", root, "testing_list.txt: 1 of 35 audio files are missing", "bird")


def test_missing_folds(tree: Callable[[str], Path]) -> None:
    for builder in ("esc50", "esc10-meta"):
        root = tree(builder)
        path = next(p for p in (root / "meta/esc50.csv", root / "meta.csv") if p.is_file())
        name = BUILDERS[builder][0]
        rewrite(path, without("3-" if builder == "esc50" else "audio/3-"))
        rewrite(path, lambda text: "".join(x for x in text.splitlines(True) if x.split(",")[1] != "3"))
        refused(name, root, "fold 3 of 5 is missing (it has 1, 2, 4, 5)")
    root = tree("urbansound8k")
    table = root / "metadata/UrbanSound8K.csv"
    rewrite(table, lambda text: "".join(x for x in text.splitlines(True) if x.split(",")[5] not in ("2", "7")))
    refused("urbansound8k", root, "fold 2, 7 of 10 is missing")
    refused("dasl", root, "fold 2, 7 of 10 is missing")
    rewrite(table, lambda text: text + "a.wav,1,0,1,1,eleven,0,air_conditioner\n")
    refused("urbansound8k", root, "fold must be a whole number, not 'eleven'")


def test_custom_folds(tmp_path: Path) -> None:
    root = trees.custom_table(tmp_path, split="fold")
    rewrite(root / "labels.csv", lambda text: "".join(x for x in text.splitlines(True) if not x.endswith(",3\n")))
    refused("custom", root, "fold 3 of 5 is missing (it has 1, 2, 4, 5)")
    rewrite(root / "labels.csv", lambda text: "".join(x for x in text.splitlines(True) if x[-2] not in "245"))
    refused("custom", root, "fold 1 is the only one")


def test_missing_session(tree: Callable[[str], Path]) -> None:
    root = tree("iemocap")
    shutil.rmtree(root / "Session4")
    refused("iemocap", root, f"{root / 'Session4'}: no such folder (1 of 5 sessions are missing)")
    (root / "Session4/dialog/EmoEvaluation").mkdir(parents=True)
    refused("iemocap", root, "has no evaluation")


def test_labels_outside_the_classes(tree: Callable[[str], Path]) -> None:
    root = tree("arabic")
    rewrite(root / "test.csv", lambda text: text.replace(",backward", ",bakward"))
    refused(
        "arabic-speech-commands",
        root,
        "test.csv: line 2",
        "'bakward' is none of the 40 classes; did you mean backward?",
    )
    root = tree("urbansound8k")
    rewrite(root / "metadata/UrbanSound8K.csv", lambda text: text.replace(",siren", ",sirens", 1))
    refused("urbansound8k", root, "line 10", "'sirens'", "did you mean siren?")
    rewrite(root / "metadata/UrbanSound8K.csv", lambda text: text.replace(",8,sirens", ",7,siren", 1))
    refused("urbansound8k", root, "the classID of siren is 8, not 7")
    root = tree("audioset-20k")
    rewrite(root / "eval_segments.csv", lambda text: text.replace("/m/09x0r", "/m/nothing", 1))
    refused("audioset-20k", root, "eval_segments.csv: line 4", "'/m/nothing' is none of the 4 classes")
    root = tree("iemocap")
    path = next(root.glob("Session1/dialog/EmoEvaluation/Ses*.txt"))
    rewrite(path, lambda text: text.replace("\tang\t", "\tangr\t", 1))
    refused("iemocap", root, str(path), "'angr' is unknown; did you mean ang?")
    root = tree("speech-commands-v1")
    rewrite(root / "testing_list.txt", lambda text: text.replace("bird/", "brid/", 1))
    refused("speech-commands-v1", root, "line 2", "did you mean bird?")


def test_words_of_the_other_version(tree: Callable[[str], Path]) -> None:
    refused("speech-commands-v1", tree("speech-commands-v2"), "version 0.02 has it: use speech-commands-v2")
    root = tree("speech-commands-v1")
    refused("speech-commands-v2", root, "backward: no such folder (5 of 35 words are missing)")
    (root / "banana").mkdir()
    refused("speech-commands-v1", root, "banana is none of the 30 words")


def test_a_class_without_clips(tree: Callable[[str], Path], tmp_path: Path) -> None:
    root = tree("arabic")
    rewrite(root / "train.csv", without(",zero"))
    refused("arabic-speech-commands", root, "class zero has no clip in the training split")
    root = tree("esc50")
    rewrite(root / "meta/esc50.csv", without("class_49"))
    refused("esc50", root, "49 classes, not 50")
    root = trees.custom_table(tmp_path / "own")
    rewrite(root / "labels.csv", lambda text: text.replace("kind2,train", "kind2,test"))
    refused("custom", root, "class kind2 has no clip in the training split")


def test_one_class_only(tmp_path: Path) -> None:
    refused("custom", trees.custom_table(tmp_path / "a", classes=1), "1 class only (kind0)")
    refused("custom", trees.custom_folders(tmp_path / "b", classes=1), "1 class only (kind0)")
    refused("voxceleb1", trees.voxceleb1(tmp_path / "c", speakers=1), "1 class only (id10001)")


def test_empty_splits(tree: Callable[[str], Path]) -> None:
    root = tree("voxceleb1")
    rewrite(root / "iden_split.txt", lambda text: text.replace("2 id", "1 id"))
    refused("voxceleb1", root, "lists no clip of split 2")
    root = tree("speech-commands-v1")
    rewrite(root / "validation_list.txt", lambda text: "")
    refused("speech-commands-v1", root, "validation_list.txt: lists no file")
    root = tree("arabic-meta")
    rewrite(root / "meta.csv", without(",val,"))
    refused("arabic-speech-commands", root, "the validation split is empty")
    root = tree("arabic")
    rewrite(root / "test.csv", lambda text: text.splitlines(True)[0])
    refused("arabic-speech-commands", root, "test.csv: has no rows below the header")


def test_a_clip_on_two_sides(tree: Callable[[str], Path]) -> None:
    root = tree("custom-table")
    rewrite(root / "labels.csv", lambda text: text + "clips/0_0.wav,kind0,test\n")
    refused("custom", root, "clips/0_0.wav is in the training and in the test split")
    rewrite(root / "labels.csv", lambda text: text.replace("kind0,test\n", "kind0,train\n"))
    rewrite(root / "labels.csv", lambda text: text + "clips/1_9.wav,kind1,test\n")
    refused("custom", root, "is listed twice")


def test_malformed_lines(tree: Callable[[str], Path]) -> None:
    root = tree("voxceleb1")
    rewrite(root / "iden_split.txt", lambda text: text.replace("3 id10001", "4 id10001"))
    refused("voxceleb1", root, "line 5 must be 1, 2 or 3")
    root = tree("audioset-20k")
    rewrite(root / "balanced_train_segments.csv", lambda text: text + "short, 3\n")
    refused("audioset-20k", root, "balanced_train_segments.csv: line 12", "must be YTID")
    rewrite(root / "class_labels_indices.csv", lambda text: text.replace("2,/t", "3,/t"))
    refused("audioset-20k", root, "line 4: the index must be 2, not 3")
    root = tree("esc50")
    rewrite(root / "meta/esc50.csv", lambda text: text.replace(",1,0,class_00", ",one,0,class_00", 1))
    refused("esc50", root, "line 2: fold must be a whole number, not 'one'")
    rewrite(root / "meta/esc50.csv", lambda text: text.replace(",one,0,class_00", ",1,0,class_0", 1))
    refused("esc50", root, "target 0 is class_00 here and class_0 above")
    rewrite(root / "meta/esc50.csv", lambda text: text + "a.wav,1\n")
    refused("esc50", root, "line 252 has 2 values for 7 columns")


def test_audioset_without_audio(tree: Callable[[str], Path]) -> None:
    root = tree("audioset-20k")
    shutil.rmtree(root / "eval")
    refused("audioset-20k", root, "eval_segments.csv: 8 of 8 clips are not below", "name the files YTID.wav")
    shutil.rmtree(root / "balanced_train")
    shutil.rmtree(root / "unbalanced_train")
    refused("audioset-20k", root, "no audio files named by YouTube id")


def test_custom_rows(tree: Callable[[str], Path]) -> None:
    root = tree("custom-table")
    rewrite(root / "labels.csv", lambda text: text.replace("kind0,train", ",train", 1))
    refused("custom", root, "line 2: clips/0_0.wav has no label")
    rewrite(root / "labels.csv", lambda text: text.replace("clips/0_0.wav,", ","))
    refused("custom", root, "line 2: the column path is empty")
    rewrite(root / "labels.csv", lambda text: "".join(text.splitlines(True)[2:]))
    refused("custom", root, "has no header line")
    (root / "labels.csv").unlink()
    (root / "labels.csv").write_bytes(b"path,label\na,\xff\n")
    refused("custom", root, "is not UTF-8 text")
    refused("custom", root / "clips/0_0.wav", "is no .csv or .tsv")


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
