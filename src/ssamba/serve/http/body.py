"""The body of a request: read within bounds of size and time, the recording taken out of a form where it is one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import NamedTuple

from ssamba.serve.http.asgi import Receive
from ssamba.serve.http.limits import Held
from ssamba.serve.http.problems import (
    BAD_REQUEST,
    TIMED_OUT,
    TOO_LARGE,
    UNUSABLE,
    WRONG_TYPE,
    RequestError,
)
from ssamba.utils.terminal import shorten

BODY_SECONDS = 30.0
"""Seconds in which a body must arrive."""
FORM_PARTS = 16
"""Most parts of a form."""
PART_HEADER_BYTES = 8192
MAX_NAME_LENGTH = 255
RAW_TYPES = ("", "application/octet-stream", "application/ogg", "application/x-flac")
"""Types of bodies that are a recording as it is, in addition to all of ``audio/``; "" is none stated."""
UNNAMED = "upload"


class Upload(NamedTuple):
    """An encoded recording as it was sent, and what messages call it."""

    name: str
    content: bytes


async def read_body(headers: Mapping[str, str], receive: Receive, limit: int, held: Held) -> bytes:
    """The whole body, of at most ``limit`` bytes.

    Raises ``RequestError``: 413 for a larger one, before it has been read where its length is stated; 408 for one that
    takes longer than ``BODY_SECONDS``; 400 for a client that ends early; 503 where other requests hold too much.
    """
    too_large = RequestError(TOO_LARGE, f"the request has more than {limit:,} bytes, the limit here: send a part of it")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    parts: list[bytes] = []
    size = 0
    end = asyncio.get_running_loop().time() + BODY_SECONDS
    while True:
        try:
            left = end - asyncio.get_running_loop().time()
            message = await asyncio.wait_for(receive(), max(0.0, left))
        except asyncio.TimeoutError:
            reason = f"the request has not arrived within {BODY_SECONDS:g} s"
            raise RequestError(TIMED_OUT, reason) from None
        if message["type"] == "http.disconnect":
            raise RequestError(BAD_REQUEST, "the client has gone before its request was complete")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large
        held.take(len(part))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def take_upload(headers: Mapping[str, str], body: bytes, name: str | None) -> Upload:
    """The recording in a body; ``name`` is the one that the query states.

    Raises ``RequestError``: 415 for a type that is neither audio nor a form, 400 and 422 for a form without one.
    """
    stated = headers.get("content-type", "")
    kind = stated.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        found = _form_file(stated, body)
        return Upload(plain_name(name or found.name), found.content)
    if kind in RAW_TYPES or kind.startswith("audio/"):
        return Upload(plain_name(name), body)
    if kind == "application/x-www-form-urlencoded":
        fix = "for curl --data-binary add -H 'Content-Type: audio/wav', or give -F file=@FILE"
        raise RequestError(WRONG_TYPE, f"the body is a form without files: {fix}")
    known = "audio/..., application/octet-stream or multipart/form-data"
    raise RequestError(WRONG_TYPE, f"Content-Type is {shorten(stated)}: give {known}")


def plain_name(name: str | None) -> str:
    """The last part of a name that a client gave, which is nothing but text: no file is opened by it."""
    last = re.split(r"[/\\]", name or "")[-1].replace("\0", "")
    return last[-MAX_NAME_LENGTH:] or UNNAMED


def _form_file(stated: str, body: bytes) -> Upload:
    """The first file of a form (RFC 7578)."""
    found = re.search(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', stated)
    if found is None:
        raise RequestError(BAD_REQUEST, "the form has no boundary in its Content-Type")
    delimiter = b"--" + (found[1] or found[2]).encode("latin-1")
    if not body.startswith(delimiter):
        raise RequestError(BAD_REQUEST, "the form does not begin with its boundary")
    begin = len(delimiter)
    for _ in range(FORM_PARTS):
        if body[begin : begin + 2] == b"--":
            break
        end = body.find(b"\r\n" + delimiter, begin)
        blank = body.find(b"\r\n\r\n", begin, begin + PART_HEADER_BYTES)
        if end < 0 or blank < 0 or blank > end:
            raise RequestError(BAD_REQUEST, "the form is cut off, or its parts have no heads")
        name = _file_name(body[begin:blank])
        if name is not None:
            return Upload(name, body[blank + 4 : end])
        begin = end + 2 + len(delimiter)
    raise RequestError(UNUSABLE, "the form holds no file: send one with -F file=@FILE")


def _file_name(head: bytes) -> str | None:
    """The file name of a part, "" for a file without one, None for a part that is no file."""
    text = head.decode("utf-8", "replace")
    disposition = re.search(r"(?im)^content-disposition:\s*form-data\b([^\r\n]*)", text)
    if disposition is None:
        return None
    name = re.search(r';\s*filename="((?:[^"\\]|\\.)*)"', disposition[1]) or re.search(
        r";\s*filename=([^\s;]+)", disposition[1]
    )
    if name is not None:
        return re.sub(r"\\(.)", r"\1", name[1]) if '\\"' in name[1] else name[1]
    return "" if re.search(r';\s*name="?(file|audio)"?', disposition[1]) else None
