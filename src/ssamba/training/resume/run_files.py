"""Checks of a run's files against its state: what was damaged is written again or reported."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.pretrained.file_checks import record_files
from ssamba.models.pretrained.model_dir import CONFIG_FILE, SUMMARY_FILE, WEIGHTS_FILE, read_config, save_model
from ssamba.models.pretrained.transformers_files import PREPROCESSOR_FILE
from ssamba.training.log import BOARD_FOLDER, LOG_FILE
from ssamba.training.run_state import RunValues
from ssamba.training.task import AnyTask
from ssamba.utils.atomic_write import write_text
from ssamba.utils.errors import CheckpointError, ConfigError, SsambaError
from ssamba.utils.files import read_bytes
from ssamba.utils.json_text import read_json
from ssamba.utils.tensor_file import verify_tensors
from ssamba.utils.terminal import note, printable


def read_config_text(folder: Path) -> bytes | None:
    """The bytes of ``config.json``, by which a run knows its folder; None where there is none."""
    try:
        return read_bytes(folder / CONFIG_FILE)
    except SsambaError:
        return None


def check_config(folder: Path, values: RunValues, config: Config) -> None:
    """Refuse to go on with a ``config.json`` that is not the one of the state. Raises ``CheckpointError``."""
    if values.config is None:  # a state of an earlier version
        return
    path = folder / CONFIG_FILE
    try:
        stored = asdict(Config.from_dict(values.config, f"the state in {folder}"))
    except ConfigError as problem:
        raise CheckpointError(str(problem)) from None
    for name, value in asdict(config).items():
        if stored[name] != value:
            raise CheckpointError(
                f"{path}: was changed since the run began ({name} {value}, the run's state says {stored[name]}); put "
                "it back"
            )


def check_model_files(folder: Path) -> str | None:
    """What is wrong with ``config.json`` and ``model.safetensors`` of a run; None when they are good."""
    try:
        read_config(folder)
        verify_tensors(folder / WEIGHTS_FILE)
    except SsambaError as problem:
        return str(problem)
    return None


def repair_model(folder: Path, model: Encoder, known: Mapping[str, Tensor] | None, which: str, may_lose: bool) -> bool:
    """See that the run's model on disk is good, or write it again; whether it is lost.

    ``known`` are its weights where the state has them, ``which`` says which weights they are. ``may_lose``: the run
    goes on without them. Raises ``CheckpointError`` where it may not.
    """
    problem = check_model_files(folder)
    if problem is None:
        return False
    if known is not None:
        save_model(folder, model, weights=dict(known))
        note(f"{problem}; written again from the state")
        return False
    if not may_lose:
        raise CheckpointError(
            f"{problem}; it held the weights {which}, which the state does not: restore it from a copy, or remove "
            f"{folder} and train again"
        )
    note(f"{problem}; the best weights so far, {which}, are lost: the run keeps the best of the validations to come")
    return True


@contextlib.contextmanager
def stored_values_fit(path: Path) -> Iterator[None]:
    """Turns what torch or a schedule says of stored values that do not fit into one line, a ``CheckpointError``."""
    try:
        yield
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as problem:
        first = " ".join(str(problem).split())[:200]
        raise CheckpointError(
            f"{path}: does not fit the run's config.json and recipe ({printable(first)}); restore both from a copy"
        ) from None


def write_summary(
    folder: Path, step: int, task: AnyTask, best: Mapping[str, float] | None, rate: float, finished: bool
) -> None:
    """Write ``state.json``; after the end also list the run's files in ``checks.json``. Raises ``WriteError``."""
    values = {
        "step": step,
        "total_steps": task.total_steps,
        "epochs_done": round(step / task.steps_per_epoch, 4),
        "best": best,
        "learning_rate": rate,
        "finished": finished,
    }
    write_text(folder / SUMMARY_FILE, json.dumps(values, indent=2) + "\n")
    if values["finished"]:
        record_run(folder, written=[SUMMARY_FILE, CONFIG_FILE, PREPROCESSOR_FILE])


def record_run(folder: Path, written: Sequence[str] = ()) -> None:
    """List the files of a run that has ended in ``checks.json``, of which these were ``written`` just now.

    Raises ``WriteError``.
    """
    events = [path.relative_to(folder).as_posix() for path in folder.glob(f"{BOARD_FOLDER}/*")]
    record_files(folder, written, kept=[SUMMARY_FILE, CONFIG_FILE, PREPROCESSOR_FILE, LOG_FILE, *events])


def read_summary(folder: Path) -> dict[str, Any]:
    """``state.json``; empty where there is none, or none that can be read."""
    try:
        return read_json(folder / SUMMARY_FILE)
    except SsambaError:
        return {}


def is_good(path: Path) -> bool:
    """Whether a tensor file is there and what its digest says."""
    try:
        verify_tensors(path)
    except CheckpointError:
        return False
    return True


def what_is_safe(step: int) -> str:
    """What is left of a run that could not write, for the end of its error."""
    if not step:
        return "no state was saved yet"
    return f"the state of step {step} is safe, the same command goes on from there"
