"""The HTTP route table: matching, claims, conflicts and refusals; random tables against a brute-force matcher."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iii_trio.engine import Binding, Reason
from iii_trio.modules.http.routes import METHODS, Match, NotAllowed, Routes, read_pattern
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import TriggerRejected

_ids = itertools.count()


def binding(path: object, method: object = None, function_id: str = "f", **config: object) -> Binding:
    config |= {"api_path": path} if path is not None else {}
    config |= {"http_method": method} if method is not None else {}
    return Binding(id=f"t{next(_ids)}", trigger_type="http", function_id=function_id, config=Json.of(config))


def bound(routes: Routes, path: str, method: str = "GET", function_id: str = "f") -> Binding:
    new = binding(path, method, function_id)
    routes.bind(new)
    return new


def served(routes: Routes, path: str, method: str = "GET") -> str | None:
    found = routes.find(method, path)
    return found.route.binding.function_id if isinstance(found, Match) else None


@pytest.mark.parametrize(
    ("registered", "path", "params"),
    [
        ("/hello", "/hello", {}),
        ("hello", "/hello", {}),
        ("//hello", "/hello", {}),
        ("/", "/", {}),
        ("", "/", {}),
        ("/users/:id", "/users/42", {"id": "42"}),
        ("/users/{id}", "/users/42", {"id": "42"}),
        ("/users/:id", "/users/hello%20world", {"id": "hello world"}),
        ("/users/:id", "/users/a%2Fb", {"id": "a/b"}),
        ("/users/:id", "/users/%ff", {"id": "\ufffd"}),
        ("/a%20b", "/a%20b", {}),
        ("/a b", "/%61%20b", {}),
        ("/files/*path", "/files/a/b%20c/", {"path": "a/b c/"}),
        ("/files/*path", "/files/a", {"path": "a"}),
        ("/files/{*path}", "/files//a", {"path": "/a"}),
        ("/:user/*", "/ada/x/y", {"user": "ada", "*": "x/y"}),
        ("/*", "/anything/at/all", {"*": "anything/at/all"}),
        ("/files/*path", "/files/", None),
        ("/files/*path", "/files", None),
        ("/*", "/", None),
        ("/a/:x/b/:y", "/a/1/b/2", {"x": "1", "y": "2"}),
        ("/foo/", "/foo/", {}),
        ("/über/a b", "/%C3%BCber/a%20b", {}),
        ("/users/:id", "/users/", None),
        ("/users/:id", "/users", None),
        ("/users/:id", "/users/1/2", None),
        ("/foo", "/foo/", None),
        ("/foo/", "/foo", None),
        ("/foo", "//foo", None),
        ("/foo", "/FOO", None),
        ("/foo", "foo", None),
        ("/foo", "", None),
    ],
)
def test_a_path_matches_segment_by_segment(registered: str, path: str, params: dict[str, str] | None) -> None:
    routes = Routes()
    bound(routes, registered)
    found = routes.find("GET", path)
    assert (found.params if isinstance(found, Match) else None) == params


def test_literals_beat_parameters_and_the_search_goes_back() -> None:
    routes = Routes()
    for path in ("/a/b/c", "/a/:x/d", "/:any/b/e", "/a/:x"):
        bound(routes, path, function_id=path)
    assert served(routes, "/a/b/c") == "/a/b/c"
    assert served(routes, "/a/b/d") == "/a/:x/d"
    assert served(routes, "/a/b/e") == "/:any/b/e"
    assert served(routes, "/a/b") == "/a/:x"
    assert served(routes, "/b/b/c") is None


def test_the_path_is_chosen_before_the_method() -> None:
    routes = Routes()
    bound(routes, "/users/me", "GET")
    bound(routes, "/users/:id", "POST")
    assert routes.find("POST", "/users/me") == NotAllowed(("GET", "HEAD"))
    assert served(routes, "/users/you", "POST") == "f"


def test_allow_lists_methods_and_get_implies_head() -> None:
    routes = Routes()
    for method in ("POST", "get", "Delete"):
        bound(routes, "/x", method)
    assert routes.find("PATCH", "/x") == NotAllowed(("GET", "HEAD", "POST", "DELETE"))


def test_head_is_answered_by_get_unless_it_has_a_route_of_its_own() -> None:
    routes = Routes()
    bound(routes, "/x", "GET", "get")
    assert served(routes, "/x", "HEAD") == "get"
    own = bound(routes, "/x", "HEAD", "head")
    assert served(routes, "/x", "HEAD") == "head"
    routes.unbind(own, Reason.UNREGISTERED)
    assert served(routes, "/x", "HEAD") == "get"
    bound(routes, "/y", "POST")
    assert routes.find("HEAD", "/y") == NotAllowed(("POST",))


def test_methods_may_name_parameters_differently() -> None:
    routes = Routes()
    bound(routes, "/u/:id", "GET")
    bound(routes, "/u/:uid", "POST")
    assert routes.find("GET", "/u/1").params == {"id": "1"}
    assert routes.find("POST", "/u/1").params == {"uid": "1"}


def test_the_newest_claim_serves_and_older_ones_come_back() -> None:
    routes = Routes()
    first, second, third = (bound(routes, path, function_id=path) for path in ("/x", "x", "//x"))
    assert served(routes, "/x") == "//x"
    routes.unbind(second, Reason.OWNER_LEFT)
    assert served(routes, "/x") == "//x"
    routes.unbind(third, Reason.OWNER_LEFT)
    assert served(routes, "/x") == "/x"
    routes.unbind(first, Reason.OWNER_LEFT)
    assert routes.find("GET", "/x") is None
    assert routes.statistics() == Routes().statistics()


def test_same_shape_with_other_names_is_refused_and_the_first_keeps_serving() -> None:
    routes = Routes()
    bound(routes, "/s/:listId/:userId", "post")
    with pytest.raises(TriggerRejected) as refused:
        routes.bind(binding("s/:userId/:listId", "POST", "second"))
    assert refused.value.message == (
        "Route 'POST s/:userId/:listId' conflicts with already-registered route 'POST /s/:listId/:userId': "
        "routes with identical structure but different path-parameter names are not supported"
    )
    assert routes.find("POST", "/s/1/2").params == {"listId": "1", "userId": "2"}
    assert len(list(routes)) == 1


def test_replace_moves_a_binding_and_a_refused_one_leaves_the_old_route() -> None:
    routes = Routes()
    old = bound(routes, "/old/:id")
    other = bound(routes, "/other/:id")
    new = Binding(id=old.id, trigger_type="http", function_id="new", config=Json.of({"api_path": "/other/:name"}))
    with pytest.raises(TriggerRejected):
        routes.replace(old, new)
    assert served(routes, "/old/1") == "f"
    new.config = Json.of({"api_path": "/old/:renamed"})  # the same shape: only the leaving route had it
    routes.replace(old, new)
    assert routes.find("GET", "/old/1").params == {"renamed": "1"}
    assert served(routes, "/old/1") == "new"
    routes.unbind(new, Reason.UNREGISTERED)
    routes.unbind(other, Reason.UNREGISTERED)
    assert routes.statistics() == Routes().statistics()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "api_path is required for http triggers"),
        ({"api_path": 7}, "api_path is required for http triggers"),
        (None, "api_path is required for http triggers"),
        ({"api_path": "/files/*/x"}, "wildcard segment '*'"),
        ({"api_path": "/files/*rest/x"}, "wildcard segment '*rest'"),
        ({"api_path": "/files/{*rest}/x"}, "wildcard segment '{*rest}'"),
        ({"api_path": "/a/:"}, "malformed segment ':'"),
        ({"api_path": "/a/{}"}, "malformed segment '{}'"),
        ({"api_path": "/a/{b"}, "malformed segment '{b'"),
        ({"api_path": "/a/b{c}d"}, "malformed segment 'b{c}d'"),
        ({"api_path": "/a?b=1"}, "contains '?'"),
        ({"api_path": "/a#b"}, "contains '#'"),
        ({"api_path": "/" + "a" * 2000}, "at most 1024"),
        ({"api_path": "/a", "http_method": "TRACE"}, "GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS"),
    ],
)
def test_what_could_never_be_served_is_refused_and_poisons_nobody(config: object, words: str) -> None:
    routes = Routes()
    bound(routes, "/a/:id")
    bad = Binding(id="bad", trigger_type="http", function_id="f", config=NULL if config is None else Json.of(config))
    with pytest.raises(TriggerRejected) as refused:
        routes.bind(bad)
    assert words in refused.value.message
    assert served(routes, "/a/1") == "f"
    bound(routes, "/b")
    assert served(routes, "/b") == "f"


@pytest.mark.parametrize("method", [None, 7, ["POST"], "get", "GET"])
def test_a_method_that_is_no_text_means_get(method: object) -> None:
    routes = Routes()
    routes.bind(binding("/x", method))
    assert served(routes, "/x") == "f"


def test_middleware_that_names_nothing_and_a_condition_that_is_no_text_mean_none() -> None:
    routes = Routes()
    routes.bind(binding("/x", middleware_function_ids=[1, "m", None], condition_function_id=3))
    routes.bind(binding("/y", middleware_function_ids="none", condition_function_id="guard"))
    assert {route.pattern.text: route.condition for route in routes} == {"/x": None, "/y": "guard"}
    assert {route.pattern.text: route.middleware for route in routes} == {"/x": ("m",), "/y": ()}


def test_a_route_that_is_not_in_the_table_cannot_be_removed() -> None:
    routes = Routes()
    bound(routes, "/a/b")
    (route,) = routes
    with pytest.raises(KeyError):
        Routes().remove(route)
    routes.unbind(binding("/a/b"), Reason.PROVIDER_LEFT)
    assert list(routes) == [route]


def test_wildcards_come_last_and_parameters_before_them() -> None:
    routes = Routes()
    for path, name in (("/a/*r", "rest"), ("/a/:x", "one"), ("/a/b", "literal"), ("/a/b/c", "deep"), ("/*", "all")):
        bound(routes, path, function_id=name)
    assert [served(routes, path) for path in ("/a/b", "/a/x", "/a/x/y", "/a/b/c", "/a/b/d", "/z/b", "/a/")] == [
        "literal",
        "one",
        "rest",
        "deep",
        "rest",
        "all",
        "all",
    ]
    with pytest.raises(TriggerRejected, match="conflicts with already-registered route"):
        bound(routes, "/a/*other")
    assert routes.statistics().nodes == 7


def test_a_last_slash_may_be_ignored() -> None:
    routes = Routes()
    for path in ("/a", "/b/", "/c/:x", "/"):
        bound(routes, path, function_id=path)

    def found(path: str) -> str | None:
        match = routes.find("GET", path, ignore_trailing_slash=True)
        return match.route.binding.function_id if isinstance(match, Match) else None

    assert [found(path) for path in ("/a", "/a/", "/b", "/b/", "/c/1/", "/c/", "/", "/a//")] == [
        "/a",
        "/a",
        "/b/",
        "/b/",
        "/c/:x",
        None,
        "/",
        None,
    ]


def test_the_steps_of_a_search_do_not_grow_with_the_number_of_routes() -> None:
    def lookups(count: int) -> int:
        routes, reads = Routes(), []
        for number in range(count):
            bound(routes, f"/api/{number}/:id/edit")

        class Counting(dict[str, object]):
            def get(self, key: str, default: object = None) -> object:
                reads.append(key)
                return super().get(key, default)

        for node in list(routes._nodes()):
            node.literals = Counting(node.literals)
        assert isinstance(routes.find("GET", f"/api/{count - 1}/7/edit"), Match)
        return len(reads)

    assert lookups(1) == lookups(100) == lookups(10_000)


def test_statistics_count_serving_and_standing_by() -> None:
    routes = Routes()
    for path, method in (("/a", "GET"), ("/a", "GET"), ("/a", "POST"), ("/b/:c", "GET")):
        bound(routes, path, method)
    statistics = routes.statistics()
    assert (statistics.serving, statistics.standing_by, statistics.nodes) == (3, 1, 4)


# -- against brute force ----------------------------------------------------------------------------------------------

SEGMENTS = st.sampled_from(["a", "b", "", ":x", ":y"])
PATHS = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)
REQUESTS = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


class BruteForce:
    """Every rule of matching and claiming, read off a plain list."""

    def __init__(self) -> None:
        self.routes: list[tuple[Binding, str, tuple[str, ...]]] = []

    @staticmethod
    def shape(segments: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(":" if s.startswith(":") else s for s in segments)

    def add(self, new: Binding, method: str, path: str) -> bool:
        segments = tuple(path.lstrip("/").split("/"))
        for _, other_method, other in self.routes:
            if other_method == method and self.shape(other) == self.shape(segments) and other != segments:
                return False
        self.routes.append((new, method, segments))
        return True

    def find(self, method: str, path: str) -> str | set[str] | None:
        parts = path[1:].split("/")
        matching = [
            (new, m, segments)
            for new, m, segments in self.routes
            if len(segments) == len(parts)
            and all(s == p or (s.startswith(":") and p) for s, p in zip(segments, parts, strict=True))
        ]
        if not matching:
            return None
        chosen = min([s == ":" for s in self.shape(segments)] for _, _, segments in matching)
        claims = [(new, m) for new, m, s in matching if [x == ":" for x in self.shape(s)] == chosen]
        methods = {m for _, m in claims}
        wanted = method if method in methods else "GET" if method == "HEAD" else method
        serving = [new.id for new, m in claims if m == wanted]
        return serving[-1] if serving else methods | ({"HEAD"} if "GET" in methods else set())


@settings(deadline=None)
@given(st.data())
def test_any_table_answers_as_brute_force_does(data: st.DataObject) -> None:
    routes, model = Routes(), BruteForce()
    for _ in range(data.draw(st.integers(1, 12))):
        if model.routes and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(model.routes))
            model.routes.remove(gone)
            routes.unbind(gone[0], Reason.OWNER_LEFT)
        else:
            method, path = data.draw(st.sampled_from(["GET", "HEAD", "POST"])), data.draw(PATHS)
            new = binding(path, method)
            try:
                routes.bind(new)
            except TriggerRejected:
                assert not model.add(new, method, path)
            else:
                assert model.add(new, method, path)
        for method in ("GET", "HEAD", "POST", "PUT"):
            path = data.draw(REQUESTS)
            found = routes.find(method, path)
            expected = model.find(method, path)
            if isinstance(found, Match):
                assert found.route.binding.id == expected
            elif isinstance(found, NotAllowed):
                assert set(found.methods) == expected
            else:
                assert expected is None
    for gone, _, _ in model.routes:
        routes.unbind(gone, Reason.OWNER_LEFT)
    assert routes.statistics() == Routes().statistics()


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        pattern = read_pattern(text)
    except TriggerRejected:
        return
    assert len(pattern.segments) == text.lstrip("/").count("/") + 1
    assert len(pattern.names) == sum(not isinstance(part, str) for part in pattern.segments)


def test_the_methods_are_those_of_the_specification() -> None:
    assert METHODS == ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
