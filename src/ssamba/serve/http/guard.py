"""Around every request: who may ask (Host, Origin, rate), how long it may take, headers, log and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import time
import traceback
from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from ssamba.serve.http.asgi import Application, Receive, Scope, Send
from ssamba.serve.http.limits import ByteBudget, Held, Places, RateLimit
from ssamba.serve.http.metrics import Metrics
from ssamba.serve.http.problems import BUSY, FORBIDDEN, MISDIRECTED, RequestError, busy, status_of
from ssamba.serve.http.request_log import RequestLog
from ssamba.serve.options import ServeOptions
from ssamba.utils.errors import SsambaError
from ssamba.utils.terminal import shorten

HELD_BYTES, HEADERS = "ssamba.held", "ssamba.headers"
"""Keys of a scope: the bytes that the request holds, and its headers as text."""
FREE_PATHS = ("/healthz", "/metrics", "/openapi.json", "/info")
"""Cheap answers that count towards no limit; so do the page and its files."""
DRAIN_SECONDS = 2.0
"""Seconds for which what a refused client still sends is read and dropped, so that it sees the answer."""
BUDGET_REQUESTS = 32
"""Largest requests whose bytes may be held at a time."""
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_SECURITY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-store",
}


class Guard:
    """An ASGI application around ``app``.

    ``paths`` are the routes that metrics name; others are one. ``stopping`` is set when the server ends.
    """

    def __init__(
        self,
        app: Application,
        options: ServeOptions,
        metrics: Metrics,
        log: RequestLog,
        paths: Collection[str],
    ) -> None:
        self._app, self._options, self._metrics, self._log = app, options, metrics, log
        self._paths = frozenset(paths)
        self._rate = RateLimit(options.rate)
        self.places = Places(options.in_flight)
        self.budget = ByteBudget(BUDGET_REQUESTS * options.max_bytes)
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        begin = time.monotonic()
        answer = _Answer(send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        client = (scope.get("client") or ("",))[0]
        error = ""
        incoming = _Incoming(receive, headers)
        held = Held(self.budget)
        try:
            scope["app"], scope[HELD_BYTES], scope[HEADERS] = self, held, headers
            await self._handle(scope, incoming.receive, answer, headers, client)
        except Exception as problem:
            error = await self._refuse(problem, incoming, answer)
        finally:
            held.release()
            seconds = time.monotonic() - begin
            path = self._route(scope["path"])
            self._metrics.request(path, answer.status, seconds)
            self._log.request(scope["method"], path, answer.status, seconds, client, error)

    async def _handle(
        self, scope: Scope, receive: Receive, answer: _Answer, headers: Mapping[str, str], client: str
    ) -> None:
        check_host(headers.get("host", ""), self._options.allow_host)
        check_origin(headers, scope.get("scheme", "http"))
        if self._route(scope["path"]) in FREE_PATHS or not self._is_work(scope):
            await self._app(scope, receive, answer.send)
            return
        if self.stopping:
            raise RequestError(BUSY, "the server is stopping", {"Retry-After": "10"})
        self._rate.check(client)
        with self.places.one():
            try:
                await asyncio.wait_for(self._app(scope, receive, answer.send), self._options.time_limit)
            except asyncio.TimeoutError:
                limit = self._options.time_limit
                raise busy(f"the request took more than {limit:g} s, the limit here", 10) from None

    def _is_work(self, scope: Scope) -> bool:
        return scope["method"] == "POST" or scope["path"].startswith("/recordings/")

    def _route(self, path: str) -> str:
        """The route of a path, for logs and metrics."""
        if path.startswith("/recordings/"):
            return "/recordings"
        return path if path in self._paths else "other"

    async def _refuse(self, problem: Exception, incoming: _Incoming, answer: _Answer) -> str:
        """Say what went wrong, in the log as well; the line. The connection ends where a body is not read."""
        headers: Mapping[str, str] = {}
        if isinstance(problem, SsambaError):
            status, line = status_of(problem), str(problem)
            if isinstance(problem, RequestError):
                headers = problem.headers
        elif isinstance(problem, HTTPException):
            status, line, headers = problem.status_code, problem.detail.lower(), problem.headers or {}
        else:
            status, line = 500, "internal error"
            self._log.event("error", "".join(traceback.format_exception(problem)))
        if not answer.started:
            await answer.error(status, line, headers, close=not incoming.complete)
            await incoming.drain()
            await answer.end()
        return line


class _Incoming:
    """The body of a request, and whether all of it has come."""

    def __init__(self, receive: Receive, headers: Mapping[str, str]) -> None:
        self._receive = receive
        self.complete = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.complete = True
        return message

    async def drain(self) -> None:
        """Read and drop what still comes, for a while."""

        async def read() -> None:
            while not self.complete:
                await self.receive()

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(read(), DRAIN_SECONDS)


class _Answer:
    """What is sent, with the headers that every answer has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.status = 499  # the client has gone

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            have = {name.lower() for name, _ in message.get("headers", ())}
            more = [(k.encode(), v.encode()) for k, v in SECURITY_HEADERS.items() if k.encode() not in have]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await self._send(message)

    async def error(self, status: int, line: str, headers: Mapping[str, str], close: bool) -> None:
        """The answer, complete for the client; ``end`` has to follow."""
        body = json.dumps({"error": line}).encode()
        own = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        if close:
            own["connection"] = "close"
        encoded = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in own.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def check_host(host: str, allowed: Collection[str]) -> None:
    """Refuse names that a foreign page could have pointed here (DNS rebinding): addresses, localhost and the names in
    ``allowed`` pass. Raises ``RequestError`` (421)."""
    name = host_name(host)
    if name in ("localhost", *(other.lower() for other in allowed)):
        return
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        fix = "open it by its address, or start it with --allow-host NAME"
        raise RequestError(MISDIRECTED, f"Host {shorten(host)} is no name of this server: {fix}") from None


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def check_origin(headers: Mapping[str, str], scheme: str) -> None:
    """Refuse requests that a page of another origin makes. Raises ``RequestError`` (403)."""
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"{scheme}://{headers.get('host', '').lower()}":
        # Behind a proxy that speaks TLS the scheme differs; the host does not.
        if origin.lower() == f"https://{headers.get('host', '').lower()}":
            return
        raise RequestError(FORBIDDEN, f"pages of {shorten(origin)} may not use this server")
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
        raise RequestError(FORBIDDEN, "pages of other sites may not use this server")
