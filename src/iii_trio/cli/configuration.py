"""`iii-trio config`: the settings that a running engine keeps (spec/pubsub-cron-config-cli.md §4, §8.4)."""

from typing import Any, Final

import click

from ..config import WORKERS
from ..host.adopt import ADOPTED
from ..sdk import InvocationError
from .ask import Call, Target, asks_engine, told_by
from .complete import entry_ids
from .describe import properties
from .failure import fail
from .output import compact, json_option, moment, show_json, show_table
from .trigger import payload_of

ADOPTED_IDS: Final = frozenset(worker.established for worker in WORKERS if worker.canonical in ADOPTED)
"""The entries of built-in workers."""

_entry = click.argument("id", shell_complete=entry_ids)


@click.group(short_help="Read and change the engine's settings.")
def config() -> None:
    """Settings that a running engine keeps: read them, change them while it runs.

    An ID is that of a built-in worker (iii-http, iii-queue …) or one that a worker of yours has registered. What is
    set here outlives a restart and goes before the file; `iii-trio check` is for the file.
    """


@config.command("list")
@json_option
@asks_engine
def list_entries(as_json: bool, target: Target) -> None:
    """List the entries there are."""
    answer = told_by(target, lambda call: call("configuration::list"))
    if as_json:
        show_json(answer)
        return
    rows = [(row["id"], row["name"], row["description"]) for row in answer["configurations"]]
    show_table(("ID", "NAME", "DESCRIPTION"), rows, empty="There are none.")


@config.command(short_help="Print the value of an entry.")
@_entry
@click.option("--raw", is_flag=True, help="As it is stored, with ${…} placeholders not replaced.")
@json_option
@asks_engine
def get(id: str, raw: bool, as_json: bool, target: Target) -> None:
    """Print the value of the entry ID; with --json as JSON."""
    question = {"id": id, "raw": True} if raw else {"id": id}
    value = told_by(target, lambda call: call("configuration::get", question))["value"]
    if as_json or not isinstance(value, dict):
        show_json(value)
    else:
        rows = [(key, item if isinstance(item, str) else compact(item)) for key, item in value.items()]
        show_table(("KEY", "VALUE"), rows, empty="It is empty.")


@config.command("set", short_help="Change an entry.")
@_entry
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--json", "text", metavar="JSON", help="The whole value as JSON; - reads it from stdin, @FILE from a file."
)
@asks_engine
def set_value(id: str, pairs: tuple[str, ...], text: str | None, target: Target) -> None:
    """Change the entry ID and print its old and its new value as JSON.

    KEY=VALUE changes these keys and leaves the others; each VALUE is read as JSON if it is JSON, else as text, and
    null takes the key back. --json replaces the whole value, with the pairs put over it.

    \b
    Examples:
      iii-trio config set iii-http default_timeout=60000
      iii-trio config set iii-queue --json @queues.json
    """
    if not pairs and text is None:
        raise click.UsageError("nothing to set: give KEY=VALUE, or --json with the whole value")
    _change("configuration::set", {"id": id, "value": payload_of(pairs, text), "merge": text is None}, target)


@config.command(short_help="Take back what was set in an entry.")
@_entry
@asks_engine
def reset(id: str, target: Target) -> None:
    """Take back what was set in the entry ID; print its old and its new value as JSON.

    From then on the configuration file, or the entry's owner, says what it is.
    """
    _change("configuration::reset", {"id": id}, target)


def _change(function_id: str, question: dict[str, Any], target: Target) -> None:
    """Change an entry, print what it was and is; fails if the worker it belongs to runs on as it was."""
    id = question["id"]

    async def talk(call: Call) -> Any:
        return await call(function_id, question), await _is_taken_over(call, id)

    changed, taken_over = told_by(target, talk)
    show_json(changed)
    if not taken_over:
        fail(
            f"this is stored, but '{id}' runs on as it was, for the change cannot be carried out now: the engine's log "
            f"says why. It is tried again with the next change; `iii-trio config reset {id}` takes back what was set."
        )


async def _is_taken_over(call: Call, id: str) -> bool:
    """Whether the built-in worker runs on what is stored; True where nobody says."""
    if id not in ADOPTED_IDS:
        return True
    try:
        answer = await call(f"{id}::on-config-change")
    except InvocationError:  # it does not run, or not everybody may ask
        return True
    return not isinstance(answer, dict) or answer.get("applied") is not False


@config.command(short_help="List the last values of an entry.")
@_entry
@json_option
@asks_engine
def history(id: str, as_json: bool, target: Target) -> None:
    """List the last values that were set in the entry ID, newest first."""
    answer = told_by(target, lambda call: call("configuration::history", {"id": id}))
    if as_json:
        show_json(answer)
        return
    rows = [
        (moment(past["at_ms"] / 1000), past["by"], compact(past["value"]) if "value" in past else "(taken back)")
        for past in answer["values"]
    ]
    show_table(("SET AT", "BY", "VALUE"), rows, empty="Nothing was set.")


@config.command(short_help="Say what may be set in an entry.")
@_entry
@json_option
@asks_engine
def schema(id: str, as_json: bool, target: Target) -> None:
    """Say what may be set in the entry ID; with --json as JSON Schema."""
    answer = told_by(target, lambda call: call("configuration::schema", {"id": id}))
    if as_json:
        show_json(answer["schema"])
        return
    rows = [(name, kind, description) for name, kind, _, description in properties(answer["schema"])]
    show_table(("KEY", "TYPE", "DESCRIPTION"), rows, empty="It does not say.")
