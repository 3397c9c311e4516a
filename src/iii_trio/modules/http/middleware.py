"""What a middleware is called with and what its result means (spec/http.md §10). No I/O.

A middleware says `{"action": "continue"}`, with a `context` that is merged into the request's, or
`{"action": "respond", "response": …}`. Anything else fails the request: what guards a route must not open it by mistake.
"""

from collections.abc import Mapping
from typing import Any, Final

from ...protocol import Json, codec
from ...protocol.errors import WireError
from .messages import Request, Response, headers_of, status_of
from .routes import Match

PHASE: Final = "preHandler"
INVALID_RESULT: Final = "MIDDLEWARE_INVALID_RESULT"
TIMED_OUT: Final = "MIDDLEWARE_TIMEOUT"


def middleware_input(request: Request, match: Match, context: Mapping[str, Any]) -> Json:
    """What a middleware is called with; `path` is the route's, `url_path` the request's own."""
    return Json.of(
        {
            "phase": PHASE,
            "request": {
                "path_params": match.params,
                "query_params": request.query_params,
                "headers": request.headers,
                "method": request.method,
                "path": match.route.pattern.text,
                "url_path": request.path,
            },
            "context": context,
        }
    )


def read_verdict(result: Any, context: dict[str, Any]) -> Response | None:
    """The response by which a middleware ends the request; None when it goes on, its context merged into `context`.

    Raises `WireError` for a result that says neither.
    """
    action = result.get("action") if isinstance(result, dict) else None
    if action == "continue":
        more = result.get("context")
        if more is not None and not isinstance(more, dict):
            raise WireError("a middleware's `context` must be an object", INVALID_RESULT)
        context.update(more or {})
        return None
    if action == "respond":
        response = result.get("response")
        if response is not None and not isinstance(response, dict):
            raise WireError("a middleware's `response` must be an object", INVALID_RESULT)
        return _respond(response or {})
    raise WireError('a middleware must return {"action": "continue"} or {"action": "respond", …}', INVALID_RESULT)


def _respond(fields: Mapping[str, Any]) -> Response:
    """A short-circuit's response: its body is always JSON."""
    headers = tuple(headers_of(fields.get("headers")))
    if all(name != b"content-type" for name, _ in headers):
        headers = ((b"content-type", b"application/json"), *headers)
    return Response(status_of(fields), headers, codec.encode_value(fields.get("body")))
