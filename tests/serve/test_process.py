"""The process: how it starts, what it says when it cannot, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from serving import Server, encoded, hiss, tone

from ssamba.cli.main import main
from ssamba.serve.options import ServeOptions
from ssamba.utils.errors import ConfigError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, and processes looked up in /proc")


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(") ")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line with which a command that cannot serve ends."""
    assert main(["serve", *map(str, words), "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("ssamba: error: ").strip()


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = fails(capsys, "--port", port)
    why = "cannot listen there (Address already in use)"
    assert line == f"127.0.0.1:{port}: {why}; give another --port, or 0 for any that is free"


def test_bad_models_indexes_and_addresses_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert fails(capsys, tmp_path / "none", "--port", "0").startswith(f"{tmp_path}/none: ")
    (tmp_path / "file").write_bytes(b"x")
    assert fails(capsys, tmp_path / "file", "--port", "0").startswith(f"{tmp_path}/file: ")
    line = fails(capsys, "--index", tmp_path, "--port", "0")
    assert line == f"{tmp_path}: holds no index.json, so it is no index; make one with ssamba index"
    assert fails(capsys, "--host", "no.such.host.invalid").startswith("--host no.such.host.invalid: is no address")
    assert "cannot listen there" in fails(capsys, "--host", "192.0.2.7", "--port", "0")
    assert fails(capsys, "--dtype", "int8", "--port", "0") == "dtype 'int8': give auto, fp32, bf16, fp16"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--port", "70000"), "--port 70000: give 0 to 65535"),
        (("--max-mib", "nan"), "--max-mib nan: give 0.001 to 1024"),
        (("--in-flight", "0"), "--in-flight 0: give 1 to 4096"),
        (("--batch", "x"), "argument --batch: x: give a whole number (see ssamba serve --help)"),
        (("--time-limit", "0"), "--time-limit 0: give 0.1 to 3600"),
        (("--log", "xml"), "--log xml: choose text or json (see ssamba serve --help)"),
    ],
)
def test_an_option_out_of_range_is_one_line(
    words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(capsys, *words).removesuffix(" (see ssamba serve --help)") == line.removesuffix(
        " (see ssamba serve --help)"
    )


def test_without_its_packages_it_says_what_to_install(tmp_path: Path) -> None:
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("starlette", "uvicorn"):
            raise ModuleNotFoundError(name)
import importlib.util
plain = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("starlette", "uvicorn") else plain(name, package)
sys.meta_path.insert(0, Missing())
from ssamba.cli.main import main
sys.exit(main(["serve"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ssamba: error: serving needs starlette and uvicorn: pip install 'ssamba[serve]'\n"


def test_what_loopback_is() -> None:
    for host, loopback in (("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)):
        assert ServeOptions(host=host).loopback is loopback
    with pytest.raises(ConfigError):
        ServeOptions(rate=-1.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(number: int, tmp_path: Path) -> None:
    """What is under way is finished, new connections are refused, idle ones are closed, the code is 0."""
    with Server(tmp_path, "--wait-ms", "1000", "--log", "json") as server:
        sound = encoded(hiss(30.0, 1))
        workers = children(server.process.pid)
        assert len(workers) == 2
        codes: list[int] = []
        work = [threading.Thread(target=lambda: codes.append(server.post("/embed", sound).status)) for _ in range(3)]
        with socket.create_connection(("127.0.0.1", server.port), 30) as idle:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b'"ok"' not in answer:
                answer += idle.recv(65536)
            for thread in work:
                thread.start()
            while server.metric("ssamba_in_flight") < 3:
                time.sleep(0.02)
            server.process.send_signal(number)
            assert idle.recv(65536) == b""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", server.port), 1).close()
                time.sleep(0.02)
            except OSError:
                break
        else:
            pytest.fail("new connections were taken after the signal")
        for thread in work:
            thread.join(60)
        assert codes == [200, 200, 200]
        assert server.process.wait(30) == 0
        assert not any(map(is_running, workers))
        assert json.loads(server.log.read_text().splitlines()[-1])["message"] == "stopped"


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with Server(tmp_path) as server, socket.create_connection(("127.0.0.1", server.port), 30) as line:
        line.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nRIFF")
        while server.metric("ssamba_in_flight") < 1:
            time.sleep(0.02)
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert time.monotonic() - begin < 15


def test_decoding_processes_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        found = children(server.process.pid)
        assert len(found) == 2
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 20
        while any(map(is_running, found)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_running, found))


def test_an_open_address_is_warned_of_and_its_limits_hold(tmp_path: Path) -> None:
    """Other addresses get a warning; a name that is allowed is answered; a time limit ends a request."""
    words = ("--host", "0.0.0.0", "--allow-host", "sounds.example", "--time-limit", "0.5", "--wait-ms", "900")
    with Server(tmp_path, *words) as server:
        assert "warning: listening at 0.0.0.0: every machine that reaches this one can use it" in server.log.read_text()
        assert server.get("/healthz", Host="sounds.example").status == 200
        assert server.get("/healthz", Host="other.example").status == 421
        reply = server.post("/embed", encoded(tone(1.0, 1)))
        assert (reply.status, reply.headers["retry-after"]) == (503, "10")
        assert reply.json["error"].startswith("the request took more than 0.5 s, the limit here")
        deadline = time.monotonic() + 10
        while server.metric("ssamba_waiting_recordings") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.metric("ssamba_in_flight") == 0
