"""Uploads that want to hang, fill or mislead a server are refused in one line, and it goes on answering."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from serving import RATE, Reply, Server, encoded, form, hiss, tone

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.serve.decoding.pool import DecodingPool
from ssamba.serve.http import body
from ssamba.serve.http.body import plain_name, take_upload
from ssamba.serve.http.limits import KNOWN_CLIENTS, ByteBudget, Held, RateLimit
from ssamba.serve.http.problems import RequestError, TooLongError
from ssamba.serve.http.protocol import HEAD_SECONDS

MAX_BYTES = 1 << 20


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with small limits."""
    words = ("--max-mib", "1", "--max-seconds", "20", "--in-flight", "4", "--rate", "0", "--workers", "1")
    with Server(tmp_path_factory.mktemp("strict"), *words) as server:
        yield server
        assert server.process.poll() is None
        assert server.post("/embed", encoded(tone(1.0, 1))).status == 200
        assert server.metric("ssamba_held_bytes") == 0


def refused(reply: Reply, status: int, words: str) -> None:
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json"), reply.body
    assert words in reply.json["error"]
    assert "\n" not in reply.json["error"]


def silence(hours: float, format: str) -> bytes:
    """Hours of digital silence."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 1, format=format, subtype="OPUS" if format == "OGG" else None) as sound:
        for _ in range(round(hours * 60)):
            sound.write(np.zeros(8000 * 60, np.float32))
    return file.getvalue()


@pytest.mark.parametrize(("format", "hours"), [("FLAC", 3), ("OGG", 0.5)])
def test_hours_in_a_small_file_are_too_long(strict: Server, format: str, hours: float) -> None:
    bomb = silence(hours, format)
    assert len(bomb) < MAX_BYTES
    begin = time.monotonic()
    refused(strict.post("/embed", bomb), 413, "upload: lasts more than 20 s, the limit here: send a part of it")
    assert time.monotonic() - begin < 20


def test_a_recording_of_exactly_the_limit_is_taken(strict: Server) -> None:
    assert strict.post("/embed", encoded(hiss(20.0, 1), "OGG")).json["seconds"] == 20.0
    refused(strict.post("/embed", encoded(hiss(20.1, 1), "OGG")), 413, "lasts more than 20 s")


def bad_files() -> dict[str, tuple[bytes, int]]:
    good = encoded(tone(2.0, 3), "FLAC")
    wav = encoded(tone(1.0, 3))
    nan = encoded(np.full(RATE, np.nan, np.float32), subtype="FLOAT")
    claims = wav[:40] + struct.pack("<I", 1 << 30) + wav[44:]
    many = b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 60000, 16000, 0, 0, 16)
    return {
        "empty": (b"", 422),
        "garbage": (bytes(range(256)) * 20, 415),
        "text": (b"hello\n", 415),
        "html": (b"<!doctype html><script>alert(1)</script>", 415),
        "webm": (b"\x1a\x45\xdf\xa3" + bytes(100), 415),
        "m4a": (b"\0\0\0\x20ftypM4A " + bytes(100), 415),
        "truncated flac": (good[: len(good) // 2], 422),
        "truncated wav": (wav[: len(wav) // 2], 422),
        "header alone": (wav[:44], 422),
        "short": (encoded(np.zeros(100, np.float32)), 422),
        "nan": (nan, 422),
        "claims 1 GiB": (claims, 422),
        "60000 channels": (many + b"data" + struct.pack("<I", 0), 415),
        "zip": (b"PK\x03\x04" + bytes(500), 415),
    }


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_gets_the_line_of_the_package(strict: Server, name: str, tmp_path: Path) -> None:
    content, status = bad_files()[name]
    reply = strict.post("/embed?name=bad", content)
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(ssamba.AudioError) as problem:
        read_audio(path)
    refused(reply, status, "bad: ")
    assert reply.json["error"] == str(problem.value).replace(str(path), "bad")


def test_types_that_are_no_audio_are_refused(strict: Server) -> None:
    sound = encoded(tone(1.0, 1))
    for kind in ("text/plain", "application/json", "image/png", "video/webm"):
        refused(strict.post("/embed", sound, {"Content-Type": kind}), 415, f"Content-Type is '{kind}': give audio/...")
    urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
    refused(strict.post("/embed", sound, urlencoded), 415, "add -H 'Content-Type: audio/wav'")


def test_a_body_that_says_that_it_is_too_large_is_refused_unread(strict: Server) -> None:
    head = f"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 40}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", strict.port), 30) as line:
        line.sendall(head.encode())
        answer = b""
        while part := line.recv(65536):  # until it is closed
            answer += part
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"1,048,576 bytes, the limit here" in answer
    assert b"connection: close" in answer


def test_an_endless_body_ends_with_the_limit(strict: Server) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", strict.port), 30) as line:
        line.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(4000):
                line.sendall(b"4000\r\n" + bytes(0x4000) + b"\r\n")
                sent += 0x4000
                time.sleep(0.001)
        except OSError:
            pass
        assert sent < 4000 * 0x4000, "the server read on"
    assert strict.metric("ssamba_in_flight") == 0


def test_a_client_that_sends_a_byte_now_and_then_takes_no_place(strict: Server) -> None:
    """Heads that never end: their connections are closed; meanwhile all places are free."""
    lines = [socket.create_connection(("127.0.0.1", strict.port), 30) for _ in range(20)]
    try:
        begin, ended = time.monotonic(), 0.0
        for line in lines[10:]:  # a whole request first
            line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b'"ok"' not in answer:
                answer += line.recv(65536)
        for line in lines:
            line.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert strict.post("/embed", encoded(tone(0.5, 1))).status == 200
        while time.monotonic() - begin < HEAD_SECONDS + 10:
            try:
                lines[0].sendall(b"a")
                lines[0].settimeout(0.5)
                if lines[0].recv(1) == b"":
                    ended = time.monotonic() - begin
                    break
            except TimeoutError:
                continue
            except OSError:
                ended = time.monotonic() - begin
                break
        assert 0 < ended < HEAD_SECONDS + 5
        for line in lines[1:]:
            line.settimeout(5)
            assert line.recv(10) == b""
    finally:
        for line in lines:
            line.close()


def test_more_requests_than_places_are_told_to_wait(strict: Server) -> None:
    """Four uploads that stall fill the places; the fifth is refused, cheap answers are not."""
    lines = [socket.create_connection(("127.0.0.1", strict.port), 30) for _ in range(4)]
    try:
        for line in lines:
            line.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nRIFF")
        deadline = time.monotonic() + 10
        while strict.metric("ssamba_in_flight") < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        reply = strict.post("/embed", encoded(tone(0.5, 1)))
        refused(reply, 503, "4 requests are under way: ask again later")
        assert reply.headers["retry-after"] == "1"
        assert strict.get("/healthz").json == {"status": "ok"}
    finally:
        for line in lines:
            line.close()
    while strict.metric("ssamba_in_flight") > 0 and time.monotonic() < deadline + 20:
        time.sleep(0.02)
    assert strict.post("/embed", encoded(tone(0.5, 1))).status == 200


def test_names_are_text_and_open_nothing(strict: Server, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "there.wav", tone(1.0, 2), RATE)
    for name in (
        str(tmp_path / "there.wav"),
        "../../../etc/passwd",
        "a\\..\\b.wav",
        "%2e%2e%2fx",
        "x\r\nSet-Cookie: a",
    ):
        sent, headers = form(b"no audio", name.replace("\r\n", "%0d%0a"))
        reply = strict.post("/embed", sent, headers)
        assert reply.status == 415
        assert "set-cookie" not in reply.headers
        assert "/" not in reply.json["error"].partition(": ")[0]
    for path in ("/page/../options.py", "/page/..%2f__init__.py", "/..%2f..%2fetc/passwd", "//etc/passwd"):
        assert strict.get(path).status == 404
    assert plain_name("a/b\\c\0.wav") == "c.wav"
    assert plain_name("x" * 999) == "x" * 255
    assert plain_name("..//") == "upload"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 400),
        (b"--limit", 400),
        (b"--limit\r\nno head", 400),
        (b'--limit\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--limit--\r\n', 422),
        (b"--limit--\r\n", 422),
        (b'--limit\r\nContent-Disposition: form-data; name="file"\r\n\r\nx', 400),
        (b"--limit\r\n" + b"X: " + b"a" * 9000 + b"\r\n\r\nx\r\n--limit--", 400),
        ((b'--limit\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 20) + b"--limit--", 422),
    ],
)
def test_forms_without_a_file_are_refused(sent: bytes, status: int) -> None:
    with pytest.raises(RequestError) as problem:
        take_upload({"content-type": "multipart/form-data; boundary=limit"}, sent, None)
    assert problem.value.status == status


def test_a_form_gives_the_bytes_of_its_file() -> None:
    content = b"\r\n--limi\r\n\r\n--Limit" + bytes(range(256))
    for name in ("a.wav", 'a \\"b\\".wav', "\u00e9.wav"):
        sent, headers = form(content, name)
        found = take_upload({"content-type": headers["Content-Type"]}, sent, None)
        assert found.content == content
        assert found.name == name.replace('\\"', '"')


def test_noise_on_the_line_is_answered_or_cut(strict: Server) -> None:
    """Damaged requests of 200 kinds: a whole one with bytes changed, cut out and doubled."""
    rng = np.random.default_rng(7)
    content, headers = form(encoded(tone(0.1, 1)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**headers, "Content-Length": str(len(content))}.items())
    whole = f"POST /embed?name=a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n".encode() + content
    codes = set()
    for _ in range(200):
        request = bytearray(whole)
        for at in rng.integers(0, 400, rng.integers(1, 6)):
            request[at] = rng.integers(0, 256)
        if rng.random() < 0.3:
            begin = int(rng.integers(0, 300))
            del request[begin : begin + int(rng.integers(1, 60))]
        with socket.create_connection(("127.0.0.1", strict.port), 30) as line:
            line.sendall(request)
            line.shutdown(socket.SHUT_WR)
            answer = line.recv(100)
        codes.add(answer[9:12].decode() if answer else "cut")
    assert codes & {"400", "415", "422", "421"}
    assert not codes & {"500", "501"}
    assert "Traceback" not in strict.log.read_text()


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 0.2)

    async def never() -> dict[str, object]:
        await asyncio.sleep(60)
        return {}

    begin = time.monotonic()
    with pytest.raises(RequestError, match=r"has not arrived within 0\.2 s") as problem:
        asyncio.run(body.read_body({}, never, 100, Held(ByteBudget(100))))
    assert problem.value.status == 408
    assert time.monotonic() - begin < 10


def test_all_requests_together_hold_a_bounded_number_of_bytes() -> None:
    budget = ByteBudget(100)
    first, second = Held(budget), Held(budget)
    first.take(60)
    with pytest.raises(RequestError, match="holds as much audio as it may") as problem:
        second.take(60)
    assert (problem.value.status, budget.used) == (503, 60)
    first.release()
    second.take(60)
    second.release()
    assert budget.used == 0


def test_each_client_has_a_rate() -> None:
    limit = RateLimit(60)
    for _ in range(10):
        limit.check("a", 0.0)
    with pytest.raises(RequestError, match=r"more than 60 requests a minute: wait 2 s") as problem:
        limit.check("a", 0.0)
    assert (problem.value.status, problem.value.headers) == (429, {"Retry-After": "2"})
    limit.check("b", 0.0)
    limit.check("a", 1.0)
    with pytest.raises(RequestError):
        limit.check("a", 1.0)
    for i in range(KNOWN_CLIENTS + 5):
        limit.check(f"client {i}", 2.0)
    assert len(limit._left) == KNOWN_CLIENTS


def test_the_rate_holds_for_real_requests(tmp_path: Path) -> None:
    with Server(tmp_path, "--rate", "12") as server:
        sound = encoded(tone(0.3, 1))
        codes = [server.post("/embed", sound).status for _ in range(5)]
        assert codes[:2] == [200, 200]
        assert 429 in codes
        assert server.get("/healthz").status == 200


@pytest.fixture
def pool() -> Iterator[DecodingPool]:
    pool = DecodingPool(1, MAX_BYTES, 20.0, 3.0)
    yield pool
    pool.close()


def test_a_decoding_process_that_dies_or_hangs_is_replaced(pool: DecodingPool, tmp_path: Path) -> None:
    sound = encoded(tone(1.0, 1))
    (tmp_path / "a.wav").write_bytes(sound)
    assert np.array_equal(pool.decode("a", sound, RATE), read_audio(tmp_path / "a.wav"))
    (process,) = pool._all
    process.kill()
    process.wait()
    assert len(pool.decode("a", sound, RATE)) == RATE
    (process,) = pool._all
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(ssamba.AudioError, match="a: takes more than 3 s to decode"):
        pool.decode("a", sound, RATE)
    assert len(pool.decode("a", sound, RATE)) == RATE
    assert pool.restarts == 2
    with pytest.raises(TooLongError):
        pool.decode("a", encoded(hiss(20.5, 1), "OGG"), RATE)


def test_a_decoding_process_has_no_memory_without_bound(pool: DecodingPool) -> None:
    if not Path("/proc/self/limits").exists():
        pytest.skip("limits of processes are looked up in /proc")
    pool.decode("a", encoded(tone(0.5, 1)), RATE)
    (process,) = pool._all
    with open(f"/proc/{process.pid}/limits") as file:
        limits = {line[:25].strip(): line[26:].split() for line in file}
    assert int(limits["Max address space"][0]) < 4 << 30
    assert limits["Max file size"][0] == "0"
