"""Trigger types and bindings (spec/protocol.md §9), with providers behind sockets and in the process."""

from typing import Any

import pytest
from attrs import define, field
from engine_sync import SyncCore, SyncWorker

from iii_trio.engine import Binding, BindingState, LocalPeer, Reason, TypeClaim
from iii_trio.engine.registrations import WorkerProvider
from iii_trio.protocol import limits
from iii_trio.protocol.errors import TriggerRejected


@define(eq=False)
class Recorder:
    """A provider in the process that writes down what it is told; it refuses configs that are in `refuses`."""

    told: list[tuple[Any, ...]] = field(factory=list)
    refuses: set[Any] = field(factory=set)

    def bind(self, binding: Binding) -> None:
        if binding.config.decode() in self.refuses:
            raise TriggerRejected(f"no {binding.config.decode()}")
        self.told.append(("bind", binding.id, binding.config.decode()))

    def replace(self, old: Binding, new: Binding) -> None:
        if new.config.decode() in self.refuses:
            raise TriggerRejected(f"no {new.config.decode()}")
        self.told.append(("replace", old.config.decode(), new.config.decode()))

    def unbind(self, binding: Binding, reason: Reason) -> None:
        self.told.append(("unbind", binding.id, reason))


def provide(worker: SyncWorker, type_id: str = "T", **fields: Any) -> None:
    worker.send({"type": "registertriggertype", "id": type_id, "description": "", **fields})


def bind(worker: SyncWorker, binding_id: str = "one", type_id: str = "T", config: Any = 1, **fields: Any) -> None:
    frame = {"type": "registertrigger", "id": binding_id, "trigger_type": type_id, "function_id": "a::f"}
    worker.send({**frame, "config": config, **fields})


def unbind(worker: SyncWorker, binding_id: str = "one") -> None:
    worker.send({"type": "unregistertrigger", "id": binding_id, "trigger_type": "whatever"})


def refuse(provider: SyncWorker, told: dict[str, Any], text: str = "no") -> None:
    error = {"code": "trigger_registration_failed", "message": text}
    keys = {key: told[key] for key in ("id", "trigger_type", "function_id")}
    provider.send({"type": "triggerregistrationresult", **keys, "error": error})


def state(core: SyncCore, binding_id: str = "one") -> BindingState | None:
    binding = core.engine.triggers.get(binding_id)
    return None if binding is None else binding.state


def told(worker: SyncWorker) -> list[tuple[str, str]]:
    """What a provider has been told, in short."""
    return [(frame["type"], frame["id"]) for frame in worker.take() if frame["type"].endswith("trigger")]


def pair(**introduction: Any) -> tuple[SyncCore, SyncWorker, SyncWorker]:
    """A core with a provider of `T` and somebody who binds."""
    core = SyncCore()
    provider = core.connect(version="1", **introduction)
    provide(provider)
    return core, provider, core.connect(version="1", **introduction)


# -- what goes over the wire ------------------------------------------------------------------------------------------


def test_a_worker_provider_is_told_everything_and_the_owner_nothing() -> None:
    core, provider, owner = pair()
    bind(owner, config={"a": [1, None]}, metadata={"m": 1}, namespace="orders")
    assert provider.take() == [
        {
            "type": "registertrigger",
            "id": "one",
            "trigger_type": "T",
            "function_id": "a::f",
            "config": {"a": [1, None]},
            "metadata": {"m": 1},
            "namespace": "orders",
        }
    ]
    assert owner.take() == []
    assert state(core) is BindingState.LIVE
    unbind(owner)
    assert provider.take() == [
        {
            "type": "unregistertrigger",
            "id": "one",
            "trigger_type": "T",
            "function_id": "a::f",
            "config": {"a": [1, None]},
            "metadata": {"m": 1},
        }
    ]
    assert state(core) is None


def test_a_missing_config_reaches_the_provider_as_null() -> None:
    _, provider, owner = pair()
    owner.send({"type": "registertrigger", "id": "one", "trigger_type": "T", "function_id": "a::f"})
    frame = provider.take()[0]
    assert frame == {"type": "registertrigger", "id": "one", "trigger_type": "T", "function_id": "a::f", "config": None}


@pytest.mark.parametrize("key", ["namespace", "trigger_namespace"])
def test_a_blank_namespace_is_refused_by_name(key: str) -> None:
    core, provider, owner = pair()
    bind(owner, **{key: " "})
    answer = owner.take("triggerregistrationresult")[0]
    assert answer["error"]["code"] == "INVALID_NAMESPACE"
    assert answer["error"]["message"].startswith(f"`{key}` is empty")
    assert (state(core), told(provider)) == (None, [])


def test_anybody_may_unregister_and_an_unknown_id_is_nothing() -> None:
    core, provider, owner = pair()
    bind(owner)
    unbind(core.connect(version="1"))
    unbind(owner, "unknown")
    assert told(provider) == [("registertrigger", "one"), ("unregistertrigger", "one")]
    assert state(core) is None


# -- parking and replay -----------------------------------------------------------------------------------------------


def test_a_binding_waits_for_its_type_and_says_for_what() -> None:
    core = SyncCore()
    owner = core.connect(version="1")
    bind(owner)
    bind(owner, "two", "stream", trigger_namespace="orders")
    bind(owner, "three", "cron")
    assert owner.take() == []
    waiting = core.engine.triggers.get("one")
    assert waiting is not None
    assert (waiting.state, waiting.why) == (BindingState.PARKED, "nobody provides the trigger type 'T'")
    hinted = core.engine.triggers.get("two")
    assert hinted is not None
    assert "in namespace 'orders'" in hinted.why
    assert "built-in worker 'stream'" in hinted.why
    elsewhere = core.engine.triggers.get("three")
    assert elsewhere is not None
    assert elsewhere.why == "nobody provides the trigger type 'cron'", "it is no part of this release"
    provider = core.connect(version="1")
    provide(provider)
    assert told(provider) == [("registertrigger", "one")]
    assert state(core) is BindingState.LIVE


def test_a_provider_that_comes_back_gets_each_binding_once_with_the_same_ids() -> None:
    core, provider, owner = pair()
    bind(owner, config={"k": 1})
    first = provider.take()
    provider.cut()
    assert state(core) is BindingState.PARKED
    again = core.connect(version="1")
    provide(again)
    assert again.take() == first
    assert owner.take() == []


def test_a_type_that_is_registered_again_is_told_its_bindings_again() -> None:
    core, provider, owner = pair()
    bind(owner)
    provider.take()
    provide(provider)
    assert told(provider) == [("registertrigger", "one")]
    assert state(core) is BindingState.LIVE
    assert len(core.engine.triggers.types()) == 1


def test_a_type_that_is_withdrawn_leaves_its_bindings_waiting() -> None:
    core, provider, owner = pair()
    bind(owner)
    provider.take()
    core.connect(version="1").send({"type": "unregistertriggertype", "id": "T"})
    assert state(core) is BindingState.LIVE, "only its provider may withdraw a type"
    provider.send({"type": "unregistertriggertype", "id": "T"})
    assert told(provider) == [("unregistertrigger", "one")]
    assert state(core) is BindingState.PARKED
    assert core.engine.triggers.types() == ()


def test_the_newest_provider_serves_and_the_one_before_it_is_back_when_it_goes() -> None:
    core, older, owner = pair()
    bind(owner)
    newer = core.connect(version="1")
    provide(newer)
    assert told(older) == [("registertrigger", "one"), ("unregistertrigger", "one")]
    assert told(newer) == [("registertrigger", "one")]
    newer.cut()
    assert told(older) == [("registertrigger", "one")]
    assert state(core) is BindingState.LIVE


# -- owners -----------------------------------------------------------------------------------------------------------


def test_an_owner_that_leaves_takes_its_bindings_along_and_each_provider_hears_it_once() -> None:
    core, provider, owner = pair()
    bind(owner)
    bind(owner, "two")
    bind(owner, "three", "nobody's")
    provider.take()
    owner.cut()
    assert told(provider) == [("unregistertrigger", "one"), ("unregistertrigger", "two")]
    assert list(core.engine.triggers) == []


def test_a_binding_that_a_newer_connection_has_registered_again_stays() -> None:
    core, provider, owner = pair()
    bind(owner)
    newer = core.connect(version="1")
    bind(newer, config=2)
    owner.cut()
    assert told(provider) == [("registertrigger", "one"), ("registertrigger", "one")]
    binding = core.engine.triggers.get("one")
    assert binding is not None
    assert (binding.owner, binding.config.raw) == (newer.peer, b"2")


def test_a_binding_that_changes_its_type_leaves_the_old_provider() -> None:
    core, first, owner = pair()
    second = core.connect(version="1")
    provide(second, "U")
    bind(owner)
    bind(owner, type_id="U")
    assert told(first) == [("registertrigger", "one"), ("unregistertrigger", "one")]
    assert told(second) == [("registertrigger", "one")]


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_refusal_reaches_the_owner_and_the_next_registration_of_the_type_tries_again() -> None:
    core, provider, owner = pair()
    bind(owner)
    refuse(provider, provider.take()[0], "conflicts with already-registered route")
    assert owner.take() == [
        {
            "type": "triggerregistrationresult",
            "id": "one",
            "trigger_type": "T",
            "function_id": "a::f",
            "error": {"code": "trigger_registration_failed", "message": "conflicts with already-registered route"},
        }
    ]
    binding = core.engine.triggers.get("one")
    assert binding is not None
    assert binding.state is BindingState.REFUSED
    assert "already-registered" in binding.why
    unbind(core.connect(version="1"), "other")
    assert told(provider) == [], "it has refused: it need not be told to forget"
    provide(provider)
    assert told(provider) == [("registertrigger", "one")]
    assert state(core) is BindingState.LIVE


def test_only_the_provider_that_serves_a_binding_can_refuse_it() -> None:
    core, provider, owner = pair()
    bind(owner)
    frame = provider.take()[0]
    refuse(owner, frame)
    refuse(core.connect(version="1"), frame)
    assert state(core) is BindingState.LIVE
    newer = core.connect(version="1")
    provide(newer)
    refuse(provider, frame)
    assert state(core) is BindingState.LIVE, "a late answer of the provider before says nothing about this one"
    refuse(newer, {**frame, "id": "unknown"})
    assert owner.take() == []


def test_success_is_not_passed_on() -> None:
    core, provider, owner = pair()
    bind(owner)
    frame = provider.take()[0]
    keys = {key: frame[key] for key in ("id", "trigger_type", "function_id")}
    provider.send({"type": "triggerregistrationresult", **keys})
    assert (owner.take(), state(core)) == ([], BindingState.LIVE)


def test_the_length_of_a_refusal_is_bounded() -> None:
    core, provider, owner = pair()
    bind(owner)
    refuse(provider, provider.take()[0], "x" * 3_000_000)
    assert len(owner.connection.sent[0]) < 2_000
    binding = core.engine.triggers.get("one")
    assert binding is not None
    assert len(binding.why) < 2_000


# -- namespaces -------------------------------------------------------------------------------------------------------


def test_home_first_then_default_and_a_named_namespace_only() -> None:
    core = SyncCore()
    everybody, homely = core.connect(version="1"), core.connect(namespace="orders")
    provide(everybody)
    provide(homely)
    owner = core.connect(namespace="orders")
    bind(owner, "home")
    bind(owner, "named", trigger_namespace="default")
    bind(owner, "elsewhere", trigger_namespace="nowhere")
    assert told(homely) == [("registertrigger", "home")]
    assert told(everybody) == [("registertrigger", "named")]
    assert state(core, "elsewhere") is BindingState.PARKED
    provide(homely, namespace="nowhere")
    frame = homely.take()[-1]
    assert (frame["id"], frame["trigger_namespace"]) == ("elsewhere", "nowhere"), "the provider's, not its worker's"


def test_a_provider_at_home_takes_over_what_default_served_and_gives_it_back() -> None:
    core, everybody, _ = pair()
    owner = core.connect(namespace="orders")
    bind(owner, metadata=[1])
    bind(owner, "named", trigger_namespace="default")
    everybody.take()
    homely = core.connect(namespace="orders")
    provide(homely)
    frame = homely.take()[0]
    assert (frame["id"], frame["metadata"], frame["trigger_namespace"]) == ("one", [1], "orders")
    assert told(everybody) == [("unregistertrigger", "one")]
    homely.cut()
    assert told(everybody) == [("registertrigger", "one")]


# -- providers in the process -----------------------------------------------------------------------------------------


def module(core: SyncCore, type_id: str = "T") -> tuple[LocalPeer, Recorder, TypeClaim]:
    peer, provider = core.local("module"), Recorder()
    return peer, provider, peer.provide(type_id, provider)


def test_a_module_refuses_before_anything_is_bound() -> None:
    core = SyncCore()
    _, provider, _ = module(core)
    provider.refuses = {"bad"}
    owner = core.connect(version="1")
    bind(owner, config="bad")
    answer = owner.take("triggerregistrationresult")[0]
    assert answer["error"] == {"code": "trigger_registration_failed", "message": "no bad"}
    assert (state(core), provider.told) == (None, [])
    bind(owner, config="good")
    bind(owner, config="bad")
    binding = core.engine.triggers.get("one")
    assert binding is not None
    assert (binding.config.decode(), binding.state) == ("good", BindingState.LIVE), "the one before stays"
    bind(owner, config="better")
    unbind(owner)
    assert provider.told == [
        ("bind", "one", "good"),
        ("replace", "good", "better"),
        ("unbind", "one", Reason.UNREGISTERED),
    ]


def test_a_module_that_restarts_gets_its_bindings_back_and_may_refuse_some() -> None:
    core = SyncCore()
    peer, provider, _ = module(core)
    owner = core.connect(version="1")
    bind(owner, config="a")
    bind(owner, "two", config="b")
    core.engine.release(peer)
    assert provider.told[2:] == [("unbind", "one", Reason.PROVIDER_LEFT), ("unbind", "two", Reason.PROVIDER_LEFT)]
    again = Recorder(refuses={"a"})
    core.local("module").provide("T", again)
    assert again.told == [("bind", "two", "b")]
    assert (state(core), state(core, "two")) == (BindingState.REFUSED, BindingState.LIVE)
    assert owner.take("triggerregistrationresult")[0]["error"]["message"] == "no a"


def test_a_worker_takes_a_type_over_from_a_module_and_gives_it_back() -> None:
    core = SyncCore()
    _, provider, _ = module(core)
    owner = core.connect(version="1")
    bind(owner)
    worker = core.connect(version="1")
    provide(worker)
    assert provider.told == [("bind", "one", 1), ("unbind", "one", Reason.PROVIDER_LEFT)]
    assert told(worker) == [("registertrigger", "one")]
    worker.cut()
    assert provider.told[2:] == [("bind", "one", 1)]


def test_reasons() -> None:
    core = SyncCore()
    _, provider, claim = module(core)
    owner = core.connect(version="1")
    for binding_id in ("one", "two"):
        bind(owner, binding_id)
    unbind(owner)
    owner.cut()
    core.engine.triggers.withdraw(claim)
    core.engine.triggers.withdraw(claim)
    assert provider.told[2:] == [("unbind", "one", Reason.UNREGISTERED), ("unbind", "two", Reason.OWNER_LEFT)]


# -- aliases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "canonical"), [("api", "http"), ("queue", "durable:subscriber"), ("event", "durable:subscriber")]
)
def test_old_names_mean_the_new_types_and_owners_hear_the_name_they_used(alias: str, canonical: str) -> None:
    core = SyncCore()
    _, provider, _ = module(core, canonical)
    provider.refuses = {"bad"}
    owner = core.connect(version="1")
    bind(owner, type_id=alias)
    assert provider.told == [("bind", "one", 1)]
    bind(owner, "two", alias, "bad")
    assert owner.take("triggerregistrationresult")[0]["trigger_type"] == alias
    worker = core.connect(version="1")
    provide(worker, canonical)
    assert worker.take()[0]["trigger_type"] == canonical, "a provider is told its own name"
    older = core.connect(version="1")
    provide(older, alias)
    assert older.take()[0]["trigger_type"] == alias, "who provides the old name serves it"
    older.cut()
    assert told(worker)[-1] == ("registertrigger", "one")


# -- providers that do not keep up ------------------------------------------------------------------------------------


def test_a_provider_that_is_lost_when_it_is_told_is_nobodys_refusal() -> None:
    core, provider, owner = pair()
    standby = core.connect(version="1")
    provide(standby, "U")
    provider.connection.full = True
    bind(owner)
    assert provider.gone
    assert provider.connection.closed is not None
    assert provider.connection.closed[0] == 1013
    assert (state(core), owner.take()) == (BindingState.PARKED, [])


def test_a_binding_goes_to_the_next_provider_if_the_first_is_lost_when_told() -> None:
    core, first, owner = pair()
    second = core.connect(version="1")
    provide(second)
    second.connection.full = True
    bind(owner)
    assert second.gone
    assert told(first) == [("registertrigger", "one")]
    assert state(core) is BindingState.LIVE


def test_a_provider_that_is_lost_amid_its_bindings_leaves_none_of_them_behind() -> None:
    core, provider, owner = pair()
    bind(provider, "its own")
    bind(owner, "another's")
    provider.connection.full = True
    provide(provider)
    assert provider.gone
    assert (state(core, "its own"), state(core, "another's")) == (None, BindingState.PARKED)


def test_a_provider_that_withdraws_and_is_lost_when_told() -> None:
    core, provider, owner = pair()
    bind(provider, "its own")
    bind(owner, "another's")
    provider.connection.full = True
    provider.send({"type": "unregistertriggertype", "id": "T"})
    assert provider.gone
    assert (state(core, "its own"), state(core, "another's")) == (None, BindingState.PARKED)


def test_an_owner_that_is_lost_by_its_own_binding_leaves_nothing() -> None:
    core, provider, _ = pair()
    bind(provider)
    provider.connection.full = True
    bind(provider, type_id="U")
    assert provider.gone
    assert list(core.engine.triggers) == []


def test_a_binding_too_large_for_its_provider_is_refused_and_costs_the_provider_nothing() -> None:
    core, provider, owner = pair(runtime="python")
    provider.introduce(runtime="python", version="0.22.1")
    bind(owner, config="x" * limits.PEER_MESSAGE_SMALL)
    answer = owner.take("triggerregistrationresult")[0]
    assert answer["error"]["code"] == "trigger_registration_failed"
    assert str(limits.PEER_MESSAGE_SMALL) in answer["error"]["message"]
    assert (state(core), provider.take(), provider.gone) == (None, [], False)


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_bindings_and_types_of_one_connection_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iii_trio.engine.registrations.BINDINGS_PER_PEER", 2)
    monkeypatch.setattr("iii_trio.engine.registrations.TYPES_PER_PEER", 2)
    core, provider, owner = pair()
    for binding_id in ("one", "two", "three", "two"):
        bind(owner, binding_id)
    assert [frame["id"] for frame in owner.take("triggerregistrationresult")] == ["three"]
    for type_id in ("T", "U", "V", "U"):
        provide(provider, type_id)
    assert len(provider.take("error")) == 1
    assert {claim.id for claim in core.engine.triggers.types()} == {"T", "U"}


def test_statistics_count_by_state() -> None:
    core, provider, owner = pair()
    for binding_id, type_id in (("live", "T"), ("parked", "U"), ("refused", "T")):
        bind(owner, binding_id, type_id)
    refuse(provider, provider.take()[-1])
    statistics = core.engine.triggers.statistics()
    assert (statistics.live, statistics.parked, statistics.refused, statistics.types) == (1, 1, 1, 1)
    claim = core.engine.triggers.types()[0]
    assert isinstance(claim.provider, WorkerProvider)


def test_a_provider_looks_at_the_bindings_of_its_own_type_only() -> None:
    """A worker with many types that leaves beside many bindings must not hold everybody up."""
    core, _, owner = pair()
    for number in range(300):
        bind(owner, str(number))
    many = core.connect(version="1")
    for number in range(300):
        provide(many, f"type {number}")
    looked = 0
    triggers = core.engine.triggers
    resolve = triggers.resolve

    def counting(binding: Binding) -> TypeClaim | None:
        nonlocal looked
        looked += 1
        return resolve(binding)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(triggers), "resolve", lambda _self, binding: counting(binding))
        many.cut()
        provide(core.connect(version="1"), "another")
    assert looked == 0
