"""The live routes as an OpenAPI 3.1 document, and a page that shows it. No I/O.

What is known of a route is its binding and the formats of its function. Of a request format that describes the handler's
input, `body`, `query_params` and `path_params` are taken; of a response format that describes a response, its `body`.
Routes of one shape share a path, whose parameters are named as the first of them names them.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from ...engine.functions import FunctionEntry
from ...protocol import Json, JsonError, codec
from .messages import Request, Response
from .routes import Kind, Pattern, Route

Lookup = Callable[[str, str], FunctionEntry | None]

VERSION: Final = "3.1.0"
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
_LOCAL: Final = re.compile(r"#/(?:\$defs|definitions)/(.+)")
_ERROR: Final = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "error_id": {"type": "string"},
            },
            "required": ["code", "message"],
        }
    },
    "required": ["error"],
}


def answer(request: Request, routes: Iterable[Route], lookup: Lookup) -> Response:
    """The document as JSON or, for who prefers HTML, as a page that needs nothing else."""
    text = codec.encode_value(document(routes, lookup))
    if "text/html" in request.headers.get("accept", ""):
        page = PAGE.replace("DOCUMENT", html.escape(text.decode(), quote=False))
        return Response(200, ((b"content-type", b"text/html; charset=utf-8"), (b"vary", b"accept")), page.encode())
    return Response(200, ((b"content-type", b"application/json"), (b"vary", b"accept")), text)


def document(routes: Iterable[Route], lookup: Lookup) -> dict[str, Any]:
    """The document; `lookup` finds a function by namespace and id. The same routes give the same document."""
    shared: dict[str, Any] = {"Error": _ERROR}
    names: dict[tuple[object, ...], tuple[str, tuple[str, ...]]] = {}
    paths: dict[str, dict[str, Any]] = {}
    for route in sorted(routes, key=lambda route: (route.pattern.text, route.method)):
        template, parameters = names.setdefault(route.pattern.segments, _template(route.pattern))
        binding = route.binding
        function = lookup(binding.namespace, binding.function_id)
        operation = _operation(route, function, parameters, shared)
        paths.setdefault(template, {})[route.method.lower()] = operation
    return {
        "openapi": VERSION,
        "info": {"title": "HTTP routes", "version": "1", "description": "The routes that are served now."},
        "paths": paths,
        "components": {"schemas": shared},
    }


def _template(pattern: Pattern) -> tuple[str, tuple[str, ...]]:
    """The path with its parameters in braces, and their names, which are unique."""
    parts: list[str] = []
    names: list[str] = []
    given = iter(pattern.names)
    for segment in pattern.segments:
        if isinstance(segment, str):
            parts.append(re.sub(r"[{}?#]", lambda mark: f"%{ord(mark[0]):02X}", segment))
            continue
        name = _UNSAFE.sub("_", next(given))
        if segment is Kind.REST:
            name = (name.strip("_") or "rest") + "*"  # no parameter is called so
        while name in names:
            name += "_"
        names.append(name)
        parts.append(f"{{{name}}}")
    return "/" + "/".join(parts), tuple(names)


def _operation(
    route: Route, function: FunctionEntry | None, parameters: tuple[str, ...], shared: dict[str, Any]
) -> dict[str, Any]:
    binding = route.binding
    name = _UNSAFE.sub("_", f"{route.method}_{binding.namespace}.{binding.function_id}.{route.pattern.text}")
    prefix = _UNSAFE.sub("_", f"{binding.namespace}.{binding.function_id}")
    request = _schema(function.request_format if function else None, f"{prefix}.request", shared)
    response = _schema(function.response_format if function else None, f"{prefix}.response", shared)
    given = _properties(_property(request, "path_params"))
    kinds = [segment for segment in route.pattern.segments if not isinstance(segment, str)]
    listed = [
        {
            "name": shown,
            "in": "path",
            "required": True,
            "schema": given.get(own, {"type": "string"}),
            **({"description": "Whatever remains of the path."} if kind is Kind.REST else {}),
        }
        for shown, own, kind in zip(parameters, route.pattern.names, kinds, strict=True)
    ]
    query = _property(request, "query_params")
    listed += [
        {"name": key, "in": "query", "required": key in query.get("required", ()), "schema": schema}
        for key, schema in _properties(query).items()
    ]
    operation: dict[str, Any] = {"operationId": name, "tags": [binding.namespace]}
    if function is not None and function.description:
        operation["summary"] = function.description
    if listed:
        operation["parameters"] = listed
    if route.method in _WITH_BODY:
        operation["requestBody"] = {"content": {"application/json": {"schema": _property(request, "body")}}}
    body = _property(response, "body")
    operation["responses"] = {
        "200": {"description": "What the function answers.", "content": {"application/json": {"schema": body}}},
        "default": {
            "description": "An error.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        },
    }
    return operation


def _schema(text: Json | None, prefix: str, shared: dict[str, Any]) -> dict[str, Any]:
    """A function's format, its own definitions moved to the shared ones; empty where there is none."""
    try:
        schema = None if text is None else text.decode()
    except JsonError:
        return {}
    if not isinstance(schema, dict):
        return {}
    for key in ("$defs", "definitions"):
        definitions = schema.get(key)
        if isinstance(definitions, dict):
            for name, definition in definitions.items():
                shared[_UNSAFE.sub("_", f"{prefix}.{name}")] = _moved(definition, prefix)
    return {
        key: _moved(value, prefix) for key, value in schema.items() if key not in ("$defs", "definitions", "$schema")
    }


def _moved(value: Any, prefix: str) -> Any:
    """A part of a schema with the references to its own definitions changed to where those are now."""
    if isinstance(value, list):
        return [_moved(item, prefix) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _moved(item, prefix) for key, item in value.items()}
    ref = value.get("$ref")
    if isinstance(ref, str) and (found := _LOCAL.fullmatch(ref)):
        moved["$ref"] = "#/components/schemas/" + _UNSAFE.sub("_", f"{prefix}.{found[1]}")
    return moved


def _property(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The schema of a property, {} (anything) where there is none."""
    found = _properties(schema).get(name)
    return found if isinstance(found, dict) else {}


def _properties(schema: Mapping[str, Any]) -> dict[str, Any]:
    found = schema.get("properties")
    return dict(_sound(found)) if isinstance(found, dict) else {}


def _sound(properties: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, schema in properties.items():
        if isinstance(schema, dict | bool):
            yield name, schema


PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>HTTP routes</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
details { border: 1px solid #ccc; border-radius: 6px; margin: .5rem 0; padding: .5rem .8rem }
summary { cursor: pointer } code { font-size: 15px }
b { display: inline-block; min-width: 5rem } pre { background: #f5f5f5; padding: .8rem; overflow: auto }
</style>
<h1>HTTP routes</h1>
<div id="routes"></div>
<script type="text/plain" id="document">DOCUMENT</script>
<script>
const escaped = document.getElementById('document').textContent
const text = escaped.replaceAll('&lt;', '<').replaceAll('&gt;', '>').replaceAll('&amp;', '&')
const add = (parent, tag, text) => {
  const made = document.createElement(tag)
  made.textContent = text
  parent.append(made)
  return made
}
for (const [path, methods] of Object.entries(JSON.parse(text).paths))
  for (const [method, operation] of Object.entries(methods)) {
    const box = add(document.getElementById('routes'), 'details', '')
    const line = add(box, 'summary', '')
    add(line, 'b', method.toUpperCase())
    add(line, 'code', path)
    if (operation.summary) add(line, 'span', ' — ' + operation.summary)
    add(box, 'pre', JSON.stringify(operation, null, 2))
  }
</script>
</html>
"""
