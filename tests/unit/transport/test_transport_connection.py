"""A connection over memory streams: batches, order, pausing, room, and each way it ends; wsproto plays the peer."""

from collections.abc import Callable

import pytest
import trio
from transport_peer import Peer, start
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, Ping, Pong, TextMessage

from iii_trio.protocol.limits import (
    CLOSE_S,
    DEAD_AFTER_S,
    FRAMES_PER_WAKEUP,
    OUTBOX_BUSY,
    OUTBOX_HARD,
    OVERSIZE_HEAD,
    PING_AFTER_S,
    STALL_S,
)
from iii_trio.transport import CloseCode, Closed, Connection, Framing, Outbox, Oversize


async def test_texts_go_in_as_batches_and_out_in_order(nursery: trio.Nursery) -> None:
    run = start(nursery)
    await run.peer.text("a", "b", "ü")
    await wait_all_tasks_blocked()
    assert run.batches == [[b"a", b"b", "ü".encode()]]
    assert run.connection.push(b"1")
    assert run.connection.push("é".encode())
    assert (await run.peer.next()) == TextMessage("1")
    assert (await run.peer.next()) == TextMessage("é")


async def test_everything_pushed_before_the_writer_runs_leaves_in_one_write(nursery: trio.Nursery) -> None:
    run = start(nursery)
    await wait_all_tasks_blocked()
    for i in range(100):
        run.connection.push(b"%d" % i)
    await run.peer.read()
    assert len(run.peer.seen) == 100


async def test_both_roles_talk_to_each_other(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    server, client = Connection(ours, Framing()), Connection(theirs, Framing(client=True))
    got: list[bytes] = []

    def echo(messages: list[bytes]) -> None:
        for message in messages:
            server.push(message)

    def collect(messages: list[bytes]) -> None:
        got.extend(messages)
        if len(got) == 3:
            client.close(CloseCode.NORMAL, "enough")

    ends: list[Closed] = []
    async with trio.open_nursery() as pair:

        async def run(connection: Connection, on_batch: Callable[[list[bytes]], None]) -> None:
            ends.append(await connection.run(on_batch))

        pair.start_soon(run, server, echo)
        pair.start_soon(run, client, collect)
        sent = [b"one", b"x" * (5 << 20), b"three"]
        for message in sent:
            client.push(message)
    assert got == sent
    assert ends == [Closed(1000, "enough", clean=True)] * 2


async def test_bytes_that_came_with_the_handshake_are_read_first(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    early = Protocol(ConnectionType.CLIENT).send(TextMessage("early"))
    run = start(nursery, streams=(ours, theirs), rest=early[:4])
    await theirs.send_all(early[4:])
    await run.peer.text("later")
    await wait_all_tasks_blocked()
    assert [message for batch in run.batches for message in batch] == [b"early", b"later"]


async def test_messages_pushed_before_it_runs_are_sent(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    connection, peer = Connection(ours, Framing()), Peer(theirs)
    connection.push(b"hello")
    nursery.start_soon(connection.run, lambda messages: None)
    assert await peer.next() == TextMessage("hello")


async def test_a_flood_of_small_frames_lets_others_run_in_between(nursery: trio.Nursery) -> None:
    sizes: list[int] = []
    turns: list[int] = []
    other = 0

    def on_batch(messages: list[bytes]) -> None:
        sizes.append(len(messages))
        turns.append(other)

    run = start(nursery, on_batch)
    await run.peer.text(*["x"] * 3000)
    while sum(sizes) < 3000:
        other += 1
        await trio.lowlevel.checkpoint()
    assert max(sizes) == FRAMES_PER_WAKEUP
    # Trio runs the tasks of one tick in random order: at most two batches can follow each other.
    assert max(turns.count(turn) for turn in turns) <= 2


async def test_binary_oversize_and_pong_come_in_order_with_the_texts(nursery: trio.Nursery) -> None:
    log: list[object] = []
    run = start(
        nursery,
        log.extend,
        on_binary=log.append,
        on_oversize=log.append,
        on_pong=lambda payload: log.append(("pong", payload)),
    )
    run.connection.message_limit = 100
    assert run.connection.message_limit == 100
    payload = run.connection.ping()
    await run.peer.next(Ping)
    await run.peer.send(
        TextMessage("1"),
        BytesMessage(b"2"),
        TextMessage("x" * 101),
        Pong(payload),
        TextMessage("5"),
        BytesMessage(b"6"),
    )
    await wait_all_tasks_blocked()
    assert log == [b"1", b"2", Oversize(b"x" * 101, 101), ("pong", payload), b"5", b"6"]
    statistics = run.connection.statistics()
    assert (statistics.texts_in, statistics.binaries_in, statistics.oversize_in) == (2, 2, 1)
    assert run.connection.push_binary(b"\x00\xff")
    assert await run.peer.next(BytesMessage) == BytesMessage(b"\x00\xff")


async def test_without_a_callback_an_oversize_message_closes_with_1009(nursery: trio.Nursery) -> None:
    run = start(nursery, framing=Framing(max_message=10))
    await run.peer.text("01234567890", "dropped")
    assert await run.peer.close_code() == CloseCode.TOO_BIG
    assert (await run.end()).clean
    assert run.batches == []


async def test_the_head_of_an_oversize_message_comes_before_its_end(nursery: trio.Nursery) -> None:
    reports: list[Oversize] = []
    run = start(nursery, on_oversize=reports.append)
    size = run.connection.message_limit + 1
    await run.peer.stream.send_all(b"\x81\xff" + size.to_bytes(8, "big") + bytes(4) + b"{" * 70_000)
    await wait_all_tasks_blocked()
    assert reports == [Oversize(b"{" * OVERSIZE_HEAD, size)]
    assert run.connection.statistics().assembling_bytes <= OVERSIZE_HEAD


async def test_pings_are_answered(nursery: trio.Nursery) -> None:
    run = start(nursery)
    await run.peer.send(Ping(b"one"), Ping(b"two"))
    assert await run.peer.next(Pong) == Pong(b"one")
    assert await run.peer.next(Pong) == Pong(b"two")


class TestPausing:
    async def test_nothing_is_dispatched_and_one_chunk_read_until_reading_resumes(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery, streams=lockstep_stream_pair())
        await wait_all_tasks_blocked()
        run.connection.pause_reading()
        await run.peer.text("held")
        with trio.move_on_after(1) as scope:
            await run.peer.text("not read")
        assert scope.cancelled_caught
        assert run.batches == []
        assert run.connection.statistics().reading_paused
        run.connection.resume_reading()
        await wait_all_tasks_blocked()
        assert run.batches == [[b"held"], [b"not read"]]

    async def test_a_pause_made_by_a_batch_holds_the_following_batches(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        batches: list[list[bytes]] = []

        def on_batch(messages: list[bytes]) -> None:
            batches.append(messages)
            run.connection.pause_reading()

        run = start(nursery, on_batch)
        await run.peer.text(*["x"] * (FRAMES_PER_WAKEUP + 1))
        await wait_all_tasks_blocked()
        assert [len(batch) for batch in batches] == [FRAMES_PER_WAKEUP]
        run.connection.resume_reading()
        await wait_all_tasks_blocked()
        assert [len(batch) for batch in batches] == [FRAMES_PER_WAKEUP, 1]

    async def test_writing_goes_on_while_reading_is_paused(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery)
        run.connection.pause_reading()
        run.connection.push(b"still here")
        assert await run.peer.next() == TextMessage("still here")

    async def test_closing_does_not_wait_for_a_paused_reader(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery)
        run.connection.pause_reading()
        await run.peer.text("held")
        await wait_all_tasks_blocked()
        run.connection.close(CloseCode.RESTART)
        assert await run.peer.close_code() == CloseCode.RESTART
        assert (await run.end()).clean
        assert run.batches == []

    async def test_a_paused_peer_does_not_count_as_silent(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery)
        await wait_all_tasks_blocked()
        run.connection.pause_reading()
        await trio.sleep(2 * DEAD_AFTER_S)
        run.connection.check_liveness(trio.current_time())
        run.connection.resume_reading()
        run.connection.check_liveness(trio.current_time())
        assert not run.connection.closing
        assert run.connection.statistics().pings_sent == 0


class TestLiveness:
    async def sweep(self, connection: Connection) -> None:
        while not connection.closing:
            await trio.sleep(1)
            connection.check_liveness(trio.current_time())

    async def test_a_silent_peer_is_pinged_and_then_given_up(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery)
        nursery.start_soon(self.sweep, run.connection)
        started = trio.current_time()
        pinged = []
        while trio.current_time() - started < DEAD_AFTER_S - 1:
            await run.peer.next(Ping)
            pinged.append(trio.current_time() - started)
            if len(pinged) == 2:
                break
        assert pinged == [PING_AFTER_S, 2 * PING_AFTER_S]
        end = await run.end()
        assert (end.code, end.clean) == (CloseCode.ABNORMAL, False)
        assert "silent" in end.reason
        assert run.ended_at - started == DEAD_AFTER_S

    async def test_any_bytes_prove_life(self, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
        run = start(nursery)
        nursery.start_soon(self.sweep, run.connection)
        for _ in range(5):
            await trio.sleep(DEAD_AFTER_S - 1)
            await run.peer.send(Pong(b""))
            await wait_all_tasks_blocked()
            assert run.connection.last_heard == trio.current_time()
        assert not run.connection.closing
        run.connection.abort()

    async def test_a_peer_that_answers_is_pinged_again_only_after_another_silence(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery)
        nursery.start_soon(self.sweep, run.connection)
        for _ in range(10):
            event = await run.peer.next(Ping)
            assert isinstance(event, Ping)
            await run.peer.send(event.response())
        assert trio.current_time() == pytest.approx(10 * PING_AFTER_S, abs=11)
        run.connection.abort()

    async def test_a_peer_that_takes_nothing_ends_with_1013(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery, streams=lockstep_stream_pair())
        await wait_all_tasks_blocked()
        started = trio.current_time()
        run.connection.push(b"nobody reads this")
        end = await run.end()
        assert (end.code, end.clean) == (CloseCode.TRY_AGAIN_LATER, False)
        assert run.ended_at - started == STALL_S

    async def test_a_peer_that_takes_a_little_now_and_then_is_left_alone(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery, streams=lockstep_stream_pair())
        run.connection.push(b"z" * 1_000_000)
        got = 0
        while got < 1_000_000:
            await trio.sleep(STALL_S - 1)
            got += len(await run.peer.stream.receive_some(70_000))
        assert trio.current_time() > 10 * STALL_S
        assert not run.connection.closing
        run.connection.abort()


class TestOverflow:
    async def test_at_the_hard_limit_push_refuses_and_the_connection_ends_with_1013(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery, streams=lockstep_stream_pair())
        await wait_all_tasks_blocked()
        message = bytes(16 << 20)
        pushed = 0
        while run.connection.push(message):
            pushed += 1
        assert pushed == OUTBOX_HARD // len(message) - 1
        assert run.connection.closing
        assert not run.connection.push(b"small")
        assert run.connection.pending_bytes < 2 << 20, "what was queued is given back at once"
        code = (await run.end()).code
        assert code == CloseCode.TRY_AGAIN_LATER
        assert run.ended_at <= CLOSE_S + 1

    async def test_a_peer_that_reads_again_in_time_learns_why(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery, streams=lockstep_stream_pair(), outbox=Outbox(hard_limit=10_000))
        await wait_all_tasks_blocked()
        run.connection.push(b"x" * 5000)
        await wait_all_tasks_blocked()
        assert not run.connection.push(b"y" * 5000)
        assert await run.peer.close_code() == CloseCode.TRY_AGAIN_LATER
        assert (await run.end()).clean

    async def test_tasks_wait_for_room_and_are_let_go_at_the_end(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery, streams=lockstep_stream_pair())
        await wait_all_tasks_blocked()
        run.connection.push(bytes(OUTBOX_BUSY))
        assert run.connection.busy
        assert not run.connection.overloaded
        waited: list[bool] = []

        async def wait() -> None:
            await run.connection.wait_room()
            waited.append(run.connection.closing)

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert waited == []
        await run.peer.read()
        await wait_all_tasks_blocked()
        assert waited == [False]
        run.connection.push(bytes(OUTBOX_BUSY))
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        run.connection.abort()
        await run.end()
        await wait_all_tasks_blocked()
        assert waited == [False, True]
