"""Reading JSON files, with one line for each fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssamba.utils.errors import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ``ConfigError`` that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value
