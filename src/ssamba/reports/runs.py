"""What a folder holds: a pretraining, a fine-tuning, a fit, a probe or an index, whole, unfinished or damaged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssamba.evaluation.probe.probe import PROBE_FILE
from ssamba.inference.search.store import INDEX_FILE, SPACE_FILE, is_index
from ssamba.models.pretrained.file_checks import differing_files
from ssamba.models.pretrained.model_dir import CONFIG_FILE, RESULTS_FILE, SUMMARY_FILE, WEIGHTS_FILE
from ssamba.reports.shapes import check_probe, check_results, check_summary
from ssamba.training.log import LOG_FILE
from ssamba.training.run_folder import RECIPE_FILE
from ssamba.utils.errors import CheckpointError, ConfigError
from ssamba.utils.json_text import read_json
from ssamba.utils.tensor_file import verify_tensors
from ssamba.utils.yaml_text import read_yaml

PRETRAINING, FINETUNING, FIT, PROBE, INDEX = "pretraining", "fine-tuning", "fit", "probe", "index"
FEATURE_FILES = ("layers-*.safetensors", "log-mel-*.safetensors")
"""What a probe writes before its results."""
_MARKS = ((PRETRAINING, "objective"), (FINETUNING, "lr"), (FIT, "head"))
"""A value that the recipe of each kind has and those after it lack."""


@dataclass(frozen=True)
class Run:
    """A folder that a command of the package wrote.

    Attributes:
        folder: the folder.
        kind: pretraining, fine-tuning, fit, probe or index.
        finished: whether the command came to its end.
        recipe: all values of the run; empty for a probe and an index.
        source: what it started from, None for random weights.
        data: folders and files that it was given.
        plan, content: digests of the data's names and lengths, and of what its files hold; "" where not recorded.
        results: what results.json holds, None where there is none.
        folds: folders of the folds that were begun, of a fine-tuning.
    """

    folder: Path
    kind: str
    finished: bool
    recipe: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    data: tuple[str, ...] = ()
    plan: str = ""
    content: str = ""
    results: dict[str, Any] | None = None
    folds: tuple[Path, ...] = ()

    @property
    def article(self) -> str:
        """The kind with its article, for the beginning of a sentence."""
        return f"{'an' if self.kind == INDEX else 'a'} {self.kind}"

    @property
    def has_model(self) -> bool:
        """Whether the folder holds a model that can be loaded."""
        return (self.folder / CONFIG_FILE).is_file() and (self.folder / WEIGHTS_FILE).is_file()


def read_run(folder: Path) -> Run:
    """What ``folder`` holds, its files compared with the digests that were recorded of them.

    Raises ``ConfigError`` for what is no run, ``CheckpointError`` for a damaged one.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is {'a file' if folder.exists() else 'missing'}; give the folder of a run")
    if is_index(folder):
        return Run(folder, INDEX, True)
    if (folder / RECIPE_FILE).exists():
        return _trained(folder)
    return _probe(folder)


def _trained(folder: Path) -> Run:
    _refuse_damaged(folder, "recipe.yaml and what is next to it")
    path = folder / RECIPE_FILE
    stored = read_yaml(path, CheckpointError)
    recipe = stored.get("recipe") if isinstance(stored, dict) else None
    data = stored.get("data") if isinstance(stored, dict) else None
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        recipe = None
    if recipe is None or not isinstance(data, list) or not all(isinstance(d, str) for d in data):
        raise CheckpointError(f"{path}: is damaged (it names no recipe or no data); restore it from a copy")
    kind = next((kind for kind, mark in _MARKS if mark in recipe), None)
    if kind is None:
        raise CheckpointError(f"{path}: is of no run that this version knows; restore it from a copy")
    folds = tuple(p for p in _fold_folders(folder) if (p / LOG_FILE).exists()) if kind == FINETUNING else ()
    for fold in folds:
        _refuse_damaged(fold, "the fold")
    results = None
    if kind == PRETRAINING:
        finished = read_summary_of(folder).get("finished") is True
    elif finished := (folder / RESULTS_FILE).exists():
        results = read_json(folder / RESULTS_FILE, CheckpointError)
        check_results(results, folder / RESULTS_FILE)
    run = Run(
        folder,
        kind,
        finished,
        recipe,
        _text(stored.get("from")),
        tuple(data),
        _text(stored.get("plan")) or "",
        _text(stored.get("content")) or "",
        results,
        folds,
    )
    if run.has_model:
        verify_tensors(folder / WEIGHTS_FILE)
    return run


def read_summary_of(folder: Path) -> dict[str, Any]:
    """state.json of a pretraining; empty before the first state. Raises ``CheckpointError`` for a damaged one."""
    path = folder / SUMMARY_FILE
    if not path.exists():
        return {}
    values = read_json(path, CheckpointError)
    check_summary(values, path)
    return values


def _fold_folders(folder: Path) -> list[Path]:
    """fold-1, fold-2 and so on, in order."""
    found: list[Path] = []
    while (path := folder / f"fold-{len(found) + 1}").is_dir():
        found.append(path)
    return found


def _probe(folder: Path) -> Run:
    path = folder / PROBE_FILE
    if path.exists():
        results = read_json(path, CheckpointError)
        if isinstance(results.get("rows"), list) and "layout" in results:
            check_probe(results, path)
            return Run(folder, PROBE, True, results=results)
        raise ConfigError(f"{folder}: holds results.json of no run of this package; give the folder of a run")
    if any(next(folder.glob(pattern), None) for pattern in FEATURE_FILES):
        return Run(folder, PROBE, False)
    raise ConfigError(_no_run(folder))


def _no_run(folder: Path) -> str:
    if (folder / LOG_FILE).exists() and (folder.parent / RECIPE_FILE).exists():
        return f"{folder}: is one fold of a run; give {folder.parent}"
    if (folder / CONFIG_FILE).exists():
        return f"{folder}: holds a model and no run; ssamba info {folder} describes it"
    if (folder / SPACE_FILE).exists():
        return f"{folder}: holds an index that was never finished; start ssamba index again"
    return (
        f"{folder}: holds no run (no {RECIPE_FILE}, {RESULTS_FILE} or {INDEX_FILE}); give the --out of ssamba "
        "pretrain, finetune, fit, probe or index"
    )


def _refuse_damaged(folder: Path, what: str) -> None:
    for name in differing_files(folder):
        raise CheckpointError(
            f"{folder / name}: is damaged or was edited: it is not what the run wrote; restore {what} from a copy"
        )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def damaged(path: Path, problem: object) -> CheckpointError:
    """The error for a file of a run whose values are none that a run writes."""
    reason = " ".join(f"{type(problem).__name__} {problem}".split())[:120]
    return CheckpointError(f"{path}: is damaged ({reason}); restore it from a copy")
