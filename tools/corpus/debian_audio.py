"""Collect free unlabelled audio from Debian packages: 16 kHz mono Opus files of about 30 s, as pretraining takes them.

    python tools/corpus/debian_audio.py OUT [--against TESTS ...] [--debs FOLDER] [--only SOURCE ...] [--list]

Each source of debian_sources.py is a part of one Debian package: its sounds, its ambience, its music or its voices. The
package is fetched with `apt-get download` (nothing is installed; run `apt-get update` before), unpacked into a
temporary folder and decoded. Audio is found as files, inside zip archives under any name, and as WAV files and Ogg
streams inside other containers. Silent clips, clips under 0.2 s and exact repeats are dropped; what cannot be decoded
is one line. Short clips are joined until a file has 25 s, long ones cut into equal parts of at most 30 s.

OUT/SOURCE/NNNN.ogg are the files, OUT/SOURCE/clips.csv says which clip of the package is where, and OUT/sources.csv has
the licences. --against names folders of test recordings (as often as needed): a clip that shares a second with one of
them is left out (overlap.py says how that is found); the best match of each test recording, kept or left out, goes to
OUT/overlap.csv. A source that is done is not done again, unless --against has changed. The licences are those that
/usr/share/doc/PACKAGE/copyright states for the files taken; versions are what apt gives (made with Debian 12).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from debian_sources import SOURCES, Source
from overlap import THRESHOLD, References, audio_files

from ssamba.audio.constants import SAMPLE_RATE
from ssamba.audio.decode import AUDIO_EXTENSIONS, read_audio
from ssamba.utils.atomic_write import atomic_write, make_folder
from ssamba.utils.errors import AudioError, SsambaError
from ssamba.utils.progress import progress_bar

LEAST_SECONDS, SILENT = 0.2, 1e-3
FILE_SECONDS, PART_SECONDS = 25.0, 30.0
SUFFIXES = AUDIO_EXTENSIONS


def download(package: str, folder: Path) -> Path:
    """The package's file in `folder`, fetched unless it is there. Raises ``SsambaError``."""
    make_folder(folder)
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        _run(["apt-get", "download", "-q", package], f"{package} cannot be fetched; try `apt-get update`", folder)
        found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        raise SsambaError(f"{package}: apt-get left no file in {folder}")
    return found[-1]


def _run(command: list[str], failure: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SsambaError(f"{command[0]} cannot be run ({error.strerror}); this script needs Debian's tools") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SsambaError(f"{failure} ({last})")
    return done.stdout


def unpack(deb: Path, source: Source, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write the wanted audio of a package into `folder`: (path inside the package, file), in the package's order.

    Raises ``SsambaError`` when dpkg-deb cannot read it.
    """
    number = 0
    with tempfile.TemporaryFile() as log:
        command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        except OSError as error:
            raise SsambaError(f"dpkg-deb cannot be run ({error.strerror}); this script needs Debian's tools") from None
        assert process.stdout is not None
        try:
            with process, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./")
                    if not member.isfile() or not re.search(source.want, path) or re.search(source.skip, path):
                        continue
                    if path.startswith("usr/share/doc/"):
                        continue
                    content = archive.extractfile(member)
                    assert content is not None
                    for name, suffix, data in audio_in(path, content.read()):
                        if not re.search(source.skip, name):
                            number += 1
                            target = folder / f"{number:06d}{suffix}"
                            target.write_bytes(data)
                            yield name, target
        except tarfile.TarError as error:
            raise SsambaError(f"{deb}: is damaged ({error}); remove it and run again") from None
    if process.returncode:
        raise SsambaError(f"{deb}: dpkg-deb cannot read it; remove it and run again")


def audio_in(path: str, data: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Audio in a file of a package: (path, ending, bytes), the path with "!member" for what lies inside a container."""
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES:
        yield path, suffix, data
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in sorted(archive.namelist()):
                if Path(name).suffix.lower() in SUFFIXES:
                    yield f"{path}!{name}", Path(name).suffix.lower(), archive.read(name)
    else:
        if data[:2] == b"\x1e\x8c":  # Clonk's groups: gzip under another magic number
            data = b"".join(_gunzip(b"\x1f\x8b" + data[2:]))
        for i, (ending, piece) in enumerate(streams_in(data)):
            yield f"{path}!{i:04d}{ending}", ending, piece


def _gunzip(data: bytes) -> Iterator[bytes]:
    while data[:2] == b"\x1f\x8b":
        inflate = zlib.decompressobj(wbits=31)
        try:
            yield inflate.decompress(data)
        except zlib.error:
            return
        data = inflate.unused_data


def streams_in(data: bytes) -> Iterator[tuple[str, bytes]]:
    """WAV files and Ogg streams that lie uncompressed in a container: (ending, bytes), in their order."""
    position = 0
    while found := re.compile(rb"RIFF....WAVE|OggS\x00\x02", re.DOTALL).search(data, position):
        start = found.start()
        if data[start : start + 4] == b"RIFF":
            stop = start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")
            if stop <= len(data):
                yield ".wav", data[start:stop]
                position = stop
                continue
        else:
            stop, last = start, False
            while not last and data[stop : stop + 4] == b"OggS" and stop + 27 <= len(data):
                last = bool(data[stop + 5] & 4)
                segments = data[stop + 26]
                stop += 27 + segments + sum(data[stop + 27 : stop + 27 + segments])
            if last and stop <= len(data):
                yield ".ogg", data[start:stop]
                position = stop
                continue
        position = start + 4


def pieces(waveform: np.ndarray) -> list[np.ndarray]:
    """A clip, or the equal parts of at most PART_SECONDS that a longer one is cut into."""
    count = max(1, -(-len(waveform) // round(PART_SECONDS * SAMPLE_RATE)))
    return np.array_split(waveform, count)


class Writer:
    """Joins clips into files of at least FILE_SECONDS and remembers where each went."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files, self.samples = folder, 0, 0
        self._pending: list[np.ndarray] = []
        self._length = 0

    def add(self, waveform: np.ndarray) -> tuple[str, float]:
        """Append a clip; returns the file in which it begins, and at which second."""
        place = self._name(), self._length / SAMPLE_RATE
        for piece in pieces(waveform):
            self._pending.append(piece)
            self._length += len(piece)
            if self._length >= FILE_SECONDS * SAMPLE_RATE:
                self.flush()
        return place

    def flush(self) -> None:
        if not self._length:
            return
        joined = np.concatenate(self._pending)
        with atomic_write(self.folder / self._name()) as temporary:
            soundfile.write(temporary, joined.clip(-1, 1), SAMPLE_RATE, format="OGG", subtype="OPUS")
        self.samples += len(joined)
        self.files += 1
        self._pending, self._length = [], 0

    def _name(self) -> str:
        return f"{self.files:04d}.ogg"


def collect(source: Source, debs: Path, out: Path, references: References | None, seen: set[str]) -> str:
    """Make OUT/SOURCE, whole or not at all; returns a line about it. `seen` holds the hashes of all clips so far."""
    deb = download(source.package, debs)
    version = _run(["dpkg-deb", "-f", str(deb), "Version"], f"{deb}: is no package").strip()
    for leftover in out.glob(f".{source.name}.*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    rows, dropped, left_out, bad = [], 0, 0, 0
    best = {} if references is None else {str(p): (0.0, -1.0, "", 0.0) for p in references.paths}
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{source.name}.") as name, progress_bar(source.name) as update:
        unpacked, made = make_folder(Path(name) / "unpacked"), make_folder(Path(name) / source.name)
        clips = sorted(unpack(deb, source, unpacked))
        if source.most_minutes < 1e9:  # a capped source gives clips from everywhere, and the same ones each time
            clips.sort(key=lambda clip: hashlib.sha1(clip[0].encode()).digest())
        writer, total = Writer(made), 0.0
        for done, (path, file) in enumerate(clips):
            update(done, len(clips), "")
            if total >= source.most_minutes * 60:
                break
            try:
                waveform = read_audio(file)
            except AudioError as error:
                bad += 1
                reason = str(error).removeprefix(f"{file}: ").removeprefix(str(file))
                print(f"  {source.name}: {path} is left out: {reason.strip(': ')}", flush=True)
                continue
            spare = len(waveform) - round(min(source.clip_seconds, 1e6) * SAMPLE_RATE)
            if spare > 0:
                waveform = waveform[spare // 2 : len(waveform) - (spare - spare // 2)]
            peak = float(np.abs(waveform).max())
            digest = hashlib.sha1(np.round(waveform * 32767).astype("<i2").tobytes()).hexdigest()
            if len(waveform) < LEAST_SECONDS * SAMPLE_RATE or peak < SILENT or digest in seen:
                dropped += 1
                continue
            seen.add(digest)
            waveform = waveform / max(1.0, peak)
            copy = False
            if references is not None:
                for reference, match in zip(references.paths, references.search(waveform), strict=True):
                    if match.score > best[str(reference)][0]:
                        best[str(reference)] = (match.score, match.likeness, path, match.second)
                    if match.score >= THRESHOLD:
                        copy = True
            left_out += copy
            place = ("", 0.0) if copy else writer.add(waveform)
            rows.append([path, *place, len(waveform) / SAMPLE_RATE, digest])
            total += 0 if copy else len(waveform) / SAMPLE_RATE
        writer.flush()
        if not writer.files:
            raise SsambaError(f"{source.name}: {deb.name} gave no audio that can be used")
        _write_csv(made / "clips.csv", ["clip", "file", "second", "seconds", "sha1"], rows)
        about: dict[str, Any] = {
            "source": source.name,
            "kind": source.kind,
            "licence": source.licence,
            "files": writer.files,
            "hours": round(writer.samples / SAMPLE_RATE / 3600, 3),
            "package": source.package,
            "version": version,
            "left_out": left_out,
            "against": None if references is None else _signature(references),
        }
        with atomic_write(made / "overlap.json") as temporary:
            temporary.write_text(json.dumps(best), encoding="utf-8")
        with atomic_write(made / "source.json") as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
        shutil.rmtree(out / source.name, ignore_errors=True)
        made.rename(out / source.name)
    return (
        f"{source.name}: {about['hours'] * 60:.1f} min in {writer.files} files; {dropped} repeats, silent or short, "
        f"{bad} not decoded, {left_out} like a test recording"
    )


def _signature(references: References | None) -> str | None:
    if references is None:
        return None
    names = "\n".join(f"{p.parent.name}/{p.name} {p.stat().st_size}" for p in references.paths)
    return hashlib.sha1(f"{names} {THRESHOLD}".encode()).hexdigest()


def _write_csv(path: Path, head: list[str], rows: list[list]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows([f"{v:.3f}" if isinstance(v, float) else v for v in row] for row in rows)


def summarise(out: Path) -> None:
    """Write OUT/sources.csv and OUT/overlap.csv from the sources that are done."""
    columns = ["source", "kind", "licence", "files", "hours", "package", "version"]
    rows = []
    best: dict[str, tuple] = {}
    for source in SOURCES:
        folder = out / source.name
        if not (folder / "source.json").exists():
            continue
        about = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        rows.append([about[c] for c in columns])
        for clip, match in json.loads((folder / "overlap.json").read_text(encoding="utf-8")).items():
            if match[0] >= best.get(clip, (-1.0,))[0]:
                best[clip] = (match[0], match[1], source.name, *match[2:])
    _write_csv(out / "sources.csv", columns, rows)
    if best:
        table = [[clip, *match] for clip, match in sorted(best.items(), key=lambda item: -item[1][0])]
        _write_csv(out / "overlap.csv", ["recording", "score", "likeness", "source", "clip", "second"], table)
    print(f"{sum(r[3] for r in rows)} files, {sum(r[4] for r in rows):.2f} hours from {len(rows)} sources in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path, action="append", default=[], help="a folder of test recordings")
    parser.add_argument("--debs", type=Path, help="keep the packages here, and take those that are here")
    parser.add_argument("--only", nargs="+", metavar="SOURCE", help="these sources only")
    parser.add_argument("--list", action="store_true", help="print the table of sources and stop")
    options = parser.parse_args()
    names = [s.name for s in SOURCES]
    if unknown := sorted(set(options.only or []) - set(names)):
        raise SsambaError(f"--only {unknown[0]}: no such source; there are {', '.join(names)}")
    if options.list:
        for s in SOURCES:
            print(f"{s.name:24} {s.kind:22} {s.package:26} {s.licence}")
        return
    make_folder(options.out)
    tests = [path for folder in options.against for path in audio_files(folder)]
    references = References(tests) if tests else None
    signature, seen, wanted = _signature(references), set(), []
    for source in SOURCES:
        folder = options.out / source.name
        state = folder / "source.json"
        if state.exists() and json.loads(state.read_text(encoding="utf-8"))["against"] == signature:
            with open(folder / "clips.csv", encoding="utf-8", newline="") as file:
                seen |= {row["sha1"] for row in csv.DictReader(file)}
        elif not options.only or source.name in options.only:
            wanted.append(source)
    failed = 0
    for number, source in enumerate(wanted):
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary:
            try:
                line = collect(source, options.debs or Path(temporary), options.out, references, seen)
            except SsambaError as error:
                failed += 1
                line = str(error)
        print(f"[{number + 1}/{len(wanted)}] {line} ({time.monotonic() - begin:.0f} s)", flush=True)
    summarise(options.out)
    if failed:
        raise SsambaError(f"{failed} sources are missing; run again to go on")


if __name__ == "__main__":
    try:
        main()
    except (SsambaError, AudioError) as error:
        print(f"debian_audio: {error}", file=sys.stderr)
        sys.exit(2)
