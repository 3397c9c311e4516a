"""How a call ended: what an `invocationresult` says, without whom it is for (spec/protocol.md §3.3, §5)."""

from typing import Final

import msgspec

from . import codec
from .errors import WireError
from .json import ABSENT, Json


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How a call ended: `error` is the wire body's text, empty on success; `result` may be `ABSENT` or null.

    (A struct, not an attrs class: one is made for every routed call.)
    """

    result: Json = ABSENT
    error: bytes = b""

    @classmethod
    def failed(cls, error: WireError) -> "Outcome":
        """The outcome of an error of ours."""
        return cls(ABSENT, codec.encode_error(error))

    @property
    def ok(self) -> bool:
        """True unless it carries an error."""
        return not self.error

    def exception(self) -> WireError:
        """The error as an exception; only for outcomes that are not `ok`."""
        body = codec.error_body(self.error)
        return WireError(body.message, body.code, body.stacktrace)


NOTHING: Final = Outcome()
