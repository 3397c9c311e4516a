"""What a client's HTTP/2 frames may cost: what is let through, what is paid for, what is refused."""

import random

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, SettingsFrame

from iii_trio.modules.http.http2_frames import REFILL, STEP_FRAMES, Frames, Refused
from iii_trio.protocol.limits import HTTP2_NUISANCE, HTTP2_SETTINGS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def bytes_of(*frames: Frame) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


def passed(frames: Frames, data: bytes, now: float = 0.0) -> bytes:
    return b"".join(frames.follow(data, now))


def pings(count: int) -> bytes:
    return bytes_of(PingFrame(0, b"12345678")) * count


@pytest.mark.parametrize("seed", range(20))
def test_all_goes_through_but_goodbyes_however_it_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    kept: list[Frame] = [
        HeadersFrame(1, b"head", flags=["END_HEADERS"]),
        DataFrame(1, bytes(16_000)),
        SettingsFrame(0, {4: 1}),
        DataFrame(1, b"", flags=["END_STREAM"]),
    ] * 5
    data, expected = PREFACE, PREFACE
    for frame in kept:
        if rng.random() < 0.3:
            data += bytes_of(GoAwayFrame(0, additional_data=bytes(rng.randrange(50))))
        data += bytes_of(frame)
        expected += bytes_of(frame)
    frames, got = Frames(0.0), b""
    while data:
        size = rng.choice([1, 2, 8, 9, 10, 5000, 70_000])
        got += passed(frames, data[:size])
        data = data[size:]
    assert got == expected


def test_a_goodbye_is_noted() -> None:
    frames = Frames(0.0)
    assert passed(frames, PREFACE + bytes_of(GoAwayFrame(0))) == PREFACE
    assert frames.goaway


def test_a_step_has_few_frames() -> None:
    frames = Frames(0.0)
    passed(frames, PREFACE)
    steps = [len(step) for step in frames.follow(pings(3 * STEP_FRAMES + 1), 0.0)]
    assert (len(steps), max(steps), sum(steps)) == (4, 17 * STEP_FRAMES, 17 * (3 * STEP_FRAMES + 1))


def test_a_long_frame_is_refused_by_its_head() -> None:
    frames = Frames(0.0)
    passed(frames, PREFACE)
    with pytest.raises(Refused) as refused:
        passed(frames, (16_385).to_bytes(3) + bytes(6))
    assert refused.value.code is ErrorCodes.FRAME_SIZE_ERROR


def test_frames_that_carry_nothing_are_paid_for_and_time_pays_back() -> None:
    frames = Frames(0.0)
    passed(frames, PREFACE + pings(HTTP2_NUISANCE))
    passed(frames, pings(int(REFILL)), 1.0)
    got: list[bytes] = []
    with pytest.raises(Refused, match="carry nothing"):
        got.extend(frames.follow(pings(int(REFILL) + 1), 2.0))
    # what came before was let through
    assert len(b"".join(got)) == 17 * int(REFILL)


def test_what_we_send_pays_for_answers_to_it() -> None:
    frames = Frames(0.0)
    passed(frames, PREFACE + pings(HTTP2_NUISANCE))
    for _ in range(50):
        frames.earn()
    passed(frames, pings(100))
    with pytest.raises(Refused):
        passed(frames, pings(1))


def test_data_is_free_and_no_data_is_not() -> None:
    frames = Frames(0.0)
    passed(frames, PREFACE + bytes_of(*[DataFrame(1, b"x")] * 5000))
    with pytest.raises(Refused):
        passed(frames, bytes_of(*[DataFrame(1)] * (HTTP2_NUISANCE + 1)))


def test_settings_are_few() -> None:
    frames = Frames(0.0)
    passed(frames, PREFACE)
    one = bytes_of(SettingsFrame(0, {4: 1}))
    for second in range(HTTP2_SETTINGS):
        passed(frames, one, second)
    with pytest.raises(Refused, match="settings"):
        passed(frames, one, 1000.0)
    frames = Frames(0.0)
    with pytest.raises(Refused, match="settings"):
        passed(frames, PREFACE + bytes_of(SettingsFrame(0, dict.fromkeys(range(33), 1))))


def test_the_head_of_a_request_is_bounded_over_all_its_frames() -> None:
    frames = Frames(0.0)
    passed(frames, PREFACE + bytes_of(HeadersFrame(1, bytes(16_000))))
    piece = (16_000).to_bytes(3) + b"\x09\x00" + (1).to_bytes(4) + bytes(16_000)
    passed(frames, piece * 3)
    with pytest.raises(Refused, match="head of a request"):
        passed(frames, piece)
