"""One line on stderr for each request: for a reader, or as JSON. Names of files and queries are left out."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from ssamba.utils.terminal import one_line


class RequestLog:
    """Writes lines of the form ``text`` or ``json``; a stream that cannot be written to is not an error."""

    def __init__(self, form: str) -> None:
        self._json = form == "json"

    def request(self, method: str, path: str, status: int, seconds: float, client: str, error: str = "") -> None:
        """A request that has been answered."""
        if self._json:
            values = {"method": method, "path": path, "status": status, "ms": round(1000 * seconds, 1)}
            self._write("info", "request", values | {"client": client} | ({"error": error} if error else {}))
        else:
            why = f": {error}" if error else ""
            self._write("info", f"{client} {method} {path} {status}, {1000 * seconds:.0f} ms{why}", {})

    def event(self, level: str, message: str, **values: Any) -> None:
        """Anything else that is worth a line."""
        self._write(level, message, values)

    def _write(self, level: str, message: str, values: dict[str, Any]) -> None:
        now = time.time()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        if self._json:
            line = json.dumps({"time": moment, "level": level, "message": message, **values})
        else:
            more = "".join(f", {name} {value}" for name, value in values.items())
            line = one_line(f"{moment} {'' if level == 'info' else level + ': '}{message}{more}")
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            return


class LogHandler(logging.Handler):
    """Sends warnings of a library's logger to a ``RequestLog``."""

    def __init__(self, log: RequestLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as an event."""
        self._log.event(record.levelname.lower(), one_line(record.getMessage()))
