"""Named queues that were defined at runtime by `queue::define`; kept in the log, so that a restart knows them (§6)."""

import logging
from collections.abc import Callable
from typing import Any, Final

from attrs import define, field

from ...config import ConfigError, Problem, QueueModuleSettings, QueueSettings, structure
from ...protocol import Json, JsonError, errors
from ...protocol.errors import WireError
from ...stores import Done, Failed, JobLog, Note, OnDone, Result

log = logging.getLogger(__name__)

KIND: Final = "queue"
"""The kind of note that holds a definition: `name` is the queue's, `value` the JSON text of its settings."""


def read_definition(name: str, config: Any) -> QueueSettings:
    """The settings of a queue from a JSON value, checked as in a config file. Raises `WireError`, code `enqueue_error`."""
    try:
        read = structure(QueueModuleSettings, {"queue_configs": {name: {} if config is None else config}})
    except ConfigError as error:
        raise WireError("; ".join(_text(problem) for problem in error.problems), errors.ENQUEUE_ERROR) from None
    return read.settings.queue_configs[name]


def _text(problem: Problem) -> str:
    """What is wrong, after the key it is about where the text does not name the queue itself."""
    key = problem.key.rpartition(".")[2]
    return problem.message if not key or "queue" in problem.message.lower() else f"{key}: {problem.message}"


@define(eq=False)
class Definitions:
    """The table; `on_change` is called after each change of `queues`, which stands on disk by then."""

    _log: JobLog
    _on_change: Callable[[], None]
    queues: dict[str, QueueSettings] = field(factory=dict, init=False)

    def recall(self, note: Note) -> None:
        """A note that stood in the log at the start; one that is no definition this release understands stays there."""
        if note.kind != KIND:
            return
        try:
            self.queues[note.name] = read_definition(note.name, Json(note.value).decode())
        except (WireError, JsonError) as error:
            log.error("the queue '%s' was defined in a way that this release does not take: %s", note.name, error)

    def put(self, name: str, settings: QueueSettings, text: bytes, on_done: OnDone[bool]) -> None:
        """Define a queue; `text` is what `recall` will read. Answers True when it stands on disk and is in force."""

        def written(result: Result[bool]) -> None:
            if isinstance(result, Failed):
                on_done(result)
                return
            self.queues[name] = settings
            self._on_change()
            on_done(Done(True))

        self._log.note(KIND, name, text, written)

    def drop(self, name: str, on_done: OnDone[bool]) -> None:
        """Take a definition back; answers whether there was one."""

        def written(result: Result[bool]) -> None:
            if isinstance(result, Done):
                self.queues.pop(name, None)
                self._on_change()
            on_done(result)

        self._log.note(KIND, name, None, written)
