"""Every layout with something missing or wrong: one line that names the file, the value and the mend."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import layout_trees as trees
import pytest
from layout_cases import BUILDERS, refused, rewrite, without


def test_unknown_names_and_options(built: Callable[[str], Path]) -> None:
    refused("esc-50", built("esc50"), "'esc-50' is unknown, did you mean 'esc50'?", "voxceleb1")
    refused("dasl", built("dasl"), "no option sed, did you mean 'seed'? (options: seed)", sed=1)
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
        ("arabic", "valid.csv"),
        ("audioset-20k", "eval_segments.csv"),
        ("audioset-2m", "unbalanced_train_segments.csv"),
        ("speech-commands-v2", "validation_list.txt"),
    ],
)
def test_every_list_is_needed(tree: Callable[[str], Path], builder: str, file: str) -> None:
    root = tree(builder)
    (root / file).unlink()
    # The other lists are no misspelt ones.
    refused(BUILDERS[builder][0], root, f"{root / file}: no such file; is the data set unpacked whole?")


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
    refused(BUILDERS[builder][0], root, f"{root / file}: has no column {old}", f"did you mean '{new}'?")


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
    refused("iemocap", root, f"{root / 'Session4'}: no such folder (1 of 5 sessions are missing); unpack")
    (root / "Session4/dialog/EmoEvaluation").mkdir(parents=True)
    refused("iemocap", root, "has no evaluation")


def test_labels_outside_the_classes(tree: Callable[[str], Path]) -> None:
    root = tree("arabic")
    rewrite(root / "test.csv", lambda text: text.replace(",backward", ",bakward"))
    refused(
        "arabic-speech-commands",
        root,
        "test.csv: line 2",
        "'bakward' is none of the 40 classes, did you mean 'backward'?",
    )
    root = tree("urbansound8k")
    rewrite(root / "metadata/UrbanSound8K.csv", lambda text: text.replace(",siren", ",sirens", 1))
    refused("urbansound8k", root, "line 10", "'sirens'", "did you mean 'siren'?")
    rewrite(root / "metadata/UrbanSound8K.csv", lambda text: text.replace(",8,sirens", ",7,siren", 1))
    refused("urbansound8k", root, "the classID of siren is 8, not 7")
    root = tree("esc50")
    rewrite(root / "meta/esc50.csv", lambda text: text.replace(",7,class_07", ",77,class_07"))
    refused("esc50", root, "meta/esc50.csv: line 9: the target 77 is none of the 50 classes (0 to 49)")
    root = tree("audioset-20k")
    rewrite(root / "eval_segments.csv", lambda text: text.replace("/m/09x0r", "/m/nothing", 1))
    refused("audioset-20k", root, "eval_segments.csv: line 4", "'/m/nothing' is none of the 4 classes")
    root = tree("iemocap")
    path = next(root.glob("Session1/dialog/EmoEvaluation/Ses*.txt"))
    rewrite(path, lambda text: text.replace("\tang\t", "\tangr\t", 1))
    refused("iemocap", root, str(path), "'angr' is unknown, did you mean 'ang'?")
    root = tree("speech-commands-v1")
    rewrite(root / "testing_list.txt", lambda text: text.replace("bird/", "brid/", 1))
    refused("speech-commands-v1", root, "line 2", "did you mean 'bird'?")


def test_words_of_the_other_version(tree: Callable[[str], Path]) -> None:
    refused("speech-commands-v1", tree("speech-commands-v2"), "version 0.02 has it: use speech-commands-v2")
    root = tree("speech-commands-v1")
    refused("speech-commands-v2", root, "backward: no such folder (5 of 35 words are missing); version 0.01 has")
    shutil.rmtree(root / "bed")
    refused(
        "speech-commands-v2", root, "backward: no such folder (6 of 35 words are missing); unpack the archive again"
    )
    trees.write_clip(root / "bed/00000000_nohash_0.wav", 0)
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
    refused("custom", root, "class kind2 has no clip in the training split; add some, or leave the class out")


def test_a_folder_without_clips(tmp_path: Path) -> None:
    root = trees.custom_folders(tmp_path / "plain")
    (root / "kind3/deeper").mkdir(parents=True)
    (root / ".hidden").mkdir()
    refused("custom", root, f"{root / 'kind3'}: the class kind3 has no clip; put audio there or remove the folder")
    for split in ("train", "test"):
        trees.custom_folders(tmp_path / "splits" / split, per_class=2)
    (tmp_path / "splits/test/kind3").mkdir()
    refused("custom", tmp_path / "splits", f"{tmp_path / 'splits/test/kind3'}: the class kind3 has no clip")
    (tmp_path / "splits/train/kind3").mkdir()
    trees.write_clip(tmp_path / "splits/test/kind3/a.wav", 3)
    refused("custom", tmp_path / "splits", "class kind3 has no clip in the training split")


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
