"""A server from its first socket to its last answer."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ssamba.serve.options import ServeOptions
from ssamba.utils.errors import CheckpointError, ConfigError, SsambaError
from ssamba.utils.threads import InterruptsHeld, PoolJob

NEEDED = ("starlette", "uvicorn")
KEEP_ALIVE_SECONDS = 15
BACKLOG = 256


@dataclass(frozen=True)
class ServeRequest:
    """What is served: a model's source, perhaps the folder of an index, on a device and in a precision."""

    source: str | None
    index: str | None = None
    device: str = "auto"
    dtype: str = "fp32"


def check_packages() -> None:
    """Raises ``SsambaError`` where a package that only a server needs is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SsambaError(f"serving needs {' and '.join(missing)}: pip install 'ssamba[serve]'")


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ``SsambaError`` that says why an address cannot be used."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: is no address of this machine ({error})") from None
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        if hasattr(signal, "SIGHUP"):  # elsewhere it would let two servers share a port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        fix = "give another --port, or 0 for any that is free" if port else "give another --host"
        raise SsambaError(f"{host}:{port}: cannot listen there ({error.strerror or error}); {fix}") from None
    return opened


def serve_until_stopped(request: ServeRequest, options: ServeOptions, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; what is under way then is finished. ``say`` gets the address.

    Raises ``SsambaError`` in one line for missing packages, an address in use, and a model or an index that cannot be
    used.
    """
    check_packages()
    from ssamba.serve.http.metrics import Metrics
    from ssamba.serve.http.request_log import RequestLog

    with contextlib.closing(listen(options.host, options.port)) as opened:
        log, metrics = RequestLog(options.log), Metrics()
        with open_service(request, options, metrics) as service:
            from ssamba.serve.app import make_app

            guard = make_app(service, log)
            first_pass(service.engine)
            name, port = options.host, opened.getsockname()[1]
            address = f"[{name}]" if ":" in name else name
            if not options.loopback:
                warning = (
                    f"listening at {name}: every machine that reaches this one can use it; there are no passwords and "
                    "no encryption: put a proxy with both in front (docs/serve.md)"
                )
                log.event("warning", warning)
            say(f"serving {service.model.source or 'a model'} at http://{address}:{port}/ (Ctrl-C stops)")

            def stop() -> None:
                guard.stopping = service.stopping = True

            run_server(guard, opened, options, log, stop)
            log.event("info", "stopped")


@contextlib.contextmanager
def open_service(request: ServeRequest, options: ServeOptions, metrics: Any) -> Iterator[Any]:
    """The service of a request, ready to answer."""
    from ssamba.inference.load import load
    from ssamba.serve.app import Service
    from ssamba.serve.decoding.pool import DecodingPool
    from ssamba.serve.engine import Engine

    if request.index is None:
        model, index = load(request.source, request.device, dtype=request.dtype), None
    else:
        model, index = open_index(request.index, request)
    with InterruptsHeld():
        pool = DecodingPool(options.workers, options.max_bytes, options.max_seconds, options.time_limit)
    with (
        contextlib.closing(pool),
        Engine(model, index, options.batch, options.wait_ms / 1000, metrics.group) as engine,
    ):
        yield Service(options, engine, pool, metrics)


def open_index(folder: str, request: ServeRequest) -> tuple[Any, Any]:
    """The model that is served, and an index with its model: the same, where it is that, else the one it names."""
    from ssamba.inference.search.query import Index
    from ssamba.inference.search.space import load_stored

    served = load_stored(request.source, request.device, request.dtype)
    index = Index(folder, device=request.device, dtype=request.dtype)
    if served.digest == index.header.digest:
        return served.model, Index(folder, served)
    try:
        assert index.model is not None  # loads it
    except CheckpointError as error:
        raise ConfigError(f"{folder}: needs the model it was made with; {error}") from None
    return served.model, index


def first_pass(engine: Any) -> None:
    """A pass of a second, so that the first request does not wait for kernels to be compiled."""
    import torch

    from ssamba.serve.engine import EmbedWork
    from ssamba.utils.torch_defaults import HOST_FLOAT32

    rate = engine.model.config.sample_rate
    PoolJob(engine.submit(EmbedWork(), torch.zeros(rate, **HOST_FLOAT32), rate)).result()


def run_server(app: Any, opened: socket.socket, options: ServeOptions, log: Any, stopping: Callable[[], None]) -> None:
    """uvicorn on a socket until a signal asks it to stop; a second one ends what is under way."""
    import uvicorn

    from ssamba.serve.http.protocol import LARGEST_HEAD, BoundedProtocol
    from ssamba.serve.http.request_log import LogHandler

    logger = logging.getLogger("uvicorn")
    logger.addHandler(LogHandler(log))
    logger.propagate = False
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(options.stop_seconds)),
    )

    server = uvicorn.Server(config)

    def end(number: int, frame: FrameType | None) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        stopping()

    server.handle_exit = end  # not uvicorn's, which ends the process by the signal once all is done
    server.run(sockets=[opened])
