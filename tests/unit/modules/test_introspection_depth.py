"""What one worker registers does not keep others from reading the lists: nesting that no decoder takes is left out."""

from typing import Any

from module_harness import running

from iii_trio.modules.introspection import IntrospectionModule
from iii_trio.protocol import Json
from iii_trio.protocol.limits import MAX_DEPTH
from iii_trio.protocol.scan import deeper_than
from iii_trio.testing.raw import open_port


def nested(levels: int) -> dict[str, Any]:
    """An object of so many levels."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


async def test_deep_registrations_do_not_make_lists_unreadable() -> None:
    async with running(IntrospectionModule()) as (core, _), open_port(core) as port:
        worker, reader = await port.connect(name="deep"), await port.connect(name="reader")
        worker.register("deep::f", metadata=nested(MAX_DEPTH - 2), request_format=nested(MAX_DEPTH - 2))
        worker.register("flat::f", metadata=nested(100))
        worker.send(
            {
                "type": "registertrigger",
                "id": "t",
                "trigger_type": "engine::workers-available",
                "function_id": "deep::f",
                "config": nested(MAX_DEPTH - 2),
            }
        )
        await worker.settled()
        for function_id, data in (
            ("engine::functions::list", {}),
            ("engine::functions::info", {"function_id": "deep::f"}),
            ("engine::registered-triggers::list", {}),
            ("engine::registered-triggers::info", {"id": "t"}),
            ("engine::workers::info", {"name": "deep"}),
        ):
            answer = await reader.ask(function_id, data)
            assert "error" not in answer
            assert not deeper_than(Json.of(answer).raw, MAX_DEPTH), function_id
        listed = (await reader.ask("engine::functions::list", {"prefix": "flat"}))["result"]["functions"]
        assert listed[0]["metadata"] == nested(100), "what everybody can read is shown"
