"""Differential fuzz: whatever the frames and however they are cut, our events equal those of wsproto alone."""

from collections.abc import Callable

import pytest
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from iii_trio.protocol.limits import INCREMENTAL_FRAME, MAX_MESSAGE
from iii_trio.transport.frames import Binary, Ended, Framing, Oversize, apply_mask
from iii_trio.transport.frames import Pong as PongReceived

# Messages of these sizes are shorter than the head that an oversize report waits for.
SHORT = [0, 1, 3, 5, 124, 125, 126, 127, 128, 1000, 30_000]
LONG = [
    *SHORT,
    65534,
    65535,
    65536,
    65537,
    70_000,
    INCREMENTAL_FRAME - 1,
    INCREMENTAL_FRAME,
    INCREMENTAL_FRAME + 1,
    300_000,
]


def encode(first: int, payload: bytes, key: bytes | None, length_form: int = 0) -> bytes:
    """A frame, well-formed or not: `length_form` 2 or 8 forces that many bytes for the length."""
    size = len(payload)
    form = length_form or (0 if size < 126 else 2 if size < 65536 else 8)
    code = size if form == 0 else 126 if form == 2 else 127
    head = bytes((first, (0x80 if key is not None else 0) | (code & 127)))
    if form:
        head += size.to_bytes(form, "big")
    return head + (key + apply_mask(key, payload) if key is not None else payload)


# Plain functions, not strategies of their own: Hypothesis keeps each value that a strategy gave, 400 KB for an example.


def text(draw: st.DrawFn, sizes: list[int]) -> bytes:
    unit = draw(st.sampled_from(["a", '{"k":1}', "é", "€", "😀", "ab\u07ff"])).encode()
    size = draw(st.sampled_from(sizes))
    return (unit * (size // len(unit) + 1))[: size // len(unit) * len(unit)]


control_payloads = st.binary(max_size=125)
keys = st.one_of(st.just(bytes(4)), st.binary(min_size=4, max_size=4))


def message(draw: st.DrawFn, key: Callable[[], bytes | None], sizes: list[int]) -> bytes:
    """One message in any number of frames, with control frames between them; its text may be no UTF-8."""
    opcode = draw(st.sampled_from([1, 1, 1, 2]))
    anything = draw(st.integers(0, 9)) == 0 if opcode == 1 else draw(st.booleans())
    payload = draw(st.binary(max_size=200)) if anything else text(draw, sizes)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
    pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    out = b""
    for i, piece in enumerate(pieces):
        last = i == len(pieces) - 1
        out += encode((0x80 if last else 0) | (0 if i else opcode), piece, key())
        if not last and draw(st.booleans()):
            out += encode(draw(st.sampled_from([0x89, 0x8A])), draw(control_payloads), key())
    return out


def oddity(draw: st.DrawFn, key: Callable[[], bytes | None], other_key: Callable[[], bytes | None]) -> bytes:
    """A frame by itself that may be legal, or out of place, or broken."""
    kind = draw(st.integers(0, 7))
    payload = draw(st.binary(max_size=130))
    if kind == 0:
        return encode(0x81, payload, other_key())
    if kind == 1:
        return encode(0x80 | draw(st.sampled_from([0x41, 0x21, 0x11, 0x42, 0x49, 0x70])), payload, key())
    if kind == 2:
        return encode(0x80 | draw(st.integers(0, 15)), payload, key())
    if kind == 3:
        return encode(draw(st.integers(0, 15)), payload, key())
    if kind == 4:
        return encode(
            draw(st.sampled_from([0x81, 0x82, 0x80, 0x88, 0x89])), payload, key(), draw(st.sampled_from([2, 8]))
        )
    if kind == 5:
        code = draw(st.one_of(st.integers(990, 1020), st.sampled_from([0, 2999, 3000, 4999, 5000])))
        return encode(
            0x88, code.to_bytes(2, "big") + draw(st.sampled_from([b"", b"why", b"\xff", "ü".encode()])), key()
        )
    if kind == 6:
        return encode(0x88, draw(st.sampled_from([b"", b"\x03"])), key())
    return encode(draw(st.sampled_from([0x89, 0x8A])), draw(control_payloads), key())


def shortened(data: bytes) -> str:
    return repr(data) if len(data) < 600 else f"{data[:300]!r} … {data[-300:]!r} ({len(data)} bytes)"


@frozen(repr=False)
class Traffic:
    """What a peer sends: `whole` if it ends at the end of a frame, in chunks of the given sizes, again and again."""

    client: bool
    data: bytes
    whole: bool
    chunks: list[int]

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        return f"Traffic({self.client}, {shortened(self.data)}, {self.whole}, {self.chunks})"


@st.composite
def traffic(draw: st.DrawFn, sizes: list[int] = LONG) -> Traffic:
    client = draw(st.booleans())

    def masked() -> bytes:
        return draw(keys)

    def bare() -> None:
        return None

    key, other = (bare, masked) if client else (masked, bare)
    frames = [
        oddity(draw, key, other) if draw(st.integers(0, 7)) == 0 else message(draw, key, sizes)
        for _ in range(draw(st.integers(0, 8)))
    ]
    data = b"".join(frames)
    whole = draw(st.booleans())
    if not whole:
        data = data[: len(data) - draw(st.integers(0, min(len(data), 300)))] + draw(st.binary(max_size=20))
    # Bytewise for short inputs only: it is the number of chunks that costs time.
    smallest = 1 if len(data) < 3000 else 500
    chunks = draw(
        st.lists(st.integers(smallest, 70_000) | st.integers(smallest, smallest + 20), min_size=1, max_size=6)
    )
    return Traffic(client, data, whole, chunks)


def by_wsproto(client: bool, data: bytes) -> tuple[list[object], list[bytes], list[bytes]]:
    """Messages and end, pongs and pings, as wsproto alone reports them."""
    protocol = Connection(ConnectionType.CLIENT if client else ConnectionType.SERVER)
    protocol.receive_data(data)
    main: list[object] = []
    pongs: list[bytes] = []
    pings: list[bytes] = []
    parts: list[bytes] = []
    for event in protocol.events():
        if isinstance(event, (TextMessage, BytesMessage)):
            text = isinstance(event, TextMessage)
            parts.append(event.data.encode() if text else bytes(event.data))
            if event.message_finished:
                main.append(b"".join(parts) if text else Binary(b"".join(parts)))
                parts = []
        elif isinstance(event, Ping):
            pings.append(bytes(event.payload))
        elif isinstance(event, Pong):
            pongs.append(bytes(event.payload))
        elif isinstance(event, CloseConnection):
            by_peer = protocol.state is ConnectionState.REMOTE_CLOSING
            reason = "text that is not UTF-8" if event.code == 1007 and not by_peer else event.reason or ""
            main.append(Ended(int(event.code), reason, by_peer))
            break
    return main, pongs, pings


def by_us(
    client: bool, data: bytes, chunks: list[int], max_message: int
) -> tuple[list[object], list[bytes], list[bytes]]:
    framing = Framing(client, max_message=max_message)
    listener = Connection(ConnectionType.SERVER if client else ConnectionType.CLIENT)
    main: list[object] = []
    pongs: list[bytes] = []
    pings: list[bytes] = []
    position = i = 0
    while position < len(data):
        framing.receive(data[position : position + chunks[i % len(chunks)]])
        position += chunks[i % len(chunks)]
        i += 1
        while True:
            main += framing.next_batch(limit=3)
            for event in framing.events:
                if isinstance(event, PongReceived):
                    pongs.append(event.payload)
                else:
                    main.append(event)
            framing.events.clear()
            for reply in framing.replies:
                listener.receive_data(reply)
            framing.replies.clear()
            if not framing.more:
                break
    pings += [bytes(event.payload) for event in listener.events() if isinstance(event, Pong)]
    if framing.ended is not None:
        main.append(framing.ended)
    return main, pongs, pings


def agree(case: Traffic) -> None:
    expected = by_wsproto(case.client, case.data)
    found = by_us(case.client, case.data, case.chunks, MAX_MESSAGE)
    if case.whole:
        assert found == expected
        return
    # Inside an ordinary frame, or a header, we wait for the rest where wsproto may already see an error.
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == theirs[: len(ours)]
        assert len(theirs) - len(ours) <= 1


def skipped(event: object, limit: int) -> object:
    """The event as it should be under a message limit."""
    data = event.data if isinstance(event, Binary) else event
    return Oversize(data, len(data)) if isinstance(data, bytes) and len(data) > limit else event


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(traffic())
def test_our_events_equal_those_of_wsproto(case: Traffic) -> None:
    agree(case)


@pytest.mark.long
@settings(max_examples=3_000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(traffic())
def test_our_events_equal_those_of_wsproto_at_length(case: Traffic) -> None:
    agree(case)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(traffic(SHORT), st.sampled_from([0, 4, 125, 126, 1000]))
def test_a_limit_turns_longer_messages_into_reports_and_changes_nothing_else(case: Traffic, limit: int) -> None:
    main, pongs, pings = by_wsproto(case.client, case.data)
    found = by_us(case.client, case.data, case.chunks, limit)
    expected = [skipped(event, limit) for event in main]
    # The rest of a message that never ended may have been enough to report it.
    ours = found[0][: len(expected)]
    assert ours == expected[: len(ours)]
    assert len(expected) - len(ours) <= 1
    assert pongs[: len(found[1])] == found[1]
    assert pings[: len(found[2])] == found[2]
