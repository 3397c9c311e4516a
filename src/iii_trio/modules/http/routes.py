"""The route table: which binding answers a method and a path (spec/http.md §3, §4). No I/O.

Theory of operation. Paths stand in a tree with one edge per segment. A node's literal edges are tried before its one
parameter edge, that before its one wildcard edge, and the search goes back when an edge leads nowhere, so its cost
depends on the tree along the path, not on the number of routes. The path is chosen first, the method second. Parameter
names belong to the route and not to the tree: methods may name them differently.

The forms of a segment: a literal; `:name` or `{name}`, which matches any one segment that is not empty; and, in the last
place, `*name`, `{*name}` or `*` (whose name is `*`), which matches whatever remains, slashes included, if anything does.
Segments are compared and parameters handed over percent-decoded; an encoded slash separates nothing.

Each (method, shape) holds an ordered list of claims. The newest serves, because a worker that reconnects or is deployed
anew must take over at once; the older ones stand by and serve again when it goes, so no route vanishes.
"""

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final
from urllib.parse import unquote

from attrs import define, field, frozen

from ...engine.triggers import Binding, Reason
from ...protocol import ABSENT, Json, JsonError
from ...protocol.errors import TriggerRejected
from ...protocol.limits import DEADLINE_S

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
MAX_TIMEOUT_MS: Final = int(DEADLINE_S * 1000)
MAX_PATH: Final = 1024
"""Longest `api_path` in characters; a request's path can be longer, it only matches nothing."""

_NAME: Final = re.compile(r":([^{}]+)|\{([^{}*]+)\}")
_REST: Final = re.compile(r"\*([^{}*/]*)|\{\*([^{}*/]*)\}")


class Kind(Enum):
    """A segment of a pattern that is no literal."""

    REST = "rest"


Segment = str | Kind | None
"""A literal, percent-decoded; None for a parameter; or a wildcard."""


@frozen
class Pattern:
    """A registered path: `text` as it was given, its segments, and the name of each parameter by position."""

    text: str
    segments: tuple[Segment, ...]
    parameters: tuple[tuple[int, str], ...]

    @property
    def rest(self) -> bool:
        """Whether it ends in a wildcard."""
        return self.segments[-1] is Kind.REST

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names from left to right."""
        return tuple(name for _, name in self.parameters)


def read_pattern(text: str) -> Pattern:
    """The pattern of an `api_path`, with or without leading slashes.

    Raises `TriggerRejected` for a path that no request could ever match.
    """
    if len(text) > MAX_PATH:
        raise TriggerRejected(f"api_path is {len(text)} characters long; at most {MAX_PATH} are served")
    for mark in "?#":
        if mark in text:
            raise TriggerRejected(f"api_path '{text}' contains '{mark}': give the path alone, queries always match")
    segments: list[Segment] = []
    parameters: list[tuple[int, str]] = []
    given = text.lstrip("/").split("/")
    for index, segment in enumerate(given):
        named, rest = _NAME.fullmatch(segment), _REST.fullmatch(segment)
        if rest is not None and index == len(given) - 1:
            segments.append(Kind.REST)
            parameters.append((index, rest[1] or rest[2] or "*"))
        elif segment.startswith(("*", "{*")):
            raise TriggerRejected(
                f"api_path '{text}' has the wildcard segment '{segment}': a wildcard is the whole last segment, '*name'"
            )
        elif named is not None:
            segments.append(None)
            parameters.append((index, named[1] or named[2]))
        elif segment.startswith(":") or "{" in segment or "}" in segment:
            raise TriggerRejected(
                f"api_path '{text}' has the malformed segment '{segment}': a parameter is a whole segment, ':name'"
            )
        else:
            segments.append(unquote(segment))
    return Pattern(text, tuple(segments), tuple(parameters))


@define(eq=False, kw_only=True)
class Route:
    """One binding's route. `condition` and `middleware` are ids of functions, looked up in the binding's namespace.

    `timeout_ms` takes the place of `default_timeout` for its requests.
    """

    method: str
    pattern: Pattern
    binding: Binding
    condition: str | None = None
    middleware: tuple[str, ...] = ()
    timeout_ms: int | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.pattern.text}"


def read_route(binding: Binding) -> Route:
    """The route a binding's config asks for (spec/http.md §3). Raises `TriggerRejected`."""
    config = _config(binding.config)
    path = config.get("api_path")
    if not isinstance(path, str):
        raise TriggerRejected("api_path is required for http triggers")
    given = config.get("http_method")
    method = given.upper() if isinstance(given, str) else "GET"
    if method not in METHODS:
        raise TriggerRejected(f"http_method '{given}' is not served; use one of {', '.join(METHODS)}")
    chain = config.get("middleware_function_ids")
    condition = config.get("condition_function_id")
    timeout = config.get("timeout_ms")
    return Route(
        method=method,
        pattern=read_pattern(path),
        binding=binding,
        condition=condition if isinstance(condition, str) and condition else None,
        middleware=tuple(item for item in chain if isinstance(item, str)) if isinstance(chain, list) else (),
        timeout_ms=min(timeout, MAX_TIMEOUT_MS) if type(timeout) is int and timeout > 0 else None,  # True is no 1
    )


def _config(config: Json) -> dict[str, Any]:
    try:
        value = config.decode()
    except JsonError as error:
        raise TriggerRejected(f"the trigger's config is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


@frozen
class Match:
    """A request's route and the values of its parameters, percent-decoded."""

    route: Route
    params: dict[str, str]


def fallback(method: str, path: str, function_id: str) -> Match:
    """What answers where no route does: `not_found_function`, in the default namespace."""
    binding = Binding(id="not_found_function", trigger_type="http", function_id=function_id, config=ABSENT)
    return Match(Route(method=method, pattern=Pattern(path, (), ()), binding=binding), {})


@frozen
class NotAllowed:
    """The path is known, the method is not: what the `allow` header lists."""

    methods: tuple[str, ...]


@frozen
class RouteStatistics:
    """`serving` routes answer requests, `standing_by` wait for a newer one to leave; `nodes` make up the tree."""

    serving: int
    standing_by: int
    nodes: int


@define(eq=False)
class _Node:
    """What follows one prefix. `claims` by method, oldest first; a method without claims is not in it."""

    literals: dict[str, "_Node"] = field(factory=dict)
    parameter: "_Node | None" = None
    rest: "_Node | None" = None
    claims: dict[str, list[Route]] = field(factory=dict)

    def child(self, segment: Segment) -> "_Node | None":
        if isinstance(segment, str):
            return self.literals.get(segment)
        return self.parameter if segment is None else self.rest

    def grow(self, segment: Segment) -> "_Node":
        child = self.child(segment)
        if child is None:
            child = _Node()
            self._set(segment, child)
        return child

    def cut(self, segment: Segment) -> None:
        if isinstance(segment, str):
            del self.literals[segment]
        else:
            self._set(segment, None)

    def _set(self, segment: Segment, child: "_Node | None") -> None:
        if isinstance(segment, str):
            assert child is not None
            self.literals[segment] = child
        elif segment is None:
            self.parameter = child
        else:
            self.rest = child

    @property
    def empty(self) -> bool:
        return not (self.literals or self.parameter or self.rest or self.claims)


@define(eq=False)
class Routes:
    """The table, and the provider of the trigger type `http`. Every method is one synchronous step.

    It holds what bindings of the engine's table derive to; the engine says when one comes, changes and goes.
    """

    revision: int = field(default=0, init=False)
    """Counts the changes."""
    _root: _Node = field(factory=_Node, init=False)
    _bound: dict[str, Route] = field(factory=dict, init=False)

    # -- the provider of `http` ---------------------------------------------------------------------------------------

    def bind(self, binding: Binding) -> None:
        """See `Provider.bind`: the route serves from now on, in the place of an older one of its key."""
        route = read_route(binding)
        self.add(route)
        self._bound[binding.id] = route

    def replace(self, old: Binding, new: Binding) -> None:
        """See `Provider.replace`: the old route goes, whatever its path was."""
        route, leaving = read_route(new), self._bound[old.id]
        self._check(route, leaving)
        self.remove(leaving)
        self.add(route)
        self._bound[new.id] = route

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """See `Provider.unbind`."""
        route = self._bound.pop(binding.id, None)
        if route is not None:
            self.remove(route)

    # -- the table ----------------------------------------------------------------------------------------------------

    def find(self, method: str, path: str, ignore_trailing_slash: bool = False) -> Match | NotAllowed | None:
        """Who answers `method` on the raw request path, without its query; None when nobody knows the path.

        A HEAD request is answered by the GET route of its path where none is registered for HEAD. With
        `ignore_trailing_slash` a path that nobody knows is looked for without its last slash, or with one more.
        """
        if not path.startswith("/"):
            return None
        segments = path[1:].split("/")
        if "%" in path:
            segments = [unquote(segment) for segment in segments]
        claims = self._search(segments)
        if claims is None and ignore_trailing_slash and path != "/":
            segments = segments[:-1] if not segments[-1] else [*segments, ""]
            claims = self._search(segments)
        if claims is None:
            return None
        serving = claims.get(method) or (claims.get("GET") if method == "HEAD" else None)
        if serving is None:
            served = claims.keys() | ({"HEAD"} if "GET" in claims else set())
            return NotAllowed(tuple(name for name in METHODS if name in served))
        route = serving[-1]
        params = {name: segments[index] for index, name in route.pattern.parameters}
        if route.pattern.rest:
            index, name = route.pattern.parameters[-1]
            params[name] = "/".join(segments[index:])
        return Match(route, params)

    def _search(self, segments: list[str]) -> dict[str, list[Route]] | None:
        end = len(segments)
        untried = [(self._root, 0)]
        while untried:
            node, depth = untried.pop()
            if depth == end:
                if node.claims:
                    return node.claims
                continue
            segment = segments[depth]
            if node.rest is not None and (segment or depth < end - 1):
                untried.append((node.rest, end))
            if node.parameter is not None and segment:
                untried.append((node.parameter, depth + 1))
            literal = node.literals.get(segment)
            if literal is not None:
                untried.append((literal, depth + 1))  # on top: tried first
        return None

    def add(self, route: Route) -> None:
        """Let `route` serve its key. Raises `TriggerRejected` when its shape is taken under other parameter names."""
        self._check(route)
        node = self._root
        for segment in route.pattern.segments:
            node = node.grow(segment)
        node.claims.setdefault(route.method, []).append(route)
        self.revision += 1

    def remove(self, route: Route) -> None:
        """Take a route out; the newest of those that stood by serves again. Raises `KeyError` if it is not in."""
        trail = [self._root]
        for segment in route.pattern.segments:
            child = trail[-1].child(segment)
            if child is None:
                raise KeyError(str(route))
            trail.append(child)
        claims = trail[-1].claims.get(route.method, [])
        if route not in claims:
            raise KeyError(str(route))
        claims.remove(route)
        self.revision += 1
        if not claims:
            del trail[-1].claims[route.method]
        for parent, segment, node in reversed(list(zip(trail, route.pattern.segments, trail[1:], strict=False))):
            if not node.empty:
                break
            parent.cut(segment)

    def _check(self, route: Route, leaving: Route | None = None) -> None:
        node: _Node | None = self._root
        for segment in route.pattern.segments:
            node = node.child(segment) if node is not None else None
        if node is None:
            return
        for claim in node.claims.get(route.method, ()):
            if claim is not leaving and claim.pattern.names != route.pattern.names:
                raise TriggerRejected(
                    f"Route '{route}' conflicts with already-registered route '{claim}': routes with identical "
                    "structure but different path-parameter names are not supported"
                )

    def __iter__(self) -> Iterator[Route]:
        """Every serving route, in no particular order."""
        for node in self._nodes():
            for claims in node.claims.values():
                yield claims[-1]

    def _nodes(self) -> Iterator[_Node]:
        untried = [self._root]
        while untried:
            node = untried.pop()
            yield node
            untried.extend(node.literals.values())
            untried.extend(child for child in (node.parameter, node.rest) if child is not None)

    def statistics(self) -> RouteStatistics:
        """A frozen picture of the table."""
        counts = [len(claims) for node in self._nodes() for claims in node.claims.values()]
        return RouteStatistics(
            serving=len(counts),
            standing_by=sum(counts) - len(counts),
            nodes=sum(1 for _ in self._nodes()),
        )
