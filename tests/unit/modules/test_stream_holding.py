"""The backlog and what is held behind a provider's answer, step by step: subscriptions, events and a sink one can fill."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from iii_trio.modules.stream.events import MAX_REMEMBERED, Group, Stamps, changed, custom, event
from iii_trio.modules.stream.subscribers import Hub, Subscriber, Subscription
from iii_trio.protocol import NULL, Json

G: Group = ("s", "g")


@define
class Pipe:
    """A sink that takes messages while it is open."""

    full: bool = False
    closing: bool = False
    got: list[Any] = field(factory=list)
    _room: trio.Event = field(factory=trio.Event)

    @property
    def busy(self) -> bool:
        return self.full

    def push(self, message: bytes) -> bool:
        told = json.loads(message)
        self.got.append((told["event"]["type"], told["event"].get("data", told["event"].get("event"))))
        return True

    async def wait_room(self) -> None:
        while self.full and not self.closing:
            await self._room.wait()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.closing = True
        self._room.set()

    def open(self) -> None:
        self.full = False
        self._room.set()
        self._room = trio.Event()


@define
class Keeper:
    """A source that answers when the test says so."""

    exact: bool = False
    waiting: list[Callable[[Json | None], None]] = field(factory=list)

    def in_line(self, stream: str, item: str | None) -> bool:
        return self.exact

    def read(self, group: Group, item: str | None, on_done: Callable[[Json | None], None]) -> None:
        self.waiting.append(on_done)

    def answer(self, value: Any) -> None:
        self.waiting.pop(0)(None if value is None else Json.of(value))


def hub(exact: bool = False) -> tuple[Hub, Keeper]:
    source = Keeper(exact)
    return Hub(Stamps(lambda: 1_000), source), source


def tell(one: Hub, item: str, data: Any) -> None:
    one.publish(event(G, item, one.stamps.next(G), changed(b"update", Json.of(data))))


def wave(one: Hub, number: int) -> None:
    one.publish(event(G, None, one.stamps.next(G), custom("wave", Json.of(number)), customs=1))


def waved(number: int) -> tuple[str, Any]:
    return "event", {"type": "wave", "data": number}


def dropped(count: int) -> tuple[str, Any]:
    return "event", {"type": "iii:dropped", "data": {"events": count}}


def subscribe(nursery: trio.Nursery, subscriber: Subscriber, name: str, item: str | None = None) -> Subscription:
    subscription = Subscription(subscriber, name, G, item)
    subscriber.add(subscription)
    nursery.start_soon(subscriber.hub.synchronise, subscription)
    return subscription


async def test_while_a_provider_reads_the_whole_socket_waits_for_its_sync(nursery: trio.Nursery) -> None:
    one, source = hub()
    pipe = Pipe()
    subscriber = one.open(pipe)
    subscribe(nursery, subscriber, "item", "i")
    await trio.testing.wait_all_tasks_blocked()
    source.answer(0)
    subscribe(nursery, subscriber, "group")
    await trio.testing.wait_all_tasks_blocked()
    tell(one, "i", 1)
    wave(one, 2)
    assert pipe.got == [("sync", 0)], "the group's client would take its sync for outdated"
    source.answer([0])
    assert pipe.got == [("sync", 0), ("sync", [0]), ("update", 1), waved(2)]


async def test_who_leaves_while_a_provider_reads_keeps_nothing_from_the_others(nursery: trio.Nursery) -> None:
    one, source = hub()
    pipe = Pipe()
    subscriber = one.open(pipe)
    subscribe(nursery, subscriber, "item", "i")
    await trio.testing.wait_all_tasks_blocked()
    source.answer(0)
    subscribe(nursery, subscriber, "group")
    await trio.testing.wait_all_tasks_blocked()
    tell(one, "i", 1)
    subscriber.take("group")
    assert pipe.got == [("sync", 0), ("update", 1)]
    source.answer([0])
    assert pipe.got == [("sync", 0), ("update", 1)]


async def test_more_than_can_be_held_is_dropped_and_read_again(nursery: trio.Nursery) -> None:
    one, source = hub()
    pipe = Pipe()
    subscriber = one.open(pipe, most_events=2)
    nursery.start_soon(subscriber.pump)
    subscribe(nursery, subscriber, "group")
    await trio.testing.wait_all_tasks_blocked()
    wave(one, 1)
    tell(one, "i", 2)
    tell(one, "i", 3)
    tell(one, "i", 4)
    source.answer([])
    assert pipe.got[:2] == [("sync", []), ("update", 4)]
    await trio.testing.wait_all_tasks_blocked()
    source.answer([4])
    assert pipe.got[2:] == [dropped(1), ("sync", [4])]
    assert one.statistics().resyncs == 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("exact", [True, False])
async def test_a_notice_of_what_was_lost_that_is_lost_itself_is_not_forgotten(
    nursery: trio.Nursery, exact: bool
) -> None:
    one, source = hub(exact)
    pipe = Pipe()
    subscriber = one.open(pipe, most_events=2)
    nursery.start_soon(subscriber.pump)
    subscribe(nursery, subscriber, "group")
    await trio.testing.wait_all_tasks_blocked()
    source.answer([])
    for turn in range(2):
        pipe.full = True
        for number in range(3 + turn):
            wave(one, number)
        assert subscriber.statistics().stale == 1
        pipe.open()
        await trio.testing.wait_all_tasks_blocked()
        pipe.full = True  # what the snapshot brings waits
        source.answer([turn])
    wave(one, 9)
    pipe.open()
    await trio.testing.wait_all_tasks_blocked()
    while source.waiting:
        source.answer([7])
        await trio.testing.wait_all_tasks_blocked()
    kinds = [kind for kind, _ in pipe.got]
    counted = [data["data"]["events"] for kind, data in pipe.got if kind == "event" and data["type"] == "iii:dropped"]
    waves = [data for kind, data in pipe.got if kind == "event" and data["type"] == "wave"]
    assert kinds[0] == "sync"
    assert sum(counted) + len(waves) == 3 + 4 + 1
    nursery.cancel_scope.cancel()


def test_timestamps_of_forgotten_groups_do_not_go_back() -> None:
    now = 1_000
    stamps = Stamps(lambda: now)
    groups = [("s", str(number)) for number in range(2 * MAX_REMEMBERED)]
    last = {group: stamps.next(group) for group in groups}
    for _ in range(50):
        last[groups[0]] = stamps.next(groups[0])
    now = 1_020
    for number in range(MAX_REMEMBERED * 3):
        stamps.next(("t", str(number)))
    assert len(stamps) <= 4 * MAX_REMEMBERED
    for group in groups:
        assert stamps.next(group) > last[group]
    now = 900
    before = stamps.next(("t", "0"))
    assert stamps.next(("t", "0")) == before + 1


async def test_a_pump_ends_with_a_sink_that_is_full_for_ever() -> None:
    one, _ = hub(exact=True)
    pipe = Pipe(full=True)
    subscriber = one.open(pipe)
    subscriber.send(event(G, "i", one.stamps.next(G), changed(b"update", NULL)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscriber.pump)
        await trio.testing.wait_all_tasks_blocked()
        pipe.close()
        with trio.fail_after(30):
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()
    assert pipe.got == []
