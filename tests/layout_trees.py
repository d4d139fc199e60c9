"""Small data sets in the exact layouts of the published ones, with generated audio: one function for each.

Each takes an empty or missing folder and returns the root to read. A class is a tone of its own pitch in some noise,
so that a classifier can learn it.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from ssamba.data.datasets.arabic_speech_commands import WORDS as ARABIC_WORDS
from ssamba.data.datasets.speech_commands import WORDS_V1, WORDS_V2
from ssamba.data.datasets.urbansound8k import SOUND_CLASSES as URBAN_CLASSES

ESC10_TARGETS = (0, 1, 10, 11, 12, 20, 21, 38, 40, 41)
EMOTIONS = ("neu", "hap", "exc", "ang", "sad", "fru")


def tone(label: int, number: int, seconds: float = 0.2, rate: int = 16000) -> np.ndarray:
    """(samples,) float64: the tone of a class; `number` varies phase, loudness and noise."""
    rng = np.random.default_rng([label, number])
    t = np.arange(round(seconds * rate)) / rate
    pitch = 200.0 * 1.3 ** (label % 12)
    wave = np.sin(2 * np.pi * pitch * t + rng.uniform(0, 6)) * rng.uniform(0.1, 0.5)
    return wave + 0.01 * rng.standard_normal(len(t))


def write_clip(path: Path, label: int, number: int = 0, seconds: float = 0.2, rate: int = 16000) -> Path:
    """Write :func:`tone` in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(label, number, seconds, rate), rate)
    return path


def write_table(path: Path, columns: str, rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV with a header line such as "path,label"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns.split(","))
        writer.writerows(rows)
    return path


def fold_takes(targets: int, per_fold: int) -> Iterator[tuple[int, int, int]]:
    """(fold, target, take) of ``per_fold`` clips of each class in each of five folds."""
    return itertools.product(range(1, 6), range(targets), range(per_fold))


def esc50(folder: Path, per_fold: int = 1, seconds: float = 0.1) -> Path:
    """50 classes, `per_fold` clips of each in each of five folds."""
    rows = []
    for fold, target, take in fold_takes(50, per_fold):
        name = f"{fold}-{1000 + target}{take}-A-{target}.wav"
        write_clip(folder / "audio" / name, target, 10 * fold + take, seconds)
        esc10 = target in ESC10_TARGETS
        rows.append((name, fold, target, f"class_{target:02d}", esc10, 1000 + target, "A"))
    write_table(folder / "meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take", rows)
    return folder


def esc10(folder: Path, per_fold: int = 2, seconds: float = 0.2) -> Path:
    """The form with one ``meta.csv``: 10 classes in five folds."""
    rows = []
    for fold, target, take in fold_takes(10, per_fold):
        name = f"audio/{fold}-{target}{take}-A-{target}.flac"
        write_clip(folder / name, target, 10 * fold + take, seconds)
        rows.append((name, fold, target, f"sound_{9 - target}", seconds))
    write_table(folder / "meta.csv", "filename,fold,target,category,seconds", rows)
    return folder


def speech_commands(folder: Path, version: int = 2, train_clips: int = 1, seconds: float = 0.1) -> Path:
    """Every word of version 1 or 2, with `train_clips` to train on, one to validate and one to test."""
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for label, word in enumerate(WORDS_V1 if version == 1 else WORDS_V2):
        for number in range(train_clips + 2):
            name = f"{word}/{number:08x}_nohash_0.wav"
            write_clip(folder / name, label, number, seconds)
            if number < 2:
                lists[("validation_list.txt", "testing_list.txt")[number]].append(name)
    write_clip(folder / "_background_noise_/pink_noise.wav", 0, seconds=1.0)
    for name, lines in lists.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


AUDIOSET_MIDS = ("/m/09x0r", "/m/05zppz", "/t/dd00004", "/m/0dgw9r")
_COMMENTS = (
    "# Segments csv created Sun Mar  5 10:56:58 2017\n"
    "# num_ytids=8\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)


def audioset(folder: Path, seconds: float = 0.2) -> Path:
    """Four classes; 8 balanced, 8 unbalanced and 8 evaluation clips, named in all ways; each list's last is missing."""
    names = ("Speech", "Male speech, man speaking", "Child speech", "Human sounds")
    rows = [(index, mid, name) for index, (mid, name) in enumerate(zip(AUDIOSET_MIDS, names, strict=True))]
    write_table(folder / "class_labels_indices.csv", "index,mid,display_name", rows)
    for place, split in enumerate(("balanced_train", "unbalanced_train", "eval")):
        lines = []
        for number in range(8):
            video, start = f"{'-Y_a'[number % 4]}{place}bcdefgh{number}{'x-_Y'[number % 4]}", 10.0 * number
            labels = sorted({number % 4, number // 2 % 4})
            lines.append(f'{video}, {start:.3f}, {start + 10:.3f}, "{",".join(AUDIOSET_MIDS[n] for n in labels)}"\n')
            if number < 7:
                stem = (
                    video,
                    f"Y{video}",
                    f"{video}_{start:g}",
                    f"{video}_{start:.3f}",
                    f"{video}_{start * 1000:.0f}_{(start + 10) * 1000:.0f}",
                    f"Y{video}_{start:.3f}_{start + 10:.3f}",
                    f"{video}-{start:g}-{start + 10:g}",
                )[number]
                write_clip(
                    folder / f"{split}/{number % 2}/{stem}.{('wav', 'flac')[number % 2]}", labels[0], number, seconds
                )
        (folder / f"{split}_segments.csv").write_text(_COMMENTS + "".join(lines))
    return folder


def urbansound8k(folder: Path, per_fold: int = 1, longest: float = 4.0, rate: int = 8000) -> Path:
    """Ten classes in ten folds, `per_fold` clips each, from 0.3 s to `longest`."""
    rows = []
    for fold in range(1, 11):
        for label, name in enumerate(URBAN_CLASSES):
            for take in range(per_fold):
                file = f"{1000 * fold + 10 * take}-{label}-0-0.wav"
                seconds = (longest, 0.3, longest * 0.6, 1.0)[(label + fold + take) % 4]
                write_clip(folder / f"audio/fold{fold}/{file}", label, 10 * fold + take, seconds, rate)
                rows.append((file, 1000 * fold, 0.0, seconds, 1, fold, label, name))
    columns = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    write_table(folder / "metadata/UrbanSound8K.csv", columns, rows)
    return folder


def voxceleb1(folder: Path, speakers: int = 3, form: str = "dev/wav", seconds: float = 1.5) -> Path:
    """Speakers with three videos to train on, one to validate, one to test; `form` is where their folders lie."""
    lines = []
    for speaker in range(speakers):
        for number, split in enumerate((1, 1, 1, 2, 3)):
            key = f"id{10001 + speaker}/vid{number:08d}/0000{number + 1}.wav"
            place = "test/wav" if form == "dev/wav" and speaker == speakers - 1 else form
            write_clip(folder / place / key, speaker, number, seconds + 0.3 * number)
            lines.append(f"{split} {key}\n")
    (folder / "iden_split.txt").write_text("".join(lines))
    return folder


def iemocap(folder: Path, per_emotion: int = 2, seconds: float = 0.3) -> Path:
    """Five sessions of one dialogue each; neu, hap, exc, ang, sad and (not used) fru."""
    root = folder / "IEMOCAP_full_release"
    for session in range(1, 6):
        dialogue = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]
        for number in range(per_emotion * len(EMOTIONS)):
            emotion, name = EMOTIONS[number % len(EMOTIONS)], f"{dialogue}_F{number:03d}"
            path = root / f"Session{session}/sentences/wav/{dialogue}/{name}.wav"
            write_clip(
                path, ("neu", "hap", "ang", "sad", "fru").index("hap" if emotion == "exc" else emotion), number, seconds
            )
            lines.append(f"[{number}.0000 - {number}.9000]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n")
            lines.append("C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n")
        evaluation = root / f"Session{session}/dialog/EmoEvaluation"
        evaluation.mkdir(parents=True)
        (evaluation / f"{dialogue}.txt").write_text("".join(lines))
        (evaluation / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    return root


def arabic(folder: Path, published: bool = True, seconds: float = 0.1) -> Path:
    """40 words with two clips to train on, one to validate, one to test; in the published form or with one meta.csv."""
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "val": [], "test": []}
    for label, word in enumerate(ARABIC_WORDS):
        for number, split in enumerate(("train", "train", "val", "test")):
            name = (
                f"{'dataset' if published else 'audio'}/{word}/0000000{number}_NO_01.{'wav' if published else 'flac'}"
            )
            write_clip(folder / name, label, number, seconds)
            rows[split].append((name, word))
    if published:
        for split, file in (("train", "train.csv"), ("val", "valid.csv"), ("test", "test.csv")):
            write_table(folder / file, "file,class", rows[split])
    else:
        meta = [(name, split, ARABIC_WORDS.index(word), word) for split, part in rows.items() for name, word in part]
        write_table(folder / "meta.csv", "filename,split,target,category", meta)
    return folder


def custom_table(
    folder: Path, classes: int = 3, per_class: int = 10, split: str | None = "split", multi_label: bool = False
) -> Path:
    """``labels.csv`` with path and label(s), and a column split (train, val, test), fold (1 to 5) or none."""
    rows = []
    for label in range(classes):
        for number in range(per_class):
            name = f"clips/{label}_{number}.wav"
            write_clip(folder / name, label, number, 0.1 + 0.1 * (number % 3))
            second = f"|kind{(label + 1) % classes}" if multi_label and number % 2 else ""
            part = {"split": "train" if number < per_class - 4 else ("val", "test")[number % 2], "fold": 1 + number % 5}
            rows.append((name, f"kind{label}{second}", *([part[split]] if split else [])))
    write_table(folder / "labels.csv", ",".join(["path", "label", *([split] if split else [])]), rows)
    return folder


def custom_folders(folder: Path, classes: int = 3, per_class: int = 10) -> Path:
    """One folder for each class."""
    for label in range(classes):
        for number in range(per_class):
            write_clip(folder / f"kind{label}/{number}.wav", label, number)
    return folder
