"""`iii-trio functions`, `workers` and `triggers`: what an engine knows (spec/observability-introspection.md §14)."""

import time
from collections import Counter
from typing import Any, Final

import click

from .ask import OWN_NAMES, Call, Target, asks_engine, told_by
from .output import ago, compact, json_option, shortened, show_json, show_table

DESCRIPTION_CHARS: Final = 60
CONFIG_CHARS: Final = 40
NONE_AT_ALL: Final = "There are none."
_STYLES: Final = {"live": "green", "parked": "yellow", "refused": "red", "connected": "green", "available": "green"}

searching = click.argument("search", required=False)


def _question(**fields: Any) -> dict[str, Any]:
    """The fields somebody gave."""
    return {name: value for name, value in fields.items() if value}


@click.command(short_help="List the functions that can be called.")
@searching
@click.option("--worker", metavar="NAME", help="Only those of this worker.")
@click.option("--prefix", metavar="TEXT", help="Only those whose id begins with this.")
@click.option("--all", "everything", is_flag=True, help="Internal functions too.")
@json_option
@asks_engine
def functions(
    search: str | None, worker: str | None, prefix: str | None, everything: bool, as_json: bool, target: Target
) -> None:
    """List the functions that can be called, or those with SEARCH in their id or description."""
    question = _question(search=search, worker=worker, prefix=prefix, include_internal=everything)
    answer = told_by(target, lambda call: call("engine::functions::list", question))
    if as_json:
        show_json(answer)
        return
    rows = [
        (
            row["function_id"],
            row["worker_name"],
            row.get("namespace"),
            row.get("replicas", 1),
            shortened(row.get("description") or "", DESCRIPTION_CHARS),
        )
        for row in answer["functions"]
    ]
    show_table(
        ("FUNCTION", "WORKER", "NAMESPACE", "REPLICAS", "DESCRIPTION"),
        rows,
        empty=NONE_AT_ALL,
        spare=("REPLICAS", "NAMESPACE"),
    )


@click.command(short_help="List the connected and the built-in workers.")
@searching
@click.option("--runtime", metavar="NAME", help="Only those of this runtime: python, node, engine …")
@json_option
@asks_engine
def workers(search: str | None, runtime: str | None, as_json: bool, target: Target) -> None:
    """List the connected workers and the built-in ones, or those with SEARCH in their name."""
    question = _question(search=search, runtime=runtime)
    answer = told_by(target, lambda call: call("engine::workers::list", question))
    if as_json:
        show_json(answer)
        return
    now_ms = time.time() * 1000
    rows = [
        (
            row["name"] or row["id"],
            row["status"],
            row["runtime"],
            row["version"],
            row["namespace"],
            row["function_count"],
            row["active_invocations"],
            ago(row["connected_at_ms"], now_ms),
            row["ip_address"],
            row.get("pid"),
        )
        for row in answer["workers"]
        if not (row["name"] or "").startswith(OWN_NAMES)
    ]
    headings = ("WORKER", "STATUS", "RUNTIME", "VERSION", "NAMESPACE", "FUNCTIONS", "RUNNING", "UP", "ADDRESS", "PID")
    spare = ("ADDRESS", "NAMESPACE", "PID", "VERSION", "RUNTIME")
    show_table(headings, rows, empty=NONE_AT_ALL, styles=_STYLES, spare=spare)


@click.command(short_help="List triggers; --all: why one does not fire.")
@searching
@click.option("--type", "trigger_type", metavar="TYPE", help="Only those of this trigger type.")
@click.option("--function", "function_id", metavar="ID", help="Only those of this function.")
@click.option(
    "--all", "everything", is_flag=True, help="Internal ones too, and those that do not fire, with the reason."
)
@json_option
@asks_engine
def triggers(
    search: str | None,
    trigger_type: str | None,
    function_id: str | None,
    everything: bool,
    as_json: bool,
    target: Target,
) -> None:
    """List the registered triggers that fire, or those with SEARCH in id, type or function.

    `triggers --all` answers why a trigger does not fire.
    """
    question = _question(search=search, trigger_type=trigger_type, function_id=function_id, include_internal=everything)

    async def talk(call: Call) -> list[dict[str, Any]]:
        answer = await call("engine::registered-triggers::list", {**question, "state": "all"})
        hidden = set() if everything else await _internal(call)
        return [row for row in answer["registered_triggers"] if row["function_id"] not in hidden]

    found = told_by(target, talk)
    live = [row for row in found if row.get("state", "live") == "live"]
    shown = found if everything else live
    if as_json:
        show_json({"registered_triggers": shown})
        return
    rows = [
        (
            row["trigger_type"],
            row["function_id"],
            row.get("namespace"),
            row["worker_name"],
            row.get("state", "live"),
            shortened(compact(row["config"]), CONFIG_CHARS),
            *((row.get("why"),) if everything else ()),
            row["id"],
        )
        for row in shown
    ]
    why = ("WHY",) if everything else ()
    headings = ("TYPE", "FUNCTION", "NAMESPACE", "WORKER", "STATE", "CONFIG", *why, "ID")
    show_table(headings, rows, empty=NONE_AT_ALL, styles=_STYLES, spare=("NAMESPACE", "ID", "WORKER", "CONFIG"))
    if len(shown) < len(found):
        states = Counter(row["state"] for row in found if row not in live)
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        click.echo(f"Not shown, as they do not fire: {counts}. --all says why.", err=True)


async def _internal(call: Call) -> set[str]:
    """The functions that are nobody's business but their worker's, and say so."""
    answer = await call("engine::functions::list", {"include_internal": True})
    return {row["function_id"] for row in answer["functions"] if (row.get("metadata") or {}).get("internal") is True}
