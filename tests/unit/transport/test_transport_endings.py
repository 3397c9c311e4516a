"""How a connection ends: who began, with which code, what still goes out, and how long it may take."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import trio
from transport_peer import Peer, start
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from iii_trio.protocol.limits import CLOSE_S
from iii_trio.transport import CloseCode, Closed, Connection, Framing
from iii_trio.transport.connection import FAREWELL_S


async def ended_stream(stream: trio.abc.Stream) -> bool:
    """Whether the connection has closed its end."""
    while await stream.receive_some():
        pass
    return True


async def reset() -> None:
    """What a stream does after a TCP reset."""
    raise trio.BrokenResourceError


class TestOurClose:
    async def test_what_is_queued_goes_out_before_the_close_frame(self, nursery: trio.Nursery) -> None:
        run = start(nursery)
        for i in range(3):
            run.connection.push(b"%d" % i)
        run.connection.push(b"z" * (3 << 20))
        run.connection.close(CloseCode.RESTART, "engine restarts")
        assert not run.connection.push(b"too late")
        assert not run.connection.push_binary(b"too late")
        text = ""
        while not any(isinstance(event, CloseConnection) for event in run.peer.seen):
            await run.peer.read()
        text = "".join(event.data for event in run.peer.seen if isinstance(event, TextMessage))
        assert text == "012" + "z" * (3 << 20)
        await run.peer.close_code()
        assert await run.end() == Closed(1012, "engine restarts", clean=True)
        assert await ended_stream(run.peer.stream)

    async def test_what_comes_in_afterwards_is_not_dispatched(self, nursery: trio.Nursery) -> None:
        run = start(nursery)
        await wait_all_tasks_blocked()
        run.connection.close(CloseCode.POLICY)
        await run.peer.send(TextMessage("late"), BytesMessage(b"late"), Ping(b"late"))
        assert await run.peer.close_code() == CloseCode.POLICY
        assert (await run.end()).clean
        assert run.batches == []

    async def test_a_batch_that_closes_is_the_last_one(self, nursery: trio.Nursery) -> None:
        batches: list[list[bytes]] = []
        binaries: list[bytes] = []

        def on_batch(messages: list[bytes]) -> None:
            batches.append(messages)
            run.connection.push(b"refused")
            run.connection.close(CloseCode.POLICY, "who are you")

        run = start(nursery, on_batch, on_binary=binaries.append)
        await run.peer.send(TextMessage("a"), BytesMessage(b"b"), TextMessage("c"))
        assert await run.peer.next() == TextMessage("refused")
        assert await run.peer.close_code() == CloseCode.POLICY
        await run.end()
        assert (batches, binaries) == ([[b"a"]], [])

    async def test_a_peer_that_never_answers_costs_five_seconds(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery)
        await trio.sleep(100)
        run.connection.close(CloseCode.RESTART)
        assert await run.end() == Closed(1012, "", clean=False)
        assert run.ended_at == 100 + CLOSE_S
        assert await ended_stream(run.peer.stream)

    async def test_a_peer_that_never_reads_costs_five_seconds(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery, streams=lockstep_stream_pair())
        run.connection.push(b"z" * 1_000_000)
        await trio.sleep(1)
        run.connection.close(CloseCode.RESTART)
        await trio.sleep(1)
        run.connection.close(CloseCode.NORMAL, "a second call changes nothing")
        assert await run.end() == Closed(1012, "", clean=False)
        assert run.ended_at == 1 + CLOSE_S

    async def test_a_peer_that_hangs_up_instead_of_answering(self, nursery: trio.Nursery) -> None:
        run = start(nursery)
        run.connection.close(CloseCode.RESTART)
        await run.peer.next(CloseConnection)
        await run.peer.stream.aclose()
        assert await run.end() == Closed(1012, "", clean=False)

    async def test_closing_before_it_runs(self, nursery: trio.Nursery) -> None:
        ours, theirs = memory_stream_pair()
        connection, peer = Connection(ours, Framing()), Peer(theirs)
        connection.push(b"sorry")
        connection.close(CloseCode.POLICY)
        nursery.start_soon(connection.run, lambda messages: None)
        assert await peer.next() == TextMessage("sorry")
        assert await peer.close_code() == CloseCode.POLICY

    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 5000])
    async def test_codes_that_are_never_sent_are_refused(self, code: int) -> None:
        connection = Connection(memory_stream_pair()[0], Framing())
        with pytest.raises(ValueError, match=str(code)):
            connection.close(code)
        assert not connection.closing


class TestTheirClose:
    @pytest.mark.parametrize(("code", "reason"), [(1000, "bye"), (1001, ""), (4321, "own"), (1005, "")])
    async def test_it_is_answered_with_its_code_after_the_last_messages(
        self, code: int, reason: str, nursery: trio.Nursery
    ) -> None:
        run = start(nursery)
        close = CloseConnection(code, reason)
        await run.peer.stream.send_all(
            run.peer.protocol.send(TextMessage("last"))
            + (run.peer.protocol.send(close) if code != 1005 else b"\x88\x80" + bytes(4))
        )
        answer = await run.peer.next(CloseConnection)
        assert isinstance(answer, CloseConnection)
        assert answer.code == code
        assert await run.end() == Closed(code, reason, clean=True)
        assert run.batches == [[b"last"]]
        assert await ended_stream(run.peer.stream)

    async def test_what_was_queued_for_it_is_dropped_at_the_next_frame_boundary(self, nursery: trio.Nursery) -> None:
        run = start(nursery, streams=lockstep_stream_pair())
        for _ in range(20):
            run.connection.push(b"x" * 300_000)
        await run.peer.read()
        async with trio.open_nursery() as both:
            both.start_soon(run.peer.send, CloseConnection(1000))
            await run.peer.next(CloseConnection)
        assert await run.end() == Closed(1000, "", clean=True)
        assert run.connection.pending_bytes == 0
        assert run.connection.statistics().outbox.bytes_sent < 2 * 300_000, (
            "one message was under way, 19 were not sent"
        )

    async def test_both_sides_close_at_once(self, nursery: trio.Nursery) -> None:
        run = start(nursery)
        await wait_all_tasks_blocked()
        run.connection.close(CloseCode.RESTART)
        await run.peer.send(CloseConnection(1000))
        await run.peer.next(CloseConnection)
        assert await run.end() == Closed(1012, "", clean=True)


class TestViolations:
    @pytest.mark.parametrize(
        ("data", "code"),
        [(b"\x81\x02hi", 1002), (b"\x81\x82" + bytes(4) + b"\xff\xfe", 1007), (b"\xff" * 40, 1002), (b"GET / ", 1002)],
    )
    async def test_the_peer_is_told_and_what_it_says_next_ignored(
        self, data: bytes, code: int, nursery: trio.Nursery
    ) -> None:
        run = start(nursery)
        good = run.peer.protocol.send(TextMessage("good"))
        await run.peer.stream.send_all(good + data)
        event = await run.peer.next(CloseConnection)
        assert isinstance(event, CloseConnection)
        assert event.code == code
        await run.peer.stream.send_all(good)
        assert await ended_stream(run.peer.stream), "our side says it is through, so that the peer hangs up"
        await run.peer.stream.aclose()
        end = await run.end()
        assert (end.code, end.clean) == (code, False)
        assert run.batches == [[b"good"]]

    async def test_a_peer_that_does_not_hang_up_costs_five_seconds(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        run = start(nursery)
        await run.peer.stream.send_all(b"\xff" * 40)
        assert (await run.end()).code == CloseCode.PROTOCOL_ERROR
        assert run.ended_at == CLOSE_S

    async def test_a_violation_after_our_close_frame_ends_at_once(self, nursery: trio.Nursery) -> None:
        run = start(nursery)
        run.connection.close(CloseCode.RESTART)
        await run.peer.next(CloseConnection)
        await run.peer.stream.send_all(b"\xff" * 40)
        assert await run.end() == Closed(1012, "", clean=False)


class TestLoss:
    @pytest.mark.parametrize("partial", [b"", b"\x81", b"\x81\xfe\x10\x00" + bytes(500)])
    async def test_the_peer_hangs_up(self, partial: bytes, nursery: trio.Nursery) -> None:
        run = start(nursery)
        await run.peer.text("last")
        if partial:
            await run.peer.stream.send_all(partial)
        await run.peer.stream.aclose()
        end = await run.end()
        assert (end.code, end.clean) == (1006, False)
        assert run.batches == [[b"last"]]

    async def test_what_it_said_before_a_failed_write_is_still_heard(self, nursery: trio.Nursery) -> None:
        ours, theirs = memory_stream_pair()

        run = start(nursery, streams=(ours, theirs))
        await wait_all_tasks_blocked()
        ours.send_stream.send_all_hook = reset
        run.connection.push(b"to nobody")
        await wait_all_tasks_blocked()
        assert not run.connection.push(b"to nobody")
        await run.peer.text("enqueue this")
        await theirs.aclose()
        end = await run.end()
        assert (end.code, end.clean) == (1006, False)
        assert run.batches == [[b"enqueue this"]]

    async def test_after_a_failed_write_a_peer_that_stays_costs_five_seconds(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        ours, theirs = memory_stream_pair()
        run = start(nursery, streams=(ours, theirs))
        await wait_all_tasks_blocked()
        ours.send_stream.send_all_hook = reset
        run.connection.push(b"to nobody")
        assert (await run.end()).code == 1006
        assert run.ended_at == CLOSE_S

    async def test_abort_ends_at_once_whatever_is_going_on(self, nursery: trio.Nursery) -> None:
        run = start(nursery, streams=lockstep_stream_pair())
        run.connection.push(b"x" * 1_000_000)
        await wait_all_tasks_blocked()
        run.connection.abort("evicted")
        assert not run.connection.push(b"no")
        assert await run.end() == Closed(1006, "evicted", clean=False)

    async def test_abort_before_it_runs(self) -> None:
        ours, theirs = memory_stream_pair()
        connection = Connection(ours, Framing())
        connection.abort()
        assert await connection.run(lambda messages: None) == Closed(1006, "aborted", clean=False)
        assert await ended_stream(theirs)


class TestFailures:
    @pytest.mark.parametrize("where", ["text", "binary", "pong"])
    async def test_an_exception_closes_with_1011_and_comes_out_of_run(self, where: str, nursery: trio.Nursery) -> None:
        def fail(_: object) -> None:
            raise LookupError("a bug in the engine")

        run = start(nursery, fail if where == "text" else None, on_binary=fail, on_pong=fail)
        await wait_all_tasks_blocked()
        run.connection.push(b"queued before")
        event = {"text": TextMessage("x"), "binary": BytesMessage(b"x"), "pong": Ping(b"")}[where]
        await run.peer.stream.send_all(b"\x8a\x80" + bytes(4) if where == "pong" else run.peer.protocol.send(event))
        await run.peer.text("not dispatched any more")
        assert await run.peer.next() == TextMessage("queued before")
        assert await run.peer.close_code() == CloseCode.INTERNAL_ERROR
        await run.done.wait()
        assert isinstance(run.raised, LookupError)
        assert await ended_stream(run.peer.stream)

    async def test_a_cancellation_meanwhile_does_not_hide_it(self, autojump_clock: MockClock) -> None:
        def fail(_: object) -> None:
            raise LookupError("a bug in the engine")

        with pytest.RaisesGroup(LookupError):
            async with trio.open_nursery() as nursery:
                ours, theirs = memory_stream_pair()
                nursery.start_soon(Connection(ours, Framing()).run, fail)
                await Peer(theirs).text("x")
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert trio.current_time() == CLOSE_S

    async def test_a_connection_runs_once(self, nursery: trio.Nursery) -> None:
        run = start(nursery)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="once"):
            await run.connection.run(lambda messages: None)
        run.connection.abort()


class TestCancellation:
    async def run_and_cancel(self, streams: tuple[trio.abc.Stream, trio.abc.Stream], push: bytes | None) -> Connection:
        connection = Connection(streams[0], Framing())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run, lambda messages: None)
            if push is not None:
                connection.push(push)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return connection

    async def test_the_peer_gets_a_close_frame_that_makes_it_come_back(self) -> None:
        ours, theirs = memory_stream_pair()
        connection = await self.run_and_cancel((ours, theirs), None)
        peer = Peer(theirs)
        event = await peer.next(CloseConnection)
        assert isinstance(event, CloseConnection)
        assert event.code == CloseCode.RESTART
        assert connection.closing
        assert await ended_stream(theirs)

    async def test_a_frame_that_is_half_sent_is_not_followed_by_another(self) -> None:
        ours, theirs = lockstep_stream_pair()
        await self.run_and_cancel((ours, theirs), b"x" * 200_000)
        data = b""
        while chunk := await theirs.receive_some():
            data += chunk
        assert len(data) < 200_000
        peer = Protocol(ConnectionType.CLIENT)
        peer.receive_data(data)
        events = list(peer.events())
        assert all(isinstance(event, TextMessage) and not event.message_finished for event in events)

    async def test_a_peer_that_does_not_read_holds_it_for_half_a_second(self, autojump_clock: MockClock) -> None:
        ours, theirs = lockstep_stream_pair()
        await self.run_and_cancel((ours, theirs), None)
        assert trio.current_time() == pytest.approx(FAREWELL_S)
        assert await ended_stream(theirs)


async def test_a_cancellation_at_any_point_leaves_the_stream_closed_and_no_frame_torn(
    autojump_clock: MockClock,
) -> None:
    """Run a conversation, cancel it after n steps of the scheduler, for all n until it gets to its end."""

    def echo(connection: Connection) -> Callable[[list[bytes]], None]:
        def on_batch(messages: list[bytes]) -> None:
            for message in messages:
                connection.push(message)

        return on_batch

    for steps in range(1000):
        ours, theirs = lockstep_stream_pair()
        connection, peer = Connection(ours, Framing()), Peer(theirs)
        through = False

        async def converse(peer: Peer = peer) -> None:
            nonlocal through
            with suppress(trio.BrokenResourceError):
                await peer.text("a", "b")
                await peer.next()
                await peer.next()
                await peer.send(CloseConnection(1000))
                await peer.next(CloseConnection)
                through = True

        async with trio.open_nursery() as outer:
            outer.start_soon(converse)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run, echo(connection))
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            outer.cancel_scope.cancel()
        assert await ended_stream(theirs)
        assert connection.closing
        assert all(
            isinstance(event, CloseConnection) or event.message_finished  # type: ignore[attr-defined]
            for event in peer.seen
        )
        if through:
            break
    else:
        pytest.fail("the conversation never got to its end")
    assert steps > 5
