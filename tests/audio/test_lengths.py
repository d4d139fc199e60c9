"""Every sample that is in a file is read, whatever its header says, or one line says that the file is truncated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from damaged_audio import CONTAINERS, RATE, cut, flac_stating, mp3_frames, sweep, with_length, write

from ssamba.audio.decode import audio_info, read_audio, stream_audio
from ssamba.utils.errors import AudioError

MODES = ("CONSTANT", "AVERAGE", "VARIABLE")


def all_ways(path: Path, rate: int = RATE) -> np.ndarray:
    """The samples, after checking that header, whole, stream and crops agree on them."""
    whole = read_audio(path, rate)
    info = audio_info(path)
    assert (info.frames, info.sample_rate) == (len(whole), rate)
    np.testing.assert_array_equal(np.concatenate(list(stream_audio(path, 0.7, rate))), whole)
    for start, seconds in ((0.0, 0.3), (0.4, 0.5), (len(whole) / rate - 0.2, None)):
        first = round(start * rate)
        crop = read_audio(path, rate, start, seconds)
        expected = whole[first:] if seconds is None else whole[first : first + round(seconds * rate)]
        np.testing.assert_allclose(crop, expected, atol=2e-6)
    return whole


def refused(path: Path, words: str) -> None:
    """The header, whole reads and streams are refused in one line with that text."""
    for read in (audio_info, read_audio, lambda p: list(stream_audio(p, 0.5))):
        with pytest.raises(AudioError, match=words) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, -1])
@pytest.mark.parametrize("channels", [1, 3])
def test_placeholder_lengths_are_read_to_the_end(tmp_path: Path, name: str, length: int, channels: int) -> None:
    path = write(tmp_path / name, channels=channels, **CONTAINERS[name])
    expected = read_audio(path, RATE)
    assert len(expected) == 2 * RATE
    np.testing.assert_array_equal(all_ways(with_length(path, length)), expected)


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0x80000000, 0x7FFFF000, 0xFFFFFFFF - 44])
def test_placeholders_of_pipes(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.wav")
    expected = read_audio(path, RATE)
    np.testing.assert_array_equal(all_ways(with_length(path, length)), expected)


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("keep", [0.999, 0.6, 0.1])
def test_cut_containers_are_truncated(tmp_path: Path, name: str, keep: float) -> None:
    refused(cut(write(tmp_path / name, channels=2, **CONTAINERS[name]), keep), "truncated")


def test_rf64_without_its_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.rf64", format="RF64")
    expected = read_audio(path, RATE)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"ds64", b"JUNK", 1))
    np.testing.assert_array_equal(all_ways(path), expected)


def test_empty_files_with_chunks_behind_stay_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0), RATE)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"data") + 8] + b"LIST" + (4000).to_bytes(4, "little") + bytes(range(160)) * 25)
    refused(path, "no audio samples")


def test_wav_whose_header_was_never_brought_up_to_date(tmp_path: Path) -> None:
    path = with_length(write(tmp_path / "a.wav"), 20000)
    refused(path, "states 10000 samples, but 156400 bytes that are no chunk follow")


@pytest.mark.parametrize("behind", [b"LIST\x08\0\0\0INFOxxxx", b"TAG" + bytes(125), bytes(9000)])
def test_chunks_tags_and_zeros_behind_the_samples_are_none(tmp_path: Path, behind: bytes) -> None:
    path = write(tmp_path / "a.wav")
    path.write_bytes(path.read_bytes() + behind)
    assert len(all_ways(path)) == 2 * RATE


@pytest.mark.parametrize("kind", ["COMM", "both"])
def test_aiff_of_a_recorder_that_stopped(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.aiff")
    expected = read_audio(path, RATE)
    data = bytearray(path.read_bytes())
    at = data.index(b"COMM")
    data[at + 10 : at + 14] = bytes(4)
    path.write_bytes(bytes(data))
    if kind == "both":
        with_length(path, 0)
    np.testing.assert_array_equal(all_ways(path), expected)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("stated", [0, 1, 4096, RATE, 2 * RATE - 1])
def test_flac_that_states_fewer_samples(tmp_path: Path, stated: int, channels: int) -> None:
    path = write(tmp_path / "a.flac", channels=channels)
    expected = read_audio(path, RATE)
    np.testing.assert_array_equal(all_ways(flac_stating(path, stated)), expected)


@pytest.mark.parametrize("stated", [2 * RATE + 1, 10 * RATE, (1 << 36) - 1])
def test_flac_that_states_more_samples(tmp_path: Path, stated: int) -> None:
    refused(flac_stating(write(tmp_path / "a.flac"), stated), "truncated")


@pytest.mark.parametrize("keep", [0.9, 0.5])
def test_cut_flac_is_refused_from_its_header_on(tmp_path: Path, keep: float) -> None:
    refused(cut(write(tmp_path / "a.flac"), keep), "truncated")


def test_flac_cut_within_its_last_frame_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = cut(write(tmp_path / "a.flac"), 0.99)
    assert audio_info(path).frames == 2 * RATE  # the header of the last frame is there
    with pytest.raises(AudioError, match="truncated"):
        read_audio(path)


def test_flac_with_tags_around(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac")
    expected = read_audio(path, RATE)
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    np.testing.assert_array_equal(all_ways(path), expected)


def without_xing(path: Path) -> Path:
    frames = mp3_frames(path.read_bytes())
    assert any(word in frames[0] for word in (b"Xing", b"Info"))
    path.write_bytes(b"".join(frames[1:]))
    return path


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rate", "channels"), [(44100, 1), (44100, 2), (48000, 2), (32000, 2), (16000, 1), (24000, 2)])
def test_mp3_without_its_header_is_read_whole(tmp_path: Path, mode: str, rate: int, channels: int) -> None:
    options = {"bitrate_mode": mode, "compression_level": 0.5}
    path = write(tmp_path / "a.mp3", 5.0, rate, channels, **options)  # type: ignore[arg-type]
    intact = all_ways(path, rate)
    assert len(intact) == 5 * rate
    per_frame = 1152 if rate >= 32000 else 576
    count = len(mp3_frames(path.read_bytes())) - 1
    samples = all_ways(without_xing(path), rate)
    assert len(samples) == count * per_frame
    # What the header said to cut off: the encoder's delay of 576 samples and the decoder's of 529.
    np.testing.assert_allclose(samples[1105 : 1105 + len(intact)], intact, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_mp3_without_its_header_and_cut(tmp_path: Path, mode: str) -> None:
    path = write(tmp_path / "a.mp3", 4.0, bitrate_mode=mode)
    whole = all_ways(without_xing(path))
    frames = mp3_frames(path.read_bytes())
    path.write_bytes(b"".join(frames[:100]) + frames[100][:50])
    samples = all_ways(path)
    assert len(samples) == 100 * 1152
    np.testing.assert_allclose(samples[: 99 * 1152], whole[: 99 * 1152], atol=1e-6)


def test_mp3_with_its_header_and_cut_is_refused_from_its_header_on(tmp_path: Path) -> None:
    for mode in MODES:
        refused(cut(write(tmp_path / f"{mode}.mp3", 4.0, bitrate_mode=mode), 0.6), "truncated")


@pytest.mark.parametrize("behind", [b"TAG" + bytes(125), b"APETAGEX" + bytes(500), bytes(300)])
@pytest.mark.parametrize("before", [b"", b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)])
def test_tags_of_mp3_files_are_no_frames(tmp_path: Path, before: bytes, behind: bytes) -> None:
    path = write(tmp_path / "a.mp3", 3.0, bitrate_mode="VARIABLE")
    with_header = path.read_bytes()
    path.write_bytes(before + with_header + behind)
    assert len(all_ways(path)) == 3 * RATE
    frames = mp3_frames(with_header)[1:]
    path.write_bytes(before + b"".join(frames) + behind)
    assert len(all_ways(path)) == len(frames) * 1152


@pytest.mark.parametrize("mode", MODES)
def test_joined_mp3_files_are_read_to_the_end(tmp_path: Path, mode: str) -> None:
    first = write(tmp_path / "1.mp3", 2.0, bitrate_mode=mode).read_bytes()
    second = write(tmp_path / "2.mp3", 3.0, seed=1, bitrate_mode=mode)
    expected = read_audio(second, RATE)
    path = tmp_path / "joined.mp3"
    path.write_bytes(first + second.read_bytes())
    samples = all_ways(path)
    assert len(samples) == (len(mp3_frames(path.read_bytes())) - 1) * 1152
    begin = len(mp3_frames(first)) * 1152 + 1105
    np.testing.assert_allclose(samples[begin + 1152 :][: len(expected) - 1152], expected[1152:], atol=1e-3)


def test_mp3_cut_out_of_a_stream(tmp_path: Path) -> None:
    path = without_xing(write(tmp_path / "a.mp3", 4.0, bitrate_mode="VARIABLE"))
    whole, frames = all_ways(path), mp3_frames(path.read_bytes())
    path.write_bytes(frames[20][100:] + b"".join(frames[21:]))
    samples = all_ways(path)
    assert len(samples) == (len(frames) - 21) * 1152
    np.testing.assert_allclose(samples[8 * 1152 :], whole[29 * 1152 :], atol=1e-6)


@pytest.mark.parametrize("codec", [("OGG", "VORBIS"), ("OGG", "OPUS")])
@pytest.mark.parametrize("lengths", [(1.0, 1.5), (0.5, 2.0, 0.7, 0.3)])
def test_chained_ogg_is_read_to_the_end(tmp_path: Path, codec: tuple[str, str], lengths: tuple[float, ...]) -> None:
    parts = [
        write(tmp_path / f"{n}.ogg", seconds, 48000, 1 + n % 2, n, format=codec[0], subtype=codec[1])
        for n, seconds in enumerate(lengths)
    ]
    expected = np.concatenate([read_audio(part, 48000) for part in parts])
    path = tmp_path / "chained.ogg"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    np.testing.assert_array_equal(all_ways(path, 48000), expected)


def test_chained_ogg_of_one_serial_number(tmp_path: Path) -> None:
    part = write(tmp_path / "a.ogg", 2.0, format="OGG", subtype="VORBIS")
    expected = read_audio(part, RATE)
    path = tmp_path / "twice.ogg"
    path.write_bytes(2 * part.read_bytes())
    np.testing.assert_array_equal(all_ways(path), np.concatenate([expected, expected]))


def test_chained_ogg_of_two_rates_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "1.ogg", 1.0, 48000, format="OGG", subtype="VORBIS").read_bytes()
    second = write(tmp_path / "2.ogg", 1.0, 44100, format="OGG", subtype="VORBIS").read_bytes()
    (tmp_path / "a.ogg").write_bytes(first + second)
    refused(tmp_path / "a.ogg", "joins streams of 48000 and 44100 Hz: split it, or convert it to one WAV")


def test_the_last_link_of_a_chain_may_be_cut(tmp_path: Path) -> None:
    part = write(tmp_path / "a.ogg", 2.0, format="OGG", subtype="VORBIS")
    whole = read_audio(part, RATE)
    alone = tmp_path / "b.ogg"
    alone.write_bytes(part.read_bytes())
    cut(alone, 0.6)
    path = tmp_path / "chain.ogg"
    path.write_bytes(part.read_bytes() + alone.read_bytes())
    np.testing.assert_array_equal(all_ways(path), np.concatenate([whole, read_audio(alone, RATE)]))


def test_intact_files_are_opened_without_a_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / name, channels=2, **options) for name, options in CONTAINERS.items()]
    files += [write(tmp_path / f"{mode}.mp3", bitrate_mode=mode) for mode in MODES]
    files += [
        write(tmp_path / "a.flac"),
        write(tmp_path / "a.ogg"),
        write(tmp_path / "a.opus", 2.0, 48000, format="OGG"),
    ]
    monkeypatch.delattr("ssamba.audio.open_audio.PieceFile")
    for path in files:
        rate = 48000 if path.suffix == ".opus" else RATE
        assert len(all_ways(path, rate)) == 2 * rate
    assert len(sweep(2.0)) == 2 * RATE
