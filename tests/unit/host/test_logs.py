"""Log output: levels and filters, both formats, and an output that is slow, blocked, gone or closed."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from iii_trio.host import logs
from iii_trio.host.logs import LogLevelError, parse_levels, start_logging

LOGGER = logging.getLogger("iii_trio.test")


def written(action: Callable[[], object], *, level: str = "info", json_lines: bool = False) -> list[str]:
    """The lines that ``action`` logs."""
    stream = io.StringIO()
    with start_logging("json" if json_lines else "text", level, stream):
        action()
    return stream.getvalue().splitlines()


def entry(action: Callable[[], object], *, level: str = "info") -> dict[str, object]:
    """The one JSON object that ``action`` logs."""
    (line,) = written(action, level=level, json_lines=True)
    loaded = json.loads(line)
    assert isinstance(loaded, dict)
    return loaded


class TestLevels:
    def test_a_single_level_is_the_root_loggers(self) -> None:
        assert parse_levels(" DEBUG ")[""] == logging.DEBUG
        assert parse_levels("warn")[""] == parse_levels("warning")[""] == logging.WARNING

    def test_a_list_names_loggers_and_what_holds_for_the_rest(self) -> None:
        levels = parse_levels("iii_trio.engine=debug, watchfiles=info, error")
        assert levels == {"iii_trio.engine": logging.DEBUG, "watchfiles": logging.INFO, "": logging.ERROR}
        assert parse_levels("iii_trio.engine=debug")[""] == logging.INFO

    @pytest.mark.parametrize("text", ["", "loud", "a=loud", "info,", "=info", "info=", "info,debug", "a=info,a=debug"])
    def test_what_is_not_understood_is_refused(self, text: str) -> None:
        with pytest.raises(LogLevelError, match=r"iii_trio\.engine=debug,info|given twice"):
            start_logging("text", text)

    def test_filters_decide_what_is_written_and_are_undone(self) -> None:
        root, engine = logging.getLogger(), logging.getLogger("iii_trio.engine.filtered")
        before = (root.level, logging.getLogger("iii_trio.engine").level, list(root.handlers))

        def action() -> None:
            engine.debug("engine debug")
            LOGGER.debug("other debug")
            LOGGER.warning("other warning")

        lines = written(action, level="iii_trio.engine=debug,warn")
        assert [line.split(maxsplit=3)[-1] for line in lines] == ["engine debug", "other warning"]
        assert (root.level, logging.getLogger("iii_trio.engine").level, list(root.handlers)) == before

    def test_off_means_off(self) -> None:
        assert written(lambda: LOGGER.critical("x"), level="off") == []

    def test_an_unknown_format_is_refused(self) -> None:
        with pytest.raises(ValueError, match="use text or json"):
            start_logging("xml", "info")  # type: ignore[arg-type]


class TestText:
    def test_a_line_is_aligned_and_has_its_extras(self) -> None:
        extra = {"count": 3, "path": "a b", "empty": "", "quoted": 'x"y', "nothing": None}

        def action() -> None:
            LOGGER.info("hello %s", "you", extra=extra)
            LOGGER.error("second")

        first, second = written(action)
        time, level, source, message = first.split(maxsplit=3)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
        assert (level, source) == ("INFO", "iii_trio.test")
        assert message == r'hello you count=3 path="a b" empty="" quoted="x\"y" nothing=None'
        assert first.index("hello") == second.index("second")

    def test_the_source_may_be_another_than_the_logger(self) -> None:
        (line,) = written(lambda: LOGGER.info("a line", extra={"source": "hello_worker"}))
        assert line.split()[2:] == ["hello_worker", "a", "line"]

    def test_nothing_logged_can_forge_a_line_or_steer_the_terminal(self) -> None:
        lines = written(lambda: LOGGER.info("a\nb\r\x1b[2J\x9b\u2028", extra={"k": "v\nw\x1b", "a\nb": 1}))
        assert len(lines) == 3
        assert all(line.startswith("    ") for line in lines[1:])
        assert lines[1].startswith(r"    b\r\x1b[2J\x9b\u2028 ")
        assert r'k="v\nw\u001b"' in lines[1]

    def test_an_exception_follows_indented(self) -> None:
        first, *others = written(log_an_exception)
        assert first.endswith("it failed")
        assert others[0] == "    Traceback (most recent call last):"
        assert others[-1] == "    ZeroDivisionError: division by zero"
        assert all(line.startswith("    ") for line in others)

    def test_colour_is_for_terminals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\x1b[31mERROR\x1b[0m" in on_terminal("text")
        assert "\x1b" not in on_terminal("json")
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in on_terminal("text")
        assert "\x1b" not in written(lambda: LOGGER.error("x"))[0]


def on_terminal(log_format: logs.LogFormat) -> str:
    ours, terminal = os.openpty()
    with open(ours, "rb", buffering=0) as reading:
        with open(terminal, "w") as stream, start_logging(log_format, "info", stream):
            LOGGER.error("x")
        return reading.read(4096).decode()


def log_an_exception() -> None:
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        LOGGER.exception("it failed")


class TestJson:
    def test_the_members(self) -> None:
        logged = entry(lambda: LOGGER.warning("héllo %d\n", 7, extra={"a": 1, "b": [True, None], "source": "s"}))
        assert list(logged) == ["timestamp", "level", "source", "message", "extras"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(logged.pop("timestamp")))
        assert logged == {
            "level": "warn",
            "source": "s",
            "message": "héllo 7\n",
            "extras": {"a": 1, "b": [True, None]},
        }

    def test_an_exception_is_a_member(self) -> None:
        logged = entry(log_an_exception)
        assert str(logged["exception"]).endswith("\nZeroDivisionError: division by zero")
        assert "extras" not in logged

    def test_extras_that_are_no_json_do_not_cost_the_record(self) -> None:
        ring: list[object] = []
        ring.append(ring)
        extra = {"nan": float("nan"), "path": Path("/x"), "ring": ring, "big": 10**30}
        logged = entry(lambda: LOGGER.info("odd", extra=extra))
        assert logged["extras"] == {"nan": "nan", "path": "PosixPath('/x')", "ring": "[[...]]", "big": 10**30}

    def test_a_mutable_extra_is_written_as_it_was(self) -> None:
        value = ["before"]

        def action() -> None:
            LOGGER.info("x", extra={"value": value})
            value.append("after")

        assert entry(action)["extras"] == {"value": ["before"]}

    def test_lone_surrogates_are_written(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        with path.open("w") as stream, start_logging("json", "info", stream):
            LOGGER.info("a \udc80 b")
        assert json.loads(path.read_bytes())["message"] == "a \udc80 b"


class TestMessages:
    def test_arguments_that_do_not_fit_are_shown(self) -> None:
        record = logging.LogRecord("a", logging.INFO, "", 0, "%d of %d", (1,), None)
        assert json.loads(logs.format_json(record))["message"] == "%d of %d (1,)"

    def test_a_huge_message_is_cut(self) -> None:
        message = str(entry(lambda: LOGGER.info("x" * 1_000_000))["message"])
        assert len(message) < 40_000
        assert message.endswith("x… (967232 more characters)")


class TestWriter:
    @pytest.fixture
    def pipe(self) -> Iterator[tuple[int, io.TextIOWrapper]]:
        """A pipe that nobody reads unless the test does: descriptor to read from, stream to write to."""
        reading, writing = os.pipe()
        stream = open(writing, "w")  # noqa: SIM115
        yield reading, stream
        os.close(reading)
        stream.close()

    async def test_a_blocked_output_stops_neither_the_loop_nor_the_end(
        self, pipe: tuple[int, io.TextIOWrapper]
    ) -> None:
        reading, stream = pipe
        writer = start_logging("json", "info", stream)
        try:
            with trio.fail_after(10):
                for number in range(30_000):
                    LOGGER.info("number %d", number)
                    if number % 1000 == 0:
                        await trio.lowlevel.checkpoint()
            statistics = writer.statistics()
            assert statistics.queued == logs.QUEUE_RECORDS
            assert 30_000 - logs.QUEUE_RECORDS - 5 * logs.BATCH_RECORDS < statistics.dropped < 20_000
            assert not writer.stop(timeout_s=0.05)

            received: list[dict[str, object]] = []

            def read() -> None:
                with open(reading, closefd=False) as lines:
                    for line in lines:
                        received.append(json.loads(line))
                        if "in all" in line:
                            return

            with trio.fail_after(10):
                await trio.to_thread.run_sync(read)
            dropped = writer.statistics().dropped
            assert (
                received[-1]["message"] == f"{dropped} log records were dropped in all because the output was too slow"
            )
            numbers = [int(str(line["message"]).split()[1]) for line in received if line["source"] == LOGGER.name]
            assert len(numbers) == 30_000 - dropped
            assert numbers == sorted(set(numbers))
        finally:
            assert writer.stop()
        assert writer.statistics().written == 30_000 - dropped
        assert writer.statistics().queued == 0

    def test_a_process_ends_although_its_output_is_blocked(self) -> None:
        source = (
            "import logging\n"
            "from iii_trio.host.logs import start_logging\n"
            "writer = start_logging('text', 'info')\n"
            "for _ in range(5000): logging.info('x' * 100)\n"
            "raise SystemExit(0 if writer.stop(0.1) is False else 'not blocked')\n"
        )
        process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
            assert process.communicate()[1] == b""

    def test_the_queue_is_bounded_in_characters_too(
        self, pipe: tuple[int, io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logs, "QUEUE_CHARACTERS", 200_000)
        reading, stream = pipe
        writer = start_logging("text", "info", stream)
        for _ in range(100):
            LOGGER.info("x" * 30_000)
        # What the writer holds in its hands may be as much again.
        assert writer.statistics().dropped >= 80
        drain = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reading, 65536), b"")])
        drain.start()
        assert writer.stop(10)
        stream.close()
        drain.join()

    def test_a_slow_output_says_what_was_dropped_as_soon_as_it_moves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(logs, "QUEUE_RECORDS", 2)
        moved = threading.Event()
        told = threading.Event()

        class Slow(io.StringIO):
            def write(self, text: str) -> int:
                assert moved.wait(10)
                result = super().write(text)
                if "so far" in text:
                    told.set()
                return result

        stream = Slow()
        with start_logging("text", "info", stream) as writer:
            for _ in range(10):
                LOGGER.info("record")
            moved.set()
            assert told.wait(10)
            dropped = writer.statistics().dropped
            assert dropped >= 5
            LOGGER.info("later")
        *_, notice, later, last = stream.getvalue().splitlines()
        assert f" {dropped} log records were dropped so far" in notice
        assert later.endswith(" later")
        assert f" {dropped} log records were dropped in all" in last

    def test_a_reader_that_has_gone_is_counted_and_harmless(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "w") as stream:
            writer = start_logging("text", "info", stream)
            LOGGER.info("x")
            assert writer.stop()
            assert writer.statistics() == logs.LogStatistics(queued=0, written=0, dropped=0, write_errors=1)

    def test_a_closed_stream_is_harmless(self) -> None:
        stream = io.StringIO()
        writer = start_logging("text", "info", stream)
        stream.close()
        LOGGER.info("x")
        assert writer.stop()
        assert writer.statistics().write_errors == 1

    def test_a_descriptor_that_does_not_block_gets_everything(self, pipe: tuple[int, io.TextIOWrapper]) -> None:
        reading, stream = pipe
        os.set_blocking(stream.fileno(), False)
        received = bytearray()

        def drain() -> None:
            while data := os.read(reading, 65536):
                received.extend(data)

        thread = threading.Thread(target=drain)
        with start_logging("text", "info", stream):
            for _ in range(1000):
                LOGGER.info("x" * 1000)
            thread.start()
        stream.close()
        thread.join()
        assert received.count(b"\n") == 1000

    def test_a_stop_writes_everything_and_may_be_repeated(self) -> None:
        stream = io.StringIO()
        writer = start_logging("text", "info", stream)
        for _ in range(5000):
            LOGGER.info("x")
        assert writer.stop(10)
        assert writer.stop(10)
        LOGGER.error("after the stop")
        assert len(stream.getvalue().splitlines()) == 5000
        assert writer.statistics() == logs.LogStatistics(queued=0, written=5000, dropped=0, write_errors=0)

    def test_standard_output_is_the_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        with start_logging("text", "info"):
            LOGGER.info("to standard output")
        assert capsys.readouterr().out.endswith("to standard output\n")

    def test_a_process_without_standard_output_can_log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdout", None)
        writer = start_logging("text", "info")
        LOGGER.info("x")
        assert writer.stop()
        assert writer.statistics().write_errors == 0
