"""`iii-trio tree`: the live task tree of an engine."""

from typing import Any

import click

from .ask import Target, asks_engine, told_by
from .output import clean, json_option, show, show_json


@click.command(short_help="Print the live task tree.")
@json_option
@asks_engine
def tree(as_json: bool, target: Target) -> None:
    """Print the live task tree of a running engine: who works for whom, by name."""
    result = told_by(target, lambda call: call("engine::tree"))
    if as_json:
        show_json(result)
    else:
        show("\n".join(draw(result)))


def draw(node: dict[str, Any], prefix: str = "", mark: str = "") -> list[str]:
    """A task tree as lines of text."""
    lines = [prefix + mark + clean(node["name"])]
    children = node.get("children", [])
    inner = prefix + {"": "", "├─ ": "│  ", "└─ ": "   "}[mark]
    for child in children:
        lines += draw(child, inner, "└─ " if child is children[-1] else "├─ ")
    return lines
