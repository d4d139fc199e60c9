"""``ssamba export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import SOURCE_HELP
from ssamba.cli.streams import say


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("dest", type=Path, metavar="FILE.onnx", help="the file to write")
    parser.add_argument(
        "--output",
        default="tokens",
        choices=("tokens", "clip", "logits"),
        help="all tokens, the mean of the patch tokens, or a classifier's logits (default tokens)",
    )
    parser.add_argument(
        "--unlike",
        action="store_true",
        help="with logits a second output: above 1 a sound is unlike the training sounds",
    )
    parser.add_argument(
        "--from",
        dest="input",
        default="waveform",
        choices=("waveform", "features"),
        help="what the graph reads: samples at the model's rate, or normalised log-mel (default waveform)",
    )
    parser.add_argument(
        "--weights",
        default="fp32",
        choices=("fp32", "fp16", "int8"),
        help="how weights are stored; they are computed with in fp32 (default fp32)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.inference.onnx.export import export_onnx

    wanted = arguments.output, arguments.input, arguments.weights, arguments.unlike
    written = export_onnx(arguments.source, arguments.dest, *wanted)
    gives = arguments.output + (" and unlike" if arguments.unlike else "")
    say(f"{written.path}: {arguments.input} to {gives}, {written.nodes} nodes, {written.size / 1e6:.1f} MB")
    for name, error in written.errors.items():
        say(f"{arguments.weights} weights change {name} of a test sound by {error:.2g} of their norm")
    return EXIT_DONE


COMMAND = Command("write a model as an ONNX file", add_options, run)
