"""The responses that are the engine's own, and what every response has (spec/http.md §5, §13). No I/O but the log."""

import logging
import secrets
from http import HTTPStatus
from typing import Final

from ...config import HttpSettings
from ...engine.invocations import Outcome
from ...protocol import JsonError, errors
from . import cors
from .access_log import refused
from .messages import Headers, Request, Response, envelope, from_result, new_error_id
from .routes import NotAllowed, Route

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 1
RETRY: Final[Headers] = ((b"retry-after", b"%d" % RETRY_AFTER_S),)
OVERLOADED: Final = frozenset({errors.WORKER_OVERLOADED, errors.TOO_MANY_CALLS})
"""Refusals by the engine itself that pass with time: 503 instead of 500."""
BAD_INPUT: Final = frozenset({errors.DESERIALIZATION_ERROR, "INVALID_INPUT"})
"""What built-ins, and workers of our SDK, answer to a payload that is not what they take."""


def dressed(response: Response, request: Request, settings: HttpSettings) -> Response:
    """A response with what every response has: CORS headers, and the request's id."""
    more: Headers = ()
    if request.id:
        more = ((settings.request_id_header.lower().encode("ascii"), request.id.encode("ascii")),)
    return cors.decorate(response, settings.cors, request.origin, more)


def refusal(status: int, text: str, settings: HttpSettings) -> Response:
    """The answer to what is no HTTP (its `text` says why), and to a request that a bug has ended (500)."""
    request = Request("-", "-", "", {}, id=secrets.token_hex(16) if settings.request_id_header else "")
    if settings.access_log:
        refused(status, text, request)
    code = "INTERNAL_ERROR" if status == 500 else HTTPStatus(status).name
    return dressed(envelope(status, code, text), request, settings)


def unavailable() -> Response:
    """The answer to every request while the engine drains, or the module is not up: 503, and the connection ends."""
    text = "The engine is shutting down or starting; try again"
    return envelope(503, errors.ENGINE_DRAINING, text, headers=RETRY, close=True)


def shed() -> Response:
    """The answer to a request for which there is no slot."""
    return envelope(503, errors.WORKER_OVERLOADED, "Too many requests are being handled; try again", headers=RETRY)


def not_served(found: NotAllowed | None) -> Response:
    """The answer where no route is: 404, or 405 where other methods have one."""
    if found is None:
        return envelope(404, "NOT_FOUND", "Not Found")
    allow = ((b"allow", ",".join(found.methods).encode()),)
    return envelope(405, "METHOD_NOT_ALLOWED", "Method Not Allowed", headers=allow)


def of_result(outcome: Outcome, function_id: str, route: Route) -> Response:
    """What a handler's result describes; 500 for one that cannot be read."""
    try:
        return from_result(outcome.result.decode())
    except JsonError as error:
        error_id = new_error_id()
        log.error("%s: the result of %s: %s (error_id %s)", str(route), function_id, error, error_id)
        return envelope(500, "INTERNAL_ERROR", "internal server error", error_id=error_id)


def of_failure(outcome: Outcome, function_id: str, route: Route, *, expose: bool) -> Response:
    """What a client learns of a function's failure: all of it, or with `expose` off no more than an id of the log's."""
    error, error_id = outcome.exception(), new_error_id()
    bad_input = error.code in BAD_INPUT and error.message.partition(": ")[0].endswith(f" {function_id}")
    level = logging.INFO if bad_input else logging.ERROR
    log.log(level, "%s: %s failed: %s (error_id %s)", str(route), function_id, error, error_id)
    if error.code in OVERLOADED:
        return envelope(503, error.code, error.message, error_id=error_id, headers=RETRY)
    if bad_input:
        # of this function: one that it has called in turn with the wrong input is nothing the client could mend
        text = error.message if expose else "The request is not what the function takes"
        return envelope(400, "BAD_REQUEST", text, error_id=error_id)
    if not expose:
        return envelope(500, "INTERNAL_ERROR", "internal server error", error_id=error_id)
    return envelope(500, error.code, error.message, error_id=error_id)
