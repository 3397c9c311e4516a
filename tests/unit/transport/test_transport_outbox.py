"""The outbox without a stream: what a write carries, marks, fragments, control frames, waiting for room."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Event, Ping, TextMessage

from iii_trio.protocol.limits import FRAGMENT, OUTBOX_BUSY, OUTBOX_HARD, OUTBOX_OVERLOADED
from iii_trio.transport.frames import Binary, Framing
from iii_trio.transport.outbox import CONTROL_FRAMES, MESSAGE_OVERHEAD, WRITE_SLICE, Outbox


def drain(outbox: Outbox) -> list[bytes]:
    """Write everything; the writes."""
    writes = []
    while data := outbox.take():
        writes.append(bytes(data))
        outbox.sent(len(data))
    return writes


def heard(data: bytes, *, masked: bool = False) -> list[Event]:
    """What the other side makes of `data`."""
    peer = Connection(ConnectionType.SERVER if masked else ConnectionType.CLIENT)
    peer.receive_data(data)
    return list(peer.events())


def messages(events: list[Event]) -> list[bytes]:
    """The whole messages among `events`."""
    whole, parts = [], []
    for event in events:
        if isinstance(event, (TextMessage, BytesMessage)):
            parts.append(event.data.encode() if isinstance(event, TextMessage) else bytes(event.data))
            if event.message_finished:
                whole.append(b"".join(parts))
                parts = []
    assert not parts
    return whole


def test_what_is_queued_leaves_in_one_write_in_order() -> None:
    outbox = Outbox()
    for i in range(100):
        assert outbox.put(b"%d" % i)
    [write] = drain(outbox)
    assert messages(heard(write)) == [b"%d" % i for i in range(100)]
    assert outbox.idle
    assert outbox.pending_bytes == 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("wrap", [bytes, Binary])
@pytest.mark.parametrize(
    "size", [0, WRITE_SLICE, WRITE_SLICE + 1, FRAGMENT, FRAGMENT + 1, 2 * FRAGMENT, 3 * FRAGMENT + 12345]
)
def test_messages_of_every_size_arrive_whole_between_others(
    size: int, wrap: type[bytes] | type[Binary], masked: bool
) -> None:
    outbox = Outbox(masked)
    payload = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    outbox.put(b"before")
    outbox.put(wrap(payload))
    outbox.put(b"after")
    writes = drain(outbox)
    events = heard(b"".join(writes), masked=masked)
    assert messages(events) == [b"before", payload, b"after"]
    assert all(len(write) <= 2 * WRITE_SLICE + 200 for write in writes)
    kinds = {type(event) for event in events[1:-1]}
    assert kinds == {TextMessage if wrap is bytes else BytesMessage}
    assert outbox.pending_bytes == 0
    assert outbox.statistics().messages_sent == 3


def test_a_fragment_may_end_inside_a_code_point() -> None:
    outbox = Outbox()
    text = b"x" + "é".encode() * FRAGMENT
    outbox.put(text)
    assert messages(heard(b"".join(drain(outbox)))) == [text]


def test_control_frames_pass_between_fragments() -> None:
    outbox, framing = Outbox(), Framing()
    outbox.put(b"z" * (3 * FRAGMENT))
    outbox.put(b"last")
    first = outbox.take()
    outbox.sent(len(first))
    outbox.put_control(framing.ping(b"hey"))
    data = bytes(first) + b"".join(drain(outbox))
    events = heard(data)
    before = sum(len(e.data) for e in events[: next(i for i, e in enumerate(events) if isinstance(e, Ping))])
    assert before == FRAGMENT, "the ping went out after the fragment under way, not after the message"
    assert messages(events) == [b"z" * (3 * FRAGMENT), b"last"]


def test_control_frames_pass_waiting_messages_and_are_bounded() -> None:
    outbox, framing = Outbox(), Framing()
    outbox.put(b"message")
    for i in range(CONTROL_FRAMES + 5):
        outbox.put_control(framing.ping(b"%d" % i))
    events = heard(b"".join(drain(outbox)))
    assert [event.payload for event in events[:-1]] == [b"%d" % i for i in range(5, CONTROL_FRAMES + 5)]
    assert isinstance(events[-1], TextMessage)
    assert outbox.statistics().control_dropped == 5


def test_what_the_stream_did_not_take_comes_first_again() -> None:
    outbox = Outbox()
    outbox.put(b"abcdef")
    outbox.put(b"ghi")
    whole = bytes(outbox.take())
    assert not outbox.at_boundary
    outbox.sent(3)
    outbox.put(b"later")
    outbox.put_control(Framing().ping(b""))
    assert bytes(outbox.take()) == whole[3:]
    outbox.sent(0)
    assert bytes(outbox.take()) == whole[3:]
    outbox.sent(len(whole) - 3)
    assert outbox.at_boundary
    assert outbox.pending_bytes == len(b"later") + MESSAGE_OVERHEAD
    rest = b"".join(drain(outbox))
    assert messages(heard(whole + rest)) == [b"abcdef", b"ghi", b"later"]


def test_the_marks() -> None:
    outbox = Outbox()
    assert not outbox.busy
    message = bytes(4 << 20)
    while outbox.pending_bytes <= OUTBOX_BUSY:
        assert not outbox.busy
        assert outbox.put(message)
    assert outbox.busy
    while outbox.pending_bytes <= OUTBOX_OVERLOADED:
        assert not outbox.overloaded
        assert outbox.put(message)
    assert outbox.overloaded
    while outbox.put(message):
        pass
    assert OUTBOX_HARD - len(message) - MESSAGE_OVERHEAD < outbox.pending_bytes <= OUTBOX_HARD
    assert outbox.put(b"small"), "what fits is still taken"
    assert outbox.statistics().refused == 1


def test_empty_messages_are_bounded_too() -> None:
    outbox = Outbox(hard_limit=10 * MESSAGE_OVERHEAD)
    assert [outbox.put(b"") for _ in range(11)] == [True] * 10 + [False]


@pytest.mark.parametrize("masked", [False, True])
def test_clearing_keeps_the_frame_on_the_wire_and_only_that(masked: bool) -> None:
    outbox = Outbox(masked)
    outbox.put(b"z" * (2 * FRAGMENT))
    outbox.put(b"dropped")
    first = bytes(outbox.take())
    outbox.sent(len(first))
    assert not outbox.at_boundary
    outbox.clear()
    assert outbox.pending_bytes == FRAGMENT - WRITE_SLICE
    close = Framing(masked).close(1013)
    outbox.put_control(close)
    data = first + b"".join(drain(outbox))
    *pieces, end = heard(data, masked=masked)
    assert sum(len(piece.data) for piece in pieces) == FRAGMENT
    assert end.code == 1013
    assert outbox.at_boundary
    assert outbox.pending_bytes == 0


def test_a_closed_outbox_takes_nothing_more_but_keeps_what_it_has() -> None:
    outbox = Outbox()
    outbox.put(b"first")
    outbox.close()
    assert not outbox.put(b"second")
    assert messages(heard(b"".join(drain(outbox)))) == [b"first"]


def full_outbox() -> Outbox:
    outbox = Outbox(busy_mark=1000)
    outbox.put(b"x" * 2000)
    outbox.put(b"y")
    return outbox


async def test_tasks_wait_while_it_is_busy_and_go_on_when_it_is_not(nursery: trio.Nursery) -> None:
    outbox = full_outbox()
    done = []

    async def wait(i: int) -> None:
        await outbox.wait_room()
        done.append(i)

    for i in range(3):
        nursery.start_soon(wait, i)
    await wait_all_tasks_blocked()
    assert done == []
    assert outbox.statistics().tasks_waiting == 3
    data = outbox.take()
    outbox.sent(len(data) - 1)
    await wait_all_tasks_blocked()
    assert done == []
    outbox.sent(1)
    await wait_all_tasks_blocked()
    assert sorted(done) == [0, 1, 2]


async def test_a_task_that_fills_it_again_keeps_the_next_one_waiting(nursery: trio.Nursery) -> None:
    outbox = full_outbox()
    done = []

    async def fill(i: int) -> None:
        await outbox.wait_room()
        outbox.put(b"z" * 2000)
        done.append(i)

    nursery.start_soon(fill, 0)
    nursery.start_soon(fill, 1)
    await wait_all_tasks_blocked()
    drain(outbox)
    await wait_all_tasks_blocked()
    assert len(done) == 1
    drain(outbox)
    await wait_all_tasks_blocked()
    assert sorted(done) == [0, 1]


async def test_waiting_for_room_can_be_cancelled_and_leaves_nothing_behind() -> None:
    outbox = full_outbox()
    before = outbox.statistics()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.wait_room)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert outbox.statistics() == before


@pytest.mark.parametrize("end", [Outbox.close, Outbox.clear])
async def test_waiting_for_room_ends_with_the_outbox(end: object, nursery: trio.Nursery) -> None:
    outbox = full_outbox()
    nursery.start_soon(outbox.wait_room)
    await wait_all_tasks_blocked()
    assert callable(end)
    end(outbox)
    await wait_all_tasks_blocked()
    assert outbox.statistics().tasks_waiting == 0


async def test_waiting_for_room_is_a_checkpoint_even_if_there_is_room() -> None:
    with trio.testing.assert_checkpoints():
        await Outbox().wait_room()
