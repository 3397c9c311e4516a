"""The guest of the access tests, on the official Python SDK: registers, calls, and prints what came of it as JSON."""

import json
import os
import sys
import time
from typing import Any

from iii import InitOptions, register_worker
from iii.triggers import TriggerConfig, TriggerHandler

headers = {"X-Test-Token": sys.argv[1]} if sys.argv[1] else {}
iii = register_worker(os.environ["III_URL"], InitOptions(worker_name="guest", headers=headers))
bound: list[str] = []


class Ticks(TriggerHandler[Any]):
    """A trigger type of the guest."""

    async def register_trigger(self, config: TriggerConfig[Any]) -> None:
        bound.append(config.function_id)

    async def unregister_trigger(self, config: TriggerConfig[Any]) -> None:
        bound.remove(config.function_id)


def call(function_id: str, payload: Any = None, tries: int = 1) -> Any:
    """The result, or the code of the error; `tries` for what takes a moment to be registered or let in."""
    for _ in range(tries):
        try:
            return iii.trigger({"function_id": function_id, "payload": payload, "timeout_ms": 30_000 // tries})
        except Exception as error:
            code = getattr(error, "code", type(error).__name__)
            if code not in ("function_not_found", "TIMEOUT"):
                break
            time.sleep(0.1)
    return {"code": code}


def without_caller(value: Any) -> Any:
    """A result without the key that the engine put into the payload."""
    if isinstance(value, dict):
        return {key: without_caller(item) for key, item in value.items() if key != "_caller_worker_id"}
    return value


iii.register_function("own", lambda data: {"own": data})
iii.register_function("denied", lambda data: None)
iii.register_trigger_type({"id": "tick", "description": "ticks"}, Ticks())
iii.register_trigger({"type": "tick", "function_id": "own", "config": {}})
said = {
    "echo": call("public::echo", {"n": 1}, tries=30),
    "large": len(json.dumps(call("public::echo", {"text": "x" * 3_000_000}))),
    "private": call("private::echo"),
    "secret": call("public::secret"),
    "own": call("t1::own", {"n": 2}, tries=50),
    "bound": bound,
    "asked": call("acl::asked"),
}
print(json.dumps(without_caller(said)), flush=True)
iii.shutdown()
