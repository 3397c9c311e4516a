"""The functions by which operators see durable triggers and let go of those that nobody will come back for."""

from collections.abc import Callable
from typing import Any, Final

from attrs import define

from ..engine import DEFAULT_NAMESPACE, Call, Outcome
from ..protocol import Json
from .durable import DurableIndex
from .inputs import call_fields, object_schema
from .outbox import Outbox

_FORGET_FIELDS: Final = {
    "function_id": {"type": "string", "description": "The function that is to be told no more."},
    "namespace": {"type": ["string", "null"], "description": "Its namespace; absent means `default`."},
}


@define(eq=False)
class DurableFunctions:
    """`<type>::list_triggers` and `<type>::forget_trigger`. `names` are what the parts of a place are called."""

    type: str
    names: tuple[str, ...]
    index: DurableIndex[Any]
    outbox: Outbox

    def register(self, serve: Callable[..., Any]) -> None:
        """Serve both; `serve` is `LocalPeer.register`."""
        title = self.type.title()
        serve(
            f"{self.type}::list_triggers",
            self._list,
            description="Every durable trigger that is kept, and what waits for them.",
            request_format=object_schema(f"{title}ListTriggersInput", {}),
        )
        serve(
            f"{self.type}::forget_trigger",
            self._forget,
            description="Let a function whose worker will not come back be told of no changes any more.",
            request_format=object_schema(f"{title}ForgetTriggerInput", _FORGET_FIELDS, ("function_id",)),
        )

    def _list(self, call: Call, data: Json) -> Outcome:
        """`{}` → `{"triggers": [{"function_id", "namespace", (its place), "queue", …, "live"}], "waiting"}`."""
        call_fields(call, data, optional=True)
        rows = [
            {
                "function_id": watch.function_id,
                "namespace": watch.namespace,
                **dict(zip(self.names, watch.place, strict=True)),
                "queue": watch.queue,
                "condition_function_id": watch.condition,
                "live": live,
            }
            for watch, live in self.index.list()
        ]
        return Outcome(Json.of({"triggers": rows, "waiting": self.outbox.statistics().recorded}))

    def _forget(self, call: Call, data: Json) -> Outcome:
        """`{"function_id", "namespace"?}` → `{"forgotten": n}`; a trigger that a worker holds now is left alone."""
        fields = call_fields(call, data)
        namespace = fields.text_or_none("namespace") or DEFAULT_NAMESPACE
        return Outcome(Json.of({"forgotten": self.index.forget(namespace, fields.text("function_id"))}))
