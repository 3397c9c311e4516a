"""What a session under access control is shown: what it may use, and its own (spec/observability-introspection.md §17)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from attrs import frozen
from module_harness import bind, record, running

from iii_trio.config import Live, PubSubSettings
from iii_trio.engine import Engine, LocalPeer
from iii_trio.engine.access import ExposeFilter, Pattern, Session
from iii_trio.modules.introspection import IntrospectionModule
from iii_trio.modules.pubsub import PubSubModule
from iii_trio.testing.raw import RawPort, RawWorker, open_port

GRANTS = ("public::*", "engine::*")


@frozen
class Scene:
    """A guarded worker among others: one serves what it may call, the other does not."""

    core: Engine
    user: LocalPeer
    port: RawPort
    guest: RawWorker
    public: RawWorker
    secret: RawWorker

    async def ask(self, function_id: str, data: Any) -> Any:
        """What the guest is answered."""
        answer = await self.guest.ask(function_id, data)
        return answer["error"]["code"] if "error" in answer else answer["result"]


def guard(core: Engine, worker: RawWorker, **more: Any) -> None:
    peer = core.workers.get(worker.worker_id)
    assert peer is not None
    peer.session = Session(expose=tuple(ExposeFilter(pattern=Pattern.of(text)) for text in GRANTS), **more)


@asynccontextmanager
async def scene(binds: str = "", **session: Any) -> AsyncIterator[Scene]:
    """`binds` is a trigger type to which the guest had bound its function before anybody guarded it."""
    async with (
        running(IntrospectionModule(), PubSubModule(Live(PubSubSettings()))) as (core, user),
        open_port(core) as port,
    ):
        guest = await port.connect(name="guest", pid=1)
        guest.register("guest::mine")
        if binds:
            frame = {"id": "own", "trigger_type": binds, "function_id": "guest::mine", "config": {"topic": "t"}}
            guest.send({"type": "registertrigger", **frame})
        await guest.settled()
        guard(core, guest, **session)
        public, secret = await port.connect(name="public", pid=2), await port.connect(name="secret", pid=3)
        public.register("public::f")
        public.register("private::g")
        public.send({"type": "registertriggertype", "id": "bell", "description": ""})
        secret.register("private::h")
        await public.settled()
        await secret.settled()
        yield Scene(core, user, port, guest, public, secret)


async def test_workers_are_those_that_serve_something_for_it() -> None:
    async with scene() as here:
        rows = {row["name"]: row for row in (await here.ask("engine::workers::list", {}))["workers"]}
        # pub/sub serves `publish`, which was not granted
        assert set(rows) == {"guest", "public", "iii-engine-functions"}
        public = rows["public"]
        assert (public["functions"], public["function_count"]) == (["public::f"], 1)
        assert (public["ip_address"], public["pid"], public["telemetry"]) == (None, None, None)
        assert rows["guest"]["functions"] == ["guest::mine"], "its own, though nobody granted that it may call it"
        assert (rows["guest"]["ip_address"], rows["guest"]["pid"]) == ("memory", 1)

        assert await here.ask("engine::workers::info", {"name": "secret"}) == "NOT_FOUND"
        assert await here.ask("engine::workers::info", {"id": here.secret.worker_id}) == "NOT_FOUND"
        info = await here.ask("engine::workers::info", {"name": "public"})
        assert [row["function_id"] for row in info["functions"]] == ["public::f"]
        assert "pid" not in info["worker"]


async def test_trigger_types_are_those_that_it_may_bind() -> None:
    async with scene(trigger_types=frozenset({"bell"})) as here:
        rows = (await here.ask("engine::triggers::list", {"include_internal": True}))["triggers"]
        assert [row["id"] for row in rows] == ["bell"]
        assert (await here.ask("engine::triggers::info", {"id": "bell"}))["worker_name"] == "public"
        assert await here.ask("engine::triggers::info", {"id": "subscribe"}) == "FORBIDDEN"
        assert await here.ask("engine::triggers::info", {"id": "no such type"}) == "FORBIDDEN"


async def test_registered_triggers_are_those_of_what_it_may_call_and_its_own() -> None:
    async with scene("subscribe") as here:
        for binding_id, function_id in (("open", "public::f"), ("closed", "private::h")):
            bind(here.core, here.user, "subscribe", function_id, {"topic": "t"}, id=binding_id)
        rows = (await here.ask("engine::registered-triggers::list", {}))["registered_triggers"]
        assert {row["id"] for row in rows} == {"open", "own"}
        assert await here.ask("engine::registered-triggers::info", {"id": "closed"}) == "NOT_FOUND"
        shown = await here.ask("engine::registered-triggers::info", {"id": "own"})
        assert (shown["function_id"], shown["function"]) == ("guest::mine", None)
        assert (await here.ask("engine::registered-triggers::info", {"id": "open"}))["function"] is not None


async def test_what_it_may_not_call_is_not_explained_to_it_either() -> None:
    async with scene() as here:
        here.secret.send({"type": "registerfunction", "id": "private::hook", "invocation": {"url": "https://u:p@x/"}})
        here.secret.send({"type": "registerfunction", "id": "public::hook", "invocation": {"url": "https://u:p@x/"}})
        abroad = await here.port.connect(name="abroad", namespace="eu")
        abroad.register("private::h")
        await here.secret.settled()
        await abroad.settled()

        async def told(function_id: str, **fields: str) -> str:
            answer = await here.guest.ask("engine::functions::info", {"function_id": function_id, **fields})
            return str(answer["error"]["message"])

        assert await told("private::hook") == "Function 'private::hook' is not registered."
        assert "was refused" in await told("public::hook"), "what it may call is"
        hidden = "Function 'private::h' is not visible to this session."
        assert await told("private::h") == hidden
        assert await told("private::h", namespace="asia") == hidden, "and not in which namespaces it is"
        assert "default" in await told("public::f", namespace="asia")
        batch = {"function_ids": ["private::h", "private::hook"], "namespace": "asia"}
        rows = (await here.ask("engine::functions::info", batch))["functions"]
        assert [row["error"] for row in rows] == ["forbidden", "not_found"]


async def test_a_session_without_a_grant_asks_in_vain() -> None:
    async with scene() as here:
        peer = here.core.workers.get(here.guest.worker_id)
        assert peer is not None
        peer.session = Session(expose=())
        for name in ("workers::list", "workers::info", "triggers::info", "registered-triggers::info", "tree"):
            assert await here.ask(f"engine::{name}", {}) == "FORBIDDEN"


async def test_a_trigger_that_outlasts_its_maker_sees_no_more_than_the_maker(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with scene() as here:
        heard = record(here.user, "public::ear")
        for name in ("functions", "workers"):
            wanted = {"trigger_type": f"engine::{name}-available", "function_id": "public::ear"}
            assert "id" in await here.ask("engine::register_trigger", wanted)
        here.guest.cut()
        await here.port.gone(here.guest)
        await trio.sleep(1)
        heard.payloads.clear()
        hidden = await here.port.connect(name="hidden")
        hidden.register("private::new")
        shown = await here.port.connect(name="shown")
        shown.register("public::new")
        await trio.sleep(1)
        lists = [payload for payload in heard.payloads if payload["event"] == "functions_changed"]
        assert "public::new" in {row["function_id"] for row in lists[-1]["functions"]}
        assert "private::new" not in {row["function_id"] for row in lists[-1]["functions"]}
        assert {payload["worker_id"] for payload in heard.payloads if "worker_id" in payload} == {shown.worker_id}


async def test_a_session_hears_of_workers_that_it_sees_and_of_their_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with scene("engine::workers-available") as here:
        heard = record(here.user, "everything")
        bind(here.core, here.user, "engine::workers-available", "everything", {})
        await here.guest.settled()
        await trio.sleep(1)
        here.guest.answer(await here.guest.next("invokefunction"), result=None)  # of `public`
        here.guest.answer(await here.guest.next("invokefunction"), result=None)
        heard.payloads.clear()
        shown, hidden = await here.port.connect(name="shown"), await here.port.connect(name="hidden")
        shown.register("public::new")
        hidden.register("private::new")
        await trio.sleep(1)
        shown.cut()
        hidden.cut()
        await trio.sleep(1)
        assert {payload["worker_id"] for payload in heard.payloads} == {shown.worker_id, hidden.worker_id}
        told: list[tuple[str, str]] = []
        while len(told) < 3:
            call = await here.guest.next("invokefunction")
            told.append((call["data"]["event"], call["data"]["worker_id"]))
            here.guest.answer(call, result=None)
        await trio.sleep(1)
        assert not here.guest.frames
        assert told == [
            ("worker_connected", shown.worker_id),
            ("worker_metadata_updated", shown.worker_id),
            ("worker_disconnected", shown.worker_id),
        ]
