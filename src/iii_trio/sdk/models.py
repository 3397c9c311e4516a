"""The shapes of HTTP in a handler: the request it is given and the response it may return (spec/sdk.md §9)."""

from typing import Any

from attrs import Factory, frozen


@frozen(kw_only=True)
class HttpRequest:
    """What the `http` trigger passes to a handler.

    `path` is the route's pattern as it was registered and `path_params` its parameters; header names are lower case;
    a query value may be a list when a key came several times. `body` is the decoded JSON of a JSON request, else None.
    """

    method: str = "GET"
    path: str = ""
    path_params: dict[str, str] = Factory(dict)
    query_params: dict[str, str | list[str]] = Factory(dict)
    headers: dict[str, str | list[str]] = Factory(dict)
    body: Any = None


@frozen
class HttpResponse:
    """What a handler of an `http` trigger may return instead of a dict of the same three keys.

    A `body` of any JSON value is sent as JSON, unless `headers` name a content type: then a str is sent as it is.
    """

    status_code: int = 200
    headers: dict[str, str] = Factory(dict)
    body: Any = None
