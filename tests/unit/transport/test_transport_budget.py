"""The budget of all connections: its accounts against a model, and which connection is ended, how, and what it held."""

import logging

import pytest
import trio
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from transport_peer import Peer
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked
from wsproto.events import TextMessage

from iii_trio.protocol.limits import BUFFERED_ALL, CLOSE_S, OUTBOX_HARD
from iii_trio.transport import Budget, BudgetStatistics, CloseCode, Closed, Connection, Framing, Outbox
from iii_trio.transport.budget import CHUNK, REASON, Account, in_chunks
from iii_trio.transport.outbox import MESSAGE_OVERHEAD

LIMIT = 20 * CHUNK
SIZES = st.one_of(st.integers(0, 3 * CHUNK), st.integers(0, LIMIT))


# -- accounts against a model -----------------------------------------------------------------------------------------


@define(eq=False)
class Buffer:
    """One outbox that draws on a budget, and how much of a message is there."""

    outbox: Outbox
    account: Account = field(init=False)
    assembling: int = 0
    ended: bool = False

    def draw_on(self, budget: Budget, name: str) -> None:
        self.account = budget.open(name, self.give_up)
        self.outbox.draw_on(self.account)

    def give_up(self, reason: str) -> None:
        assert reason == REASON
        assert not self.ended, "a connection is ended once"
        self.ended = True
        self.outbox.close()
        self.outbox.clear()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 3), SIZES),
            st.tuples(st.just("drain"), st.integers(0, 3), SIZES),
            st.tuples(st.just("assemble"), st.integers(0, 3), SIZES),
            st.tuples(st.just("clear"), st.integers(0, 3), st.just(0)),
            st.tuples(st.just("close"), st.integers(0, 3), st.just(0)),
        ),
        max_size=60,
    )
)
def test_accounts_hold_what_is_buffered_and_whoever_holds_most_is_ended(steps: list[tuple[str, int, int]]) -> None:
    budget = Budget(LIMIT)
    buffers = [Buffer(Outbox(hard_limit=LIMIT * 2)) for _ in range(4)]
    for index, buffer in enumerate(buffers):
        buffer.draw_on(budget, str(index))
    gone: set[int] = set()  # by themselves
    for step, index, size in steps:
        buffer = buffers[index]
        before = [one.account.held for one in buffers]
        alive = [not one.ended and number not in gone for number, one in enumerate(buffers)]
        wanted = 0
        if step == "put":
            wanted = in_chunks(buffer.outbox.pending_bytes + size + MESSAGE_OVERHEAD) + in_chunks(buffer.assembling)
            taken = buffer.outbox.put(bytes(size))
            assert taken is (not buffer.outbox.closed)
        elif step == "drain":
            written = 0
            while written < size and (data := buffer.outbox.take()):
                buffer.outbox.sent(len(data))
                written += len(data)
        elif step == "assemble":
            buffer.assembling = size
            wanted = in_chunks(buffer.outbox.pending_bytes) + in_chunks(size)
            buffer.account.assemble(size)
        elif step == "clear":
            buffer.outbox.clear()
        elif not buffer.ended:
            gone.add(index)
            buffer.account.close()
            buffer.outbox.close()
        held = budget.statistics().held
        assert held <= LIMIT
        assert held == sum(one.account.held for one in buffers)
        assert budget.statistics().holders == sum(one.account.held > 0 for one in buffers)
        for number, one in enumerate(buffers):
            if one.ended or number in gone:
                assert one.account.held == 0
            else:
                least = in_chunks(one.outbox.pending_bytes) + in_chunks(one.assembling)
                assert least <= one.account.held <= least + 3 * CHUNK, "of what is given back, little is kept"
        newly = [number for number, one in enumerate(buffers) if one.ended and alive[number]]
        for number in newly:
            assert step in ("put", "assemble")
            others = [before[other] for other in range(4) if alive[other] and other not in (number, *newly)]
            others.append(0)
            mine = max(before[number], wanted) if number == index else before[number]
            assert mine + 3 * CHUNK >= max(others), "nobody who holds more goes on"
        if newly:
            assert sum(before) + wanted > LIMIT - 3 * CHUNK, "there was no need"
    assert budget.statistics().ended == sum(one.ended for one in buffers)
    for one in buffers:
        one.account.close()
    assert budget.statistics() == BudgetStatistics(LIMIT, 0, 0, sum(one.ended for one in buffers))


def test_what_keeps_up_is_never_counted() -> None:
    budget = Budget(LIMIT)
    buffer = Buffer(Outbox())
    buffer.draw_on(budget, "quick")
    for _ in range(1000):
        assert buffer.outbox.put(bytes(CHUNK - MESSAGE_OVERHEAD))
        assert budget.statistics().held == 0
        buffer.outbox.sent(len(buffer.outbox.take()))
    assert buffer.outbox.put(bytes(CHUNK))
    assert budget.statistics() == BudgetStatistics(LIMIT, 2 * CHUNK, 1, 0)


def test_what_has_left_is_given_back_bit_by_bit() -> None:
    budget = Budget(LIMIT)
    buffer = Buffer(Outbox())
    buffer.draw_on(budget, "slow")
    assert buffer.outbox.put(bytes(10 * CHUNK))
    assert budget.statistics().held == 11 * CHUNK
    while data := buffer.outbox.take():
        buffer.outbox.sent(len(data))
        assert 0 <= budget.statistics().held - in_chunks(buffer.outbox.pending_bytes) <= 3 * CHUNK
    assert budget.statistics() == BudgetStatistics(LIMIT, 0, 0, 0)


def test_an_outbox_without_an_account_has_its_hard_limit_alone() -> None:
    outbox = Outbox()
    assert outbox.put(bytes(OUTBOX_HARD - MESSAGE_OVERHEAD))
    assert not outbox.put(b"")


def test_the_hard_limit_holds_below_the_budget() -> None:
    budget = Budget()
    buffer = Buffer(Outbox(hard_limit=5 * CHUNK + 1))
    buffer.draw_on(budget, "one")
    assert buffer.outbox.put(bytes(5 * CHUNK + 1 - MESSAGE_OVERHEAD))
    assert not buffer.outbox.put(b"")
    assert not buffer.ended
    assert budget.statistics() == BudgetStatistics(BUFFERED_ALL, 6 * CHUNK, 1, 0)


# -- connections ------------------------------------------------------------------------------------------------------


@define(eq=False)
class Site:
    """Connections on one budget, their peers, and how each has ended."""

    nursery: trio.Nursery
    budget: Budget
    ended: dict[str, Closed] = field(factory=dict)
    heard: list[bytes] = field(factory=list)

    def open(self, name: str, *, stalls: bool = False) -> tuple[Connection, Peer]:
        near, far = lockstep_stream_pair() if stalls else memory_stream_pair()
        connection = Connection(near, Framing(), budget=self.budget, name=name)
        self.nursery.start_soon(self._run, connection)
        return connection, Peer(far)

    async def _run(self, connection: Connection) -> None:
        self.ended[connection.name] = await connection.run(self.heard.extend)


async def test_of_several_that_do_not_read_the_one_with_most_is_ended_for_whoever_comes(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(nursery, Budget(LIMIT))
    small, _ = site.open("small", stalls=True)
    large, _ = site.open("large", stalls=True)
    newcomer, _ = site.open("newcomer", stalls=True)
    await wait_all_tasks_blocked()
    assert small.push(bytes(4 * CHUNK))
    assert large.push(bytes(10 * CHUNK))
    await wait_all_tasks_blocked()
    assert newcomer.push(bytes(9 * CHUNK))
    assert (small.closing, large.closing, newcomer.closing) == (False, True, False)
    assert site.budget.statistics() == BudgetStatistics(LIMIT, 15 * CHUNK, 2, 1)
    await wait_all_tasks_blocked()
    assert site.ended == {"large": Closed(CloseCode.TRY_AGAIN_LATER, REASON, clean=False)}
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"connections buffer more than the {LIMIT} bytes of `max_buffered_bytes`: large, which has most of it "
        f"({11 * CHUNK}), is ended"
    )
    nursery.cancel_scope.cancel()


async def test_whoever_would_hold_most_itself_is_ended_and_learns_why(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    site = Site(nursery, Budget(LIMIT))
    stalled, _ = site.open("stalled", stalls=True)
    flooded, peer = site.open("flooded")
    await wait_all_tasks_blocked()
    assert stalled.push(bytes(9 * CHUNK))
    assert flooded.push(bytes(4 * CHUNK))
    assert not flooded.push(bytes(9 * CHUNK))
    assert flooded.closing
    assert flooded.pending_bytes == 0
    assert await peer.close_code() == CloseCode.TRY_AGAIN_LATER
    await wait_all_tasks_blocked()
    assert site.ended == {"flooded": Closed(CloseCode.TRY_AGAIN_LATER, REASON, clean=True)}
    assert site.budget.statistics() == BudgetStatistics(LIMIT, 10 * CHUNK, 1, 1)
    nursery.cancel_scope.cancel()


async def test_messages_that_are_still_coming_count_until_they_are_there(nursery: trio.Nursery) -> None:
    site = Site(nursery, Budget(LIMIT))
    connection, peer = site.open("sender")
    text = "x" * (8 * CHUNK)
    data = peer.protocol.send(TextMessage(text))
    await peer.stream.send_all(data[:-1])
    await wait_all_tasks_blocked()
    assert site.budget.statistics() == BudgetStatistics(LIMIT, 8 * CHUNK, 1, 0)
    await peer.stream.send_all(data[-1:])
    await wait_all_tasks_blocked()
    assert site.heard == [text.encode()]
    assert site.budget.statistics() == BudgetStatistics(LIMIT, 0, 0, 0)
    connection.abort()


async def test_a_message_that_is_too_much_for_all_is_dropped_with_its_sender(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    site = Site(nursery, Budget(LIMIT))
    stalled, _ = site.open("stalled", stalls=True)
    sender, peer = site.open("sender")
    await wait_all_tasks_blocked()
    assert stalled.push(bytes(9 * CHUNK))
    data = peer.protocol.send(TextMessage("x" * (40 * CHUNK)))
    await peer.stream.send_all(data[: 12 * CHUNK])
    await wait_all_tasks_blocked()
    assert sender.closing
    assert not stalled.closing
    assert site.budget.statistics() == BudgetStatistics(LIMIT, 10 * CHUNK, 1, 1)
    assert sender.statistics().assembling_bytes <= CHUNK, "the part that has come is not kept either"
    await peer.stream.send_all(data[12 * CHUNK : 39 * CHUNK])
    await wait_all_tasks_blocked()
    assert sender.statistics().assembling_bytes <= CHUNK, "nor what still comes until the peer has read the Close"
    await peer.stream.send_all(data[39 * CHUNK :] + peer.protocol.send(TextMessage("y" * (20 * CHUNK)))[:-1])
    await wait_all_tasks_blocked()
    assert sender.statistics().assembling_bytes <= CHUNK, "be it another message"
    assert await peer.close_code() == CloseCode.TRY_AGAIN_LATER
    await trio.sleep(CLOSE_S)
    assert site.ended["sender"].code == CloseCode.TRY_AGAIN_LATER
    assert not site.heard
    nursery.cancel_scope.cancel()


async def test_a_connection_that_ends_gives_everything_back(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    site = Site(nursery, Budget(LIMIT))
    stalled, _ = site.open("stalled", stalls=True)
    sender, peer = site.open("sender")
    await wait_all_tasks_blocked()
    assert stalled.push(bytes(5 * CHUNK))
    await peer.stream.send_all(peer.protocol.send(TextMessage("x" * (8 * CHUNK)))[:-1])
    await wait_all_tasks_blocked()
    assert site.budget.statistics().holders == 2
    stalled.abort()
    sender.abort()
    await wait_all_tasks_blocked()
    assert site.budget.statistics() == BudgetStatistics(LIMIT, 0, 0, 0)


async def test_without_a_budget_of_others_a_connection_has_its_own(autojump_clock: MockClock) -> None:
    near, _far = lockstep_stream_pair()
    alone = Connection(near, Framing())
    assert alone.push(bytes(OUTBOX_HARD - MESSAGE_OVERHEAD))
    assert not alone.push(b"")
