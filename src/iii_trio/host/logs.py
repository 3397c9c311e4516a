"""Log output that never stops the loop: one handler, one bounded queue, one writer thread.

The handler on the root logger turns each record into a line and puts it into the queue; that is all that the logging thread,
and so the event loop, ever does. The writer thread takes lines out and writes many of them at a time. When the output is too
slow, or blocked, the queue fills; then records are dropped and counted, and the output says how many as soon as it
moves again, and once more at the end.

Both formats give the time in UTC (RFC 3339, milliseconds) and the level. The source is the logger's name unless the record
carries an extra of that name: lines of a worker script come from the script. In text, control characters are shown
escaped and further lines are indented, so that no payload can forge a line or steer the terminal.
"""

import json
import logging
import os
import queue
import re
import select
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Literal, Self

from attrs import define, field, frozen

from ..protocol import limits

LogFormat = Literal["text", "json"]
Format = Callable[[logging.LogRecord], str]

QUEUE_RECORDS = limits.LOG_RECORDS
QUEUE_CHARACTERS = limits.LOG_CHARS
MESSAGE_CHARACTERS = limits.LOG_MESSAGE_CHARS
"""A longer message is cut, and says so."""
BATCH_RECORDS = 512
STOP_TIMEOUT_S = 2.0

LEVELS = {
    "trace": 5,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "off": logging.CRITICAL + 10,
}
_LEVEL_NAMES = {5: "trace", 10: "debug", 20: "info", 30: "warn", 40: "error", 50: "critical"}
_QUIET = {"watchfiles": logging.WARNING}
"""Libraries whose lower levels say nothing to a user, unless the filter names them."""

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {
    "message",
    "asctime",
    "taskName",
    "source",
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[^\s\"=]+")
_COLOURS = {"trace": "2", "debug": "2", "info": "32", "warn": "33", "error": "31", "critical": "1;31"}


class LogLevelError(ValueError):
    """A level or filter list that is not understood; the message shows what is."""


@frozen
class LogStatistics:
    """What became of the records so far."""

    queued: int
    """Records in the queue now."""
    written: int
    """Records written."""
    dropped: int
    """Records dropped because the queue was full."""
    write_errors: int
    """Attempts to write that failed, and whose records are lost."""


def parse_levels(text: str) -> dict[str, int]:
    """Read ``info`` or a filter list such as ``iii_trio.engine=debug,info``.

    Returns logger names and levels; the root logger's name is "" and its level ``info`` if the list names none. Levels, in
    any case: trace, debug, info, warn (warning), error, critical, off. Raises LogLevelError.
    """
    levels: dict[str, int] = {}
    for item in text.split(","):
        name, equals, word = (part.strip() for part in item.rpartition("="))
        level = LEVELS.get(word.lower())
        if level is None or (equals and not name):
            raise LogLevelError(
                f"log level {item.strip()!r} is not understood: use one of {', '.join(LEVELS)}, "
                "or a list such as iii_trio.engine=debug,info"
            )
        if name in levels:
            raise LogLevelError(f"the log level of {name or 'everything else'} is given twice in {text!r}")
        levels[name] = level
    return {"": logging.INFO} | _QUIET | levels


def _level(record: logging.LogRecord) -> str:
    return _LEVEL_NAMES.get(record.levelno, record.levelname.lower())


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _source(record: logging.LogRecord) -> str:
    return str(getattr(record, "source", record.name))


def _message(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except (TypeError, ValueError, LookupError):  # the arguments do not fit: a line that says so beats a lost one
        message = f"{record.msg} {record.args!r}"
    if len(message) > MESSAGE_CHARACTERS:
        return f"{message[:MESSAGE_CHARACTERS]}… ({len(message) - MESSAGE_CHARACTERS} more characters)"
    return message


def _extras(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    return ((name, value) for name, value in vars(record).items() if name not in _STANDARD)


def _exception(record: logging.LogRecord) -> str | None:
    parts: list[str] = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(logging.Formatter().formatException(record.exc_info))
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts) or None


def _visible(text: str) -> str:
    """``text`` without anything that moves a cursor, ends a line early or begins one at the margin."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text).replace("\n", "\n    ")


def format_json(record: logging.LogRecord) -> str:
    """One JSON object: timestamp, level, source, message, and if there are any ``extras`` (object) and ``exception``."""
    entry: dict[str, object] = {
        "timestamp": _timestamp(record),
        "level": _level(record),
        "source": _source(record),
        "message": _message(record),
    }
    if extras := {name: _json_value(value) for name, value in _extras(record)}:
        entry["extras"] = extras
    if exception := _exception(record):
        entry["exception"] = exception
    return json.dumps(entry, ensure_ascii=False)


def _json_value(value: object) -> object:
    """``value`` if it is JSON as it is, else its ``repr``; one odd extra must not cost the record."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value


def text_format(*, colour: bool) -> Format:
    """A format for people: time, level, source, message, ``key=value`` extras; an exception follows, indented."""

    def format_text(record: logging.LogRecord) -> str:
        level = _level(record)
        shown = f"{level.upper():<5}"
        if colour:
            shown = f"\x1b[{_COLOURS.get(level, '0')}m{shown}\x1b[0m"
        parts = [_timestamp(record), shown, f"{_visible(_source(record)):<24}", _visible(_message(record))]
        parts += [f"{_visible(name)}={_text_value(value)}" for name, value in _extras(record)]
        line = " ".join(parts)
        if exception := _exception(record):
            line += "\n    " + _visible(exception)
        return line

    return format_text


def _text_value(value: object) -> str:
    text = str(value)
    return (
        text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text, ensure_ascii=not text.isprintable())
    )


@define(eq=False)
class _Output:
    """Where lines go: straight to the file descriptor if the stream has one, so that no lock of the stream is ever held.

    (A thread that is blocked inside ``sys.stdout`` while the interpreter ends makes the interpreter abort.)
    """

    stream: IO[str] | None
    """None is what Python has for standard output when the process was started without one."""
    _descriptor: int | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        if self.stream is None:
            return
        self.stream.flush()
        try:
            self._descriptor = self.stream.fileno()
        except OSError:  # a stream in memory
            return

    def is_terminal(self) -> bool:
        return self._descriptor is not None and os.isatty(self._descriptor)

    def write(self, text: str) -> None:
        """Write everything, however long it takes. Raises OSError, or ValueError if the stream is closed."""
        if self.stream is None:
            return
        if self._descriptor is None:
            self.stream.write(text)
            self.stream.flush()
            return
        data = memoryview(text.encode(errors="backslashreplace"))
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # somebody made the descriptor, which is shared with other processes, non-blocking
                select.select([], [self._descriptor], [])


class _QueueHandler(logging.Handler):
    """Turns records into lines and queues them. ``logging`` calls ``emit`` under the handler's lock."""

    def __init__(self, formatting: Format) -> None:
        super().__init__()
        self.formatting = formatting
        # A SimpleQueue's put may be interrupted by itself: by a destructor that logs.
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.dropped = 0
        self.put_characters = 0
        self.taken_characters = 0  # counted by the writer alone

    def emit(self, record: logging.LogRecord) -> None:
        if self.lines.qsize() >= QUEUE_RECORDS or self.put_characters - self.taken_characters >= QUEUE_CHARACTERS:
            self.dropped += 1
            return
        line = self.formatting(record)
        self.put_characters += len(line)
        self.lines.put(line)


@define(eq=False)
class LogWriter:
    """Log output while it is on; made by ``start_logging``. A context manager that ends with ``stop()``."""

    _handler: _QueueHandler
    _output: _Output
    _levels: dict[str, int]
    _written: int = field(init=False, default=0)
    _write_errors: int = field(init=False, default=0)
    _told_dropped: int = field(init=False, default=0)
    _levels_before: dict[str, int] = field(init=False, factory=dict)
    _thread: threading.Thread = field(init=False)
    _stopped: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        # A daemon: a blocked output must not keep the process from ending.
        self._thread = threading.Thread(target=self._write, name="log writer", daemon=True)
        for name, level in self._levels.items():
            logger = logging.getLogger(name)
            self._levels_before[name] = logger.level
            logger.setLevel(level)
        logging.getLogger().addHandler(self._handler)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def statistics(self) -> LogStatistics:
        """What became of the records so far."""
        return LogStatistics(self._handler.lines.qsize(), self._written, self._handler.dropped, self._write_errors)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Take no more records, write what is queued and a last line if any were dropped; loggers get their levels back.

        Blocks for at most ``timeout_s`` seconds. Returns whether everything is written; False means that the output is
        blocked, and the rest is lost when the process ends. May be called again.
        """
        if not self._stopped:
            self._stopped = True
            logging.getLogger().removeHandler(self._handler)
            for name, level in self._levels_before.items():
                logging.getLogger(name).setLevel(level)
            self._handler.lines.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _write(self) -> None:
        """The writer thread."""
        lines = self._handler.lines
        ended = False
        while not ended:
            batch: list[str | None] = [lines.get()]
            while len(batch) < BATCH_RECORDS:
                try:
                    batch.append(lines.get_nowait())
                except queue.Empty:
                    break
            ended = None in batch
            texts = [line for line in batch if line is not None]
            self._handler.taken_characters += sum(map(len, texts))
            if texts and self._put_out(texts):
                self._written += len(texts)
            self._tell_dropped(ended=ended)

    def _put_out(self, lines: list[str]) -> bool:
        try:
            self._output.write("\n".join(lines) + "\n")
        except (OSError, ValueError):  # a full disk, a reader that has gone, a closed stream: later lines may do better
            self._write_errors += 1
            return False
        return True

    def _tell_dropped(self, *, ended: bool) -> None:
        dropped = self._handler.dropped
        if ended and dropped:
            text = "%d log records were dropped in all because the output was too slow"
        elif dropped > self._told_dropped and self._handler.lines.empty():
            text = "%d log records were dropped so far because the output is too slow"
        else:
            return
        self._told_dropped = dropped
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (dropped,), None)
        self._put_out([self._handler.formatting(record)])


def start_logging(format: LogFormat, level: str, stream: IO[str] | None = None) -> LogWriter:
    """Send what is logged to ``stream`` (standard output if None) from now on, as text or as JSON, one object a line.

    ``level`` is a level or a filter list, see ``parse_levels``; it is set on the loggers that it names. Text is coloured if
    the stream is a terminal and ``NO_COLOR`` is not set. Raises LogLevelError, and ValueError for another format.

    Use as a context manager, or call ``stop`` at the end of the process, after the event loop has ended: it may block for
    some seconds.
    """
    levels = parse_levels(level)
    output = _Output(sys.stdout if stream is None else stream)
    if format == "json":
        formatting: Format = format_json
    elif format == "text":
        formatting = text_format(colour=output.is_terminal() and not os.environ.get("NO_COLOR"))
    else:
        raise ValueError(f"log format {format!r} is not known: use text or json")
    return LogWriter(_QueueHandler(formatting), output, levels)
