"""A user of the configuration on the official Python SDK: registers an entry, changes it, hears of it, prints what it saw."""

import json
import os
import threading
from typing import Any

from iii import InitOptions, register_worker

SCHEMA = {
    "type": "object",
    "properties": {"port": {"type": "integer"}, "greeting": {"type": "string"}},
    "additionalProperties": False,
}

iii = register_worker(os.environ["III_URL"], InitOptions(worker_name="settings-user"))
seen: list[dict[str, Any]] = []
heard = threading.Event()


def on_change(event: dict[str, Any]) -> None:
    """Keep the events; the last one ends the program."""
    seen.append({key: event[key] for key in ("type", "event_type", "id", "old_value", "new_value")})
    if event["new_value"] == {"port": 2, "greeting": "hello world"}:
        heard.set()


def call(function_id: str, **payload: Any) -> Any:
    """The result, or the code of the error."""
    try:
        result = iii.trigger({"function_id": f"configuration::{function_id}", "payload": payload, "timeout_ms": 30_000})
    except Exception as error:
        return {"code": getattr(error, "code", type(error).__name__)}
    return result


iii.register_function("on-change", on_change)
iii.register_trigger({"type": "configuration", "function_id": "on-change", "config": {"configuration_id": "mine"}})
said = {
    "before": call("get", id="mine"),
    "registered": call("register", id="mine", name="Mine", description="d", schema=SCHEMA, initial_value={"port": 1}),
    "set": call("set", id="mine", value={"port": 2, "greeting": "hello ${WHO:world}"}),
    "invalid": call("set", id="mine", value={"port": "no"}),
    "get": call("get", id="mine"),
    "raw": call("get", id="mine", raw=True),
    "schema": call("schema", id="mine"),
    "listed": [row["id"] for row in call("list")["configurations"]],
    "http": call("set", id="iii-http", value={"default_timeout": 1234}),
}
heard.wait(20)
print(json.dumps({**said, "events": seen}), flush=True)
os._exit(0)
