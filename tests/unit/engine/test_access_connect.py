"""Who gets in (spec/protocol.md §2, §14.2): tokens and auth functions, seen by raw peers."""

import json
from typing import Any

import pytest
import trio
import trio.testing
from access_lab import AUTH, exposed, open_lab
from trio.testing import MockClock

from iii_trio.engine import Rules
from iii_trio.engine.events import Event
from iii_trio.engine.sessions import query_params
from iii_trio.testing.raw import RawWorker

ASKS = Rules(auth_function_id=AUTH, expose=exposed("public::*"))


async def refusal(worker: RawWorker, code: str = "AUTH_ERROR") -> str:
    """The text with which a socket was refused; its Close must be the one after which every SDK comes back."""
    error = (await worker.next("error"))["error"]
    assert error["code"] == code
    closed = await worker.wait_closed()
    assert closed.code == 1008
    assert not worker.frames
    return str(error["message"])


async def test_the_auth_function_gets_headers_query_and_address(autojump_clock: MockClock) -> None:
    async with open_lab(ASKS) as lab:
        await lab.serve(auth=lambda _: {"result": {}})
        headers = {"X-Test-Token": "first", "x-test-token": "last", "Accept": "a", "X-Odd": "caf\xe9"}
        worker = await lab.guarded.open("/", "token=a%2Bb%20c&empty&token=x+y&%C3%A9=%FF", headers)
        await lab.guarded.greeted(worker)
    assert lab.asked[AUTH] == [
        {
            "headers": {"x-test-token": "last", "accept": "a"},
            "query_params": {"token": ["a+b c", "x+y"], "empty": [""], "é": ["\ufffd"]},
            "ip_address": "memory",
        }
    ]


def test_query_params_of_nothing() -> None:
    assert query_params("") == {}
    assert query_params("&&=&a=1=2") == {"": [""], "a": ["1=2"]}


async def test_worker_and_telemetry_sockets_are_asked_about_once_each(autojump_clock: MockClock) -> None:
    async with open_lab(ASKS) as lab:
        await lab.serve(auth=lambda _: {"result": {}})
        worker = await lab.guarded.connect(name="guest")
        worker.introduce(name="guest")
        await worker.settled()
        telemetry = await lab.guarded.open("/otel")
        telemetry.connection.push_binary(b"LOGS{}")
        while not lab.guarded.listener.statistics().telemetry_frames:
            await trio.testing.wait_all_tasks_blocked()
        assert len(lab.asked[AUTH]) == 2
        await lab.trusted.connect(name="trusted")
        assert len(lab.asked[AUTH]) == 2


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"error": {"code": "no", "message": "wrong token"}}, "wrong token"),
        ({"result": None}, "auth function returned no result"),
        ({}, "auth function returned no result"),
        ({"result": True}, "auth function returned no verdict: Expected `object`, got `bool`"),
        (
            {"result": {"allowed_functions": "all"}},
            "auth function returned no verdict: Expected `array | null`, got `str` - at `$.allowed_functions`",
        ),
        (
            {"result": {"namespaces": {"a": ["x", 1]}}},
            "auth function returned no verdict: Expected `str`, got `int` - at `$.namespaces[...][1]`",
        ),
        (
            {"result": {"allow_function_registration": "yes"}},
            "auth function returned no verdict: Expected `bool | null`, got `str` - at `$.allow_function_registration`",
        ),
    ],
)
async def test_whatever_is_no_verdict_refuses(autojump_clock: MockClock, answer: dict[str, Any], text: str) -> None:
    async with open_lab(ASKS) as lab:
        await lab.serve(auth=lambda _: answer)
        for path in ("/", "/otel"):
            assert await refusal(await lab.guarded.open(path)) == text


async def test_an_auth_function_that_is_not_there_refuses_and_a_late_one_heals(autojump_clock: MockClock) -> None:
    async with open_lab(ASKS) as lab:
        text = await refusal(await lab.guarded.open())
        assert text == "Function acl::auth not found in namespace default"
        await lab.serve(auth=lambda _: {"result": None if len(lab.asked[AUTH]) < 2 else {}})
        await refusal(await lab.guarded.open())
        await lab.guarded.connect(name="third time lucky")


async def test_an_auth_function_that_never_answers_refuses_after_five_seconds(autojump_clock: MockClock) -> None:
    async with open_lab(ASKS) as lab:
        auth = await lab.trusted.connect(name="silent")
        auth.register(AUTH)
        await auth.settled()
        before = lab.core.statistics()
        started = trio.current_time()
        worker = await lab.guarded.open()
        assert await refusal(worker) == "acl::auth did not answer within 5000 ms"
        assert 5 <= trio.current_time() - started < 6
        call = await auth.next("invokefunction")
        auth.answer(call, result={})
        await auth.settled()
        after = lab.core.statistics()
        assert (after.running, after.waiting, after.workers) == (before.running, before.waiting, before.workers)


async def test_nothing_is_read_or_announced_before_the_verdict(autojump_clock: MockClock) -> None:
    async with open_lab(ASKS) as lab:
        auth = await lab.trusted.connect(name="slow")
        auth.register(AUTH)
        await auth.settled()
        events: list[Event] = []
        lab.core.events.tap(events.append)
        calls = lab.core.statistics().invocations.calls
        worker = await lab.guarded.open()
        worker.introduce(name="eager")
        worker.register("eager::f")
        worker.call("public::f")
        await trio.testing.wait_all_tasks_blocked()
        assert lab.core.statistics().invocations.calls == calls + 1  # the auth function's
        assert lab.core.functions.get("default", "eager::f") is None
        assert not events
        assert not worker.frames
        assert lab.guarded.listener.statistics().handshakes == 1
        assert lab.guarded.listener.statistics().connections == 0
        auth.answer(await auth.next("invokefunction"), result={})
        await worker.next("workerregistered")
        await worker.settled()
        assert lab.core.functions.get("default", "eager::f") is not None
        assert lab.guarded.listener.statistics().handshakes == 0


async def test_a_refused_worker_is_never_announced(autojump_clock: MockClock) -> None:
    async with open_lab(ASKS) as lab:
        events: list[Event] = []
        lab.core.events.tap(events.append)
        worker = await lab.guarded.open()
        worker.introduce(name="nobody")
        await refusal(worker)
        assert not events
        assert lab.core.statistics().workers.connected == 0


async def test_an_auth_function_behind_the_port_it_guards_is_never_found(autojump_clock: MockClock) -> None:
    async with open_lab(ASKS) as lab:
        for _ in range(2):
            worker = await lab.guarded.open()
            worker.register(AUTH)
            assert "not found" in await refusal(worker)


async def test_a_hang_up_during_the_verdict_leaves_nothing(autojump_clock: MockClock) -> None:
    async with open_lab(ASKS) as lab:
        auth = await lab.trusted.connect(name="slow")
        auth.register(AUTH)
        await auth.settled()
        worker = await lab.guarded.open()
        call = await auth.next("invokefunction")
        worker.cut()
        auth.answer(call, result={})
        await auth.settled()
        await trio.testing.wait_all_tasks_blocked()
        statistics = lab.guarded.listener.statistics()
        assert (statistics.handshakes, statistics.connections) == (0, 0)
        assert lab.core.statistics().workers.connected == 1


async def test_a_port_that_closes_during_the_verdict_says_come_back(autojump_clock: MockClock) -> None:
    async with open_lab(ASKS) as lab:
        auth = await lab.trusted.connect(name="slow")
        auth.register(AUTH)
        await auth.settled()
        worker = await lab.guarded.open()
        call = await auth.next("invokefunction")
        lab.guarded.listener.close_all(1012, "the engine is stopping")
        auth.answer(call, result={})
        assert (await worker.wait_closed()).code == 1012


async def test_sockets_that_wait_for_a_verdict_are_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iii_trio.transport.waiting_room.PENDING_SOCKETS", 3)
    async with open_lab(ASKS) as lab:
        auth = await lab.trusted.connect(name="silent")
        auth.register(AUTH)
        await auth.settled()
        workers = [await lab.guarded.open() for _ in range(5)]
        await trio.testing.wait_all_tasks_blocked()
        assert lab.guarded.listener.statistics().handshakes == 3
        for worker in workers[:2]:
            assert (await worker.wait_closed()).code == 1006
        assert lab.core.statistics().waiting == 3


TOKEN = Rules(token="sesame-é")


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("token=sesame-%C3%A9", {}),
        ("a=1&token=wrong&token=sesame-%C3%A9", {}),
        ("", {"Authorization": "Bearer " + "sesame-é".encode().decode("latin-1")}),
        ("", {"authorization": "bearer  " + "sesame-é".encode().decode("latin-1")}),
        ("token=wrong", {"Authorization": "Bearer " + "sesame-é".encode().decode("latin-1")}),
    ],
)
async def test_the_token_admits(autojump_clock: MockClock, query: str, headers: dict[str, str]) -> None:
    async with open_lab(TOKEN) as lab:
        worker = await lab.guarded.open("/", query, headers)
        await lab.guarded.greeted(worker, name="trusted")
        worker.register("a::f")
        await worker.settled()
        call = worker.call("a::f")
        worker.answer(await worker.next("invokefunction"), result=1)
        assert (await worker.result(call))["result"] == 1  # no `rbac` block: who is in may do everything


@pytest.mark.parametrize("path", ["/", "/otel"])
@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {}),
        ("token=", {}),
        ("token=sesame", {}),
        ("token=sesame-%C3%A9x", {}),
        ("TOKEN=sesame-%C3%A9", {}),
        ("", {"Authorization": "sesame-é"}),
        ("", {"Authorization": "Basic sesame-\xc3\xa9"}),
        ("", {"Authorization": "Bearer"}),
        ("", {"Authorization": "Bearer sesame-\xe9"}),
        ("", {"X-Authorization": "Bearer sesame-\xc3\xa9"}),
    ],
)
async def test_anything_but_the_token_is_refused(
    autojump_clock: MockClock, path: str, query: str, headers: dict[str, str]
) -> None:
    async with open_lab(TOKEN) as lab:
        text = await refusal(await lab.guarded.open(path, query, headers))
        assert text.startswith("this port asks for a token")
        assert "sesame" not in text


async def test_a_token_and_expose_filters_work_together(autojump_clock: MockClock) -> None:
    async with open_lab(Rules(token="t", expose=exposed("public::*"))) as lab:
        await refusal(await lab.guarded.open())
        worker = await lab.guarded.greeted(await lab.guarded.open("/", "token=t"), name="guest")
        assert (await worker.ask("private::f"))["error"]["code"] == "FORBIDDEN"
        assert (await worker.ask("public::f"))["error"]["code"] == "function_not_found"


def test_rules_do_not_show_their_token() -> None:
    assert "sesame" not in repr(TOKEN)


async def test_every_port_has_its_own_rules(autojump_clock: MockClock) -> None:
    async with open_lab(Rules(expose=exposed("public::*"))) as lab:
        served = await lab.trusted.connect(name="server")
        served.register("private::f")
        await served.settled()
        guest = await lab.guarded.connect(name="guest")
        assert (await guest.ask("private::f"))["error"]["code"] == "FORBIDDEN"
        friend = await lab.trusted.connect(name="friend")
        call = friend.call("private::f")
        served.answer(await served.next("invokefunction"), result=json.dumps("hello"))
        assert (await friend.result(call))["result"] == '"hello"'
