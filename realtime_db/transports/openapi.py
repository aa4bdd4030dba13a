"""The description of the HTTP interface at `/api/openapi`, in OpenAPI 3.1. No I/O here.

It is data. A test sends what it allows, and what it forbids, to a server and compares the answers.
"""

from __future__ import annotations

import json
from typing import Any, Final

from realtime_db import __version__

Schema = dict[str, Any]

_NOT_BLANK: Final = r"[^\s\x1c-\x1f\x85]"
_TEXT: Final[Schema] = {"type": "string"}


def _object(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text(description: str, content_type: str) -> Schema:
    return {"description": description, "content": {content_type: {"schema": _TEXT}}}


def _query(name: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": description,
        "schema": schema,
    }


_MESSAGE: Final = _object("message", message=_TEXT)
_ERROR: Final = _object("error", error=_TEXT)
_ERRORS: Final = {
    "anyOf": [_object("errors", errors={"type": "object"}), _MESSAGE],
}

_ACCEPTED: Final = {"description": "Sent to those who are subscribed."}
_NOT_JSON: Final = _json("Not HTTP, or not JSON.", {"anyOf": [_MESSAGE, _ERROR]})
_UNAUTHORIZED: Final = _json("The token is missing or bad.", _MESSAGE)
_TOO_LARGE: Final = _json("The request is too large.", _ERROR)
_LIMITS: Final = _json("A limit strikes.", _MESSAGE)
_UNCHECKED: Final = _json("Nobody knows whether the policies allow it.", _MESSAGE)

_BATCH: Final = {
    "summary": "Broadcast many messages.",
    "description": "Public messages go out first, then the private ones grouped by topic. Those of "
    "a private topic that the policies do not let the user write to are dropped silently.",
    "security": [{"bearer": []}, {"apikey": []}],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": _object(
                    "messages",
                    messages={
                        "type": "array",
                        "minItems": 1,
                        "items": _object(
                            "topic",
                            "event",
                            "payload",
                            topic={
                                "type": "string",
                                "pattern": _NOT_BLANK,
                                "maxLength": 246,
                                "description": "Without `realtime:`; at most 246 bytes.",
                            },
                            event={"type": "string", "pattern": _NOT_BLANK},
                            payload={"type": "object"},
                            private={
                                "type": ["boolean", "string", "null"],
                                "enum": [True, False, "true", "false", "1", "0", None],
                                "default": False,
                            },
                            id={
                                "type": ["string", "null"],
                                "description": "Arrives as `meta.id`.",
                            },
                        ),
                    },
                )
            }
        },
    },
    "responses": {
        "202": _ACCEPTED,
        "400": _NOT_JSON,
        "401": _UNAUTHORIZED,
        "413": _TOO_LARGE,
        "422": _json("Not what was expected; nothing was sent.", _ERRORS),
        "429": _LIMITS,
        "500": _UNCHECKED,
    },
}


def _segment(name: str, max_bytes: int | None = None) -> Schema:
    schema: Schema = {"type": "string", "minLength": 1}
    if max_bytes is not None:
        schema["maxLength"] = max_bytes
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": "Percent-encoded, also its slashes.",
        "schema": schema,
    }


_SINGLE: Final = {
    "summary": "Broadcast one message.",
    # No parameters, for OpenAPI cannot say that they need `private`.
    "description": "A private one is stored as well, and can be replayed, with `persist=true` in "
    "the query, or `persist[ttl]=60` for so many seconds.",
    "security": [{"bearer": []}, {"apikey": []}],
    "parameters": [
        _segment("topic", 246),
        _segment("event", 255),
        _query("private", {"type": "boolean", "default": False}, "For private subscribers."),
    ],
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {
                "schema": {
                    "description": "The payload. What is no object arrives as "
                    '`{"_json": <value>}`, and nothing as `{}`.'
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "responses": {
        "202": _ACCEPTED,
        "400": _NOT_JSON,
        "401": _UNAUTHORIZED,
        "403": _json("The policies do not allow it.", _MESSAGE),
        "413": _TOO_LARGE,
        "415": _json("Neither JSON nor bytes.", _ERROR),
        "422": _json(
            "Too large, not to be stored, or the policies could not answer.",
            {"anyOf": [*_ERRORS["anyOf"], _ERROR]},
        ),
        "429": _LIMITS,
        "500": _json(
            "Nobody knows whether the policies allow it, or why it was not stored.",
            {"anyOf": [_MESSAGE, _ERROR]},
        ),
    },
}

_SSE: Final = {
    "summary": "Follow topics as server-sent events.",
    "description": "`data` of each event is `{type, event, payload, topic}`, and `meta.id` for a "
    "stored message. Bytes come as base64, with `encoding: base64`. The stream ends with its "
    "token.",
    "security": [{"key": []}, {"bearer": []}, {"apikey": []}],
    "parameters": [
        _query(
            "topic",
            {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
            "May come several times.",
            required=True,
        ),
        _query("private", {"type": "boolean", "default": False}, "The private topics."),
    ],
    "responses": {
        "200": _text("The stream.", "text/event-stream"),
        "401": _json("The token is missing or bad.", _ERROR),
        "403": _json("The policies do not allow it.", _ERROR),
        "422": _json("No topic, or a bad one.", _ERROR),
        "429": _json("A limit strikes.", _ERROR),
        "500": _json("Nobody knows whether the policies allow it.", _ERROR),
        "503": _json("The server is about to end.", _ERROR),
    },
}

_READY: Final = _object(
    "ready",
    "server",
    "database",
    "slot",
    "partitions",
    ready={"type": "boolean"},
    server=_TEXT,
    database=_TEXT,
    slot=_TEXT,
    partitions=_TEXT,
)


def _get(summary: str, responses: Schema) -> Schema:
    return {"get": {"summary": summary, "responses": responses}}


def _document() -> Schema:
    single = "/api/broadcast/{topic}/events/{event}"
    return {
        "openapi": "3.1.0",
        "info": {"title": "realtime-db", "version": __version__, "license": {"name": "PostgreSQL"}},
        "paths": {
            "/api/broadcast": {"post": _BATCH},
            "/realtime/v1/api/broadcast": {"post": _BATCH},
            single: {"post": _SINGLE},
            f"/realtime/v1{single}": {"post": _SINGLE},
            "/realtime/v1/sse": {"get": _SSE},
            "/api/openapi": _get("This.", {"200": _json("OpenAPI.", {"type": "object"})}),
            "/api/ping": _get("Is it there?", {"200": _json("It is.", _MESSAGE)}),
            "/healthcheck": _get("Is it alive?", {"200": _text("It is: `ok`.", "text/plain")}),
            "/readyz": _get(
                "Are messages delivered?",
                {"200": _json("They are.", _READY), "503": _json("Not now.", _READY)},
            ),
            "/metrics": _get("For Prometheus.", {"200": _text("Metrics.", "text/plain")}),
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "apikey": {"type": "apiKey", "in": "header", "name": "apikey"},
                "key": {"type": "apiKey", "in": "query", "name": "apikey"},
            }
        },
    }


DOCUMENT: Final = json.dumps(_document(), indent=2).encode()
