"""What is checked of the folds of a fine-tuning before their results are taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssamba.models.pretrained.file_checks import CHECKS_FILE, changed_files
from ssamba.models.pretrained.model_dir import CONFIG_FILE, RESULTS_FILE, SUMMARY_FILE, read_config
from ssamba.models.pretrained.transformers_files import write_preprocessor
from ssamba.training.resume.run_files import check_model_files, read_config_text, record_run
from ssamba.training.run_state import has_state
from ssamba.utils.atomic_write import remove_file
from ssamba.utils.errors import CheckpointError


def check_finished_folds(folders: Sequence[Path]) -> None:
    """Warn of files of finished folds that are not what the run wrote.

    A summary that can be written again is removed: the fold then goes on from its state, at its end. A list of digests
    that is damaged is made anew. Raises ``WriteError``.
    """
    for folder in folders:
        changed = changed_files(folder)
        if SUMMARY_FILE in changed and has_state(folder):
            remove_file(folder / SUMMARY_FILE)
        elif CHECKS_FILE in changed:
            record_run(folder)


def check_kept_folds(out: Path, folders: Sequence[Path]) -> None:
    """See that the folds' files are good and belong together, and to the run in ``out``.

    Raises ``CheckpointError`` for a damaged one.
    """
    folder = folders[-1]
    last = read_config(folder)
    for one in folders:
        problem = check_model_files(one)
        if problem is not None:
            raise CheckpointError(f"{problem}; restore it, or remove {out / RESULTS_FILE} and {one}")
        # Folds differ in measured statistics at most.
        found = read_config(one)
        same = found.config.replace(mean=last.config.mean, std=last.config.std) == last.config
        if not same or found.classification != last.classification or found.heads != last.heads:
            raise CheckpointError(f"{one / CONFIG_FILE}: is not of this run any more; put back the right one")
        write_preprocessor(one, found.config)
    kept = read_config_text(out) if (out / RESULTS_FILE).exists() else None
    if kept is not None and kept != read_config_text(folder):
        raise CheckpointError(f"{out / CONFIG_FILE}: is not that of {folder} any more; put back the right one")
