"""``ssamba predict``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import DATA_HELP, Command, list_unreadable
from ssamba.cli.parser import (
    UsageError,
    add_device,
    add_passes,
    positive,
    seconds,
)
from ssamba.cli.streams import say, say_lines


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=DATA_HELP)
    parser.add_argument("--model", metavar="RUN", help="fine-tuned run or model directory: classes are its own")
    add_device(parser)
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
    parser.add_argument("--out", type=Path, metavar="X.json|X.csv", help="the file to write (default: print a table)")
    parser.add_argument(
        "--picture", type=Path, metavar="X.png", help="with --every: draw the spectrogram and the scores of one file"
    )
    add_passes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.inference.file_stream import list_files, prefer_reference_if_short
    from ssamba.inference.predict_files import load_classifier, predict_files
    from ssamba.inference.writers import check_prediction_output
    from ssamba.utils.atomic_write import refuse_input
    from ssamba.utils.progress import Bar

    if arguments.model is None:
        raise UsageError(
            "--model is missing: classes come from a fine-tuned run, and the model that comes with the package has "
            "none; make one with ssamba finetune"
        )
    if arguments.out is not None:
        check_prediction_output(arguments.out)
        refuse_input(arguments.out, arguments.files)
    problems: list[tuple[str, str]] = []
    files, _ = list_files(arguments.files, problems)
    model = load_classifier(arguments.model, arguments.device)
    # Scores in time take many passes.
    short = prefer_reference_if_short(files if arguments.every is None else (), model)
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
        )
    if arguments.out is None:
        say_lines(report.text)
    else:
        say(f"{arguments.out}: {report.written} files")
    return list_unreadable([*problems, *report.failures])


COMMAND = Command("classify recordings, with a fine-tuned model", add_options, run)
