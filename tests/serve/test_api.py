"""What a server answers: the numbers of the package, in the layout of its files, whatever way a recording is sent."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
import wave
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import soundfile
from serving import RATE, Server, clicks, encoded, form, hiss, scene, tone

import ssamba
from ssamba.cli.main import main
from ssamba.data.labels.formats import read_label_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(run: Path) -> ssamba.Encoder:
    return ssamba.load(run, "cpu")


def test_embeddings_are_those_of_the_package_to_the_bit(server: Server, model: ssamba.Encoder) -> None:
    """One request alone: the same passes as in this process, and decimals that give each float32 back."""
    sound = encoded(scene(), "FLAC")
    answer = server.post("/embed?name=a.flac&frames=1", sound).json
    there = model.embed(sound)
    assert np.array_equal(np.float32(answer["embedding"]), there.clip[0].numpy())
    assert np.array_equal(np.float32(answer["frames"]), there.frames[0].numpy())
    assert np.allclose(answer["times"], there.times, atol=1e-6)
    assert (answer["path"], answer["seconds"]) == ("a.flac", 8.5)


def test_a_server_in_16_bits(run: Path, index: Path, sounds: Path) -> None:
    """Its embeddings are those of the model in bf16, and its queries meet the vectors of an index in fp32."""
    sound = encoded(scene(), "FLAC")
    there = ssamba.load(run, "cpu", dtype="bf16").embed(sound).clip[0].float().numpy()
    with Server(run.parent, run, "--index", index, "--dtype", "bf16") as server:
        assert server.get("/info").json["dtype"] == "bf16"
        assert np.array_equal(np.float32(server.post("/embed", sound).json["embedding"]), there)
        query = encoded(tone(2.0, 3)[RATE // 2 : RATE * 3 // 2])
        (best,) = server.post("/search?top=1", query).json["matches"]
    (exact,) = ssamba.Index(index, device="cpu").search(query, top=1)
    assert (best["path"], exact.path) == ("tone/3.wav", str(sounds / "tone/3.wav"))
    assert best["score"] == pytest.approx(exact.score, abs=0.01)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_every_way_to_send_gives_the_same(server: Server, format: str) -> None:
    sound = encoded(tone(1.0, 5), format, 22050)
    plain = server.post("/embed", sound).json["embedding"]
    body, headers = form(sound, f"x.{format.lower()}")
    assert server.post("/embed", body, headers).json["embedding"] == plain
    assert server.post("/embed", iter([sound[:100], sound[100:]]), {"Content-Type": "audio/x-any"}).json[
        "embedding"
    ] == plain  # fmt: skip


def test_scores_and_rows_are_those_of_the_command(server: Server, run: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "c.wav", clicks(1.5, 50), RATE)
    content = (tmp_path / "c.wav").read_bytes()
    words = ["predict", str(tmp_path / "c.wav"), "--model", str(run), "--device", "cpu", "--out"]
    assert main([*words, str(tmp_path / "a.json"), "--top", "2"]) == 0
    assert main([*words, str(tmp_path / "b.json"), "--every", "0.5"]) == 0
    for name, query in (("a", "top=2"), ("b", "top=5&every=0.5")):
        (entry,) = json.loads((tmp_path / f"{name}.json").read_text())["files"]
        assert server.post(f"/predict?{query}", content).json == entry | {"path": "upload"}


def test_events_and_their_files_are_those_of_the_command(server: Server, run: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", scene(), RATE)
    content = (tmp_path / "s.wav").read_bytes()
    found = server.post("/predict?events=1&name=s.wav", content).json
    assert [event["label"] for event in found["events"]].count("hiss") == 1
    hissing = next(event for event in found["events"] if event["label"] == "hiss")
    assert (hissing["start"], hissing["end"]) == pytest.approx((3.0, 5.5), abs=0.5)
    for format, suffix in (("audacity", "txt"), ("csv", "csv")):
        out = tmp_path / f"x.{suffix}"
        words = ("--model", str(run), "--device", "cpu", "--events", "--threshold", "0.7", "--format", format)
        assert main(["predict", str(tmp_path / "s.wav"), *words, "--out", str(out)]) == 0
        reply = server.post(f"/predict?format={format}&threshold=0.7&name={tmp_path}/s.wav", content)
        assert reply.body.decode() == out.read_bytes().decode().replace(str(tmp_path / "s.wav"), "s.wav")
        assert reply.headers["content-type"].startswith("text/")


def test_search_finds_what_the_index_holds_and_plays_it(server: Server, index: Path, sounds: Path) -> None:
    query = encoded(tone(2.0, 3)[RATE // 2 : RATE * 3 // 2])
    found = server.post("/search?top=3", query).json["matches"]
    there = ssamba.Index(index, device="cpu").search(query, top=3)
    assert [match["path"] for match in found] == [os.path.relpath(m.path, sounds) for m in there]
    assert found[0]["path"] == "tone/3.wav"
    assert [m["score"] for m in found] == pytest.approx([m.score for m in there], abs=1e-5)
    assert found[0]["offset"] == pytest.approx(0.5, abs=0.02)
    reply = server.get(f"/recordings/{found[0]['recording']}?start=0.5&seconds=1")
    assert reply.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(reply.body)) as file:
        assert (file.getframerate(), file.getnframes()) == (RATE, RATE)
        played = np.frombuffer(file.readframes(RATE), np.int16) / 32767
    assert np.abs(played - tone(2.0, 3)[RATE // 2 : RATE * 3 // 2]).max() < 1e-4
    assert server.get("/recordings/18").status == 404
    assert server.get("/recordings/..%2f..%2fetc%2fpasswd").status == 404
    stretch = server.post("/search?top=1&start=0.5&seconds=1", encoded(tone(2.0, 4))).json["matches"][0]
    assert (stretch["path"], stretch["offset"]) == ("tone/4.wav", pytest.approx(0.5, abs=0.05))


@pytest.mark.parametrize("format", ["audacity", "raven", "csv", "json", "jams"])
def test_corrected_labels_come_back_as_files_that_the_package_reads(
    server: Server, format: str, tmp_path: Path
) -> None:
    events = [
        {"start": 2.0, "end": 3.25, "label": "a dog, \u00e9"},
        {"start": 0.5, "end": 1, "label": "x", "score": 0.5},
    ]
    body = json.dumps({"path": "a/b.wav", "seconds": 8.5, "events": events})
    reply = server.post(f"/labels?format={format}", body, {"Content-Type": "application/json"})
    assert reply.status == 200, reply.body
    path = tmp_path / f"l.{'json' if format in ('json', 'jams') else 'csv' if format == 'csv' else 'txt'}"
    path.write_bytes(reply.body)
    rows = [row.event for row in read_label_file(path)]
    assert [(e.start, e.end, e.label) for e in rows] == [(0.5, 1.0, "x"), (2.0, 3.25, "a dog, \u00e9")]
    if format == "csv":
        assert next(iter(csv.DictReader(io.StringIO(reply.body.decode()))))["path"] == "b.wav"


WRONG = {
    "/embed?nam=x": (400, "unknown parameter 'nam', did you mean 'name'?"),
    "/predict?top=0": (400, "top is 0: give a whole number above 0"),
    "/predict?top=two": (400, "top is 'two': give a whole number"),
    "/predict?every=nan": (400, "every is 'nan': give a number"),
    "/predict?every=-1": (400, "every is -1 s: give"),
    "/predict?events=maybe": (400, "events is 'maybe': give 1 or 0"),
    "/predict?low=0.2": (400, "low goes with events: give events=1 as well"),
    "/predict?events=1&without=dog": (400, "without is 'dog': no class of the model"),
    "/predict?format=audacty": (400, "format is 'audacty', did you mean 'audacity'?"),
    "/predict?threshold=2": (400, "threshold is 2: give a score from 0 to 1"),
    "/predict?top=1&top=2": (400, "top is given twice"),
    "/search?start=9": (422, "upload: the crop starts at 9 s but the file ends at 1 s"),
    "/search?seconds=0": (400, "start and seconds choose a stretch"),
    "/nothing": (404, "not found"),
}


@pytest.mark.parametrize("path", WRONG)
def test_a_mistake_is_one_line_that_says_what_to_give(server: Server, path: str) -> None:
    reply = server.post(path, encoded(tone(1.0, 1)))
    status, line = WRONG[path]
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert reply.json["error"].startswith(line)
    assert "\n" not in reply.json["error"]


def test_labels_that_can_be_none_are_refused(server: Server) -> None:
    good = {"path": "a.wav", "seconds": 3, "events": [{"start": 0, "end": 1, "label": "x"}]}
    for change, words in (
        ({"seconds": -1}, '"seconds" is missing or no length'),
        ({"events": [{"start": 0, "end": 9, "label": "x"}]}, "ends at 9 s, after the recording's 3 s"),
        ({"events": [{"start": 2, "end": 1, "label": "x"}]}, "before its start"),
        ({"events": [{"start": 0, "end": 1, "label": " "}]}, "has no name"),
        ({"events": "x"}, 'no "path" and list "events"'),
        ({"path": 3}, 'no "path" and list "events"'),
    ):
        reply = server.post("/labels", json.dumps(good | change), {"Content-Type": "application/json"})
        assert reply.status == 422
        assert words in reply.json["error"]
    assert server.post("/labels", b"\xff", {}).json["error"] == "labels: are not UTF-8"


def test_the_description_is_valid_and_the_answers_fit_it(server: Server) -> None:
    document = server.get("/openapi.json").json
    assert document["openapi"] == "3.1.0"
    names: list[str] = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            names.append(operation["operationId"])
            assert set(operation["responses"]) >= {"200", "413", "415", "422", "429"}
            declared = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))
            refused = server.ask("PUT" if method == "get" else "GET", path.replace("{number}", "0"))
            assert refused.status == 405
    assert len(set(names)) == len(names)
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    sound = encoded(scene())
    for name, answer in (
        ("Embedding", server.post("/embed?frames=1", sound)),
        ("Embedding", server.post("/embed", sound)),
        ("Scores", server.post("/predict", sound)),
        ("Rows", server.post("/predict?every=1", sound)),
        ("Events", server.post("/predict?events=1", sound)),
        ("Matches", server.post("/search", sound)),
        ("Info", server.get("/info")),
        ("Health", server.get("/healthz")),
        ("Error", server.post("/embed", b"")),
    ):
        jsonschema.validate(answer.json, schemas[name])
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert reference in schemas


METRIC = re.compile(r"(# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{[a-z]+=\"[^\"\n]*\"(,[a-z]+=\"[^\"\n]*\")*\})? [0-9.e+-]+)")


def test_metrics_are_prometheus_text_and_count(server: Server) -> None:
    counter = 'ssamba_requests_total{path="/embed",status="200"}'
    server.post("/embed", encoded(hiss(1.0, 1)))
    before, audio = server.metric(counter), server.metric("ssamba_audio_seconds_total")
    server.post("/embed", encoded(hiss(1.5, 2)))
    assert server.metric(counter) == before + 1
    assert server.metric("ssamba_audio_seconds_total") == audio + 1.5
    reply = server.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = reply.body.decode().splitlines()
    assert [line for line in lines if not METRIC.fullmatch(line)] == []
    assert server.metric("ssamba_held_bytes") == 0
    assert server.metric("process_resident_memory_bytes") > 1e8
    found = [
        float(x) for x in re.findall(r'request_seconds_bucket\{path="/embed",le="[^"]+"\} (\d+)', "\n".join(lines))
    ]
    assert found == sorted(found)


def test_a_line_of_json_for_each_request_without_names_of_files(server: Server) -> None:
    server.post("/embed?name=secret.wav", encoded(hiss(1.0, 3)))
    server.post("/embed", b"no audio at all")
    deadline = time.monotonic() + 60  # the line comes after the answer
    while True:
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        if lines[-1]["status"] == 415 or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert [(line["method"], line["path"], line["status"]) for line in lines[-2:]] == [
        ("POST", "/embed", 200), ("POST", "/embed", 415),
    ]  # fmt: skip
    assert lines[-1]["error"].startswith("upload: is not audio")
    assert "secret" not in json.dumps([line for line in lines if line["status"] == 200])


def test_headers_keep_foreign_pages_out(server: Server) -> None:
    for path in ("/", "/embed", "/healthz", "/page/app.js", "/nothing"):
        headers = server.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    here = f"127.0.0.1:{server.port}"
    assert server.get("/healthz", Host="rebound.example:80").status == 421
    assert server.get("/healthz", Host=f"localhost:{server.port}").status == 200
    assert server.get("/healthz", Host="[::1]:80").status == 200
    assert server.get("/healthz", Host="").status == 421
    sound = encoded(hiss(1.0, 1))
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        reply = server.post("/embed", sound, {"Content-Type": "audio/wav", **headers})
        assert (reply.status, "access-control-allow-origin" in reply.headers) == (403, False)
    assert server.post("/embed", sound, {"Origin": f"http://{here}", "Content-Type": "audio/wav"}).status == 200
    preflight = server.ask("OPTIONS", "/embed", headers={"Origin": "http://evil.example"})
    assert preflight.status == 403


def test_the_package_itself_imports_no_server() -> None:
    code = "import sys, ssamba.cli.main; ssamba.load; print([n for n in ('starlette', 'uvicorn') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
