"""Providers that serve one type in several places: what they were told last is what they serve."""

from engine_sync import SyncCore, SyncWorker

from iii_trio.engine import BindingState


def bind(worker: SyncWorker, config: int, **fields: str) -> None:
    frame = {"type": "registertrigger", "id": "one", "trigger_type": "T", "function_id": "f", "config": config}
    worker.send({**frame, **fields})


def test_a_binding_that_moves_between_two_namespaces_of_one_provider_stays_bound() -> None:
    core = SyncCore()
    provider, owner = core.connect(name="provider"), core.connect(name="owner")
    for space in ("default", "shop"):
        provider.send({"type": "registertriggertype", "id": "T", "description": "", "namespace": space})
    bind(owner, 1)
    bind(owner, 2, trigger_namespace="shop")
    told = [(frame["type"], frame["config"]) for frame in provider.take()]
    assert told == [("registertrigger", 1), ("registertrigger", 2)], "an unregistertrigger would end the new one"
    binding = core.engine.triggers.get("one")
    assert binding is not None
    assert binding.state is BindingState.LIVE
    owner.cut()
    assert [(frame["type"], frame["config"]) for frame in provider.take()] == [("unregistertrigger", 2)]
    assert not list(core.engine.triggers)
