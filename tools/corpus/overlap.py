"""Does a collection of audio hold recordings of a test set? The best match of each test clip.

    python tools/corpus/overlap.py CLIPS FOLDER [--threshold 0.5] [--planted 40] [--out overlap.csv]

Every second of each clip in CLIPS, at steps of half a second, is looked for in every file of FOLDER, in two stages.

1. Where: its log-mel spectrogram is laid over every place, 20 ms apart, and correlated. Before that each frame loses
   its mean over the bands (which makes it blind to gain and to the envelope that any two knocks share) and each band
   its mean over the second (blind to equalising and to the spectrum that any two showers share).
2. Whether: at the best place the waveforms themselves, from 300 to 3,600 Hz, are correlated over all shifts of up to
   40 ms, if the spectrograms correlate with 0.4 or more. Two recordings of the same kind of sound agree in
   spectrograms, up to 0.9 for clicks, but not in their waveforms; a copy does, also when it was resampled, coded or
   turned down.

A clip's score is the waveforms' correlation, 0 where no spectrograms agreed. The table of scores shows where unrelated
audio ends, --planted where copies begin: it hides that many clips in other audio, each at an odd place, 15 dB lower, at
another rate and coded as MP3 or Vorbis and then Opus, and prints their scores. A copy at another speed is not found.

The exit status is 1 when a clip reaches --threshold, 2 when something cannot be read. debian_audio.py leaves
recordings out by the same scores.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio.constants import SAMPLE_RATE
from ssamba.audio.decode import AUDIO_EXTENSIONS, read_audio
from ssamba.audio.front_end import PUBLISHED
from ssamba.audio.log_mel import log_mel
from ssamba.utils.atomic_write import atomic_write
from ssamba.utils.errors import AudioError, SsambaError
from ssamba.utils.progress import progress_bar

BANDS, WINDOW, HOP = 16, 50, 25
"""Mel bands; frames of 20 ms in a compared stretch, and from one stretch of a clip to its next."""
FLOOR = 5 * np.log(10)
"""Frames are cut off 50 dB below a recording's loudest value (log power): below lies what a codec makes up."""
LEAST_DEVIATION = 0.35
"""Stretches that vary less than this (nepers of power, rms) are silence or a steady tone: they match anything."""
AT_ONCE = 2048
LIKELY = 0.4
"""Spectrograms that correlate less are no copies; the waveforms are compared only from here on."""
THRESHOLD = 0.5
"""What reaches this may be a copy. Of 60 hidden copies of ESC-10 one was lost and 95 % had 0.69 or more; files of
30 s of unrelated effects stay below 0.47. Clips of a second or less, which hold little to tell them apart, reach 0.74
by chance: a collection that leaves out all from 0.5 on loses a few of those."""
COARSE_RATE, LOW_HERTZ, HIGH_HERTZ = 8000, 300, 3600
"""The waveforms are compared at this rate, between these frequencies: without hum, and within what codecs keep."""
REACH = COARSE_RATE // 25
"""Samples to either side of the best place: 40 ms, two places of the spectrogram."""


class Match(NamedTuple):
    """Where a reference clip fits best.

    Attributes:
        score: correlation of the waveforms, 0 to 1.
        likeness: correlation of the spectrograms there, -1 to 1.
        second: where in the audio searched.
    """

    score: float
    likeness: float
    second: float


NONE = Match(0.0, -1.0, 0.0)


def spectrogram(waveform: np.ndarray) -> Tensor:
    """(samples,) at 16 kHz -> (frames of 20 ms, BANDS): log-mel cut at the floor, less each frame's mean."""
    if len(waveform) < PUBLISHED.frame_length:
        return torch.zeros(0, BANDS)
    mel = log_mel(torch.from_numpy(np.asarray(waveform, dtype=np.float32)), BANDS)
    mel = F.avg_pool1d(mel.exp().T[None], 2, ceil_mode=True)[0].T.log()
    mel = mel.clamp_min(float(mel.max()) - FLOOR)
    return mel - mel.mean(dim=1, keepdim=True)


class References:
    """The clips of a test set as stretches ready to be searched for.

    Args:
        paths: audio files; the order is kept.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        stretches, waves, owners = [], [], []
        for i, path in enumerate(paths):
            waveform = read_audio(path)
            frames, coarse = spectrogram(waveform), _coarse(waveform)
            for start in range(0, max(1, len(frames) - WINDOW + 1), HOP):
                stretch = _fit(frames[start : start + WINDOW])
                stretch = stretch - stretch.mean(dim=0)
                norm = float(stretch.norm())
                if norm >= LEAST_DEVIATION * stretch.numel() ** 0.5:
                    stretches.append(stretch.flatten() / norm)
                    waves.append(_cut(coarse, start * COARSE_RATE // 50, COARSE_RATE))
                    owners.append(i)
        self._owners = owners
        self._stretches = torch.stack(stretches) if stretches else torch.zeros(0, WINDOW * BANDS)
        self._waves = F.normalize(torch.stack(waves) if waves else torch.zeros(0, COARSE_RATE))

    def search(self, waveform: np.ndarray) -> list[Match]:
        """The best match of every clip in (samples,) at 16 kHz.

        Audio shorter than a second, and its two ends, are compared as if silence surrounded them.
        """
        frames = F.pad(spectrogram(waveform), (0, 0, HOP, HOP))
        frames = F.pad(frames, (0, 0, 0, max(0, WINDOW - len(frames))))
        # A running maximum over places keeps memory at a block.
        best = torch.full((len(self._stretches),), -1.0)
        place = torch.zeros(len(self._stretches), dtype=torch.long)
        windows = frames.unfold(0, WINDOW, 1).transpose(1, 2)
        for start in range(0, len(windows), AT_ONCE):
            block = windows[start : start + AT_ONCE]
            deviation = (block - block.mean(dim=1, keepdim=True)).flatten(1).norm(dim=1)
            enough = (deviation >= LEAST_DEVIATION * (WINDOW * BANDS) ** 0.5).nonzero()[:, 0]
            if not len(enough) or not len(best):
                continue
            # A stretch has no mean in any band, so that the window's own needs no taking off.
            scores = block[enough].flatten(1) @ self._stretches.T / deviation[enough, None]
            top, where = scores.max(dim=0)
            better = top > best
            best[better] = top[better]
            place[better] = enough[where[better]] + start
        matches = [NONE] * len(self.paths)
        likely = (best >= LIKELY).nonzero()[:, 0]
        if len(likely):
            coarse = _coarse(waveform)
            for part in likely.split(256):
                seconds = (place[part] - HOP) * 0.02
                audible = [
                    _cut(coarse, round(s * COARSE_RATE) - REACH, COARSE_RATE + 2 * REACH) for s in seconds.tolist()
                ]
                scores = _best_shift(torch.stack(audible), self._waves[part])
                for j, score, second in zip(part.tolist(), scores.tolist(), seconds.tolist(), strict=True):
                    if score > matches[self._owners[j]].score:
                        matches[self._owners[j]] = Match(score, float(best[j]), max(0.0, second))
        return matches


def _coarse(waveform: np.ndarray) -> Tensor:
    """(samples,) at 16 kHz -> at COARSE_RATE, from LOW_HERTZ to HIGH_HERTZ only."""
    coarse = torch.from_numpy(soxr.resample(np.asarray(waveform, dtype=np.float32), SAMPLE_RATE, COARSE_RATE))
    size = 1 << (len(coarse) + COARSE_RATE).bit_length()
    spectrum = torch.fft.rfft(coarse, n=size)
    frequency = torch.arange(len(spectrum)) * (COARSE_RATE / size)
    return torch.fft.irfft(spectrum * ((frequency >= LOW_HERTZ) & (frequency <= HIGH_HERTZ)), n=size)[: len(coarse)]


def _cut(waveform: Tensor, start: int, length: int) -> Tensor:
    """Samples from `start`, which may be negative; silence beyond the ends."""
    piece = waveform[max(0, start) : max(0, start + length)]
    before = min(length, max(0, -start))
    return F.pad(piece, (before, length - before - len(piece)))


def _best_shift(audible: Tensor, waves: Tensor) -> Tensor:
    """Largest normalised correlation over the shifts: (n, COARSE_RATE + 2 REACH), (n, COARSE_RATE) -> (n,)."""
    size = 9000  # at least what is audible, so that nothing that counts wraps around
    product = torch.fft.rfft(audible, n=size) * torch.fft.rfft(waves, n=size).conj()
    correlation = torch.fft.irfft(product, n=size)[:, : 2 * REACH + 1].abs()
    sums = F.pad(audible.double().square().cumsum(dim=1), (1, 0))
    energy = sums[:, COARSE_RATE:] - sums[:, : 2 * REACH + 1]
    return (correlation / energy.clamp_min(1e-9).sqrt()).amax(dim=1).float()


def _fit(frames: Tensor) -> Tensor:
    return F.pad(frames, (0, 0, 0, WINDOW - len(frames)))


def audio_files(folder: Path) -> list[Path]:
    """Every audio file in a folder and below, sorted. Raises ``SsambaError`` when there is none."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_EXTENSIONS and p.is_file())
    if not paths:
        raise SsambaError(f"{folder}: holds no audio files; name the folder of the recordings")
    return paths


def planted(clips: list[Path], others: list[Path], count: int) -> Iterator[tuple[int, str, np.ndarray]]:
    """Copies of clips as a collection might hold them: (number of the clip, what was done, 16 kHz waveform).

    Each copy lies at an odd place in other audio, is 15 dB lower, went through another sample rate, and through a
    codec. Seeded, so that two runs plant the same.
    """
    rng = np.random.default_rng(0)
    for i in rng.choice(len(clips), min(count, len(clips)), replace=False):
        clip = read_audio(clips[i])
        # Test clips are often padded with silence: what someone else's copy shares is the sound.
        audible = np.flatnonzero(np.abs(clip) > 0.02 * np.abs(clip).max())
        clip = clip[audible[0] : audible[-1] + 1]
        around = read_audio(others[rng.integers(len(others))], seconds=20)
        at = int(rng.integers(len(around) // 2))
        mixed = np.concatenate((around[:at] * 0.18, clip * 0.18, around[at:] * 0.18))
        rate = int(rng.choice([11025, 22050, 32000, 44100]))
        codec, suffix = (("MPEG_LAYER_III", "MP3"), ("VORBIS", "OGG"))[int(rng.integers(2))]
        memory = io.BytesIO()
        soundfile.write(memory, soxr.resample(mixed, SAMPLE_RATE, rate), rate, format=suffix, subtype=codec)
        memory.seek(0)
        decoded, _ = soundfile.read(memory, dtype="float32")
        memory = io.BytesIO()
        soundfile.write(memory, soxr.resample(decoded, rate, SAMPLE_RATE), SAMPLE_RATE, format="OGG", subtype="OPUS")
        memory.seek(0)
        yield int(i), f"{suffix} at {rate} Hz, then Opus", soundfile.read(memory, dtype="float32")[0]


def quantiles(scores: list[float]) -> str:
    """One line: how scores are distributed."""
    marks = (0, 5, 25, 50, 75, 90, 95, 99, 100)
    return ", ".join(f"{m} %: {q:.3f}" for m, q in zip(marks, np.percentile(scores, marks), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="the test set")
    parser.add_argument("folder", type=Path, help="the audio that must not hold it")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="scores from here on are copies")
    parser.add_argument("--planted", type=int, default=0, help="also score this many hidden copies")
    parser.add_argument("--out", type=Path, help="CSV of the best match of each clip")
    options = parser.parse_args()
    clips, files = audio_files(options.clips), audio_files(options.folder)
    references = References(clips)
    best, where = [NONE] * len(clips), [""] * len(clips)
    with progress_bar("searching") as update:
        for done, path in enumerate(files):
            update(done, len(files), "")
            for i, match in enumerate(references.search(read_audio(path))):
                if match.score > best[i].score:
                    best[i], where[i] = match, str(path.relative_to(options.folder))
    print(f"best match of each of {len(clips)} clips in {len(files)} files: {quantiles([m.score for m in best])}")
    order = sorted(range(len(clips)), key=lambda i: -best[i].score)
    for i in order[:10]:
        match = best[i]
        print(
            f"  {match.score:.3f} (spectrogram {match.likeness:.2f})  {clips[i].name}  {where[i]}, {match.second:.1f} s"
        )
    if options.planted:
        scores = []
        for i, how, waveform in planted(clips, files, options.planted):
            scores.append(references.search(waveform)[i].score)
            if scores[-1] < options.threshold:
                print(f"  missed: {scores[-1]:.3f}  {clips[i].name}  {how}")
        print(f"{len(scores)} hidden copies: {quantiles(scores)}")
    if options.out:
        with atomic_write(options.out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["clip", "score", "likeness", "file", "second"])
            for i in order:
                name, match = clips[i].relative_to(options.clips), best[i]
                writer.writerow([name, f"{match.score:.3f}", f"{match.likeness:.3f}", where[i], f"{match.second:.1f}"])
    found = sum(m.score >= options.threshold for m in best)
    print(f"{found} clips at {options.threshold} or more")
    return int(found > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SsambaError, AudioError) as error:
        print(f"overlap: {error}", file=sys.stderr)
        sys.exit(2)
