"""Asking a running engine: which one is meant, a connection for one conversation, and what can go wrong with it."""

import difflib
import logging
import math
import os
import uuid
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any, Final, Protocol, TypeVar

import click
import trio
from attrs import frozen

from ..protocol.errors import FUNCTION_NOT_FOUND, WireError
from ..sdk import InvocationError, InvocationTimeout, NotConnected, Reconnect, open_client
from .failure import fail

T = TypeVar("T")

DEFAULT_PORT: Final = 49134
NO_ANSWER: Final = (
    "Timed out waiting for the engine (no response within the timeout). "
    "Is the engine running at the given address and port?"
)
TIMEOUT_MS: Final = 30_000
NEAR_NAMES: Final = 3
OWN_NAMES: Final = "iii-cli:"
"""How the names of commands among the workers begin."""

_PROVIDERS: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (("configuration::",), "The engine at {url} has no configuration worker: nothing there answers '{function_id}'."),
    (
        ("engine::queue::", "iii::queue::"),
        (
            "The engine at {url} has no queue worker: nothing there answers '{function_id}'. "
            "`iii-trio worker add queue` lists one in config.yaml."
        ),
    ),
    (("engine::",), "The engine at {url} does not know '{function_id}'; is it an older one?"),
)
"""Who should have answered, by the beginning of the function's id."""

logging.getLogger("iii_trio.sdk").addHandler(logging.NullHandler())  # a command says itself, once, what went wrong


class Unanswered(Exception):
    """A question has no answer; `str()` is what to tell the user."""


class Unreachable(Unanswered):
    """Nothing that could answer is there, or it does not let us in."""


class TimedOut(Unreachable):
    """Something is there, or may be, and says nothing."""


class Refused(Unanswered):
    """The function, or the engine in its place, answered with an error."""

    def __init__(self, error: InvocationError, url: str) -> None:
        self.error = error
        super().__init__(_told(error, url))


class Call(Protocol):
    """Calls a function over the open connection. Raises `InvocationError`."""

    def __call__(self, function_id: str, payload: Any = ..., *, namespace: str | None = ...) -> Awaitable[Any]: ...


@frozen
class Target:
    """Which engine is asked, and how long, in s, connecting and each call may take."""

    url: str
    timeout_s: float


def url_of(url: str | None, address: str | None, port: int | None) -> str:
    """Where to connect: `--url`, else `--address`/`--port`, else III_URL, else the default worker port."""
    if url:
        return url
    if address is None and port is None:
        return os.environ.get("III_URL", "").strip() or f"ws://localhost:{DEFAULT_PORT}"
    host = address or "localhost"
    return f"ws://[{host}]:{port or DEFAULT_PORT}" if ":" in host else f"ws://{host}:{port or DEFAULT_PORT}"


CONNECTION: Final = (
    click.option("--url", metavar="URL", help="The engine, as ws://host:port or wss://…; also III_URL."),
    click.option("--address", metavar="HOST", help="Its host (default localhost)."),
    click.option("--port", type=click.IntRange(1, 65535), help=f"Its worker port (default {DEFAULT_PORT})."),
    click.option(
        "--timeout-ms",
        type=click.IntRange(min=1),
        default=TIMEOUT_MS,
        show_default=True,
        help="How long to wait for an answer.",
    ),
)


def asks_engine(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which engine is meant; the command gets them as `target`."""

    @wraps(command)
    def with_target(
        *arguments: Any, url: str | None, address: str | None, port: int | None, timeout_ms: int, **options: Any
    ) -> Any:
        return command(*arguments, target=Target(url_of(url, address, port), timeout_ms / 1000), **options)

    for option in reversed(CONNECTION):
        with_target = option(with_target)
    return with_target


async def converse(target: Target, talk: Callable[[Call], Awaitable[T]]) -> T:
    """Connect, hold a conversation, disconnect: what `talk` returns. Raises `Unanswered`.

    What is not there fails at once. Connecting and each call may take the target's time.
    """
    context = click.get_current_context(silent=True)
    command = "call" if context is None else context.info_name
    name = f"{OWN_NAMES}{command}:{uuid.uuid4().hex[:8]}"  # parallel runs must not claim one name
    try:
        with trio.fail_after(target.timeout_s) as connecting:
            async with open_client(target.url, name=name, reconnect=Reconnect(max_retries=0)) as client:
                connecting.deadline = math.inf

                def call(function_id: str, payload: Any = None, *, namespace: str | None = None) -> Awaitable[Any]:
                    question = {} if payload is None else payload
                    return client.call(function_id, question, timeout=target.timeout_s, namespace=namespace)

                return await talk(call)
    except NotConnected as error:
        raise Unreachable(_unreachable(error, target.url)) from None
    except (InvocationTimeout, trio.TooSlowError):
        raise TimedOut(NO_ANSWER) from None
    except InvocationError as error:
        raise Refused(error, target.url) from None
    except WireError as error:
        raise Unanswered(error.message) from None
    except ValueError as error:  # an address that is none
        raise Unreachable(str(error)) from None


async def ask(url: str, function_id: str, payload: Any, timeout_s: float, namespace: str | None) -> Any:
    """One call over a connection of its own: its result. Raises `Unanswered`."""
    return await converse(Target(url, timeout_s), lambda call: call(function_id, payload, namespace=namespace))


def hear(target: Target, talk: Callable[[Call], Awaitable[T]]) -> T:
    """`converse` in a Trio run of its own. Raises `Unanswered`, and `KeyboardInterrupt` bare.

    Ctrl-C ends it at its next checkpoint: anywhere else it could hit a callback of the loop and be lost, or break the loop.
    """
    try:
        return trio.run(converse, target, talk, restrict_keyboard_interrupt_to_checkpoints=True)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None  # whatever else went wrong did so because of it


def told_by(target: Target, talk: Callable[[Call], Awaitable[T]]) -> T:
    """`hear`; without an answer the command ends here, with status 1 and the reason."""
    try:
        return hear(target, talk)
    except TimedOut:
        fail(f"The engine at {target.url} has not answered within {target.timeout_s:g} s; --timeout-ms waits longer.")
    except Unanswered as error:
        fail(str(error))


def near(word: str, known: Iterable[str]) -> list[str]:
    """The known names that `word` may have been meant to be, the nearest first."""
    return difflib.get_close_matches(word, sorted(set(known)), n=NEAR_NAMES, cutoff=0.6)


def _unreachable(error: NotConnected, url: str) -> str:
    if error.code != NotConnected.default_code:
        return f"The engine at {url} does not let this command in: {error.code}: {error.message}"
    return (
        f"No engine answers at {url}: {error.message}. Is it running there? "
        "(`python -m iii_trio serve` starts one; --url or III_URL names another.)"
    )


def _told(error: InvocationError, url: str) -> str:
    function_id = error.function_id or ""
    if error.code == FUNCTION_NOT_FOUND:
        for beginnings, text in _PROVIDERS:
            if function_id.startswith(beginnings):
                return text.format(url=url, function_id=function_id)
    return f"{error.message} ({error.code})"
