"""A model to the Hugging Face hub, with its card."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from ssamba.inference.hf.folder import export
from ssamba.models.pretrained.load import ModelSource
from ssamba.utils.errors import ConfigError, SsambaError

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]{0,95}")

_log = logging.getLogger(__name__)


def push(
    source: ModelSource | None,
    name: str,
    private: bool = False,
    licence: str | None = None,
    card: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> str:
    """Upload a model to the repository ``name`` (``user/model``), which is made if it is not there; gives its address.

    ``card``: a file to take as the model card instead of one that says what the model's files say. ``folder`` keeps
    what is uploaded. Raises ``ConfigError`` for a name that the hub cannot have, ``SsambaError`` in one line when the
    hub cannot be reached or refuses, and as ``export``.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name}: is no name of a repository; give user/model")
    try:
        import huggingface_hub
    except ImportError:
        raise SsambaError(f"{name}: to upload it, pip install 'ssamba[hf]'") from None
    with tempfile.TemporaryDirectory(prefix="ssamba-") as temporary:
        made = Path(temporary) / "model" if folder is None else Path(folder)
        export(source, made, name, licence, card)
        try:
            return _upload(huggingface_hub, made, name, private)
        except Exception as error:  # the library's kinds differ between its versions, and those of its HTTP client too
            _log.info("%s: %r", name, error)
            kept = "" if folder is None else f"; what was to be uploaded lies in {folder}"
            raise SsambaError(f"{name}: {reason(error)}{kept}") from None


def _upload(hub: Any, folder: Path, name: str, private: bool) -> str:
    api = hub.HfApi()
    url = api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Upload with ssamba")
    return str(url)


def reason(error: Exception) -> str:
    """Why an upload failed, in one line."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutException", "ConnectTimeout"}:
        return "was not uploaded, huggingface.co cannot be reached"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 or "LocalTokenNotFoundError" in kinds:
        return "was not uploaded, the hub wants a token: hf auth login, or set HF_TOKEN"
    if status == 403:
        return "was not uploaded, your token may not write there; give user/model with your user's name"
    first = next(iter(str(error).strip().splitlines()), "")[:200]
    return f"was not uploaded ({first or type(error).__name__})"
