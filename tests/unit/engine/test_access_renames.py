"""Hooks that change their minds: whatever a registration was called before, a session holds it once (§14.6)."""

from typing import Any

import pytest
from engine_sync import SyncCore, SyncWorker

from iii_trio.engine import ExposeFilter, Hooks, Pattern
from iii_trio.engine.access import Session

HOOKS = Hooks(function="h", trigger="h", trigger_type="h")


class Town:
    """A session whose hook answers with `names`, one after the other."""

    def __init__(self, field: str, *names: str | None, prefix: str = "") -> None:
        self.core = SyncCore()
        self.hook = self.core.connect(name="hook")
        self.hook.register("h")
        everything = (ExposeFilter(pattern=Pattern.of("*")),)
        session = Session(expose=everything, hooks=HOOKS, prefix=prefix, namespaces={"default": (), "shop": ()})
        self.guest: SyncWorker = self.core.connect(session=session, name="guest")
        self.field, self.names = field, list(names)

    def send(self, frame: dict[str, Any]) -> None:
        """Send a registration and let the hook answer it."""
        self.guest.send(frame)
        for asked in self.hook.take("invokefunction"):
            self.hook.answer(asked["invocation_id"], result={self.field: self.names.pop(0)})

    def functions(self) -> set[str]:
        """The ids that the session serves."""
        return {entry.id for entry in self.core.engine.functions if entry.owner is self.guest.peer}

    def types(self) -> set[tuple[str, str]]:
        """Namespace and id of the types that the session provides."""
        return {(claim.namespace, claim.id) for claim in self.core.engine.triggers.types()}

    def triggers(self) -> dict[str, Any]:
        """The bindings and their configurations."""
        return {binding.id: binding.config.decode() for binding in self.core.engine.triggers}


@pytest.mark.parametrize("prefix", ["", "tenant"])
def test_a_function_that_kept_its_name_at_first_moves_as_a_whole(prefix: str) -> None:
    town = Town("function_id", None, "g", None, prefix=prefix)
    head = f"{prefix}::" if prefix else ""
    for expected in ("f", "g", "f"):
        town.send({"type": "registerfunction", "id": "f"})
        assert town.functions() == {head + expected}
    town.send({"type": "unregisterfunction", "id": "f"})
    assert town.functions() == set()


def test_a_function_is_not_moved_by_another_one_of_its_stored_name() -> None:
    town = Town("function_id", "g", None, "k")
    town.send({"type": "registerfunction", "id": "f"})
    town.send({"type": "registerfunction", "id": "g"})
    town.send({"type": "registerfunction", "id": "f"})
    assert town.functions() == {"g", "k"}


def provide(type_id: str, **fields: str) -> dict[str, Any]:
    return {"type": "registertriggertype", "id": type_id, "description": "", **fields}


def test_a_type_that_kept_its_name_at_first_moves_as_a_whole() -> None:
    town = Town("trigger_type_id", None, "U", None)
    for expected in ("T", "U", "T"):
        town.send(provide("T"))
        assert town.types() == {("default", expected)}
    town.send({"type": "unregistertriggertype", "id": "T"})
    assert town.types() == set()


def test_a_type_in_two_namespaces_is_two_types() -> None:
    town = Town("trigger_type_id", "U", "V")
    town.send(provide("T"))
    town.send(provide("T", namespace="shop"))
    assert town.types() == {("default", "U"), ("shop", "V")}
    town.send({"type": "unregistertriggertype", "id": "T"})
    assert town.types() == {("shop", "V")}
    town.send({"type": "unregistertriggertype", "id": "T", "namespace": "shop"})
    assert town.types() == set()


@pytest.mark.parametrize("again", [False, True])
def test_a_type_that_is_given_up_while_its_provider_is_asked_stays_given_up(again: bool) -> None:
    town = Town("trigger_type_id", None, None)
    silent = town.core.connect(name="silent")
    silent.send(provide("T"))
    town.send(provide("T"))
    assert silent.connection.pings == 1
    town.send({"type": "unregistertriggertype", "id": "T"})
    if again:
        town.send(provide("T"))
    town.core.advance(6)
    assert silent.gone == again
    owners = [claim.owner for claim in town.core.engine.triggers.types()]
    assert owners == [town.guest.peer if again else silent.peer]


def bind(binding_id: str, config: int) -> dict[str, Any]:
    return {"type": "registertrigger", "id": binding_id, "trigger_type": "T", "function_id": "f", "config": config}


def test_a_trigger_that_another_one_has_replaced_is_not_ended_by_the_first() -> None:
    town = Town("trigger_id", "one", "one", "two")
    town.send(bind("a", 1))
    town.send(bind("b", 2))
    assert town.triggers() == {"one": 2}
    town.send(bind("a", 3))
    assert town.triggers() == {"one": 2, "two": 3}
    town.send({"type": "unregistertrigger", "id": "a"})
    assert town.triggers() == {"one": 2}
    town.send({"type": "unregistertrigger", "id": "b"})
    assert town.triggers() == {}
