"""The ASGI application: HTTP in, HTTP out, between them a `Schedules` that answers images.

A request is looked at from the cheapest to the dearest: who asks, whether there is a place, how large the body is, what
the header of the image says; then it is decoded, and submitted. Each error is one line of JSON.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from offramp.errors import OfframpError, UsageError
from offramp.serve.asked import Asked
from offramp.serve.bodies import HungUpError, images_of, read_body
from offramp.serve.card import Card, media_type
from offramp.serve.connection import COMMON, WHOLE, json_headers
from offramp.serve.contract import Answer, RefusedError, Request, Schedules, Served, Step
from offramp.serve.decoding import Decoder
from offramp.serve.gate import Gate, is_from_here
from offramp.serve.limits import TOGETHER, Budget, Limits, RequestError
from offramp.serve.messages import (
    ClassProbability,
    Error,
    ExitEvent,
    Failure,
    Health,
    Prediction,
    Predictions,
    Reloaded,
    Sample,
    Samples,
    encode,
    threshold_of,
)
from offramp.serve.metrics import Metrics
from offramp.serve.openapi import openapi
from offramp.serve.outcomes import Outcomes, Watched
from offramp.serve.page import content_security_policy, page

_TOP = 5  # classes that an event tells of
_STATUS = {"full": 429, "draining": 503, "deadline": 503, "not finite": 422, "replaced": 503}
_LET_IN = "offramp.let_in"
_BROKEN = encode(Error("The server has failed at this request."))
Headers = Sequence[tuple[bytes, bytes]]


class App:
    """What uvicorn, or any other ASGI server, calls.

    Args:
        schedules: Answers images.
        card: What the run says of itself; see `add`.
        decoders: Threads that decode.
        reload: Called for `POST /v1/reload`; what it raises as `UsageError` or `OfframpError` is said to who asked.
    """

    def __init__(
        self,
        schedules: Schedules,
        card: Card,
        *,
        limits: Limits | None = None,
        gate: Gate | None = None,
        decoders: int = 2,
        reload: Callable[[], Awaitable[None]] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.is_draining = False
        self._schedules, self._gate, self._reload = schedules, gate or Gate(), reload
        self._decoder = Decoder(self.limits, decoders)
        self._budget = Budget(TOGETHER * self.limits.max_body)
        self._outcomes = Outcomes()
        self._preparing = 0
        self._let_in = 0  # heads that have passed and that nothing has looked at since: the loop is behind with them
        self._cards = {schedules.served.fingerprint: card}
        self.metrics = metrics or Metrics(schedules.snapshot)
        routes: dict[str, tuple[str, Callable[[HttpRequest], Awaitable[Response]]]] = {
            "/": ("GET", self._page),
            "/healthz": ("GET", self._alive),
            "/readyz": ("GET", self._ready),
            "/metrics": ("GET", self._metrics),
            "/openapi.json": ("GET", self._openapi),
            "/v1/model": ("GET", self._model),
            "/v1/samples": ("GET", self._samples),
            "/v1/samples/{number}": ("GET", self._sample),
            "/v1/reload": ("POST", self._reloaded),
        }
        router = Starlette(
            routes=[Route(path, endpoint, methods=[method]) for path, (method, endpoint) in routes.items()],
            exception_handlers={HTTPException: _http_error, RequestError: _request_error, 500: _broken},
        )
        router.router.redirect_slashes = False  # it would send to whatever the header Host says
        self._router: ASGIApp = router
        self._paths = {*routes, "/v1/predict"}

    def add(self, served: Served, card: Card) -> None:
        """What the scheduler is about to serve. Images are prepared for it from the moment that it does."""
        now = self._schedules.served.fingerprint
        self._cards = {now: self._cards[now], served.fingerprint: card}

    @property
    def card(self) -> Card:
        """Of what is served now."""
        return self._cards[self._schedules.served.fingerprint]

    def close(self) -> None:
        """End the threads that decode."""
        self._decoder.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._router(scope, receive, send)
            return
        path: str = scope["path"]
        status = 0
        if scope.get("extensions", {}).pop(_LET_IN, False):
            self._let_in -= 1
        whole = scope.get("extensions", {}).get(WHOLE) if scope["method"] == "POST" else None

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                body = message.get("body")
                if body is not None:
                    if whole is None or not whole(status, message["headers"], body):
                        await send({"type": "http.response.start", "status": status, "headers": message["headers"]})
                        await send({"type": "http.response.body", "body": body})
                    return
            await send(message)

        try:
            self._gate.check(scope)
            if path == "/v1/predict" and scope["method"] == "POST":
                await self._predict(scope, receive, counted)
            elif path == "/v1/predict":
                raise RequestError(405, "method", "Only POST goes here.")
            else:
                await self._router(scope, receive, counted)
        except RequestError as error:
            self.metrics.refused(error.reason)
            await _reply(counted, error.status, error.content, _headers_of(error))
        except Exception:
            if not status:
                await _reply(counted, 500, _BROKEN)
            raise  # uvicorn shows its traceback
        finally:
            shown = (
                path if path in self._paths else "/v1/samples/{number}" if path.startswith("/v1/samples/") else "other"
            )
            self.metrics.request(shown, status)

    # -- predict

    def turned_away(self, scope: Scope) -> RequestError | None:
        """What a request is refused with where its head says enough and all places are taken; counted here."""
        if scope["path"] != "/v1/predict" or scope["method"] != "POST" or scope["query_string"]:
            return None
        started = time.perf_counter()
        try:
            self._check_place(self._let_in)
            self._let_in += 1
            scope.setdefault("extensions", {})[_LET_IN] = True
            return None
        except RequestError as error:
            full = error
        try:
            self._gate.check(scope)
        except RequestError:
            return None
        self.metrics.refused(full.reason)
        self.metrics.predicted(time.perf_counter() - started)
        self.metrics.request("/v1/predict", full.status)
        return full

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        try:
            headers = dict(scope["headers"])
            asked = Asked.of(scope["query_string"], started, len(self._schedules.served.ladder))
            self._check_place()
            body = await read_body(receive, headers.get(b"content-length"), self.limits, self._budget)
            try:
                contents, are_several = images_of(body, headers.get(b"content-type", b""), self.limits)
                if b"text/event-stream" in headers.get(b"accept", b""):
                    await self._stream(contents, asked, receive, send)
                else:
                    await self._answer(contents, are_several, asked, receive, send)
            finally:
                self._budget.give_back(len(body))
        except HungUpError:
            self.metrics.hung_up()
        finally:
            self.metrics.predicted(time.perf_counter() - started)

    async def _answer(
        self, contents: list[bytes], are_several: bool, asked: Asked, receive: Receive, send: Send
    ) -> None:
        async with Watched(receive):
            if are_several:
                predictions = await asyncio.gather(*(self._one_of_several(content, asked) for content in contents))
            else:
                predictions = [await self._one(contents[0], asked)]
        await _reply(send, 200, encode(Predictions(predictions)))

    async def _one_of_several(self, content: bytes, asked: Asked) -> Prediction | Failure:
        try:
            return await self._one(content, asked)
        except RequestError as error:
            self.metrics.refused(error.reason)
            return Failure(error.message, error.status)

    async def _one(self, content: bytes, asked: Asked) -> Prediction:
        future: asyncio.Future[Answer | RefusedError] = asyncio.get_running_loop().create_future()
        served, cancel = await self._submit(content, asked, self._outcomes.into(future))
        try:
            outcome = await future
        except asyncio.CancelledError:
            cancel()
            raise
        return self._prediction(outcome, served)

    async def _submit(
        self,
        content: bytes,
        asked: Asked,
        on_done: Callable[[Answer | RefusedError], None],
        on_step: Callable[[Step], None] | None = None,
    ) -> tuple[Served, Callable[[], None]]:
        """Decode an image, once there is a place for it, and hand it in; again where the model was replaced.

        Returns:
            What answers it, and the function that takes it back.
        """
        while True:
            self._check_place()
            self._preparing += 1
            try:
                served = self._schedules.served
                inputs = self._cards[served.fingerprint].inputs
                image_CHW = await self._decoder.decode(content, inputs)
            finally:
                self._preparing -= 1
            request = Request(image_CHW, on_done, asked.deadline, asked.rung, on_step, served.fingerprint)
            try:
                return served, self._schedules.submit(request)
            except RefusedError as error:
                if error.reason != "replaced":
                    raise _refusal(error) from error

    def _check_place(self, before: int = 0) -> None:
        """Refuse before anything is decoded, or read."""
        if self.is_draining:
            raise RequestError(503, "draining", "The server is about to end and takes no more images.")
        if (refusal := self._schedules.refusal(self._preparing + before)) is not None:
            raise _refusal(refusal)

    def _prediction(self, outcome: Answer | RefusedError, served: Served) -> Prediction:
        if isinstance(outcome, RefusedError):
            raise _refusal(outcome)
        self.metrics.answered(outcome)
        return Prediction(
            outcome.label,
            served.class_names[outcome.label],
            outcome.confidence,
            outcome.exit,
            outcome.operations,
            outcome.rung,
            served.promises[outcome.rung - 1] if outcome.in_time else None,
            outcome.in_time,
            round(outcome.queued_ms, 3),
            round(outcome.computed_ms, 3),
            outcome.fingerprint,
        )

    async def _stream(self, contents: list[bytes], asked: Asked, receive: Receive, send: Send) -> None:
        """Server-sent events: one an exit, then the answer."""
        if len(contents) != 1:
            raise RequestError(422, "images", "text/event-stream answers one image a request.")
        events: asyncio.Queue[Step | Answer | RefusedError] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(event: Step | Answer | RefusedError) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        async with Watched(receive):
            served, cancel = await self._submit(contents[0], asked, put, put)
            try:
                start = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no"), *COMMON]
                await send({"type": "http.response.start", "status": 200, "headers": start})
                while isinstance(event := await events.get(), Step):
                    await _event(send, b"exit", encode(_exit_event(event, served)))
            except asyncio.CancelledError:
                cancel()
                raise
        try:
            await _event(send, b"answer", encode(self._prediction(event, served)), more=False)
        except RequestError as error:
            self.metrics.refused(error.reason)
            await _event(send, b"error", error.content, more=False)

    # -- the rest

    async def _page(self, request: HttpRequest) -> Response:
        headers = {
            "content-security-policy": f"{content_security_policy()}; frame-ancestors 'none'",
            "referrer-policy": "no-referrer",
        }
        return _response(page().encode(), "text/html; charset=utf-8", headers=headers)

    async def _alive(self, request: HttpRequest) -> Response:
        return _response(encode(Health("alive")))

    async def _ready(self, request: HttpRequest) -> Response:
        if self.is_draining:
            return _response(encode(Health("not ready", "It is about to end.")), status=503)
        if not self._schedules.snapshot().is_ready:
            return _response(encode(Health("not ready", "It warms up, or all places are taken.")), status=503)
        return _response(encode(Health("ready")))

    async def _metrics(self, request: HttpRequest) -> Response:
        return _response(self.metrics.text(), "text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, request: HttpRequest) -> Response:
        return _response(openapi())

    async def _model(self, request: HttpRequest) -> Response:
        return _response(encode(self.card.model(self._schedules.served)))

    async def _samples(self, request: HttpRequest) -> Response:
        shown = [Sample(f"/v1/samples/{number}", label) for number, (_, label) in enumerate(self.card.samples)]
        return _response(encode(Samples(shown)))

    async def _sample(self, request: HttpRequest) -> Response:
        number = request.path_params["number"]
        if not (number.isascii() and number.isdigit() and len(number) < 5 and int(number) < len(self.card.samples)):
            raise RequestError(404, "path", "There is no such image.")
        content, _ = self.card.samples[int(number)]
        return _response(content, media_type(content))

    async def _reloaded(self, request: HttpRequest) -> Response:
        if not is_from_here(request.scope):
            raise RequestError(403, "reload", "Only this machine itself may ask for that, and no proxy.")
        if self._reload is None:
            raise RequestError(404, "path", "Nothing can be loaded anew here.")
        try:
            await self._reload()
        except (UsageError, OfframpError) as error:
            raise RequestError(422, "reload", f"What was served is served on: {error}") from error
        return _response(encode(Reloaded(self._schedules.served.fingerprint)))


def _exit_event(step: Step, served: Served) -> ExitEvent:
    names = served.class_names
    top = torch.topk(step.probabilities_N, min(_TOP, len(step.probabilities_N)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return ExitEvent(
        step.exit,
        step.label,
        names[step.label],
        step.confidence,
        None if step.threshold is None else threshold_of(step.threshold),
        [ClassProbability(label, names[label], probability) for label, probability in pairs],
        step.operations,
        step.threshold is None or step.confidence >= step.threshold,
    )


def _refusal(error: RefusedError) -> RequestError:
    return RequestError(_STATUS[error.reason], error.reason, str(error), error.retry_after)


async def _reply(send: Send, status: int, content: bytes, headers: Headers = ()) -> None:
    """With its body: `App.__call__` sends it in two parts where the server knows no better."""
    head = json_headers(content, headers)
    await send({"type": "http.response.start", "status": status, "headers": head, "body": content})


async def _event(send: Send, name: bytes, data: bytes, *, more: bool = True) -> None:
    body = b"event: %s\ndata: %s\n\n" % (name, data)
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _headers_of(error: RequestError) -> Headers:
    challenge = [(b"www-authenticate", b"Bearer")] if error.status == 401 else []
    return [*error.headers, *challenge, *([(b"allow", b"POST")] if error.status == 405 else [])]


def _response(
    content: bytes, kind: str = "application/json", *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    common = {name.decode(): value.decode() for name, value in COMMON}
    return Response(content, status, {**common, **(headers or {})}, kind)


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    """404 and 405 of the routes."""
    assert isinstance(error, HTTPException)
    lines = {404: "There is nothing under this path.", 405: "This method is not for this path."}
    line = lines.get(error.status_code, error.detail)
    return _response(encode(Error(line)), status=error.status_code, headers=dict(error.headers or {}))


async def _request_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {name.decode(): value.decode() for name, value in _headers_of(error)}
    return _response(error.content, status=error.status, headers=headers)


async def _broken(request: HttpRequest, error: Exception) -> Response:
    return _response(_BROKEN, status=500)
