"""Reads in line with the writes: `values_in_line` shows exactly what is answered before it, in every store."""

from typing import Any

import trio
from attrs import define, field

from iii_trio.stores import Done, Store


@define
class Answers:
    """What a store has answered, in that order."""

    got: list[tuple[str, Any]] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event)

    def to(self, name: str) -> Any:
        def answered(result: Any) -> None:
            assert isinstance(result, Done), result
            self.got.append((name, result.value))
            self._news.set()

        return answered

    async def all(self, count: int) -> list[tuple[str, Any]]:
        with trio.fail_after(20):
            while len(self.got) < count:
                await self._news.wait()
                self._news = trio.Event()
        return self.got


async def test_a_read_in_line_shows_the_writes_answered_before_it_and_no_other(store: Store) -> None:
    kv, other, answers = store.key_value("space"), store.key_value("other"), Answers()
    for number in range(200):
        kv.set("s", f"{number % 7}", b"%d" % number, answers.to("set"))
        if number % 3 == 0:
            kv.values_in_line("s", answers.to("read"))
        if number % 5 == 0:
            other.set("s", "k", b"", answers.to("elsewhere"))
        if number % 50 == 49:
            await trio.lowlevel.checkpoint()
    written, seen = 0, 0
    for name, value in await answers.all(200 + 67 + 40):
        if name == "set":
            written += 1
        elif name == "read":
            seen += 1
            newest = max(range(max(0, written - 7), written), default=-1)
            assert max(map(int, value)) == newest
            assert len(value) == min(7, written)
    assert (written, seen) == (200, 67)


async def test_a_read_in_line_that_finds_the_scope_empty(store: Store) -> None:
    answers = Answers()
    store.key_value("space").values_in_line("nothing", answers.to("read"))
    assert await answers.all(1) == [("read", [])]
    assert store.key_value("space").statistics().writes == 0
