"""Middleware, the limit of requests at once, request ids and what answers where no route does; no sockets."""

import logging
from typing import Any

import pytest
import trio
from test_http_exchange import JSON, House, open_house
from trio.testing import MockClock, wait_all_tasks_blocked

from iii_trio.config import MiddlewareSettings
from iii_trio.engine import Binding, Call, Outcome
from iii_trio.modules.http import stages
from iii_trio.modules.http.decision import Answer
from iii_trio.protocol import Json
from iii_trio.protocol.errors import WireError


def through(*names: str, **priorities: int) -> tuple[MiddlewareSettings, ...]:
    return tuple(MiddlewareSettings(function_id=name, priority=priorities.get(name, 0)) for name in names)


def route(house: House, path: str, *middleware: str, namespace: str = "default", condition: str | None = None) -> None:
    config: dict[str, Any] = {"api_path": path, "http_method": "POST", "middleware_function_ids": list(middleware)}
    if condition:
        config["condition_function_id"] = condition
    house.core.triggers.register(
        Binding(id=path, trigger_type="http", function_id="f", config=Json.of(config), namespace=namespace)
    )


async def test_global_ones_run_by_priority_then_condition_then_the_routes_own(autojump_clock: MockClock) -> None:
    async with open_house(middleware=through("last", "first", first=-1, last=1)) as house:
        order: list[str] = []

        def step(name: str) -> None:
            def handler(call: Call, data: Json) -> Outcome:
                order.append(name)
                return Outcome(Json.of({"action": "continue", "context": {name: len(order), "by": name}}))

            house.peer.register(name, handler)

        for name in ("first", "last", "one", "two"):
            step(name)
        guard = house.function("guard", True)
        inputs = house.function("f", {"body": 1})
        route(house, "/x/:id", "one", "two", condition="guard")
        assert (await house.ask("/x/7", "POST", JSON, b"[1]")).status == 200
        assert order == ["first", "last", "one", "two"]
        assert guard[0]["context"] == {"first": 1, "last": 2, "by": "last"}
        assert inputs[0]["context"] == {"first": 1, "last": 2, "one": 3, "two": 4, "by": "two"}
        assert inputs[0]["body"] == [1]


async def test_what_a_middleware_is_called_with(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        seen = house.function("m", {"action": "continue"})
        house.function("f", {"body": 1})
        route(house, "/x/:id", "m")
        await house.ask("/x/7?q=1", "POST", {"x-a": "b", "x-request-id": "me"}, b"raw")
        assert seen == [
            {
                "phase": "preHandler",
                "request": {
                    "path_params": {"id": "7"},
                    "query_params": {"q": "1"},
                    "headers": {"x-a": "b", "x-request-id": "me", "content-length": "3"},
                    "method": "POST",
                    "path": "/x/:id",
                    "url_path": "/x/7",
                },
                "context": {},
            }
        ]


@pytest.mark.parametrize(
    ("response", "status", "content_type", "body"),
    [
        ({"status_code": 403, "body": {"why": "no"}}, 403, "application/json", b'{"why":"no"}'),
        ({"body": "text"}, 200, "application/json", b'"text"'),
        ({"status_code": 1000, "headers": {"x-a": "1", "Content-Type": "a/b"}}, 200, "a/b", b"null"),
        (None, 200, "application/json", b"null"),
    ],
)
async def test_a_middleware_may_answer(
    response: object, status: int, content_type: str, body: bytes, autojump_clock: MockClock
) -> None:
    async with open_house(middleware=through("m")) as house:
        house.function("m", {"action": "respond", "response": response})
        inputs = house.function("f")
        route(house, "/x")
        reply = await house.ask("/x", "POST", JSON, b"[1]")
        assert (reply.status, reply.headers["content-type"], reply.body) == (status, content_type, body)
        assert reply.headers["access-control-allow-origin"] == "*"
        assert (inputs, house.answers(Answer.RESPONDED)) == ([], 1)


@pytest.mark.parametrize(
    "result",
    [
        None,
        True,
        "continue",
        {},
        {"action": "proceed"},
        {"action": "continue", "context": 1},
        {"action": "respond", "response": []},
    ],
)
@pytest.mark.parametrize("everywhere", [True, False])
async def test_a_result_that_says_neither_lets_nothing_through(
    result: object, everywhere: bool, autojump_clock: MockClock
) -> None:
    async with open_house(middleware=through(*["m"] * everywhere)) as house:
        house.function("m", result)
        inputs = house.function("f", {"body": 1})
        route(house, "/x", *["m"] * (not everywhere))
        reply = await house.ask("/x", "POST")
        assert (reply.status, reply.code, inputs) == (500, "MIDDLEWARE_INVALID_RESULT", [])
        assert "error_id" in reply.json["error"]


async def test_a_middleware_that_fails_or_is_missing_is_500(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        inputs = house.function("f", {"body": 1})

        def fails(call: Call, data: Json) -> Outcome:
            raise WireError("cannot tell", "auth_down")

        house.peer.register("m", fails)
        route(house, "/broken", "m")
        route(house, "/missing", "nobody")
        broken, missing = await house.ask("/broken", "POST"), await house.ask("/missing", "POST")
        assert (broken.status, broken.code, missing.status, missing.code) == (
            500,
            "auth_down",
            500,
            "function_not_found",
        )
        assert inputs == []


async def test_a_slow_middleware_is_504_by_its_own_name(autojump_clock: MockClock) -> None:
    async with open_house(default_timeout=2000, middleware=through("m")) as house:
        story = house.slow("m", 10)
        inputs = house.function("f")
        route(house, "/x")
        reply = await house.ask("/x", "POST")
        assert (reply.status, reply.code) == (504, "MIDDLEWARE_TIMEOUT")
        assert reply.headers["access-control-allow-origin"] == "*"
        await wait_all_tasks_blocked()
        assert (story, inputs, trio.current_time()) == (["started", "cancelled"], [], 2)


@pytest.mark.parametrize(
    ("item_ms", "all_ms", "expected_s"), [(300, None, 0.3), (300, 100, 0.3), (None, 100, 0.1), (9000, 100, 2)]
)
async def test_each_middleware_has_a_deadline_of_its_own(
    item_ms: int | None, all_ms: int | None, expected_s: float, autojump_clock: MockClock
) -> None:
    item = MiddlewareSettings(function_id="m", timeout_ms=item_ms)
    async with open_house(default_timeout=2000, middleware_timeout=all_ms, middleware=(item,)) as house:
        reasons: list[str | None] = []

        async def hang(call: Call, data: Json) -> Json:
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                reasons.append(cancelled.reason)
                raise
            raise AssertionError

        house.peer.register("m", hang, task=True)
        inputs = house.function("f")
        route(house, "/x")
        reply = await house.ask("/x", "POST")
        assert (reply.status, reply.code) == (504, "MIDDLEWARE_TIMEOUT")
        assert trio.current_time() == pytest.approx(expected_s)
        await wait_all_tasks_blocked()
        assert (reasons, inputs) == (["deadline"], [])


async def test_those_of_a_route_and_its_condition_have_it_too_and_a_handler_has_all_the_time(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house(middleware_timeout=100) as house:
        slow, story = house.slow("slow", 1), house.slow("f", 1)
        route(house, "/own", "slow")
        route(house, "/guarded", condition="slow")
        route(house, "/plain")
        own, guarded = await house.ask("/own", "POST"), await house.ask("/guarded", "POST")
        assert (own.status, own.code, guarded.status, guarded.code) == (504, "MIDDLEWARE_TIMEOUT", 504, "TIMEOUT")
        assert guarded.json["error"]["message"] == "No response within 100 ms"
        assert guarded.json["error"]["error_id"] in caplog.text
        assert "waiting for slow" in caplog.text
        assert (await house.ask("/plain", "POST")).status == 200
        assert (slow, story) == (["started", "cancelled"] * 2, ["started", "done"])


async def test_a_namespace_without_the_function_uses_that_of_default(autojump_clock: MockClock) -> None:
    async with open_house(middleware=through("m")) as house:
        shared = house.function("m", {"action": "continue"})
        house.function("f", {"body": 1}, "orders")
        house.function("f", {"body": 2}, "bills")
        own = house.function("m", {"action": "respond"}, "bills")
        route(house, "/orders", namespace="orders")
        route(house, "/bills", namespace="bills")
        assert (await house.ask("/orders", "POST")).json == 1
        assert (await house.ask("/bills", "POST")).json is None
        assert (len(shared), len(own)) == (1, 1)


async def test_other_phases_and_unmatched_paths_run_none(autojump_clock: MockClock) -> None:
    later = MiddlewareSettings(function_id="m", phase="onResponse")
    async with open_house(middleware=(later, *through("n"))) as house:
        never, seen = house.function("m"), house.function("n", {"action": "continue"})
        house.function("f", {"body": 1})
        route(house, "/x")
        assert (await house.ask("/y", "POST")).status == 404
        assert (await house.ask("/x", "GET")).status == 405
        assert (await house.ask("/x", "POST")).status == 200
        assert (len(never), len(seen)) == (0, 1)


async def test_a_body_waits_while_a_middleware_thinks(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    async with open_house(middleware=through("m")) as house:

        async def slow(call: Call, data: Json) -> Json:
            await trio.sleep(1)
            return Json.of({"action": "continue"})

        house.peer.register("m", slow, task=True)
        inputs = house.function("f", {"body": 1})
        route(house, "/x")
        client = house.client("POST", "/x", JSON | {"transfer-encoding": "chunked"})
        nursery.start_soon(client.run)
        for part in (b"[1", b",2", b"]"):
            client.sends(part)
            await wait_all_tasks_blocked()
        client.sends(b"", more=False)
        await client.ended.wait()
        assert inputs[0]["body"] == [1, 2]


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_requests_above_the_line_are_shed_and_those_that_wait_too_long(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house(concurrency_request_limit=1, concurrency_queue_limit=1, default_timeout=2000) as house:
        house.slow("f", 10)
        house.route("/x")
        first, waits = house.client("GET", "/x"), house.client("GET", "/x")
        for client in (first, waits):
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
        shed = await house.ask("/x")
        assert (shed.status, shed.code, shed.headers["retry-after"]) == (503, "worker_overloaded", "1")
        assert shed.headers["access-control-allow-origin"] == "*"
        assert trio.current_time() == 0
        house.change(default_timeout=1000)
        late = house.client("GET", "/x")
        house.change(concurrency_queue_limit=2)
        nursery.start_soon(late.run)
        await late.ended.wait()
        assert late.reply is not None
        assert (late.reply.status, trio.current_time()) == (503, 1)
        statistics = house.module.statistics().exchange
        assert statistics is not None
        assert statistics.shed == 2
        await waits.ended.wait()


async def test_bodies_that_are_held_are_bounded_all_together(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "HTTP_BODIES_ALL", 100)
    async with open_house() as house:
        house.slow("f", 5)
        house.route("/x", method="POST")
        reading = house.client("POST", "/x", JSON | {"content-length": "60"})
        reading.sends(b"[" + b"1," * 20)
        running = house.client("POST", "/x", JSON, b"[" + b"1," * 25 + b"1]")
        for client in (reading, running):
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
        statistics = house.module.statistics().exchange
        assert statistics is not None
        assert statistics.body_bytes == 41 + 53
        crowded = await house.ask("/x", "POST", JSON, b"[1,1,1,1]")
        assert (crowded.status, crowded.code, crowded.headers["retry-after"]) == (503, "worker_overloaded", "1")
        reading.leaves()
        await reading.ended.wait()
        assert (await house.ask("/x", "POST", JSON, b"[1,1,1,1]")).status == 200
        await running.ended.wait()
        statistics = house.module.statistics().exchange
        assert statistics is not None
        assert (statistics.body_bytes, statistics.shed) == (0, 1)
        assert (await house.ask("/x", "POST", JSON, b"[" + b"1," * 99 + b"1]")).status == 200  # alone it may be larger


# -- what every request has -------------------------------------------------------------------------------------------


async def test_every_answer_names_its_request(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        house.function("f", {"body": 1, "headers": {"X-Request-Id": "made up"}})
        house.route("/x")
        for target in ("/x", "/missing"):
            assert (await house.ask(target, headers={"x-request-id": "mine"})).headers["x-request-id"] == "mine"
        for given in ("", "a b", "x" * 129, "\N{SNOWMAN}", 'id"\x01'):
            assert (await house.ask("/x", headers={"x-request-id": given})).headers["x-request-id"] != given
        ids = {(await house.ask("/x")).headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3
        house.change(request_id_header="X-Trace")
        assert (await house.ask("/x", headers={"x-trace": "t"})).headers["x-trace"] == "t"
        house.change(request_id_header="")
        reply = await house.ask("/missing")
        assert not [name for name in reply.headers if name.startswith("x-")]


async def test_errors_name_their_request_whoever_made_them(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    async with open_house(default_timeout=1000, body_limit=10, concurrency_queue_limit=0) as house:
        house.slow("f", 5)
        house.function("no", False)
        route(house, "/x")
        route(house, "/guarded", condition="no")
        route(house, "/missing-middleware", "nobody")
        statuses = {}
        for method, path, body in (
            ("GET", "/nowhere", b""),
            ("GET", "/x", b""),
            ("OPTIONS", "/x", b""),
            ("POST", "/x", b"[1,1,1,1,1,1,1]"),
            ("POST", "/x", b"{"),
            ("POST", "/x", b""),
            ("POST", "/guarded", b""),
            ("POST", "/missing-middleware", b""),
        ):
            reply = await house.ask(path, method, JSON | {"x-request-id": "mine"}, body)
            statuses[reply.status] = reply.headers["x-request-id"]
        house.change(concurrency_request_limit=1)
        busy = house.client("POST", "/x")
        nursery.start_soon(busy.run)
        await wait_all_tasks_blocked()
        shed = await house.ask("/x", "POST", {"x-request-id": "mine"})
        statuses[shed.status] = shed.headers["x-request-id"]
        await busy.ended.wait()
        assert statuses == dict.fromkeys((404, 405, 200, 413, 400, 504, 422, 500, 503), "mine")
        nursery.start_soon(house.core.drain, 0)
        await wait_all_tasks_blocked()
        assert (await house.ask("/x", headers={"x-request-id": "mine"})).headers["x-request-id"] == "mine"


async def test_invalid_json_is_400_and_reaches_nobody(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        inputs = house.function("f", {"body": 1})
        house.route("/x", method="POST")
        reply = await house.ask("/x", "POST", JSON, b'{"a":\n tru}')
        assert (reply.status, reply.code, inputs) == (400, "BAD_REQUEST", [])
        assert "line 2, column" in reply.json["error"]["message"]
        assert reply.headers["access-control-allow-origin"] == "*"
        assert house.answers(Answer.MALFORMED) == 1


async def test_a_function_may_answer_where_no_route_does(autojump_clock: MockClock) -> None:
    async with open_house(not_found_function="fallback") as house:
        seen = house.function("fallback", {"status_code": 404, "body": "nothing here"})
        house.function("f", {"body": 1})
        house.route("/x")
        reply = await house.ask("/y/z?q=1")
        assert (reply.status, reply.json) == (404, "nothing here")
        assert (seen[0]["path"], seen[0]["query_params"]) == ("/y/z", {"q": "1"})
        assert (await house.ask("/x", "PUT")).status == 405


async def test_a_last_slash_may_be_ignored(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        house.function("f", {"body": 1})
        house.route("/x")
        assert (await house.ask("/x/")).status == 404
        house.change(ignore_trailing_slash=True)
        assert (await house.ask("/x/")).status == 200


async def test_settings_hold_from_the_next_request_on(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        seen, order = house.function("f", {"body": 1}), house.function("m", {"action": "continue"})
        fallback = house.function("fallback", {"status_code": 299})
        house.route("/x", method="POST")
        proxied = JSON | {"x-forwarded-for": "10.0.0.9", "x-forwarded-proto": "https"}

        async def ask(target: str = "/x", method: str = "POST") -> int:
            return (await house.ask(target, method, proxied, b"[1,2,3]")).status

        assert (await ask(), await ask("/nowhere"), await ask("/api", "GET")) == (200, 404, 404)
        assert (seen[-1]["request"]["client"], seen[-1]["request"]["scheme"], order) == ("", "http", [])
        house.change(body_limit=3)
        assert await ask() == 413
        house.change(body_limit=7, trust_proxy=True, middleware=through("m"))
        assert await ask() == 200
        assert (seen[-1]["request"]["client"], seen[-1]["request"]["scheme"]) == ("10.0.0.9", "https")
        assert len(order) == 1
        house.change(not_found_function="fallback", openapi_path="/api", middleware=())
        assert (await ask("/nowhere"), len(fallback)) == (299, 1)
        assert await ask("/api", "GET") == 200
        house.change(not_found_function=None, openapi_path=None)
        assert (await ask("/nowhere"), await ask("/api", "GET"), len(order)) == (404, 404, 1)


async def test_a_request_goes_by_the_settings_that_it_began_with(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house(default_timeout=3000) as house:
        house.slow("f", 2)
        house.route("/x")
        client = house.client("GET", "/x")
        nursery.start_soon(client.run)
        await wait_all_tasks_blocked()
        house.change(default_timeout=1000)
        await client.ended.wait()
        assert client.reply is not None
        assert client.reply.status == 200
        assert (await house.ask("/x")).status == 504


async def test_the_access_log_has_a_line_for_every_request_and_no_query(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, "iii_trio.access")
    async with open_house() as house:
        house.function("f", {"body": 1})
        house.route("/x")
        await house.ask("/x")
        assert [record for record in caplog.records if record.name == "iii_trio.access"] == []
        house.change(access_log=True)
        await house.ask("/x?secret=1", headers={"x-request-id": "r1"})
        await house.ask("/y", headers={"x-request-id": "r2"})
        lines = [record.getMessage() for record in caplog.records if record.name == "iii_trio.access"]
        assert [line.split(" ")[:3] for line in lines] == [["GET", "/x", "200"], ["GET", "/y", "404"]]
        assert "r1" in lines[0]
        assert "secret" not in caplog.text
