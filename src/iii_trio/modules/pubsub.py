"""Publish and subscribe: `publish` and the trigger type `subscribe` (spec/pubsub-cron-config-cli.md §1).

A message goes once to every live subscription of its topic, as it was published and with the subscription's metadata,
and is kept nowhere: who subscribes later does not get it, and a handler that fails is not called again. What handlers do
not keep up with waits in bounded numbers (`engine/firing.py`); what comes on top is dropped, counted and logged.
"""

from functools import partial
from typing import Final

import trio
from attrs import define, field, frozen

from ..config import Live, PubSubSettings
from ..engine import NOTHING, Call, Engine, Firing, Outcome, open_local
from ..engine.firing import FiringStatistics
from ..protocol import Json
from ..protocol.errors import WireError
from .inputs import call_fields, object_schema
from .topics import EXACT, WILDCARD, Topics

TOPIC_NOT_SET: Final = "topic_not_set"

PUBLISH_FORMAT: Final = object_schema(
    "PublishInput",
    {
        "topic": {"type": "string", "minLength": 1, "description": "Matched exactly; there are no wildcards."},
        "data": {"description": "What every subscriber is called with."},
    },
    ("topic", "data"),
)
SUBSCRIBE_FORMAT: Final = object_schema(
    "SubscribeTriggerConfig",
    {
        "topic": {"type": "string", "minLength": 1, "description": "The topic, or pattern of topics, to listen to."},
        "match": {
            "type": ["string", "null"],
            "enum": [EXACT, WILDCARD, None],
            "description": "wildcard takes `*` in the topic for any one segment between dots, and `**` at its end for "
            "one or more; exact, the default, takes the topic as it is.",
        },
        "condition_function_id": {
            "type": ["string", "null"],
            "description": "Called with the message first; if it answers false, the handler is not called.",
        },
    },
    ("topic",),
)


@frozen
class PubSubStatistics:
    """What pub/sub has done and holds."""

    published: int
    """Messages accepted, those without a subscriber included."""
    unheard: int
    """Those of them without a subscriber."""
    topics: int
    """Topics with at least one subscription."""
    patterns: int
    """Patterns with at least one subscription."""
    subscriptions: int
    firing: FiringStatistics | None
    """Deliveries since the module was started last; None when it does not run."""


@define(eq=False)
class PubSubModule:
    """The module. `settings` names the adapter; `local`, within this engine, is the one there is."""

    settings: Live[PubSubSettings]
    _subscriptions: Topics = field(factory=Topics, init=False)
    _firing: Firing | None = field(default=None, init=False)
    _published: int = field(default=0, init=False)
    _unheard: int = field(default=0, init=False)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `task_status` is told once the function and the trigger type are there."""
        async with open_local(core, "pubsub") as peer:
            self._firing = Firing(peer)
            peer.register(
                "publish",
                partial(self._publish, self._firing),
                description="Deliver a message to every subscription of a topic.",
                request_format=PUBLISH_FORMAT,
            )
            peer.provide(
                "subscribe",
                self._subscriptions,
                description="Calls a function with every message published to a topic.",
                config_format=SUBSCRIBE_FORMAT,
            )
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._firing = None

    def _publish(self, firing: Firing, call: Call, data: Json) -> Outcome:
        """`publish` (§1.1): payload `{"topic", "data"}`, no result; the deliveries are under way when it answers."""
        fields = call_fields(call, data)
        topic, message = fields.text("topic"), Json.of(fields.json("data"))
        if not topic:
            raise WireError("Topic is not set", TOPIC_NOT_SET)
        self._published += 1
        subscriptions = self._subscriptions.at(topic)
        self._unheard += not subscriptions
        for binding, condition in subscriptions:
            firing.fire(binding, message, condition=condition, traceparent=call.traceparent, baggage=call.baggage)
        return NOTHING

    def statistics(self) -> PubSubStatistics:
        """A frozen picture of topics, subscriptions and deliveries."""
        return PubSubStatistics(
            published=self._published,
            unheard=self._unheard,
            topics=self._subscriptions.topics,
            patterns=self._subscriptions.patterns,
            subscriptions=len(self._subscriptions),
            firing=None if self._firing is None else self._firing.statistics(),
        )
