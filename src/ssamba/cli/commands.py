"""The subcommands: each reads its options and calls one function."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssamba.cli.parser import (
    SHIPPED_HELP,
    SOURCE_HELP,
    UsageError,
    add_dataclass,
    add_device,
    add_devices,
    add_model,
    add_passes,
    given,
    positive,
    real,
    seconds,
    whole,
)

if TYPE_CHECKING:
    from ssamba.inference.model import Encoder

# Everything that needs torch is imported inside the functions: help and usage errors come at once.

EXIT_DONE, EXIT_SOME_UNREADABLE = 0, 1
DEFAULT_OUT = Path("embeddings.npz")
DATA_HELP = "folder (searched recursively), manifest (.csv, .tsv, .json) or audio file"


@dataclass(frozen=True)
class Command:
    """One subcommand: its line in the help, its options, and what it runs (returning the exit code)."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _list_unreadable(failures: Sequence[tuple[str, str]]) -> int:
    for path, reason in failures:
        print(f"ssamba: left out {path}: {reason}", file=sys.stderr)
    return EXIT_SOME_UNREADABLE if failures else EXIT_DONE


def _launch(arguments: argparse.Namespace) -> int:
    """The same command in several processes."""
    from ssamba.training.launch import launch

    return launch(arguments.words, arguments.devices)


def _embed_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=DATA_HELP)
    add_model(parser)
    parser.add_argument(
        "--out", type=Path, metavar="X.npz|X.parquet", help=f"the file to write (default: a new {DEFAULT_OUT})"
    )
    parser.add_argument(
        "--level",
        default="clip",
        choices=("clip", "frame", "patch"),
        help="one row per file, per time step or per patch",
    )
    parser.add_argument("--whole", action="store_true", help="read long recordings in one pass, not in windows")
    parser.add_argument("--stride", type=positive, metavar="S", help="patch stride on both axes (default: the model's)")
    parser.add_argument(
        "--frames", type=positive, metavar="N", help="length of a window in frames of 10 ms (default: the model's)"
    )
    add_passes(parser)


def _embed(arguments: argparse.Namespace) -> int:
    out = arguments.out or DEFAULT_OUT
    if arguments.out is None and out.exists():
        raise UsageError(f"{out}: exists already; name another file with --out, or this one to replace it")

    from ssamba.inference.embed_files import embed_files
    from ssamba.inference.embedding_writer import check_output
    from ssamba.inference.file_stream import list_files, quick_start
    from ssamba.inference.load import load
    from ssamba.utils.progress import Bar

    check_output(out)
    files, again = list_files(arguments.files)
    model: Encoder = load(arguments.model, arguments.device, stride=arguments.stride, frames=arguments.frames)
    with quick_start(files, model), Bar("embedding") as bar:
        report = embed_files(
            files,
            model,
            out,
            level=arguments.level,
            whole=arguments.whole,
            batch=arguments.batch,
            threads=arguments.threads,
            progress=bar.update,
        )
    twice = f" ({again} given twice)" if again else ""
    print(f"{out}: {report.rows} x {report.width} from {report.written} files{twice}")
    return _list_unreadable(report.failures)


def _predict_options(parser: argparse.ArgumentParser) -> None:
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
        help="with --every: what is heard around the middle of each stretch (default: the model's own length)",
    )
    parser.add_argument("--out", type=Path, metavar="X.json|X.csv", help="the file to write (default: print a table)")
    parser.add_argument(
        "--picture", type=Path, metavar="X.png", help="with --every: draw the spectrogram and the scores of one file"
    )
    add_passes(parser)


def _predict(arguments: argparse.Namespace) -> int:
    from ssamba.inference.file_stream import list_files, quick_start
    from ssamba.inference.predict_files import load_classifier, predict_files
    from ssamba.inference.prediction_writer import check_output
    from ssamba.utils.progress import Bar

    if arguments.model is None:
        raise UsageError(
            "--model is missing: classes come from a fine-tuned run, and the model that comes with the package has "
            "none; make one with ssamba finetune"
        )
    if arguments.out is not None:
        check_output(arguments.out)
    files, _ = list_files(arguments.files)
    model = load_classifier(arguments.model, arguments.device)
    start = quick_start(files if arguments.every is None else (), model)  # scores in time take many passes
    with start, Bar("classifying") as bar:
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
    print(report.text or f"{arguments.out}: {report.written} files")
    return _list_unreadable(report.failures)


def _probe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE|LAYOUT", help="a data set's layout, or a recipe (.yaml) that names it"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder of the data set")
    add_model(parser)
    parser.add_argument("--layer", default="last", metavar="N|all|last", help="whose tokens to take, from 1")
    parser.add_argument("--c", type=real, nargs="+", metavar="X", help="values of the regression's C to choose from")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the features, for the next time, and results.json"
    )


def _probe(arguments: argparse.Namespace) -> int:
    from ssamba.evaluation.probe.probe import as_markdown, layout_of, probe
    from ssamba.inference.load import load
    from ssamba.models.pretrained.weights import DEFAULT
    from ssamba.utils.progress import shown

    layout = layout_of(arguments.recipe)
    model = load(arguments.model, arguments.device)
    source = arguments.model or DEFAULT
    result = probe(layout, arguments.data, model, arguments.layer, arguments.out, source, shown, arguments.c)
    print(as_markdown(result))
    return EXIT_DONE


def _reconstruct_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="audio file")
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="X.png", help="the picture to write")
    parser.add_argument(
        "--mask", type=positive, metavar="N", help="patches to hide (default: 400 of 512, in proportion)"
    )
    parser.add_argument(
        "--mask-kind", default="cluster", choices=("cluster", "frame"), help="squares of patches, or single ones"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the mask")
    parser.add_argument("--start", type=seconds, default=0.0, metavar="S", help="second at which the excerpt begins")


def _reconstruct(arguments: argparse.Namespace) -> int:
    from ssamba import ops
    from ssamba.inference.load import load
    from ssamba.inference.plots import reconstruction_picture
    from ssamba.utils.plots import require_matplotlib

    require_matplotlib(arguments.out)
    model = load(arguments.model, arguments.device, heads=True)
    with ops.short_work(model.device, model.config.grid[0] * model.config.grid[1]):
        drawn = reconstruction_picture(
            model,
            arguments.file,
            arguments.out,
            mask=arguments.mask,
            mask_kind=arguments.mask_kind,
            seed=arguments.seed,
            start=arguments.start,
        )
    print(f"{arguments.out}: {drawn.summary()}")
    return EXIT_DONE


def _pretrain_options(parser: argparse.ArgumentParser) -> None:
    from ssamba.training.pretrain.recipe import PretrainRecipe

    parser.usage = "ssamba pretrain DATA [DATA ...] --out RUN [options]"
    parser.add_argument("data", nargs="+", metavar="DATA", help=f"{DATA_HELP}, with a share as PATH=0.7 if wanted")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run directory; an existing run goes on")
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="YAML of the values below (default: the reference's)"
    )
    parser.add_argument("--from", dest="source", metavar="SOURCE", help=f"start from these weights: {SOURCE_HELP}")
    add_device(parser)
    add_devices(parser)
    add_dataclass(parser.add_argument_group("values of the recipe"), PretrainRecipe)


def _pretrain(arguments: argparse.Namespace) -> int:
    from ssamba.models.pretrained.load import check_shape
    from ssamba.training.pretrain.recipe import PretrainRecipe, make_recipe
    from ssamba.training.pretrain.run import pretrain

    recipe = make_recipe(arguments.recipe, given(arguments, PretrainRecipe))
    check_shape(arguments.source, given(arguments, PretrainRecipe))
    if arguments.devices:
        return _launch(arguments)
    pretrain(arguments.data, arguments.out, recipe, arguments.source, arguments.device)
    return EXIT_DONE


def _bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for tables and pictures")
    add_device(parser)
    parser.add_argument("--dtype", default="auto", help="fp32, bf16, fp16 or auto (bf16 on a GPU that has it)")
    parser.add_argument("--sizes", nargs="+", metavar="SIZE", help="tiny, small, base (default: all; on a CPU tiny)")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="ssamba, ssast, ssast-written-out (default: all)")
    parser.add_argument(
        "--tokens", nargs="+", type=positive, metavar="N", help="numbers of patches (default: 512 to 75,008; CPU 4,096)"
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="clips in a pass (default: 4; on a CPU 1)")
    parser.add_argument("--repeats", type=positive, default=10, metavar="N", help="timed passes, of which the median")


def _bench(arguments: argparse.Namespace) -> int:
    from ssamba.evaluation.speed import Settings, as_markdown, measure_all, write_report
    from ssamba.utils.device import pick_device, pick_dtype
    from ssamba.utils.plots import require_matplotlib
    from ssamba.utils.progress import Bar

    require_matplotlib(arguments.out / "time.png")
    device = pick_device(arguments.device)
    chosen: dict[str, Any] = {k: tuple(v) for k in ("sizes", "models", "tokens") if (v := getattr(arguments, k))}
    settings = Settings(device, pick_dtype(arguments.dtype, device), repeats=arguments.repeats)
    settings = replace(settings, batch=arguments.batch or 0, **chosen).filled()
    results = []
    with Bar("measuring") as bar:
        for result in measure_all(settings, bar.update):
            results.append(result)
            write_report(arguments.out, results, settings, pictures=False)
    paths = write_report(arguments.out, results, settings)
    print(as_markdown(results, settings), end="")
    print(f"\nwritten: {', '.join(map(str, paths))}")
    return EXIT_SOME_UNREADABLE if any(r.status == "wrong output" for r in results) else EXIT_DONE


def _finetune_options(parser: argparse.ArgumentParser) -> None:
    from ssamba.models.pretrained.weights import DEFAULT
    from ssamba.training.finetune.recipe import NO_OPTIONS, FinetuneRecipe, recipe_names

    parser.usage = "ssamba finetune RECIPE --data ROOT [--from SOURCE] --out RUN [options]"
    parser.epilog = f"recipes: {', '.join(recipe_names())}"
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe (see below), or a YAML file")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="the labelled set (docs/data.md)")
    parser.add_argument(
        "--from", dest="source", metavar="SOURCE", default=DEFAULT, help=f"{SHIPPED_HELP}; none: random weights"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run directory; an existing run goes on")
    add_device(parser)
    add_devices(parser)
    values = parser.add_argument_group("values of the recipe", "Defaults hold where the recipe says nothing.")
    add_dataclass(values, FinetuneRecipe, exclude=NO_OPTIONS)


def _finetune(arguments: argparse.Namespace) -> int:
    from ssamba.models.pretrained.load import check_shape
    from ssamba.training.finetune.recipe import FinetuneRecipe, load_finetune_recipe
    from ssamba.training.finetune.report import TABLE_FILE, headline
    from ssamba.training.finetune.run import finetune

    recipe = load_finetune_recipe(arguments.recipe, given(arguments, FinetuneRecipe))
    source = None if arguments.source == "none" else arguments.source
    check_shape(source, given(arguments, FinetuneRecipe))
    if arguments.devices:
        return _launch(arguments)
    values = finetune(recipe, arguments.data, arguments.out, source, arguments.device, _note)
    if not values:  # another process of the run has them
        return EXIT_DONE
    print(headline(values))
    print(f"{arguments.out / TABLE_FILE} has every fold, {arguments.out} the model")
    print(f"next: ssamba predict FILES --model {shlex.quote(str(arguments.out))}")
    return EXIT_DONE


def _note(line: str) -> None:
    print(f"ssamba: note: {line}", file=sys.stderr)


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what the demo writes")


def _demo(arguments: argparse.Namespace) -> int:
    from ssamba.cli.demo import run

    print(run(arguments.out))
    return EXIT_DONE


def _info_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=SHIPPED_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(arguments: argparse.Namespace) -> int:
    from ssamba.models.pretrained.describe import as_json, as_text, describe

    facts = describe(arguments.source)
    print(as_json(facts) if arguments.json else as_text(facts))
    return EXIT_DONE


def _convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("dest", type=Path, metavar="DEST", help="a new directory, or a new .pth")
    parser.add_argument("--half", action="store_true", help="write a directory in fp16, half as large, to hand on")
    parser.add_argument(
        "--attention-heads", type=positive, metavar="N", help="of an official SSAST whose width is not a published one"
    )


def _convert(arguments: argparse.Namespace) -> int:
    from ssamba.models.pretrained.convert import convert

    for line in convert(arguments.source, arguments.dest, arguments.half, arguments.attention_heads):
        print(line)
    return EXIT_DONE


def _stats_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _stats(arguments: argparse.Namespace) -> int:
    from ssamba.models.pretrained.describe import as_json, data_statistics, statistics_line
    from ssamba.utils.progress import Bar

    with Bar("measuring") as bar:
        facts, failures = data_statistics(arguments.data, bar.update)
    print(as_json(facts) if arguments.json else statistics_line(facts))
    return _list_unreadable(failures)


COMMANDS = {
    "embed": Command("turn audio files into embeddings", _embed_options, _embed),
    "pretrain": Command("train a model on unlabelled audio, or go on with a run", _pretrain_options, _pretrain),
    "predict": Command("name what is heard, with a fine-tuned model", _predict_options, _predict),
    "probe": Command("score a frozen model's features on a labelled data set", _probe_options, _probe),
    "finetune": Command("train a classifier on a labelled set, from a pretrained model", _finetune_options, _finetune),
    "reconstruct": Command("draw a recording, masked and filled in by the model", _reconstruct_options, _reconstruct),
    "info": Command("show what a model or run holds", _info_options, _info),
    "convert": Command("convert an official .pth to a model directory, or back", _convert_options, _convert),
    "stats": Command("measure mean and deviation of log-mel over audio files", _stats_options, _stats),
    "bench": Command("measure time and memory against length, beside a transformer", _bench_options, _bench),
    "demo": Command("train and use a small model on synthetic sounds", _demo_options, _demo),
}
