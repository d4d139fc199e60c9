"""Decoding processes give what the caller's own thread gives, and always end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from noise_files import Format, write_noise

from ssamba.data.examples import Example, Part
from ssamba.data.loaders import process_pool
from ssamba.data.loaders.audio_cache import AudioCache
from ssamba.data.loaders.labelled import LabelledLoader
from ssamba.data.loaders.pretraining import Batch, CropLoader
from ssamba.data.manifest import read_sources
from ssamba.data.samplers.labelled import EpochPlan, EvaluationPlan
from ssamba.data.samplers.pretraining import PretrainPlan
from ssamba.data.scan import SkipList, scan_sources
from ssamba.utils.errors import DataError, SsambaError

pytestmark = pytest.mark.skipif(not process_pool.processes_available(), reason="processes decode on Linux alone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    formats = (Format(16000, "wav"), Format(8000, "flac"), Format(44100, "ogg", "VORBIS"), Format(48000, "ogg", "OPUS"))
    return write_noise(tmp_path_factory.mktemp("set"), 40, formats, [0.3 + 0.4 * number for number in range(7)])


def make_plan(folder: Path) -> PretrainPlan:
    return PretrainPlan(scan_sources(read_sources([str(folder)])), batch_size=6, crop_seconds=0.5)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.waveforms, other.waveforms)
        assert torch.equal(one.lengths, other.lengths)


def children() -> list[int]:
    return [int(n) for n in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.mark.usefixtures("always_processes")
@pytest.mark.parametrize("cache_bytes", [0, 300_000, 20_000_000])
def test_batches_are_those_of_the_caller(folder: Path, cache_bytes: int) -> None:
    alone = list(CropLoader(make_plan(folder), 0, stop_step=20, cache_bytes=cache_bytes))
    for workers in (1, 3):
        loader = CropLoader(make_plan(folder), workers, stop_step=20, prefetch=3, cache_bytes=cache_bytes)
        assert_same(alone, list(loader))
        if loader.cache is not None:  # what the processes decoded is here, too
            held = [path for path in alone_paths(loader) if loader.cache.slot(path).length >= 0]
            assert held
            assert_same(alone, list(loader))
    assert_same(alone[7:], list(CropLoader(make_plan(folder), 2, 7, 20, cache_bytes=cache_bytes)))


def alone_paths(loader: CropLoader) -> list[str]:
    assert loader.cache is not None
    return [clip.path for clip in loader.plan.clips if clip.path in loader.cache]


@pytest.mark.usefixtures("always_processes")
def test_stand_ins_and_the_list_of_unreadable_files_are_the_same(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plan = make_plan(tmp_path)
    for name in ("01.flac", "09.flac"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 3])
    for cache_bytes in (0, 20_000_000):
        one, other = SkipList(limit=0.1), SkipList(tmp_path / f"{cache_bytes}.csv", limit=0.1)
        alone = list(CropLoader(plan, 0, stop_step=30, skip=one, cache_bytes=cache_bytes))
        assert_same(alone, list(CropLoader(plan, 3, stop_step=30, skip=other, cache_bytes=cache_bytes)))
        assert list(one.reasons.items()) == list(other.reasons.items())
        assert len(one.reasons) == 2
    with pytest.raises(DataError, match="cannot be read, more than 1%"):
        list(CropLoader(plan, 2, stop_step=30, skip=SkipList(limit=0.01)))


@pytest.mark.usefixtures("always_processes")
@pytest.mark.parametrize("cache_bytes", [0, 20_000_000])
def test_labelled_batches_are_those_of_the_caller(folder: Path, cache_bytes: int) -> None:
    files = [str(path) for path in sorted(folder.iterdir())]
    singles = [Example(str(i), (Part(path),), (i % 3,)) for i, path in enumerate(files)]
    stretches = [Example(f"s{i}", (Part(path, 0.1, 0.15),), (i % 3,)) for i, path in enumerate(files)]
    scenes = [
        Example(f"c{i}", (Part(files[i], 0.0, 0.25), Part(files[i + 3], 0.0, None, 1.0)), (), (0, 1))
        for i in range(0, 36, 4)
    ]
    plans = (
        EpochPlan([*singles, *stretches], 5, mixup=0.5, max_seconds=0.4, random_crop=True),
        EvaluationPlan(singles, 5, 0.6, windows=True),
        EvaluationPlan(scenes, 4, 2.0),
    )
    for plan in plans:
        stop = 20 if isinstance(plan, EpochPlan) else None
        alone = list(LabelledLoader(plan, 3, 0, stop_step=stop, cache_bytes=cache_bytes))
        several = list(LabelledLoader(plan, 3, 2, stop_step=stop, cache_bytes=cache_bytes))
        assert len(alone) == len(several) > 1
        for one, other in zip(alone, several, strict=True):
            assert one.keys == other.keys
            for name in ("waveforms", "lengths", "targets", "examples"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.usefixtures("always_processes")
def test_stopping_early_ends_the_processes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = children()
    for taken in (1, 5):
        batches = iter(CropLoader(make_plan(folder), workers=3))
        for _ in range(taken):
            next(batches)
        assert len(children()) == len(before) + 3
        batches.close()
        assert children() == before
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("always_processes")
@pytest.mark.parametrize("cache_bytes", [0, 20_000_000])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "was ended by signal 9 (too little memory?)"),
        (signal.SIGSEGV, "was ended by signal 11"),
        (signal.SIGSTOP, "was stopped by a signal"),
    ],
)
def test_a_lost_process_is_replaced(
    folder: Path, number: int, words: str, cache_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(folder)
    alone = list(CropLoader(plan, 0, stop_step=30, cache_bytes=cache_bytes))
    before = children()
    batches = iter(CropLoader(plan, workers=3, stop_step=30, cache_bytes=cache_bytes))
    taken = [next(batches) for _ in range(5)]
    lost = next(pid for pid in children() if pid not in before)
    os.kill(lost, number)
    for _ in range(4):  # it is noticed although the others would do
        time.sleep(0.6)
        taken.append(next(batches))
    assert lost not in children()
    assert len(children()) == len(before) + 3
    assert_same(alone, [*taken, *batches])
    assert children() == before
    assert caplog.messages == [f"a decoding process {words}; all are replaced and go on"]


@pytest.mark.usefixtures("always_processes")
def test_a_process_that_is_stopped_for_a_moment_goes_on(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = children()
    batches = iter(CropLoader(make_plan(folder), workers=2, stop_step=12))
    next(batches)
    workers = [pid for pid in children() if pid not in before]
    for pid in workers:  # as Ctrl-Z and fg do
        os.kill(pid, signal.SIGSTOP)
    time.sleep(0.1)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    deque(batches, maxlen=0)
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("always_processes")
def test_processes_that_are_lost_again_and_again_end_the_run(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = children()
    batches = iter(CropLoader(make_plan(folder), workers=2))

    def lose() -> None:
        while True:
            next(batches)
            os.kill(next(pid for pid in children() if pid not in before), signal.SIGKILL)
            time.sleep(0.6)

    with pytest.raises(SsambaError, match=r"a decoding process was ended by signal 9 .*after 3 others.*--workers"):
        lose()
    assert children() == before
    assert len(caplog.messages) == process_pool.MAX_LOSSES


@pytest.mark.parametrize(("workers", "steps", "processes"), [(3, 40, 0), (8, 20, 0), (4, 40, 4)])
def test_small_jobs_stay_in_threads(folder: Path, workers: int, steps: int, processes: int) -> None:
    before = len(children())
    batches = iter(CropLoader(make_plan(folder), workers=workers, stop_step=steps))
    next(batches)
    assert len(children()) - before == processes
    batches.close()


def test_no_torch_in_a_process() -> None:
    code = "import sys, ssamba.data.loaders.decode_worker; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_cache_lies_in_memory_without_a_name(folder: Path) -> None:
    cache = AudioCache(make_plan(folder).clips, 10_000_000)
    assert "ssamba (deleted)" in os.readlink(f"/proc/self/fd/{cache.block.fd}")


@pytest.fixture
def parent(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program that loads batches for ever, and its decoding processes."""
    code = f"""
        import signal
        from ssamba.data.loaders.pretraining import CropLoader
        from ssamba.data.manifest import read_sources
        from ssamba.data.samplers.pretraining import PretrainPlan
        from ssamba.data.scan import scan_sources

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without
        plan = PretrainPlan(scan_sources(read_sources([{str(folder)!r}])), batch_size=6, crop_seconds=0.5)
        batches = iter(CropLoader(plan, workers=4, cache_bytes=10_000_000))
        next(batches)
        print("ready", flush=True)
        for _ in batches:
            pass
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    tree = Path(f"/proc/{process.pid}/task").glob("*/children")
    workers = [int(n) for file in tree for n in file.read_text().split()]
    assert len(workers) == 4
    yield process, workers
    process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        stream.close()


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_is_left_of_a_killed_program(parent: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, workers = parent
    before = set(os.listdir("/dev/shm"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(workers)
    assert set(os.listdir("/dev/shm")) <= before


def test_ctrl_c_is_for_the_program_alone(parent: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, workers = parent
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert gone(workers)
    amid_another = errors.count("During handling of the above exception")  # the interrupt comes when it will
    assert errors.count("Traceback") - amid_another == 1  # the program's own, none of the workers'
