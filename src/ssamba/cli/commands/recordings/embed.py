"""``ssamba embed``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import DATA_HELP, Command, list_unreadable
from ssamba.cli.parser import UsageError, add_dtype, add_model, add_passes, add_paths, paths_option, positive
from ssamba.cli.streams import say

DEFAULT_OUT = Path("embeddings.npz")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=DATA_HELP)
    add_model(parser)
    add_dtype(parser)
    parser.add_argument(
        "--out", type=Path, metavar="X.npz|X.parquet", help=f"the file to write (default: a new {DEFAULT_OUT})"
    )
    parser.add_argument(
        "--level",
        default="clip",
        choices=("clip", "frame", "patch"),
        help="one row per file, per time step or per patch",
    )
    parser.add_argument(
        "--hop", type=positive, metavar="MS", help="time between frames in ms: 80, 40, 20 or 10 take 2 to 16 passes"
    )
    parser.add_argument("--whole", action="store_true", help="read long recordings in one pass, not in windows")
    parser.add_argument("--stride", type=positive, metavar="S", help="patch stride on both axes (default: the model's)")
    parser.add_argument(
        "--frames", type=positive, metavar="N", help="length of a window in frames of 10 ms (default: the model's)"
    )
    add_paths(parser)
    add_passes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    out = arguments.out or DEFAULT_OUT
    if arguments.out is None and out.exists():
        raise UsageError(f"{out}: exists already; name another file with --out, or this one to replace it")

    from ssamba.inference.embed_files import EmbedOptions, write_embeddings
    from ssamba.inference.file_stream import list_files, prefer_reference_if_short
    from ssamba.inference.load import load
    from ssamba.inference.writers import check_embedding_output
    from ssamba.utils.atomic_write import refuse_input
    from ssamba.utils.progress import Bar

    check_embedding_output(out)
    refuse_input(out, arguments.files)
    problems: list[tuple[str, str]] = []
    files, again = list_files(arguments.files, problems)
    model = load(
        arguments.model, arguments.device, stride=arguments.stride, frames=arguments.frames, dtype=arguments.dtype
    )
    with prefer_reference_if_short(files, model), Bar("embedding") as bar:
        report = write_embeddings(
            files,
            model,
            out,
            EmbedOptions(
                level=arguments.level, whole=arguments.whole, paths=paths_option(arguments), hop_ms=arguments.hop
            ),
            batch=arguments.batch,
            threads=arguments.threads,
            progress=bar.update,
        )
    twice = f" ({again} given twice)" if again else ""
    say(f"{out}: {report.rows} x {report.width} from {report.written} files{twice}")
    return list_unreadable([*problems, *report.failures])


COMMAND = Command("turn audio files into embeddings", add_options, run)
