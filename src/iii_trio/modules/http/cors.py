"""Which browser origins may read a response: the CORS tables of spec/http.md §5. No I/O."""

from typing import Final

from ...config import CorsSettings
from .messages import Headers, Response

ALLOW_ORIGIN: Final = b"access-control-allow-origin"
ALLOW_METHODS: Final = b"access-control-allow-methods"
ALLOW_HEADERS: Final = b"access-control-allow-headers"
EXPOSE_HEADERS: Final = b"access-control-expose-headers"
VARY: Final = b"origin, access-control-request-method, access-control-request-headers"
ANY: Final = b"*"
_OPEN: Final[Headers] = ((ALLOW_ORIGIN, ANY), (EXPOSE_HEADERS, ANY))


def preflight(cors: CorsSettings | None, origin: str | None) -> Response:
    """The answer to every OPTIONS request, whatever its path: 200 without a body."""
    methods = ",".join(cors.allowed_methods).encode() if cors is not None and cors.allowed_methods else ANY
    headers = ((ALLOW_METHODS, methods), (ALLOW_HEADERS, ANY), (b"vary", VARY))
    return Response(200, (*_allow_origin(cors, origin), *headers))


def decorate(response: Response, cors: CorsSettings | None, origin: str | None, more: Headers = ()) -> Response:
    """Any other response with its CORS headers: they replace a handler's own, and its `vary` is extended.

    A handler cannot admit an origin that the settings do not. Headers in `more` replace a handler's own as well.
    """
    ours = _OPEN if cors is None else _allow_origin(cors, origin)
    names = {b"vary", ALLOW_ORIGIN, *(name for name, _ in ours), *(name for name, _ in more)}
    theirs = [pair for pair in response.headers if pair[0] not in names]
    vary = VARY
    if len(theirs) != len(response.headers):
        more_vary = (value for name, value in response.headers if name == b"vary" and value not in (b"", VARY))
        vary = b", ".join([*more_vary, VARY])
    return Response(response.status, (*theirs, *more, *ours, (b"vary", vary)), response.body, response.close)


def _allow_origin(cors: CorsSettings | None, origin: str | None) -> Headers:
    if cors is None or not cors.allowed_origins or "*" in cors.allowed_origins:
        return ((ALLOW_ORIGIN, ANY),)
    if origin is not None and origin in cors.allowed_origins:
        return ((ALLOW_ORIGIN, origin.encode()),)
    return ()
