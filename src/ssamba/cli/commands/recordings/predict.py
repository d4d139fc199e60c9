"""``ssamba predict``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssamba.cli.commands.common import DATA_HELP, Command, list_unreadable
from ssamba.cli.parser import (
    UsageError,
    add_device,
    add_dtype,
    add_passes,
    add_paths,
    paths_option,
    positive,
    real,
    seconds,
)
from ssamba.cli.streams import say, say_lines

if TYPE_CHECKING:
    from ssamba.inference.events.merge import EventOptions
    from ssamba.inference.model import Encoder
    from ssamba.inference.predict_files import PredictReport

FORMATS = ("audacity", "raven", "csv", "json", "jams")
"""Names of ``ssamba.data.labels.formats.LABEL_FORMATS``, which is not imported for a help text."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=DATA_HELP)
    parser.add_argument(
        "--model",
        metavar="RUN",
        action="append",
        help="fine-tuned or fitted run: classes are its own; several with one encoder share its pass",
    )
    add_device(parser)
    add_dtype(parser)
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="classes to name in each answer")
    parser.add_argument(
        "--every", type=seconds, metavar="SECONDS", help="scores in time: one row for each stretch of this length"
    )
    parser.add_argument(
        "--window",
        type=seconds,
        metavar="SECONDS",
        help="with --every: length of audio to classify around each stretch's middle (default: the model's own length)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="X.json|X.csv",
        help="the file to write (default: print a table); events: also X.txt, X.jams, or a folder for a file each",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="X.png",
        help="with --every or --events: draw the spectrogram and the scores of one file",
    )
    parser.add_argument(
        "--reject",
        action=argparse.BooleanOptionalAction,
        help="name no class where a sound is unlike the training sounds (default, but not for rows in time)",
    )
    add_paths(parser)
    _add_events(parser)
    add_passes(parser)


def _add_events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", action="store_true", help="stretches with a start and an end instead of rows")
    parser.add_argument(
        "--format", choices=FORMATS, help="of the events; implies --events (default: by --out's ending)"
    )
    parser.add_argument(
        "--threshold",
        type=real,
        metavar="T",
        help="name no class with a lower score; events: score with which one begins (default: 0.5)",
    )
    parser.add_argument(
        "--low", type=real, metavar="T", help="events: score down to which one goes on (default: the threshold)"
    )
    parser.add_argument("--min-seconds", type=seconds, metavar="S", help="events: drop shorter ones (default: 0)")
    parser.add_argument(
        "--merge-gap", type=seconds, metavar="S", help="events: join those of a class so far apart (default: 0)"
    )
    parser.add_argument(
        "--without", action="append", metavar="NAME", help="events: leave out this class, such as the background's"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.inference.events.write import plan_event_output
    from ssamba.inference.file_stream import list_files, prefer_reference_if_short
    from ssamba.inference.outputs.score_writers import check_prediction_output
    from ssamba.inference.predict_files import load_classifier, predict_files
    from ssamba.utils.atomic_write import refuse_input
    from ssamba.utils.progress import Bar

    if arguments.model is None:
        raise UsageError(
            "--model is missing: classes come from a fine-tuned run, and the model that comes with the package has "
            "none; make one with ssamba fit (seconds) or ssamba finetune"
        )
    events = _event_options(arguments)
    if arguments.out is not None:
        if events is None:
            check_prediction_output(arguments.out)
        refuse_input(arguments.out, arguments.files)
    problems: list[tuple[str, str]] = []
    files, _ = list_files(arguments.files, problems)
    if len(arguments.model) > 1:
        return _run_several(arguments, files, problems)
    if events is not None:
        plan_event_output(arguments.out, arguments.format, files)
    model = load_classifier(arguments.model[0], arguments.device, arguments.dtype)
    # Scores in time take many passes.
    in_time = arguments.every is not None or events is not None
    short = prefer_reference_if_short(() if in_time else files, model)
    with short, Bar("classifying") as bar:
        report = predict_files(
            files,
            model,
            arguments.out,
            arguments.picture,
            top=arguments.top,
            every=arguments.every,
            window=arguments.window,
            batch=arguments.batch,
            threads=arguments.threads,
            progress=bar.update,
            events=events,
            format=arguments.format,
            reject=_reject(arguments, [model]),
            threshold=None if events is not None else arguments.threshold,
            paths=paths_option(arguments),
        )
    return _end(arguments, report, problems)


def _reject(arguments: argparse.Namespace, models: Sequence[Encoder]) -> bool:
    if arguments.reject is not None:
        return bool(arguments.reject)
    in_time = arguments.every is not None or arguments.events or arguments.format is not None
    return not in_time and all(model.rejection is not None for model in models)


def _event_options(arguments: argparse.Namespace) -> EventOptions | None:
    """How rows become events, None where rows are asked for."""
    from ssamba.inference.events.merge import EventOptions

    names = ("threshold", "low", "min_seconds", "merge_gap", "without")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if "without" in given:
        given["without"] = tuple(given["without"])
    if arguments.events or arguments.format is not None:
        return EventOptions(**given)
    given.pop("threshold", None)
    if given:
        name = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{name} goes with events: give --events as well")
    return None


def _run_several(arguments: argparse.Namespace, files: list[str], problems: list[tuple[str, str]]) -> int:
    """Several classifiers on one encoder."""
    from ssamba.inference.several.files import predict_files_with_each
    from ssamba.inference.several.predict import load_classifiers
    from ssamba.utils.progress import Bar

    if arguments.picture is not None:
        raise UsageError("--picture draws the scores of one model: give --model once")
    if _event_options(arguments) is not None:
        raise UsageError("events are those of one model: give --model once")
    models = load_classifiers(arguments.model, arguments.device, arguments.dtype)
    with Bar("classifying") as bar:
        report = predict_files_with_each(
            files,
            models,
            arguments.out,
            top=arguments.top,
            every=arguments.every,
            window=arguments.window,
            batch=arguments.batch,
            threads=arguments.threads,
            progress=bar.update,
            reject=_reject(arguments, list(models.values())),
            threshold=arguments.threshold,
            paths=paths_option(arguments),
        )
    return _end(arguments, report, problems)


def _end(arguments: argparse.Namespace, report: PredictReport, problems: list[tuple[str, str]]) -> int:
    """Print the table, or where it is; the exit code."""
    if arguments.out is None:
        say_lines(report.text)
    else:
        say(f"{arguments.out}: {report.written} files")
    return list_unreadable([*problems, *report.failures])


COMMAND = Command("classify recordings, with a fine-tuned model", add_options, run)
