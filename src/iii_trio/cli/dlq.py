"""`iii-trio dlq`: look at dead letters, return them to their queue, drop them (spec/queue.md §6)."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from ..config.problems import did_you_mean
from .ask import Call, Target, asks_engine, told_by
from .complete import queue_names
from .failure import fail
from .output import GAP, clean, compact, json_option, moment, plural, shortened, show, show_json, show_table

PAGE: Final = 50
"""Dead letters that are shown, unless somebody says otherwise."""
PAYLOAD_CHARS: Final = 1_000
_TOLD: Final = frozenset({"id", "failed_at", "retries", "size_bytes", "error", "payload"})

_queue = click.argument("queue", shell_complete=queue_names)


@click.group(short_help="Look at dead letters, return or drop them.")
def dlq() -> None:
    """Messages that were given up: look at them, return them to their queue, drop them.

    QUEUE is a named queue, or a topic with durable subscribers.
    """


@dlq.command("ls", short_help="List the queues, and how many dead letters each has.")
@json_option
@asks_engine
def ls(as_json: bool, target: Target) -> None:
    """List all queues and topics, and how many dead letters each has."""
    answer = told_by(target, lambda call: call("engine::queue::dlq_topics"))
    if as_json:
        show_json(answer)
        return
    rows = [(row["topic"], row["broker_type"], row["message_count"]) for row in answer]
    show_table(("QUEUE", "KIND", "DEAD"), rows, empty="There are no queues.")


@dlq.command("show", short_help="Show the dead letters of a queue, with their errors.")
@_queue
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=PAGE,
    show_default=True,
    help="At most so many; the engine has a bound too.",
)
@click.option("--offset", type=click.IntRange(min=0), default=0, show_default=True, help="Leave out the newest ones.")
@json_option
@asks_engine
def show_letters(queue: str, limit: int, offset: int, as_json: bool, target: Target) -> None:
    """Show the dead letters of QUEUE, newest first: payload, attempts, and the error with its stack."""

    async def talk(call: Call) -> Any:
        letters = await call("engine::queue::dlq_messages", {"topic": queue, "limit": limit, "offset": offset})
        return letters, None if letters else await _queues(call)

    letters, queues = told_by(target, talk)
    _check_known(queue, queues)
    if as_json:
        show_json(letters)
    elif letters:
        show("\n\n".join(letter_text(letter) for letter in letters))
    else:
        show(f"No {'more ' if offset else ''}dead letters in '{clean(queue)}'.")


@dlq.command(short_help="Return dead letters to their queue.")
@_queue
@click.argument("ids", nargs=-1, metavar="[ID]...")
@json_option
@asks_engine
def redrive(queue: str, ids: tuple[str, ...], as_json: bool, target: Target) -> None:
    """Return the dead letters ID…, or all of them, to QUEUE, to be delivered again."""

    if ids:
        _one_by_one("iii::queue::redrive_message", "returned to", queue, ids, as_json, target)
    else:
        _all("iii::queue::redrive", "redriven", "returned to", queue, as_json, target)


@dlq.command(short_help="Drop dead letters for good.")
@_queue
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Every dead letter of the queue, instead of IDs.")
@json_option
@asks_engine
def discard(queue: str, ids: tuple[str, ...], everything: bool, as_json: bool, target: Target) -> None:
    """Drop the dead letters ID… of QUEUE for good, or with --all every one of them."""
    if bool(ids) == everything:
        raise click.UsageError("name the IDs of the messages to drop, or give --all, and not both")
    if ids:
        _one_by_one("iii::queue::discard_message", "dropped from", queue, ids, as_json, target)
    else:
        _all("iii::queue::purge_dlq", "discarded", "dropped from", queue, as_json, target)


def _all(function_id: str, counted: str, done: str, queue: str, as_json: bool, target: Target) -> None:
    """Redrive or discard all messages; `counted` is the key of the answer that says how many there were."""

    async def talk(call: Call) -> Any:
        answer = await call(function_id, {"queue": queue})
        return answer, None if answer[counted] else await _queues(call)

    answer, queues = told_by(target, talk)
    _check_known(queue, queues)
    if as_json:
        show_json(answer)
    else:
        show(f"{plural(answer[counted], 'message')} {done} '{clean(queue)}'.")


def _one_by_one(function_id: str, done: str, queue: str, ids: tuple[str, ...], as_json: bool, target: Target) -> None:
    """Redrive or discard the messages `ids`; fails, after the others, when some are not there."""

    async def talk(call: Call) -> Any:
        answers = [await call(function_id, {"queue": queue, "message_id": message_id}) for message_id in ids]
        return answers, None if any(answer["redriven"] for answer in answers) else await _queues(call)

    answers, queues = told_by(target, talk)
    _check_known(queue, queues)
    missing = [answer["message_id"] for answer in answers if not answer["redriven"]]
    if as_json:
        show_json(answers)
    else:
        show(f"{plural(len(answers) - len(missing), 'message')} {done} '{clean(queue)}'.")
    if missing:
        fail(f"no dead letter of '{clean(queue)}': {', '.join(map(clean, missing))}")


async def _queues(call: Call) -> list[str]:
    return [row["topic"] for row in await call("engine::queue::dlq_topics")]


def _check_known(queue: str, queues: Iterable[str] | None) -> None:
    """Fail for a queue that is not among those there are; the engine answers for it as for an empty one."""
    if queues is not None and queue not in queues:
        hint = did_you_mean(queue, queues) or "."
        fail(f"there is no queue or topic '{clean(queue)}'{clean(hint)} (`iii-trio dlq ls` lists them.)")


def letter_text(letter: Mapping[str, Any]) -> str:
    """One dead letter as text: what every engine tells of it, and what else this one does."""
    about = (
        f"{moment(letter['failed_at'])}, after {plural(letter['retries'], 'attempt')}, "
        f"{plural(letter['size_bytes'], 'byte')}"
    )
    told = {"id": letter["id"], "failed": about, "error": letter.get("error") or "(not known)"}
    told |= {name: _text(value) for name, value in letter.items() if name not in _TOLD and value is not None}
    told["payload"] = shortened(compact(letter["payload"]), PAYLOAD_CHARS)
    width = max(map(len, told)) + len(GAP)
    return "\n".join(_field(name.ljust(width), text) for name, text in told.items())


def _text(value: object) -> str:
    return value if isinstance(value, str) else compact(value)


def _field(name: str, text: str) -> str:
    first, *others = [clean(line) for line in text.splitlines()] or [""]
    return "\n".join([f"{clean(name)}{first}".rstrip(), *(f"{' ' * len(name)}{line}".rstrip() for line in others)])
