"""`GET /openapi.json`: OpenAPI 3.1, its schemas made of the types that answers are written from."""

import functools
from typing import Any

import msgspec

import offramp
from offramp.serve import messages

_QUERY = [
    {
        "name": "deadline_ms",
        "in": "query",
        "description": "Milliseconds from now: the best answer there is by then is given, marked `in_time: false`.",
        "schema": {"type": "number", "minimum": 0, "maximum": 600000},
    },
    {
        "name": "rung",
        "in": "query",
        "description": "At least this rung of the ladder.",
        "schema": {"type": "integer", "minimum": 1},
    },
]
_ERRORS = {
    400: "Not HTTP, or a body that is not what its type says",
    401: "No token, or a wrong one",
    403: "A page of another site",
    408: "It came in too slowly",
    413: "Too large: the body, an image, or their number",
    415: "No type, or no format of images, that is taken",
    422: "Not an image that can be decoded, or a query that means nothing",
    429: "Full: try again after `Retry-After` seconds",
    431: "First line and headers too large",
    503: "About to end, or time was up before any exit",
}


@functools.cache
def openapi() -> bytes:
    """The document."""
    names = (
        "Predictions",
        "Error",
        "Images",
        "ExitEvent",
        "Prediction",
        "Failure",
        "Model",
        "Samples",
        "Health",
        "Reloaded",
    )
    _, components = msgspec.json.schema_components(
        [getattr(messages, name) for name in names], ref_template=messages.REF
    )
    image = {"schema": {"type": "string", "format": "binary"}}
    text = {"schema": {"type": "string"}}
    health = {"503": _answer("It is not", _of("Health"))}
    paths = {
        "/": _get("A page to play with.", {"text/html": text}),
        "/healthz": _get("Whether it is alive.", {"application/json": _of("Health")}),
        "/readyz": _get("Whether it is warm and has a place.", {"application/json": _of("Health")}, **health),
        "/metrics": _get("Counters, as Prometheus reads them.", {"text/plain": text}, **_errors(401)),
        "/openapi.json": _get("This.", {"application/json": {"schema": {"type": "object"}}}, **_errors(401)),
        "/v1/model": _get("The card of what is served.", {"application/json": _of("Model")}, **_errors(401)),
        "/v1/samples": _get("Images to try it on.", {"application/json": _of("Samples")}, **_errors(401)),
        "/v1/samples/{number}": {
            **_get("One of them.", {f"image/{kind}": image for kind in ("png", "jpeg", "webp")}, **_errors(401, 404)),
            "parameters": [{"name": "number", "in": "path", "required": True, "schema": {"type": "integer"}}],
        },
        "/v1/predict": {"post": _predict(image)},
        "/v1/reload": {
            "post": {
                "summary": "Open the run and its policies anew; only from this machine.",
                "responses": {"200": _answer("Done", _of("Reloaded")), **_errors(401, 403, 404, 422)},
            }
        },
    }
    document = {
        "openapi": "3.1.0",
        "info": {"title": "offramp", "version": offramp.__version__, "summary": "Images that leave a network early."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }
    return msgspec.json.encode(document)


def _predict(image: dict[str, Any]) -> dict[str, Any]:
    files = {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
    return {
        "summary": "Classify images.",
        "parameters": _QUERY,
        "requestBody": {
            "required": True,
            "content": {
                **{f"image/{kind}": image for kind in ("png", "jpeg", "webp")},
                "multipart/form-data": {"schema": files},
                "application/json": _of("Images"),
            },
        },
        "responses": {
            "200": {
                "description": "The answers; as `text/event-stream` an event `exit` (ExitEvent) for each exit and one "
                "`answer` (Prediction) or `error` (Error).",
                "content": {
                    "application/json": _of("Predictions"),
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            **_errors(*_ERRORS),
        },
    }


def _of(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": messages.REF.format(name=name)}}


def _answer(description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": content}}


def _errors(*statuses: int) -> dict[str, Any]:
    lines = {404: "There is nothing", **_ERRORS}
    return {str(status): _answer(lines[status], _of("Error")) for status in statuses}


def _get(summary: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": {"description": "It", "content": content}, **more}}}
