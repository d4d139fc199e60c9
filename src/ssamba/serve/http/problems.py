"""What can be wrong with a request, and the status code that says so."""

from __future__ import annotations

from collections.abc import Mapping

from ssamba.utils.errors import AudioError, ConfigError, DataError, SsambaError, UnknownFormatError

BAD_REQUEST, FORBIDDEN, NOT_FOUND, TIMED_OUT, TOO_LARGE, WRONG_TYPE = 400, 403, 404, 408, 413, 415
MISDIRECTED, UNUSABLE, TOO_MANY, BUSY = 421, 422, 429, 503


class RequestError(SsambaError):
    """A request that is refused with ``status``; ``headers`` go with the answer."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.headers = status, dict(headers or {})


class TooLongError(AudioError):
    """A recording that lasts longer than is allowed."""


def busy(reason: str, seconds: int = 1) -> RequestError:
    """A refusal for now: the client may ask again after some seconds."""
    return RequestError(BUSY, f"{reason}: ask again later", {"Retry-After": str(seconds)})


def status_of(error: SsambaError) -> int:
    """The status code of what went wrong."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, UnknownFormatError):
        return WRONG_TYPE
    if isinstance(error, TooLongError):
        return TOO_LARGE
    if isinstance(error, (AudioError, DataError)):
        return UNUSABLE
    return BAD_REQUEST if isinstance(error, ConfigError) else 500
