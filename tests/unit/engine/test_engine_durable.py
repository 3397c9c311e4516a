"""`engine::register_trigger` and `engine::unregister_trigger`: bindings that outlive everybody (spec/protocol.md §10)."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from iii_trio.engine import Binding, BindingState, Engine, Reason, open_local
from iii_trio.engine.access import Session
from iii_trio.protocol.errors import TriggerRejected
from iii_trio.testing.raw import RawPort, RawWorker

REGISTER = "engine::register_trigger"
UNREGISTER = "engine::unregister_trigger"
WANTED = {"trigger_type": "tick", "function_id": "a::f", "config": {"every": 1.50}, "metadata": [1]}


async def provider_of(port: RawPort, type_id: str = "tick", **introduction: Any) -> RawWorker:
    worker = await port.connect(**introduction or {"version": "1"})
    worker.send({"type": "registertriggertype", "id": type_id, "description": ""})
    await worker.settled()
    return worker


def verdict(worker: RawWorker, told: dict[str, Any], **fields: Any) -> None:
    keys = ("id", "trigger_type", "function_id")
    worker.send({"type": "triggerregistrationresult", **{key: told[key] for key in keys}, **fields})


async def test_it_survives_its_maker_and_its_provider(autojump_clock: MockClock, port: RawPort, core: Engine) -> None:
    maker = await port.connect()
    answer = await maker.ask(REGISTER, WANTED)
    binding_id = answer["result"]["id"]
    binding = core.triggers.get(binding_id)
    assert binding is not None
    assert (binding.state, binding.owner) == (BindingState.PARKED, None)
    maker.cut()
    await port.gone(maker)
    for _ in range(2):
        provider = await provider_of(port)
        assert await provider.next("registertrigger") == {"type": "registertrigger", "id": binding_id, **WANTED}
        provider.cut()
        await port.gone(provider)
        assert binding.state is BindingState.PARKED
    other = await port.connect()
    assert (await other.ask(UNREGISTER, {"id": binding_id}))["result"] == {"removed": True}
    assert (await other.ask(UNREGISTER, {"id": binding_id, "trigger_type": "tick"}))["result"] == {"removed": False}
    assert core.triggers.get(binding_id) is None
    assert core.triggers.durable == 0


async def test_the_answer_waits_for_the_providers(autojump_clock: MockClock, port: RawPort, core: Engine) -> None:
    provider, maker = await provider_of(port), await port.connect(version="1")
    call = maker.call(REGISTER, WANTED)
    told = await provider.next("registertrigger")
    await maker.settled()
    assert not maker.frames, "nothing is said before the provider has answered"
    verdict(provider, told)
    assert (await maker.result(call))["result"] == {"id": told["id"]}
    assert core.statistics().deadlines.timers == 0

    call = maker.call(REGISTER, WANTED)
    told = await provider.next("registertrigger")
    verdict(provider, told, error={"code": "bad_config", "message": "never on Sundays"})
    error = (await maker.result(call))["error"]
    assert (error["code"], error["message"]) == ("trigger_registration_failed", "bad_config: never on Sundays")
    assert core.triggers.get(told["id"]) is None, "its maker has no id to take it out with"
    assert core.triggers.durable == 1


async def test_a_silent_provider_has_accepted_after_ten_seconds(
    autojump_clock: MockClock, port: RawPort, core: Engine
) -> None:
    provider, maker = await provider_of(port), await port.connect(version="1")
    began = trio.current_time()
    answer = await maker.ask(REGISTER, WANTED)
    assert trio.current_time() - began == pytest.approx(10, abs=0.1)
    binding = core.triggers.get(answer["result"]["id"])
    assert binding is not None
    told = await provider.next("registertrigger")
    verdict(provider, told, error={"code": "late", "message": "no"})
    await provider.settled()
    assert (binding.state, binding.why) == (BindingState.REFUSED, "late: no")


async def test_a_provider_that_leaves_has_not_refused(autojump_clock: MockClock, port: RawPort, core: Engine) -> None:
    provider, maker = await provider_of(port), await port.connect(version="1")
    call = maker.call(REGISTER, WANTED)
    told = await provider.next("registertrigger")
    provider.cut()
    assert (await maker.result(call))["result"] == {"id": told["id"]}
    assert trio.current_time() < 1
    binding = core.triggers.get(told["id"])
    assert binding is not None
    assert binding.state is BindingState.PARKED


async def test_only_the_provider_answers(autojump_clock: MockClock, port: RawPort) -> None:
    provider, maker, thief = await provider_of(port), await port.connect(), await port.connect()
    call = maker.call(REGISTER, WANTED)
    told = await provider.next("registertrigger")
    verdict(thief, told, error={"code": "x", "message": "y"})
    await thief.settled()
    verdict(provider, told)
    assert (await maker.result(call))["result"] == {"id": told["id"]}


class Picky:
    """A built-in provider that refuses odd configurations."""

    def bind(self, binding: Binding) -> None:
        if binding.config.decode() != {"fine": True}:
            raise TriggerRejected("config.fine must be true")

    def replace(self, old: Binding, new: Binding) -> None:
        self.bind(new)

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """Nothing to forget."""


async def test_a_built_in_provider_answers_at_once(autojump_clock: MockClock, port: RawPort, core: Engine) -> None:
    maker = await port.connect()
    async with open_local(core, "picky") as module:
        module.provide("picky", Picky())
        error = (await maker.ask(REGISTER, {"trigger_type": "picky", "function_id": "a::f"}))["error"]
        assert (error["code"], error["message"]) == ("trigger_registration_failed", "config.fine must be true")
        wanted = {"trigger_type": "picky", "function_id": "a::f", "config": {"fine": True}}
        binding = core.triggers.get((await maker.ask(REGISTER, wanted))["result"]["id"])
        assert binding is not None
        assert (binding.state, binding.metadata.absent) == (BindingState.LIVE, True)
        assert [one.id for one in core.triggers] == [binding.id]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (None, "deserialization_error"),
        ({"function_id": "a::f"}, "deserialization_error"),
        ({"trigger_type": "tick", "function_id": ""}, "deserialization_error"),
        ({"trigger_type": 1, "function_id": "a::f"}, "deserialization_error"),
        ({"trigger_type": "tick", "function_id": "a::f", "trigger_namespace": " "}, "INVALID_NAMESPACE"),
    ],
)
async def test_bad_input_binds_nothing(
    autojump_clock: MockClock, port: RawPort, core: Engine, data: Any, code: str
) -> None:
    maker = await port.connect()
    assert (await maker.ask(REGISTER, data))["error"]["code"] == code
    assert (await maker.ask(UNREGISTER, {"id": 7}))["error"]["code"] == "deserialization_error"
    assert list(core.triggers) == []


async def test_the_named_namespace_of_the_provider_is_strict(
    autojump_clock: MockClock, port: RawPort, core: Engine
) -> None:
    away, maker = await provider_of(port, namespace="eu"), await port.connect(namespace="eu")
    parked = (await maker.ask(REGISTER, WANTED))["result"]["id"]
    binding = core.triggers.get(parked)
    assert binding is not None
    assert (binding.home, binding.namespace, binding.state) == ("default", "default", BindingState.PARKED)
    call = maker.call(REGISTER, {**WANTED, "trigger_namespace": "eu"})
    verdict(away, await away.next("registertrigger"))
    assert "error" not in await maker.result(call)


async def test_a_session_binds_what_it_may_call_under_its_prefix(
    autojump_clock: MockClock, port: RawPort, core: Engine
) -> None:
    maker, trusted = await port.connect(), await port.connect()
    await maker.settled()
    peer = core.workers.get(maker.worker_id)
    assert peer is not None
    allowed = frozenset({"p::f", REGISTER, UNREGISTER})
    peer.session = Session(prefix="p", trigger_types=frozenset({"tick"}), allowed=allowed, expose=())
    answer = await maker.ask(REGISTER, {"trigger_type": "tick", "function_id": "f"})
    binding = core.triggers.get(answer["result"]["id"])
    assert binding is not None
    assert binding.function_id == "p::f"
    for wanted in ({"trigger_type": "tock", "function_id": "f"}, {"trigger_type": "tick", "function_id": "g"}):
        assert (await maker.ask(REGISTER, wanted))["error"]["code"] == "FORBIDDEN"
    foreign = (await trusted.ask(REGISTER, WANTED))["result"]["id"]
    assert (await maker.ask(UNREGISTER, {"id": foreign}))["error"]["code"] == "FORBIDDEN"
    assert (await maker.ask(UNREGISTER, {"id": binding.id}))["result"] == {"removed": True}
    assert [one.id for one in core.triggers] == [foreign]
