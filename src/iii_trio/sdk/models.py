"""The shapes of HTTP in a handler: the request it is given and the response it may return (spec/sdk.md §9).

    @worker.http("GET", "numbers")
    async def numbers(request: HttpRequest) -> None:
        async with await request.respond(headers={"content-type": "text/event-stream"}) as response:
            for number in range(10):
                await response.send_all(b"data: %d\\n\\n" % number)
                await trio.sleep(1)

The two channels of a request are connected when they are first used; a handler that leaves them alone costs nothing
more than any other function.
"""

import json
from collections.abc import Mapping
from typing import Any

from attrs import Factory, define, field, frozen

from .channels import Arrivals, ChannelReceiver, ChannelSender


@frozen(kw_only=True)
class RequestInfo:
    """The request itself, as its client sent it.

    `path` is raw, before any decoding, and `query` what stands behind its question mark. `client` is an address, that
    of the connection or what a trusted proxy says. `id` is the request's id in the engine's log and its response.
    """

    path: str = ""
    query: str = ""
    scheme: str = "http"
    client: str = ""
    http_version: str = "1.1"
    id: str = ""


@define(eq=False)
class RequestEnds:
    """The handler's ends of a request's two channels, made when they are first looked at."""

    _arrivals: Arrivals
    _body_ref: Any
    _response_ref: Any
    _body: ChannelReceiver | None = None
    _response: ChannelSender | None = None

    @property
    def body(self) -> ChannelReceiver:
        """Raises `ValueError` where the engine has sent no ref, `RuntimeError` when the handler has returned."""
        if self._body is None:
            self._body = self._arrivals.receiver(self._body_ref)
        return self._body

    @property
    def response(self) -> ChannelSender:
        """Raises like `body`."""
        if self._response is None:
            self._response = self._arrivals.sender(self._response_ref)
        return self._response

    @property
    def responding(self) -> bool:
        """Whether somebody writes, or may write, to the response's channel."""
        return self._response is not None and not self._response.untouched


@frozen(kw_only=True)
class HttpRequest:
    """What the `http` trigger passes to a handler.

    `path` is the route's pattern as it was registered and `path_params` its parameters; header names are lower case;
    a query value may be a list when a key came several times. `body` is the decoded JSON of a JSON request or the
    fields of a small form, else None. `request` is the request itself, `context` what middleware has put together.

    `request_body` and `response` are the raw body and the response as streams. They are closed when the handler returns
    and cut off when it fails; what is to outlive it, it hands on as `.ref`.
    """

    method: str = "GET"
    path: str = ""
    path_params: dict[str, str] = Factory(dict)
    query_params: dict[str, str | list[str]] = Factory(dict)
    headers: dict[str, str | list[str]] = Factory(dict)
    body: Any = None
    request: RequestInfo = RequestInfo()
    context: dict[str, Any] = Factory(dict)
    _ends: RequestEnds | None = field(default=None, init=False, repr=False, eq=False)

    @property
    def request_body(self) -> ChannelReceiver:
        """The raw bytes of the body as they come; a handler that reads slowly slows its client down.

        Raises `RuntimeError` for a request that no engine has sent, and once the handler has returned.
        """
        return self._live().body

    @property
    def response(self) -> ChannelSender:
        """The response's channel, which streams bytes to the client at once; `respond` sets its head first.

        What the handler returns no longer counts when bytes were sent. Raises like `request_body`.
        """
        return self._live().response

    @property
    def responding(self) -> bool:
        """Whether the response's channel was used, or handed on."""
        return self._ends is not None and self._ends.responding

    async def respond(self, status_code: int = 200, headers: Mapping[str, str] | None = None) -> ChannelSender:
        """Set the head of a response that streams; gives its channel, to be closed at the end of the body.

        Raises `trio.BrokenResourceError` when the client has left, else like `request_body`.
        """
        response = self.response
        await response.send(json.dumps({"type": "set_status", "status_code": status_code}))
        if headers:
            await response.send(json.dumps({"type": "set_headers", "headers": dict(headers)}))
        return response

    def _live(self) -> RequestEnds:
        if self._ends is None:
            raise RuntimeError("only a request that an engine has sent to a handler has channels")
        return self._ends


def with_ends(request: HttpRequest, arrivals: Arrivals | None, payload: Mapping[str, Any]) -> HttpRequest:
    """Give a request the channels that its payload names, where there is a handler to use them; returns the request."""
    if arrivals is not None and arrivals.ends is not None:
        ends = RequestEnds(arrivals, payload.get("request_body"), payload.get("response"))
        object.__setattr__(request, "_ends", ends)  # frozen for its handler, who is given it whole
    return request


@frozen
class HttpResponse:
    """What a handler of an `http` trigger may return instead of a dict of the same three keys.

    A `body` of any JSON value is sent as JSON, unless `headers` name a content type: then a str is sent as it is.
    """

    status_code: int = 200
    headers: dict[str, str] = Factory(dict)
    body: Any = None
