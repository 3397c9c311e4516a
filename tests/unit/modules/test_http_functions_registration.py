"""Registrations with an `invocation`: one table of claims with all others, refusals that say why, restarts of the module."""

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from iii_trio.config import HttpFunctionsSecurity, HttpFunctionsSettings, Live
from iii_trio.engine import DEFAULT_NAMESPACE, Engine, Hooks, Outcome, Rules, open_engine
from iii_trio.modules.http_functions import HttpFunctionsModule
from iii_trio.modules.introspection import IntrospectionModule
from iii_trio.protocol import NULL, Json
from iii_trio.testing import RawPort, RawWorker, open_port

PUBLIC = "93.184.215.14"
WEB = {"url": "https://example.com/hook"}


@define
class Names:
    """A resolver for tests: `answers` by host, public addresses for all others. Hosts in `held` wait for `go`."""

    answers: dict[str, Any] = field(factory=dict)
    asked: list[str] = field(factory=list)
    held: set[str] = field(factory=set)
    go: trio.Event = field(factory=trio.Event)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host in self.held:
            await self.go.wait()
        answer = self.answers.get(host, [PUBLIC])
        if isinstance(answer, OSError):
            raise answer
        return list(answer)


def module(
    names: Names | None = None, environment: dict[str, str] | None = None, **security: Any
) -> HttpFunctionsModule:
    settings = HttpFunctionsSettings(security=HttpFunctionsSecurity(**security))
    return HttpFunctionsModule(Live(settings), resolve=names or Names(), variable=(environment or {}).get)


@asynccontextmanager
async def serving(served: HttpFunctionsModule | None, **rules: Any) -> AsyncIterator[tuple[Engine, RawPort]]:
    async with open_engine() as core, open_port(core) as port, trio.open_nursery() as nursery:
        port.listener.rules = Rules(**rules)
        await nursery.start(IntrospectionModule().run, core)
        if served is not None:
            await nursery.start(served.run, core)
        yield core, port
        nursery.cancel_scope.cancel()


async def listed(worker: RawWorker, function_id: str) -> bool:
    answer = await worker.ask("engine::functions::list", {})
    return function_id in {row["function_id"] for row in answer["result"]["functions"]}


async def refused(worker: RawWorker) -> list[dict[str, Any]]:
    answer = await worker.ask("engine::functions::list", {"include_refused": True})
    return list(answer["result"]["refused"])


async def test_without_the_module_a_registration_is_refused_and_everybody_hears_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(None) as (_, port):
        worker = await port.connect(name="w")
        with caplog.at_level(logging.WARNING):
            worker.register("ext::a", invocation=WEB)
            error = (await worker.next("error"))["error"]
        assert error["code"] == "http_functions_unavailable"
        assert "'ext::a' was not registered" in error["message"]
        assert "iii-http-functions" in error["message"]
        assert any(
            "ext::a" in record.getMessage() and worker.worker_id in record.getMessage() for record in caplog.records
        )

        answer = (await worker.ask("ext::a", {}))["error"]
        assert answer["code"] == "function_not_found"
        assert answer["message"].startswith(
            "Function ext::a not found in namespace default. Its registration was refused:"
        )
        assert "iii-http-functions" in answer["message"]
        assert not await listed(worker, "ext::a")
        (row,) = await refused(worker)
        info = (await worker.ask("engine::functions::info", {"function_id": "ext::a"}))["error"]["message"]
        assert info.startswith("Function 'ext::a' is not registered. Its registration was refused:")
        assert (row["function_id"], row["worker_name"]) == ("ext::a", "w")
        assert row["code"] == "http_functions_unavailable"
        assert not worker.connection.closing, "the connection stays open and usable"

        worker.send({"type": "unregisterfunction", "id": "ext::a"})
        await worker.settled()
        assert await refused(worker) == []
        assert (await worker.ask("ext::a", {}))["error"]["message"] == "Function ext::a not found in namespace default."


async def test_refusals_end_with_their_worker() -> None:
    async with serving(None) as (_, port):
        worker, other = await port.connect(name="w"), await port.connect(name="o")
        worker.register("ext::a", invocation=WEB)
        await worker.next("error")
        assert len(await refused(other)) == 1
        worker.cut()
        await port.gone(worker)
        assert await refused(other) == []


@pytest.mark.parametrize(
    ("invocation", "code", "text"),
    [
        ({"url": "http://example.com/"}, "url_validation_failed", "HTTPS is required"),
        ({"url": "https://127.0.0.1/"}, "url_validation_failed", "Private IP blocked"),
        ({"url": "https://inside.example/"}, "url_validation_failed", "Private IP blocked"),
        ({"url": "https://nowhere.example/"}, "url_validation_failed", "DNS lookup failed"),
        ({**WEB, "auth": {"type": "bearer", "token_key": "NONE"}}, "token_not_found", "Token not found: NONE"),
        ({**WEB, "method": "get"}, "invalid_message", "method 'get'"),
        ({}, "invalid_message", "url"),
    ],
)
async def test_a_registration_that_fails_a_check_is_no_claim(invocation: dict[str, Any], code: str, text: str) -> None:
    names = Names({"inside.example": [PUBLIC, "10.0.0.7"], "nowhere.example": socket.gaierror(socket.EAI_NONAME, "no")})
    served = module(names)
    async with serving(served) as (core, port):
        worker, other = await port.connect(name="w"), await port.connect(name="o")
        worker.register("ext::a", invocation=invocation)
        error = (await worker.next("error"))["error"]
        assert error["code"] == code
        assert text in error["message"]
        assert core.functions.get(DEFAULT_NAMESPACE, "ext::a") is None
        message = (await other.ask("ext::a", {}))["error"]["message"]
        assert text in message
        assert served.statistics().refused == 1

        other.register("ext::a")
        await other.settled()
        assert not [frame for frame in other.frames if frame["type"] == "registrationrejected"], "the id is free"


async def test_a_good_registration_after_a_refused_one() -> None:
    async with serving(module()) as (_, port):
        worker = await port.connect(name="w")
        worker.register("ext::a", invocation={"url": "http://example.com/"})
        await worker.next("error")
        worker.register("ext::a", invocation=WEB)
        assert await listed(worker, "ext::a")
        assert await refused(worker) == []
        worker.register("ext::a", invocation={"url": "https://10.0.0.1/"})
        await worker.next("error")
        assert not await listed(worker, "ext::a"), (
            "what it holds under the id it has replaced by something that is refused"
        )


async def test_ids_are_claimed_in_one_table_with_ordinary_functions() -> None:
    async with serving(module(Names(held={"example.com"}))) as (_, port):
        first, second = await port.connect(name="1"), await port.connect(name="2")
        first.register("shop::pay", invocation=WEB, description="pays")
        assert await listed(first, "shop::pay")
        second.register("shop::pay")
        frame = await second.next("registrationrejected")
        assert (frame["code"], frame["owner_worker_id"]) == ("FUNCTION_NAMESPACE_CONFLICT", first.worker_id)

        call = second.call("shop::pay", {})
        await trio.testing.wait_all_tasks_blocked()
        assert not [frame for frame in first.frames if frame["type"] == "invokefunction"], "never to the worker"
        first.send({"type": "unregisterfunction", "id": "shop::pay"})
        await first.settled()
        second.send({"type": "cancelinvocation", "invocation_id": call})

        mine = second.call("shop::pay", {"n": 1})
        assert (await second.next("invokefunction", invocation_id=mine))["data"]["n"] == 1, "who stood by serves now"


async def test_a_disconnect_takes_the_function_along_and_promotes_who_stands_by() -> None:
    async with serving(module()) as (core, port):
        first, second = await port.connect(name="1"), await port.connect(name="2")
        first.register("shop::pay")
        await first.settled()
        second.register("shop::pay", invocation=WEB)
        await second.next("registrationrejected")
        first.cut()
        await port.gone(first)
        entry = core.functions.get(DEFAULT_NAMESPACE, "shop::pay")
        assert entry is not None
        assert (entry.owner.id, entry.executor.name) == (second.worker_id, "http-functions")
        second.cut()
        await port.gone(second)
        assert core.functions.get(DEFAULT_NAMESPACE, "shop::pay") is None


async def test_the_worker_is_not_held_up_while_its_host_is_looked_up() -> None:
    names = Names({"slow.example": ["10.0.0.1"]}, held={"slow.example"})
    async with serving(module(names)) as (_, port):
        worker = await port.connect(name="w")
        worker.register("ext::slow", invocation={"url": "https://slow.example/"})
        worker.register("ext::b")
        assert await listed(worker, "ext::b")
        assert await listed(worker, "ext::slow")
        worker.register("ext::slow", invocation=WEB)
        await worker.settled()
        names.go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await listed(worker, "ext::slow"), "what was refused is not what stands there now"
        assert await refused(worker) == []


async def test_a_lookup_that_fails_for_now_leaves_the_registration(caplog: pytest.LogCaptureFixture) -> None:
    names = Names({"example.com": socket.gaierror(socket.EAI_AGAIN, "Temporary failure")})
    async with serving(module(names)) as (_, port):
        worker = await port.connect(name="w")
        worker.register("ext::a", invocation=WEB)
        await worker.settled()
        await trio.testing.wait_all_tasks_blocked()
        assert "cannot be looked up now" in caplog.text
        answer = (await worker.ask("ext::a", {}))["error"]
        assert (answer["code"], answer["message"]) == ("url_validation_failed", "DNS lookup failed")


async def test_a_lookup_that_hangs_is_left_to_the_calls(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(module(Names(held={"example.com"}))) as (_, port):
        worker = await port.connect(name="w")
        worker.register("ext::a", invocation={**WEB, "timeout_ms": 7_000})
        await trio.sleep(6)
        assert "no answer in 5 s" in caplog.text
        began = trio.current_time()
        answer = (await worker.ask("ext::a", {}))["error"]
        assert answer["code"] == "http_request_failed"
        assert answer["message"] == "timed out after 7000 ms: the lookup of example.com did not end"
        assert trio.current_time() - began == pytest.approx(7)


async def test_claims_outlive_the_module_and_say_so() -> None:
    served = module(url_allowlist=("example.com",))
    async with serving(None) as (core, port), trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await served.run(core, task_status=task_status)

        await nursery.start(run)
        worker = await port.connect(name="w")
        worker.register("ext::a", invocation=WEB)
        await worker.settled()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert await listed(worker, "ext::a")
        worker.register("ext::b", invocation=WEB)
        worker.register("ext::c", invocation={"url": "https://elsewhere.example/"})
        for function_id in ("ext::a", "ext::b", "ext::c"):
            error = (await worker.ask(function_id, {}))["error"]
            assert error["code"] == "http_functions_unavailable"
            assert "not running at the moment" in error["message"]

        names = Names({"example.com": ["10.0.0.1"]})
        await nursery.start(module(names, url_allowlist=("example.com",)).run, core)
        assert "not in allowlist" in (await worker.next("error"))["error"]["message"]
        for function_id in ("ext::a", "ext::b"):
            error = (await worker.ask(function_id, {}))["error"]
            assert error["message"] == "Private IP blocked", "the module that came back runs it"
        assert "not in allowlist" in (await worker.ask("ext::c", {}))["error"]["message"]
        nursery.cancel_scope.cancel()


SECRETS = {"KEY": "s3cret", "OTHER": "s3cret"}


@pytest.mark.parametrize(
    ("scoped", "globs", "name", "allowed"),
    [
        (False, None, "KEY", True),
        (True, None, "KEY", False),
        (True, ("K*",), "KEY", True),
        (True, ("K*",), "OTHER", False),
        (False, ("K*",), "OTHER", False),
    ],
)
async def test_which_of_the_engines_secrets_a_worker_may_use(
    scoped: bool, globs: tuple[str, ...] | None, name: str, allowed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rules: dict[str, Any] = {"expose": ()} if scoped else {}
    async with serving(module(environment=SECRETS, env_allowlist=globs), **rules) as (core, port):
        worker = await port.connect(name="w")
        worker.register("ext::a", invocation={**WEB, "auth": {"type": "hmac", "secret_key": name}})
        await worker.settled()
        assert (core.functions.get(DEFAULT_NAMESPACE, "ext::a") is not None) is allowed
        if not allowed:
            error = (await worker.next("error"))["error"]
            assert error["code"] == "FORBIDDEN"
            assert "env_allowlist" in error["message"]
        assert "s3cret" not in caplog.text


async def test_the_hook_decides_on_these_registrations_too() -> None:
    hooks = Hooks(function="hook")
    async with serving(module(), expose=(), hooks=hooks) as (core, port):
        core.local.register("hook", lambda call, data: _verdict(data.decode()))
        worker = await port.connect(name="w")
        worker.register("ext::a", invocation=WEB)
        worker.register("ext::b", invocation=WEB)
        await worker.next("error")
        await worker.settled()
        assert core.functions.get(DEFAULT_NAMESPACE, "ext::b") is None
        entry = core.functions.get(DEFAULT_NAMESPACE, "team::ext::a")
        assert entry is not None
        assert (entry.exposed_id, entry.executor.name) == ("ext::a", "http-functions")
        worker.send({"type": "unregisterfunction", "id": "ext::a"})
        await worker.settled()
        assert core.functions.get(DEFAULT_NAMESPACE, "team::ext::a") is None


def _verdict(request: dict[str, Any]) -> Any:
    if request["function_id"] == "ext::b":
        return Outcome(NULL)
    return Outcome(Json.of({"function_id": f"team::{request['function_id']}"}))


async def test_a_shared_function_may_be_an_endpoint_here_and_a_handler_there() -> None:
    names = Names({"example.com": ["10.0.0.1"]})
    async with serving(module(names)) as (core, port):
        shared = {"iii.shared": True}
        first, second = await port.connect(name="1"), await port.connect(name="2")
        first.register("shop::pay", metadata=shared)
        await first.settled()
        names.answers = {"example.com": [PUBLIC]}
        second.register("shop::pay", metadata=shared, invocation=WEB)
        await second.settled()
        await trio.testing.wait_all_tasks_blocked()
        names.answers = {"example.com": ["10.0.0.1"]}
        calls = [second.call("shop::pay", number) for number in range(2)]
        here = await first.next("invokefunction")
        first.answer(here, result="by hand")
        answers = [await second.result(call) for call in calls]
        assert sorted(answer.get("result") or answer["error"]["message"] for answer in answers) == [
            "Private IP blocked",
            "by hand",
        ]
        assert core.functions.statistics().replicas == 1
