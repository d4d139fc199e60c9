"""How to make the run again, what its files hold, and where this page was made."""

from __future__ import annotations

import platform
import shlex

import numpy as np
import torch

from ssamba import __version__
from ssamba.models.pretrained.file_checks import CHECKS_FILE
from ssamba.models.pretrained.model_dir import CONFIG_FILE, RESULTS_FILE, WEIGHTS_FILE
from ssamba.reports.commands import as_shell, command_of
from ssamba.reports.material import Material
from ssamba.reports.page import Section, code, data_table, facts, remark
from ssamba.reports.runs import INDEX, PROBE, Run
from ssamba.training.run_folder import RECIPE_FILE
from ssamba.utils.files import sha256_of

DIGESTED = (RECIPE_FILE, CONFIG_FILE, WEIGHTS_FILE, RESULTS_FILE, "index.json", "space.safetensors")


def reproduce_section(material: Material) -> Section:
    """Command, digests and versions."""
    run = material.run
    rows = [[name, f"{size:,}", digest] for name, size, digest in _files(run)]
    digests = [
        ("recordings: names and lengths", run.plan or "not recorded"),
        ("recordings: content", run.content or "not recorded"),
    ]
    parts = [
        _command(run, material),
        facts(digests) if run.recipe else "",
        remark(_checked(run)),
        data_table(["file", "bytes", "SHA-256"], rows, "Files of the run") if rows else "",
        "<h3>Environment of this page</h3>",
        facts(
            [
                ("ssamba", __version__),
                ("Python", platform.python_version()),
                ("torch", str(torch.__version__)),
                ("numpy", np.__version__),
                ("system", f"{platform.system()} {platform.machine()}"),
                ("device", material.device),
            ]
        ),
        remark("Runs do not record the machine that trained them; times in the log are that machine's."),
        remark(_audio(material)),
    ]
    return Section("reproduce", "How to reproduce", "".join(parts), "Reproduce")


def _command(run: Run, material: Material) -> str:
    if words := command_of(run):
        said = (
            "The values that are not today's defaults, with another --out. The same values, data, version and kind of "
            "machine give the same run."
        )
        return remark(said) + code(as_shell(words))
    folder = shlex.quote(str(run.folder))
    if run.kind == INDEX:
        assert material.index is not None
        header = material.index.header
        relative = " --relative" if header.relative else ""
        text = f"ssamba index RECORDINGS --out {folder}-again --model {shlex.quote(header.model)}{relative}"
        made = f"An index does not record which folders it was given. It was made by version {header.version}."
        return remark(made) + code(text)
    assert run.kind == PROBE
    results = run.results or {"layout": "LAYOUT", "model": "MODEL"}
    layers = {row["layer"] for row in run.results["rows"]} - {None} if run.results else set()
    layer = "all" if len(layers) > 1 else str(next(iter(layers), "last"))
    layout, model = (shlex.quote(str(results[name])) for name in ("layout", "model"))
    text = f"ssamba probe {layout} --data FOLDER --model {model} --layer {layer} --out {folder}-again"
    return remark("A probe does not record where its data lies.") + code(text)


def _files(run: Run) -> list[tuple[str, int, str]]:
    paths = [run.folder / name for name in DIGESTED if (run.folder / name).is_file()]
    return [(path.name, path.stat().st_size, sha256_of(path)) for path in paths]


def _checked(run: Run) -> str:
    if (run.folder / CHECKS_FILE).exists():
        return f"All files that {CHECKS_FILE} lists were compared with it and are as the run wrote them."
    return "The folder has no list of digests to compare its files with."


def _audio(material: Material) -> str:
    store = material.store
    if not store.playable:
        return "The page holds no audio."
    left = f"; {store.refused:,} more found no room" if store.refused else ""
    return (
        f"The page holds {store.playable:,} excerpts as MP3, {store.used / 1e6:.1f} MB of at most "
        f"{store.limit / 1e6:.1f}{left}. Those of clips are their loudest {material.seconds:g} s; very quiet ones are "
        "made louder."
    )
