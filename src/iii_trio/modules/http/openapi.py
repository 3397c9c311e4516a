"""The live routes as an OpenAPI 3.1 document. No I/O.

What is known of a route is its binding and the formats of its function. Of a request format that describes the handler's
input, `path_params`, `query_params`, `headers` and `body` are taken; of a response format that describes a response (or
several, one of which it is), `status_code`, `headers` and `body`, and of any other all of it, for that is the body. What
the engine itself may answer stands beside it.
Routes of one shape share a path, whose parameters are named as the first of them names them.

The document is made piece by piece, so that 10,000 routes stall nobody, and kept until a route or a function changes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote

import trio
from attrs import define, field, frozen

from ...engine.functions import FunctionEntry, Functions
from ...protocol import codec
from .messages import Request, Response
from .openapi_schemas import PLACE, UNSAFE, Format, Schema, Schemas, without_null
from .routes import Kind, Pattern, Route, Routes
from .viewer import viewer

Lookup = Callable[[str, str], FunctionEntry | None]

VERSION: Final = "3.1.0"
STEP: Final = 16
"""Pieces that are made at once; other tasks run between."""
FUNCTIONS_KEPT: Final = 256
"""Descriptions at hand for the next route of the same function; any other is made again."""
DOCUMENT_BYTES: Final = 32 * 1024 * 1024
"""A document of this size says no more of its routes than that they are there."""
JSON: Final = "application/json"
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_NO_PARAMETERS: Final = frozenset({"accept", "content-type", "authorization"})
"""Header fields that OpenAPI has other words for."""
_BEARER: Final = "bearer"
_FIELDS: Final = frozenset({"status_code", "statusCode", "headers", "body"})

_ERROR: Final[Schema] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "error_id": {"type": "string", "description": "What the engine's log knows it by."},
            },
            "required": ["code", "message"],
        },
        "skipped": {"type": "boolean"},
    },
    "required": ["error"],
}
_ERRORS: Final = {
    "400": ("BadRequest", "The body is not what its content type says, or the request is not what the function takes."),
    "413": ("BodyTooLarge", "The body is larger than it may be."),
    "422": ("ConditionNotMet", "The condition of the route was not met."),
    "500": ("Failed", "The function, or one that the request passes before it, has failed."),
    "503": ("Unavailable", "The engine or the worker has too much to do, or is stopping; try again."),
    "504": ("TimedOut", "There was no response in time."),
}


def _error_responses() -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": f"{PLACE}Error"}}}
    return {name: {"description": description, "content": content} for name, description in _ERRORS.values()}


@define(eq=False)
class Document:
    """The document of a route table: made when somebody asks for it, and then kept as long as it is true."""

    routes: Routes
    functions: Functions
    _text: bytes = field(default=b"", init=False)
    _of: tuple[int, int] | None = field(default=None, init=False)
    _making: trio.Lock = field(factory=trio.Lock, init=False)

    async def answer(self, request: Request) -> Response:
        """The document as JSON or, for who prefers HTML, a page that fetches and shows it."""
        if "text/html" in request.headers.get("accept", ""):
            page = viewer()
            return Response(200, ((b"vary", b"accept"), *page.headers), page.content)
        headers = ((b"content-type", b"application/json"), (b"vary", b"accept"), (b"cache-control", b"no-cache"))
        return Response(200, headers, await self.text())

    async def text(self) -> bytes:
        """The document; who asks while it is made waits for the same one."""
        async with self._making:
            now = (self.routes.revision, self.functions.revision)
            if now != self._of:
                pieces: list[bytes] = []
                for number, piece in enumerate(_pieces(self.routes, self.functions.get)):
                    pieces.append(piece)
                    if number % STEP == STEP - 1:
                        await trio.lowlevel.checkpoint()
                self._text, self._of = b"".join(pieces), now
        return self._text


def document(routes: Iterable[Route], lookup: Lookup) -> dict[str, Any]:
    """The document at once; `lookup` finds a function by namespace and id. The same routes give the same document."""
    made: dict[str, Any] = codec.decode_value(b"".join(_pieces(routes, lookup)))
    return made


def _pieces(routes: Iterable[Route], lookup: Lookup) -> Iterator[bytes]:
    """The document's text, in pieces of about the same work."""
    describing = _Describing(lookup)
    groups: dict[tuple[object, ...], list[Route]] = {}
    snapshot = list(routes)  # at once: the table may change between two pieces
    yield b""
    snapshot.sort(key=_order)
    for number, route in enumerate(snapshot):
        # a wildcard and a parameter in one place would be one path to OpenAPI
        key = tuple(None if segment is Kind.REST else segment for segment in route.pattern.segments)
        groups.setdefault(key, []).append(route)
        if number % STEP == 0:
            yield b""
    info = {"title": "HTTP routes", "version": "1", "description": "The routes that are served now."}
    yield b'{"openapi":"%b","info":%b,"paths":{' % (VERSION.encode(), codec.encode_value(info))
    size, comma = 0, b""
    for group in groups.values():
        template, names = _template(group[0].pattern)
        item: dict[str, Any] = {}
        for route in group:
            if (method := route.method.lower()) not in item:
                item[method] = describing.operation(route, names, brief=size > DOCUMENT_BYTES)
            else:
                item[method]["description"] = f"Longer paths are answered by {route.binding.function_id}."
        piece = b"%b%b:%b" % (comma, codec.encode_value(template), codec.encode_value(item))
        size, comma = size + len(piece), b","
        yield piece
    yield b'},"components":{"schemas":{"Error":%b' % codec.encode_value(_ERROR)
    for name, schema in describing.schemas.components.items():
        yield b",%b:%b" % (codec.encode_value(name), schema)
    yield b'},"responses":%b' % codec.encode_value(_error_responses())
    if describing.guarded:
        schemes = {_BEARER: {"type": "http", "scheme": "bearer"}}
        yield b',"securitySchemes":%b' % codec.encode_value(schemes)
    yield b"}}"


def _order(route: Route) -> tuple[bool, str, str]:
    """Wildcards last, so that a parameter in the same place has its say first."""
    return route.pattern.rest, route.pattern.text, route.method


def _template(pattern: Pattern) -> tuple[str, tuple[str, ...]]:
    """The path with its parameters in braces, and their names, which are unique."""
    parts: list[str] = []
    names: list[str] = []
    given = iter(pattern.names)
    for segment in pattern.segments:
        if isinstance(segment, str):
            parts.append(quote(segment, safe="!$&'()*+,;=:@"))
            continue
        name = UNSAFE.sub("_", next(given)).strip("_") or "rest"
        while name in names:
            name += "_"
        names.append(name)
        parts.append(f"{{{name}}}")
    return "/" + "/".join(parts), tuple(names)


@frozen
class _Function:
    """What the document says of a function, whichever routes call it."""

    words: dict[str, str]
    path: dict[str, Schema]
    parameters: list[dict[str, Any]]
    body: dict[str, Any] | None
    responses: dict[str, Any]
    security: list[dict[str, list[str]]] | None


@define(eq=False)
class _Describing:
    """One document in the making."""

    lookup: Lookup
    schemas: Schemas = field(factory=Schemas, init=False)
    guarded: bool = field(default=False, init=False)
    _functions: dict[tuple[str, str], _Function] = field(factory=dict, init=False)
    _ids: set[str] = field(factory=set, init=False)

    def operation(self, route: Route, names: tuple[str, ...], *, brief: bool) -> dict[str, Any]:
        binding = route.binding
        key = (binding.namespace, binding.function_id)
        function = self._functions.get(key)
        if function is None:
            entry = None if brief else self.lookup(*key)
            function = self._function(entry, ".".join(key))
            self.schemas.settle()
            if len(self._functions) == FUNCTIONS_KEPT:
                self._functions.clear()
            self._functions[key] = function
        name = UNSAFE.sub("_", f"{route.method}_{'.'.join(key)}.{route.pattern.text}")
        while name in self._ids:
            name += "_"
        self._ids.add(name)
        operation: dict[str, Any] = {"operationId": name, "tags": [binding.namespace], **function.words}
        kinds = [segment for segment in route.pattern.segments if not isinstance(segment, str)]
        listed: list[dict[str, Any]] = []
        for shown, own, kind in zip(names, route.pattern.names, kinds, strict=True):
            schema = function.path.get(own, {"type": "string"})
            parameter = {"name": shown, "in": "path", "required": True, "schema": schema}
            if kind is Kind.REST:
                parameter["description"] = "Whatever remains of the path, slashes included."
            listed.append(parameter)
        if listed or function.parameters:
            operation["parameters"] = listed + function.parameters
        if route.method in _WITH_BODY or (route.method == "DELETE" and function.body is not None):
            operation["requestBody"] = function.body or {"content": {JSON: {"schema": {}}}}
        if function.security is not None:
            operation["security"] = function.security
        operation["responses"] = _responses(route, function.responses)
        return operation

    def _function(self, entry: FunctionEntry | None, name: str) -> _Function:
        if entry is None:
            return _Function({}, {}, [], None, {"default": {"description": "What the function answers."}}, None)
        request = self.schemas.read(entry.request_format, f"{name}.request")
        response = self.schemas.read(entry.response_format, f"{name}.response")
        inputs, required = self.schemas.properties(request.schema)
        path, _ = self.schemas.properties(inputs.get("path_params", {}))
        parameters = list(self._parameters("query", inputs.get("query_params", {}), name))
        parameters += self._parameters("header", inputs.get("headers", {}), name)
        return _Function(
            words=_words(entry, request, response),
            path={key: self.schemas.place(without_null(part), f"{name}.path.{key}") for key, part in path.items()},
            parameters=parameters,
            body=self._body(inputs, "body" in required, name),
            responses=self._answers(response.schema, name),
            security=self._security(inputs.get("headers", {})),
        )

    def _parameters(self, where: str, schema: Schema, name: str) -> Iterator[dict[str, Any]]:
        given, required = self.schemas.properties(schema)
        for key, part in given.items():
            if where == "query" or key.lower() not in _NO_PARAMETERS:
                placed = self.schemas.place(without_null(part), f"{name}.{where}.{key}")
                yield {"name": key, "in": where, "required": key in required, "schema": placed}

    def _body(self, inputs: dict[str, Schema], required: bool, name: str) -> dict[str, Any] | None:
        body = inputs.get("body")
        media = self._media_types(inputs.get("headers", {}))
        if body is None and not media:
            return None
        placed = self.schemas.place(body or {}, f"{name}.request.body")
        return {"required": required, "content": {kind: {"schema": placed} for kind in media or [JSON]}}

    def _answers(self, schema: Schema, name: str) -> dict[str, Any]:
        """Responses by status, of a format that describes one or several of them; without one anything may come."""
        bodies: dict[str, dict[str, list[Schema]]] = {}
        for variant in self.schemas.alternatives(schema):
            if variant.get("type") == "null":
                bodies["204"] = {}
                continue
            fields, _ = self.schemas.properties(variant)
            if _FIELDS.isdisjoint(fields) and (fields or variant.get("type", "object") != "object"):
                fields = {"body": variant}  # what has none of a response's keys is the body itself
            status = fields.get("status_code", fields.get("statusCode"))
            named = [] if status is None else self.schemas.values(status)
            statuses = [str(value) for value in named if isinstance(value, int) and 200 <= value <= 599]
            if not statuses:
                statuses = ["200"] if status is None and "body" in fields else ["default"]
            media = self._media_types(fields.get("headers", {})) or ([JSON] if "body" in fields else [])
            for key in statuses:
                of_status = bodies.setdefault(key, {})
                for kind in media:
                    placed = self.schemas.place(fields.get("body", {}), f"{name}.response.body.{key}")
                    if placed not in of_status.setdefault(kind, []):
                        of_status[kind].append(placed)
        answers: dict[str, Any] = {}
        for key, content in sorted(bodies.items()):
            answers[key] = {"description": "What the function answers."}
            if content:
                answers[key]["content"] = {
                    kind: {"schema": parts[0] if len(parts) == 1 else {"anyOf": parts}}
                    for kind, parts in content.items()
                }
        return answers

    def _media_types(self, headers: Schema) -> list[str]:
        """The content types that a format names."""
        for key, schema in self.schemas.properties(headers)[0].items():
            if key.lower() == "content-type":
                return [value for value in self.schemas.values(schema) if isinstance(value, str) and "/" in value]
        return []

    def _security(self, headers: Schema) -> list[dict[str, list[str]]] | None:
        """A format with an `authorization` header asks for a bearer's token; an optional one lets others in, too."""
        given, required = self.schemas.properties(headers)
        names = [key for key in given if key.lower() == "authorization"]
        if not names:
            return None
        self.guarded = True
        return [{_BEARER: []}] if names[0] in required else [{_BEARER: []}, {}]


def _responses(route: Route, of_function: dict[str, Any]) -> dict[str, Any]:
    """What the function answers and what the engine does; where both have a status, either fits."""
    responses: dict[str, Any] = {}
    for status, (name, description) in _ERRORS.items():
        if status == "422" and route.condition is None:
            continue
        own = of_function.get(status)
        if own is None:
            responses[status] = {"$ref": f"#/components/responses/{name}"}
        else:
            content = {media: dict(what) for media, what in own.get("content", {}).items()}
            schema = content.setdefault(JSON, {}).get("schema", {})
            content[JSON]["schema"] = {"anyOf": [schema, {"$ref": f"{PLACE}Error"}]}
            responses[status] = {"description": f"{own['description']} Or: {description}", "content": content}
    return of_function | responses


def _words(entry: FunctionEntry, request: Format, response: Format) -> dict[str, str]:
    words: dict[str, str] = {}
    if entry.description:
        first = entry.description.strip().split("\n", 1)[0].strip()
        words["summary"] = first if len(first) <= 120 else first[:119] + "…"
        if words["summary"] != entry.description.strip():
            words["description"] = entry.description
    for what, read in (("request", request), ("response", response)):
        if read.problem is not None:
            words[f"x-iii-{what}-format"] = f"left out, it is no JSON Schema: {read.problem[:300]}"
    return words
