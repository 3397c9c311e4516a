"""The logger a worker's code uses: plain messages with data, on the standard library's logging.

Records carry what a formatter or handler may want to show: `iii_function`, `iii_invocation` and `iii_traceparent` of
the invocation that logged, `iii_worker`, and `iii_data`.
"""

import logging
from typing import Any, Final

from attrs import define, field

from iii_trio.protocol.json import Json

from .invocation import current_invocation

LOGGER_NAME: Final = "iii_trio.worker"


@define(eq=False)
class Logger:
    """Logs for one worker. `data` of each call is any JSON-like value and follows the message in the text."""

    worker: str = ""
    _logger: logging.Logger = field(factory=lambda: logging.getLogger(LOGGER_NAME))

    def debug(self, message: str, data: Any = None) -> None:
        """Log for somebody who looks into this worker."""
        self._log(logging.DEBUG, message, data)

    def info(self, message: str, data: Any = None) -> None:
        """Log what happened as it should."""
        self._log(logging.INFO, message, data)

    def warn(self, message: str, data: Any = None) -> None:
        """Log what somebody may want to look at."""
        self._log(logging.WARNING, message, data)

    def error(self, message: str, data: Any = None) -> None:
        """Log what went wrong."""
        self._log(logging.ERROR, message, data)

    def _log(self, level: int, message: str, data: Any) -> None:
        if not self._logger.isEnabledFor(level):
            return
        invocation = current_invocation()
        extra = {
            "iii_worker": self.worker,
            "iii_function": None if invocation is None else invocation.function_id,
            "iii_invocation": None if invocation is None else invocation.id,
            "iii_traceparent": None if invocation is None else invocation.traceparent,
            "iii_data": data,
        }
        where = "" if invocation is None else f"{invocation.function_id}: "
        what = "" if data is None else f" {_text(data)}"
        self._logger.log(level, "%s%s%s", where, message, what, extra=extra, stacklevel=3)


def _text(data: Any) -> str:
    try:
        return Json.of(data).raw.decode()
    except (TypeError, ValueError, RecursionError):
        return repr(data)
