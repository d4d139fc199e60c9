"""Write the manifests that the shipped tiny model was trained on: one for each kind of sound.

    python benchmarks/tiny_data.py UNLABELLED ARABIC OUT

UNLABELLED holds a folder for each source, ARABIC is Arabic Speech Commands with meta.csv: only its training speakers
are taken. OUT gets speech.csv, music.csv, effects.csv and words.csv, to be mixed as PATH=SHARE. Their paths are
relative to OUT: which files are held out then depends on where OUT lies beside the data, and not on the machine.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

MUSIC = ("ufoai_music", "wesnoth_music", "zeroad_music")
EFFECTS = ("zeroad_world", "hedgewars", "fillets_world", "hydrogen_fx", "sonic_pi", "cdda")


def main(unlabelled: Path, arabic: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[Path]] = {"speech": [], "music": [], "effects": [], "words": []}
    for source in sorted(p for p in unlabelled.iterdir() if p.is_dir()):
        kind = "music" if source.name in MUSIC else "effects" if source.name in EFFECTS else "speech"
        lists[kind] += sorted(p for p in source.rglob("*") if p.suffix in (".opus", ".ogg", ".flac", ".wav"))
    with open(arabic / "meta.csv", encoding="utf-8") as file:
        lists["words"] = [arabic / row["filename"] for row in csv.DictReader(file) if row["split"] == "train"]
    for kind, paths in lists.items():
        with open(out / f"{kind}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path"])
            writer.writerows([os.path.relpath(path.resolve(), out.resolve())] for path in paths)
        print(f"{kind}: {len(paths)} files")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
