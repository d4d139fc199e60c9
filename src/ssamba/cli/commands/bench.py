"""``ssamba bench``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssamba.cli.commands.common import EXIT_DONE, EXIT_SOME_UNREADABLE, Command
from ssamba.cli.parser import (
    add_device,
    positive,
)
from ssamba.cli.streams import say, say_lines


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for tables and pictures")
    add_device(parser)
    parser.add_argument("--dtype", default="auto", help="fp32, bf16, fp16 or auto (bf16 on a GPU that has it)")
    parser.add_argument("--sizes", nargs="+", metavar="SIZE", help="tiny, small, base (default: all; on a CPU tiny)")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="ssamba, ssast-compiled, ssast, ssast-written-out (default: all; on a CPU without ssast-compiled)",
    )
    parser.add_argument("--training", action="store_true", help="time forward and backward, not inference")
    parser.add_argument(
        "--tokens", nargs="+", type=positive, metavar="N", help="numbers of patches (default: 512 to 75,008; CPU 4,096)"
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="clips in a pass (default: 4; on a CPU 1)")
    parser.add_argument("--repeats", type=positive, default=10, metavar="N", help="timed passes, of which the median")


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.evaluation.speed import Settings, measure_all, speed_table, write_report
    from ssamba.utils.device import pick_device, pick_dtype
    from ssamba.utils.plots import require_matplotlib
    from ssamba.utils.progress import Bar

    require_matplotlib(arguments.out / "time.png")
    device = pick_device(arguments.device)
    chosen: dict[str, Any] = {k: tuple(v) for k in ("sizes", "models", "tokens") if (v := getattr(arguments, k))}
    settings = Settings(
        device, pick_dtype(arguments.dtype, device), repeats=arguments.repeats, training=arguments.training
    )
    settings = replace(settings, batch=arguments.batch or 0, **chosen).filled()
    results = []
    with Bar("measuring") as bar:
        for result in measure_all(settings, bar.update):
            results.append(result)
            write_report(arguments.out, results, settings, pictures=False)
    paths = write_report(arguments.out, results, settings)
    say_lines(speed_table(results, settings))
    say("")
    say(f"written: {', '.join(map(str, paths))}")
    return EXIT_SOME_UNREADABLE if any(r.status == "wrong output" for r in results) else EXIT_DONE


COMMAND = Command("measure time and memory against length, compared with a transformer", add_options, run)
