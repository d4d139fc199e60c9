"""The subcommands, grouped by what they work on: one module each, which reads its options and calls one function.

Everything that needs torch is imported inside the functions: help and usage errors come at once.
"""

from __future__ import annotations

from ssamba.cli.commands import bench, demo
from ssamba.cli.commands.archive import duplicates, index, search
from ssamba.cli.commands.common import Command
from ssamba.cli.commands.models import convert, export, info, push
from ssamba.cli.commands.recordings import embed, predict, reconstruct
from ssamba.cli.commands.serving import serve
from ssamba.cli.commands.training import finetune, fit, pretrain, probe, report, stats

COMMANDS: dict[str, Command] = {
    "embed": embed.COMMAND,
    "pretrain": pretrain.COMMAND,
    "predict": predict.COMMAND,
    "probe": probe.COMMAND,
    "fit": fit.COMMAND,
    "finetune": finetune.COMMAND,
    "report": report.COMMAND,
    "reconstruct": reconstruct.COMMAND,
    "index": index.COMMAND,
    "search": search.COMMAND,
    "duplicates": duplicates.COMMAND,
    "serve": serve.COMMAND,
    "info": info.COMMAND,
    "convert": convert.COMMAND,
    "export": export.COMMAND,
    "push": push.COMMAND,
    "stats": stats.COMMAND,
    "bench": bench.COMMAND,
    "demo": demo.COMMAND,
}
"""Name -> subcommand, in the order of the help."""
