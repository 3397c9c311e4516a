"""Frames without I/O: tables of bytes in and events out, limits, order, and what is encoded."""

import pytest
from wsproto.connection import Connection, ConnectionType

from iii_trio.protocol.limits import INCREMENTAL_FRAME, OVERSIZE_HEAD
from iii_trio.transport.frames import (
    BINARY,
    FINAL,
    TEXT,
    Binary,
    CloseCode,
    Ended,
    Framing,
    Oversize,
    Pong,
    apply_mask,
    encode_head,
    encode_whole,
)

KEY = b"\x11\x22\x33\x44"


def frame(first: int, payload: bytes, key: bytes | None = KEY) -> bytes:
    """A frame as a client sends it; without a key as a server does."""
    head = encode_head(first, len(payload), key or b"")
    return head + (apply_mask(key, payload) if key else payload)


def read(framing: Framing, data: bytes) -> list[bytes | object]:
    """Everything the framing makes of `data`, in order: texts, events, `Ended`."""
    framing.receive(data)
    found: list[bytes | object] = []
    while True:
        found += framing.next_batch()
        found += framing.events
        framing.events.clear()
        if not framing.more:
            break
    if framing.ended is not None:
        found.append(framing.ended)
    return found


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 127, 1023, 1024, 1025, 4096, 65535, 65536, 70001])
@pytest.mark.parametrize("client", [False, True])
def test_whole_frames_of_every_header_form_are_read_in_both_roles(size: int, client: bool) -> None:
    payload = bytes(32 + i % 90 for i in range(size))
    data = frame(FINAL | TEXT, payload, None if client else KEY) + frame(
        FINAL | BINARY, payload, None if client else KEY
    )
    assert read(Framing(client), data) == [payload, Binary(payload)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_encoded_frames_are_what_wsproto_reads(size: int, masked: bool) -> None:
    peer = Connection(ConnectionType.SERVER if masked else ConnectionType.CLIENT)
    payload = b"a" * size
    parts: list[bytes | memoryview] = []
    encode_whole(FINAL | TEXT, payload, parts, masked=masked)
    peer.receive_data(b"".join(parts))
    assert "".join(event.data for event in peer.events()) == payload.decode()


def test_every_masked_frame_has_its_own_key() -> None:
    parts: list[bytes | memoryview] = []
    for _ in range(50):
        encode_whole(FINAL | TEXT, b"same", parts, masked=True)
    assert len({bytes(head[-4:]) for head in parts[::2]}) == 50


def test_masking_twice_gives_the_original_whatever_the_length() -> None:
    for size in [*range(20), 1020, 1024, 1025, 1026, 1027, 5000]:
        data = bytes(i * 7 & 255 for i in range(size))
        masked = apply_mask(KEY, data)
        assert masked == bytes(byte ^ KEY[i % 4] for i, byte in enumerate(data))
        assert apply_mask(KEY, masked) == data


SPLIT = "zwölf".encode()
VIOLATIONS = {
    "unmasked": (frame(FINAL | TEXT, b"hi", None), CloseCode.PROTOCOL_ERROR),
    "unmasked, header alone": (b"\x81\x05", CloseCode.PROTOCOL_ERROR),
    "reserved bit": (frame(FINAL | TEXT | 0x40, b"hi"), CloseCode.PROTOCOL_ERROR),
    "reserved opcode": (frame(FINAL | 0x3, b"hi"), CloseCode.PROTOCOL_ERROR),
    "reserved control opcode": (frame(FINAL | 0xB, b"hi"), CloseCode.PROTOCOL_ERROR),
    "fragmented control frame": (frame(0x9, b"hi"), CloseCode.PROTOCOL_ERROR),
    "long control frame": (frame(FINAL | 0x9, b"x" * 126), CloseCode.PROTOCOL_ERROR),
    "long length form of a short frame": (b"\x81\xfe\x00\x02" + KEY + apply_mask(KEY, b"hi"), CloseCode.PROTOCOL_ERROR),
    "longest length form of a short frame": (b"\x81\xff" + (9).to_bytes(8, "big") + KEY, CloseCode.PROTOCOL_ERROR),
    "length with its top bit set": (b"\x81\xff" + (1 << 63).to_bytes(8, "big") + KEY, CloseCode.PROTOCOL_ERROR),
    "continuation of nothing": (frame(FINAL, b"hi"), CloseCode.PROTOCOL_ERROR),
    "message inside a message": (frame(TEXT, b"a") + frame(FINAL | TEXT, b"b"), CloseCode.PROTOCOL_ERROR),
    "text that is not UTF-8": (frame(FINAL | TEXT, b"\xff\xfe"), CloseCode.INVALID_TEXT),
    "a surrogate in the text": (frame(FINAL | TEXT, b"\xed\xa0\x80"), CloseCode.INVALID_TEXT),
    "text that ends inside a code point": (frame(FINAL | TEXT, SPLIT[:3]), CloseCode.INVALID_TEXT),
    "fragments that end inside a code point": (frame(TEXT, SPLIT[:3]) + frame(FINAL, b""), CloseCode.INVALID_TEXT),
    "close of one byte": (frame(FINAL | 0x8, b"\x03"), CloseCode.PROTOCOL_ERROR),
    "close with a code that is never sent": (frame(FINAL | 0x8, (1006).to_bytes(2, "big")), CloseCode.PROTOCOL_ERROR),
    "close with a reason that is not UTF-8": (frame(FINAL | 0x8, b"\x03\xe8\xff"), CloseCode.INVALID_TEXT),
}


@pytest.mark.parametrize("name", VIOLATIONS)
@pytest.mark.parametrize("step", [1, 1 << 20], ids=["bytewise", "at once"])
def test_violations_end_the_frames_with_the_right_code(name: str, step: int) -> None:
    data, code = VIOLATIONS[name]
    framing = Framing()
    found = read(framing, frame(FINAL | TEXT, b"before"))
    for i in range(0, len(data), step):
        found += read(framing, data[i : i + step])
        if framing.ended is not None:
            break
    assert found[0] == b"before"
    assert isinstance(found[-1], Ended)
    assert (found[-1].code, found[-1].by_peer) == (code, False)
    assert len(found) == 2
    framing.receive(frame(FINAL | TEXT, b"after"))
    assert framing.next_batch() == []


def test_a_client_refuses_masked_frames() -> None:
    [end] = read(Framing(client=True), frame(FINAL | TEXT, b"hi"))
    assert isinstance(end, Ended)
    assert end.code == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [(b"", 1005, ""), (b"\x03\xf4", 1012, ""), (b"\x0f\xa0bye", 4000, "bye")],
)
def test_the_peers_close_is_reported_and_answered(payload: bytes, code: int, reason: str) -> None:
    framing = Framing()
    assert read(framing, frame(FINAL | TEXT, b"last") + frame(FINAL | 0x8, payload)) == [
        b"last",
        Ended(code, reason, by_peer=True),
    ]
    assert framing.close(code, reason) == frame(FINAL | 0x8, payload, None)
    assert framing.close(code, reason) == b"", "one Close frame is all a side may send"


def test_the_answer_to_our_own_close_is_reported() -> None:
    framing = Framing()
    framing.close(CloseCode.RESTART, "x" * 500)
    assert read(framing, frame(FINAL | TEXT, b"late") + frame(FINAL | 0x8, b"\x03\xf4")) == [
        b"late",
        Ended(1012, "", by_peer=True),
    ]


def test_fragments_with_control_frames_between_and_a_code_point_cut_in_two() -> None:
    framing = Framing()
    data = (
        frame(TEXT, SPLIT[:3])
        + frame(FINAL | 0x9, b"are you there")
        + frame(0, b"")
        + frame(FINAL | 0xA, b"pong")
        + frame(FINAL, SPLIT[3:])
        + frame(FINAL | TEXT, b"next")
    )
    # The pong came before the fragmented message was whole.
    assert read(framing, data) == [Pong(b"pong"), SPLIT, b"next"]
    assert framing.replies == [frame(FINAL | 0xA, b"are you there", None)]


def test_the_order_of_text_binary_and_pong_is_kept() -> None:
    data = b"".join(
        [
            frame(FINAL | TEXT, b"1"),
            frame(FINAL | BINARY, b"2"),
            frame(FINAL | 0xA, b"3"),
            frame(FINAL | TEXT, b"4"),
            frame(FINAL | TEXT, b"5"),
            frame(FINAL | BINARY, b"6"),
        ]
    )
    assert read(Framing(), data) == [b"1", Binary(b"2"), Pong(b"3"), b"4", b"5", Binary(b"6")]


def test_a_batch_takes_a_bounded_number_of_frames_and_says_that_there_are_more() -> None:
    framing = Framing()
    framing.receive(frame(FINAL | TEXT, b"x") * 1000 + frame(FINAL | 0x9, b"") * 300)
    sizes, replies = [], []
    while True:
        sizes.append(len(framing.next_batch(limit=400)))
        replies.append(len(framing.replies))
        framing.replies.clear()
        if not framing.more:
            break
    assert sizes == [400, 400, 200, 0]
    assert replies == [0, 0, 200, 100]


def test_bytes_in_hand_are_counted_and_dribbled_frames_come_out_whole() -> None:
    framing = Framing()
    data = frame(FINAL | TEXT, b"x" * 1000)
    for byte in data[:-1]:
        assert read(framing, bytes([byte])) == []
    assert framing.assembling_bytes == len(data) - 1
    assert read(framing, data[-1:] + data) == [b"x" * 1000] * 2
    assert framing.assembling_bytes == 0


def test_a_long_frame_is_validated_as_its_bytes_arrive() -> None:
    framing = Framing()
    payload = b"\xff" + b"x" * INCREMENTAL_FRAME
    found = read(framing, frame(FINAL | TEXT, payload)[:100])
    assert isinstance(found[0], Ended)
    assert found[0].code == CloseCode.INVALID_TEXT


@pytest.mark.parametrize("first", [FINAL | TEXT, FINAL | BINARY])
def test_long_frames_come_out_whole_between_short_ones(first: int) -> None:
    framing = Framing()
    text = ("é" * (INCREMENTAL_FRAME // 2) + "end").encode()
    data = frame(FINAL | TEXT, b"a") + frame(first, text) + frame(FINAL | TEXT, b"b")
    found: list[bytes | object] = []
    for i in range(0, len(data), 65537):
        found += read(framing, data[i : i + 65537])
    assert found == [b"a", text if first & TEXT else Binary(text), b"b"]
    assert framing.assembling_bytes == 0


class TestOversize:
    def test_a_small_message_above_the_limit_is_skipped_and_reported_with_its_bytes(self) -> None:
        framing = Framing(max_message=10)
        data = frame(FINAL | TEXT, b"0123456789") + frame(FINAL | TEXT, b"0123456789a") + frame(FINAL | TEXT, b"ok")
        assert read(framing, data) == [b"0123456789", Oversize(b"0123456789a", 11), b"ok"]

    def test_a_long_one_is_reported_when_its_head_is_there_and_never_held(self) -> None:
        framing = Framing(max_message=1 << 20)
        size = 1 << 22
        head = frame(FINAL | TEXT, b"")[:1] + b"\xff" + size.to_bytes(8, "big") + bytes(4)
        found = read(framing, head + b"y" * 1000)
        assert found == []
        for _ in range((size - 1000) // 1024):
            found += read(framing, b"y" * 1024)
            assert framing.assembling_bytes <= OVERSIZE_HEAD
        assert found == [Oversize(b"y" * OVERSIZE_HEAD, size)]
        rest = size - 1000 - (size - 1000) // 1024 * 1024
        assert read(framing, b"y" * rest + frame(FINAL | TEXT, b"ok")) == [b"ok"]

    def test_fragments_are_counted_together_and_the_message_ends_where_it_ends(self) -> None:
        framing = Framing(max_message=100)
        data = frame(TEXT, b"a" * 60) + frame(0, b"b" * 60) + frame(FINAL | 0xA, b"") + frame(FINAL, b"c" * 60)
        assert read(framing, data) == [Pong(b""), Oversize(b"a" * 60 + b"b" * 60 + b"c" * 60, 180)]
        assert read(framing, frame(FINAL | TEXT, b"d" * 100)) == [b"d" * 100]

    def test_fragments_that_exceed_it_late_let_go_of_what_was_held(self) -> None:
        framing = Framing(max_message=500_000)
        assert read(framing, frame(BINARY, b"a" * 400_000)) == []
        assert framing.assembling_bytes == 400_000
        assert read(framing, frame(0, b"b" * 200_000)) == [Oversize(b"a" * OVERSIZE_HEAD, 600_000)]
        assert framing.assembling_bytes == OVERSIZE_HEAD
        assert read(framing, frame(FINAL, b"c" * 200_000) + frame(FINAL | TEXT, b"ok")) == [b"ok"]

    def test_the_limit_may_change_between_frames(self) -> None:
        framing = Framing(max_message=5)
        assert read(framing, frame(FINAL | TEXT, b"123456")) == [Oversize(b"123456", 6)]
        framing.max_message = 6
        assert read(framing, frame(FINAL | TEXT, b"123456")) == [b"123456"]

    def test_a_violation_inside_a_skipped_message_still_ends_the_frames(self) -> None:
        framing = Framing(max_message=5)
        [end] = read(framing, frame(TEXT, b"123456") + frame(FINAL | TEXT, b"again"))
        assert isinstance(end, Ended)
        assert end.code == CloseCode.PROTOCOL_ERROR
