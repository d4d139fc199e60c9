"""The routes: each takes a request apart, asks the decoding processes and the engine, and puts the answer together."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from ssamba import __version__
from ssamba.audio.decode import Waveform
from ssamba.audio.log_mel import require_frames
from ssamba.data.labels.event import RecordingEvents
from ssamba.inference.events.merge import EventOptions
from ssamba.inference.model import Encoder
from ssamba.inference.outputs.excerpt import Excerpt
from ssamba.inference.predict import Prediction, PredictOptions, check_options, classifier_task, default_every
from ssamba.inference.search.query import Index
from ssamba.serve import answers
from ssamba.serve.decoding.pool import DecodingPool
from ssamba.serve.engine import EmbedWork, Engine, PredictWork, Question, SearchWork
from ssamba.serve.http import parameters
from ssamba.serve.http.body import Upload, read_body, take_upload
from ssamba.serve.http.guard import HEADERS, HELD_BYTES, Guard
from ssamba.serve.http.metrics import CONTENT_TYPE, Metrics, resident_memory
from ssamba.serve.http.problems import NOT_FOUND, RequestError
from ssamba.serve.http.request_log import RequestLog
from ssamba.serve.openapi import description
from ssamba.serve.options import MIB, ServeOptions
from ssamba.serve.page import page_files
from ssamba.utils.device import dtype_name
from ssamba.utils.errors import AudioError, ConfigError

LABEL_BYTES = MIB
"""Bytes of labels that are taken."""
LONGEST_STRETCH = 30.0
"""Seconds of a recording of the index that are played."""
EVENT_NAMES = ("low", "min_seconds", "merge_gap", "without")
Found = TypeVar("Found")


class Service:
    """What answers: a model, perhaps an index of recordings, and the processes that decode."""

    def __init__(self, options: ServeOptions, engine: Engine, pool: DecodingPool, metrics: Metrics) -> None:
        self.options, self.engine, self.pool, self.metrics = options, engine, pool, metrics
        self.stopping = False
        # Answers are put together by threads of their own: they would wait behind all recordings to be decoded.
        self._decoding = ThreadPoolExecutor(options.workers, thread_name_prefix="ssamba-decode")
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="ssamba-answer")
        paths = [] if engine.index is None else engine.index.paths
        self.paths = paths
        self.numbers = {path: number for number, path in enumerate(paths)}
        self.top = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""

    @property
    def model(self) -> Encoder:
        """The model of embeddings and predictions."""
        return self.engine.model

    @property
    def index(self) -> Index:
        """The index. Raises ``RequestError`` (404) without one."""
        if self.engine.index is None:
            raise RequestError(NOT_FOUND, "this server has no index: start it with --index INDEX")
        return self.engine.index

    async def in_thread(self, function: Callable[..., Found], *arguments: Any) -> Found:
        """Call a function that takes a while."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def decoded(self, function: Callable[..., Waveform], *arguments: Any) -> torch.Tensor:
        """A waveform (samples,) of the decoding processes."""
        waveform = await asyncio.get_running_loop().run_in_executor(self._decoding, function, *arguments)
        return torch.from_numpy(waveform)

    async def json(self, make: Callable[..., Any], *arguments: Any) -> Response:
        """A response of what ``make`` gives, put together in a thread where it may be large."""
        text = await self.in_thread(lambda: json.dumps(make(*arguments), ensure_ascii=False, allow_nan=False))
        return Response(text, media_type="application/json")

    async def recording(self, request: Request, name: str | None, rate: int) -> tuple[Upload, torch.Tensor]:
        """The recording in a request, and its waveform (samples,) at ``rate``."""
        headers, held = request.scope[HEADERS], request.scope[HELD_BYTES]
        body = await read_body(headers, request.receive, self.options.max_bytes, held)
        upload = take_upload(headers, body, name)
        del body
        waveform = await self.decoded(self.pool.decode, upload.name, upload.content, rate)
        held.take(waveform.nbytes)
        self.metrics.upload(len(upload.content), len(waveform) / rate)
        return Upload(upload.name, b""), waveform

    async def ask(self, work: Question, waveform: torch.Tensor, rate: int) -> Any:
        """The engine's answer."""
        return await asyncio.wrap_future(self.engine.submit(work, waveform, rate))


async def _embed(service: Service, request: Request) -> Response:
    """``POST /embed``."""
    query = parameters.read_query(request.scope["query_string"], parameters.EMBED)
    rate = service.model.config.sample_rate
    upload, waveform = await service.recording(request, query.get("name"), rate)
    _require_frames(service, upload.name, waveform)
    found = await service.ask(EmbedWork(), waveform, rate)
    seconds = len(waveform) / rate
    return await service.json(answers.embedding_answer, upload.name, seconds, found, query.get("frames", False))


async def _predict(service: Service, request: Request) -> Response:
    """``POST /predict``."""
    if service.model.classifier is None:
        raise RequestError(NOT_FOUND, "this model has no classifier: start the server with a fine-tuned run")
    query = parameters.read_query(request.scope["query_string"], parameters.PREDICT)
    events, format = event_options(query)
    work = predict_work(service.model, query, events is not None)
    if events is not None:
        events.check_names(classifier_task(service.model).classes)
    rate = service.model.config.sample_rate
    upload, waveform = await service.recording(request, query.get("name"), rate)
    _require_frames(service, upload.name, waveform)
    found: Prediction = await service.ask(work, waveform, rate)
    if events is None:
        return await service.json(answers.prediction_answer, upload.name, found, work.options.every is not None)
    stretches = found.find_events(events)
    if format is None:
        return await service.json(answers.event_answer, upload.name, found, stretches)
    nyquist = service.model.config.front_end.nyquist
    recording = RecordingEvents(upload.name, found.seconds, tuple(stretches), nyquist)
    return Response(answers.label_text(recording, format), headers={"content-type": answers.label_type(format)})


def event_options(query: Mapping[str, Any]) -> tuple[EventOptions | None, str | None]:
    """How rows become events, None where rows are asked for, and the format of labels. Raises ``ConfigError``."""
    format = query.get("format")
    if format is not None:
        answers.label_format(format)
    given = {name: query[name] for name in EVENT_NAMES if name in query}
    if not query.get("events", False) and format is None:
        if given:
            raise ConfigError(f"{next(iter(given))} goes with events: give events=1 as well")
        return None, None
    if "threshold" in query:
        given["threshold"] = query["threshold"]
    return EventOptions(**{**given, "without": tuple(given.get("without", ()))}), format


def predict_work(model: Encoder, query: Mapping[str, Any], events: bool) -> PredictWork:
    """What the model is asked, as ``ssamba predict`` does it. Raises ``ConfigError``."""
    every = query.get("every", default_every(model) if events else None)
    reject = query.get("reject", model.rejection is not None and every is None)
    threshold = None if events else query.get("threshold")
    options: PredictOptions = check_options(model, every, query.get("window"), reject, threshold)
    return PredictWork(options, parameters.require_count(query, "top", None))


async def _search(service: Service, request: Request) -> Response:
    """``POST /search``."""
    rate = service.index.model.config.sample_rate
    query = parameters.read_query(request.scope["query_string"], parameters.SEARCH)
    top = parameters.require_count(query, "top", 10)
    start, seconds = query.get("start"), query.get("seconds")
    if (start is not None and start < 0) or (seconds is not None and seconds <= 0):
        raise ConfigError("start and seconds choose a stretch: give 0 or more, and a length above 0")
    upload, waveform = await service.recording(request, query.get("name"), rate)
    length = len(waveform) / rate
    if start is not None and start >= length:
        raise AudioError(upload.name, f"the crop starts at {start:g} s but the file ends at {length:g} s")
    work = SearchWork(start, seconds, top or 10, query.get("fast", False))
    found = await service.ask(work, waveform, rate)
    return await service.json(answers.match_answer, upload.name, length, found, service.numbers, service.top)


async def _play(service: Service, request: Request) -> Response:
    """``GET /recordings/{number}``: a stretch of a recording of the index as WAV."""
    rate = service.index.model.config.sample_rate
    query = parameters.read_query(request.scope["query_string"], parameters.STRETCH)
    number = request.path_params["number"]
    if number >= len(service.paths):
        raise RequestError(NOT_FOUND, f"recording {number}: there are {len(service.paths)}, counted from 0")
    start = max(0.0, query.get("start", 0.0))
    seconds = min(max(query.get("seconds", LONGEST_STRETCH), 0.1), LONGEST_STRETCH)
    path = service.paths[number]
    try:
        waveform = await service.decoded(service.pool.stretch, path, rate, start, seconds)
    except AudioError as error:  # with the path as the index's answers have it
        raise AudioError(answers.below(path, service.top), error.reason) from None
    front_end = service.index.model.config.front_end
    wav = await service.in_thread(Excerpt("", waveform, front_end, seconds).wav)
    return Response(wav, media_type="audio/wav")


async def _labels(service: Service, request: Request) -> Response:
    """``POST /labels``: labels that a person has corrected, as a label file."""
    query = parameters.read_query(request.scope["query_string"], parameters.LABELS)
    format = answers.label_format(query.get("format", answers.DEFAULT_FORMAT))
    body = await read_body(request.scope[HEADERS], request.receive, LABEL_BYTES, request.scope[HELD_BYTES])
    recording = answers.read_labels(body, service.model.config.front_end.nyquist)
    text = await service.in_thread(answers.label_text, recording, format)
    return Response(text, headers={"content-type": answers.label_type(format)})


async def _info(service: Service, request: Request) -> Response:
    """``GET /info``: what this server has, for the page and for clients."""
    model, options = service.model, service.options
    task = None if model.classifier is None else classifier_task(model)
    values = {
        "version": __version__,
        "model": os.path.basename(os.path.normpath(model.source)) or "in memory",
        "dtype": dtype_name(model.positions.dtype),
        "sample_rate": model.config.sample_rate,
        "window_seconds": model.config.window_seconds,
        "width": model.config.width,
        "classes": None if task is None else list(task.classes),
        "multi_label": None if task is None else task.multi_label,
        "every": None if task is None else default_every(model),
        "recordings": len(service.paths) if service.engine.index is not None else None,
        "max_bytes": options.max_bytes,
        "max_seconds": options.max_seconds,
    }
    return Response(json.dumps(values), media_type="application/json")


async def _health(service: Service, request: Request) -> Response:
    """``GET /healthz``: 200 while requests are answered, 503 once the server stops or its model's thread has ended."""
    status = "stopping" if service.stopping else "ok" if service.engine.alive else "failed"
    return Response(json.dumps({"status": status}), 200 if status == "ok" else 503, media_type="application/json")


def _require_frames(service: Service, name: str, waveform: torch.Tensor) -> None:
    try:
        require_frames(len(waveform), service.model.config.front_end)
    except AudioError as error:
        raise AudioError(name, error.reason) from None


def make_app(service: Service, log: RequestLog) -> Guard:
    """The ASGI application."""

    def bound(handler: Callable[[Service, Request], Any]) -> Callable[[Request], Any]:
        return functools.partial(handler, service)

    def fixed(kind: str, content: bytes) -> Callable[[Request], Any]:
        async def give(request: Request) -> Response:
            return Response(content, headers={"content-type": kind})

        return give

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    text = json.dumps(description(service.options)).encode()
    routes = [
        Route("/embed", bound(_embed), methods=["POST"]),
        Route("/predict", bound(_predict), methods=["POST"]),
        Route("/search", bound(_search), methods=["POST"]),
        Route("/labels", bound(_labels), methods=["POST"]),
        Route("/recordings/{number:int}", bound(_play), methods=["GET"]),
        Route("/info", bound(_info), methods=["GET"]),
        Route("/healthz", bound(_health), methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", fixed("application/json", text), methods=["GET"]),
        *(Route(path, fixed(*content), methods=["GET"]) for path, content in page_files().items()),
    ]
    guard = Guard(
        Router(routes, redirect_slashes=False), service.options, service.metrics, log, [r.path for r in routes]
    )
    service.metrics.gauges |= {
        "ssamba_in_flight": ("Requests under way.", lambda: guard.places.used),
        "ssamba_held_bytes": ("Bytes of bodies and waveforms held.", lambda: guard.budget.used),
        "ssamba_waiting_recordings": ("Recordings that wait for the model.", service.engine.waiting),
        "ssamba_decoder_restarts_total": ("Decoding processes replaced.", lambda: service.pool.restarts),
        "process_resident_memory_bytes": ("Resident memory.", resident_memory),
    }
    return guard
