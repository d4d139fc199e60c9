"""Write the manifests that the shipped tiny model was trained on: one for each kind of sound.

    python tools/corpus/tiny_data.py UNLABELLED ARABIC OUT [--more FOLDER ...]

UNLABELLED holds a folder for each source, ARABIC is Arabic Speech Commands with meta.csv: only its training speakers
are taken. OUT gets speech.csv, music.csv, effects.csv and words.csv, to be mixed as PATH=SHARE. Their paths are
relative to OUT: which files are held out then depends on where OUT lies beside the data, and not on the machine.

Each --more is a folder as debian_audio.py makes it: a folder for each source, and sources.csv with their kinds. Its
files come after the others in the list of their kind; ambience counts as effects. What cannot be used is one line, and
the exit status is then 2; nothing is written.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

from ssamba.utils.atomic_write import make_folder
from ssamba.utils.errors import DataError, SsambaError

MUSIC = ("ufoai_music", "wesnoth_music", "zeroad_music")
EFFECTS = ("zeroad_world", "hedgewars", "fillets_world", "hydrogen_fx", "sonic_pi", "cdda")
LISTS = {
    "effects": "effects",
    "ambience": "effects",
    "ambience and effects": "effects",
    "music": "music",
    "speech": "speech",
}
"""The list that each kind of sources.csv goes to."""


def audio(source: Path) -> list[Path]:
    return sorted(p for p in source.rglob("*") if p.suffix in (".opus", ".ogg", ".flac", ".wav"))


def folders(parent: Path) -> list[Path]:
    """The folders of sources, sorted. Raises ``DataError`` when `parent` is no folder."""
    if not parent.is_dir():
        raise DataError(f"{parent}: is no folder; name one that holds a folder for each source")
    return sorted(p for p in parent.iterdir() if p.is_dir())


def kinds(folder: Path) -> dict[str, str]:
    """The list that each source of `folder` goes to, by its sources.csv. Raises ``DataError``."""
    table = folder / "sources.csv"
    try:
        with open(table, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise DataError(f"{table}: is missing; name a folder made by debian_audio.py") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read ({error})") from None
    lists = {}
    for row in rows:
        source, kind = row.get("source"), row.get("kind")
        if not source or kind is None:
            raise DataError(f"{table}: needs the columns source and kind in every row")
        if kind not in LISTS:
            raise DataError(f"{table}: {source} is of the unknown kind {kind!r}; known are {', '.join(LISTS)}")
        lists[source] = LISTS[kind]
    return lists


def more(folder: Path) -> list[tuple[str, Path]]:
    """(list, file) for every file of a --more folder. Raises ``DataError``."""
    lists, found = kinds(folder), []
    for source in folders(folder):
        if source.name.startswith("."):  # left behind by a run of debian_audio.py that was killed
            continue
        if source.name not in lists:
            raise DataError(f"{source}: is not in sources.csv, so its kind is unknown; run debian_audio.py again")
        found += [(lists[source.name], path) for path in audio(source)]
    return found


def words(arabic: Path) -> list[Path]:
    try:
        with open(arabic / "meta.csv", encoding="utf-8") as file:
            return [arabic / row["filename"] for row in csv.DictReader(file) if row["split"] == "train"]
    except FileNotFoundError:
        raise DataError(f"{arabic / 'meta.csv'}: is missing; name the folder of Arabic Speech Commands") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unlabelled", type=Path)
    parser.add_argument("arabic", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--more", type=Path, nargs="+", action="extend", default=[], metavar="FOLDER")
    options = parser.parse_args()
    lists: dict[str, list[Path]] = {"speech": [], "music": [], "effects": [], "words": words(options.arabic)}
    for source in folders(options.unlabelled):
        kind = "music" if source.name in MUSIC else "effects" if source.name in EFFECTS else "speech"
        lists[kind] += audio(source)
    for folder in options.more:
        for kind, path in more(folder):
            lists[kind].append(path)
    out = make_folder(options.out)
    for kind, paths in lists.items():
        with open(out / f"{kind}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path"])
            writer.writerows([os.path.relpath(path.resolve(), out.resolve())] for path in paths)
        print(f"{kind}: {len(paths)} files")


if __name__ == "__main__":
    try:
        main()
    except SsambaError as error:
        print(f"tiny_data: {error}", file=sys.stderr)
        sys.exit(2)
