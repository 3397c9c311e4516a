"""`iii-trio trigger`: call a function once (spec/pubsub-cron-config-cli.md §8.1)."""

import sys
from pathlib import Path
from typing import Any

import click

from ..protocol import codec
from ..protocol.errors import FUNCTION_NOT_FOUND, ProtocolError
from ..sdk import FunctionNotFound, InvocationError
from .ask import Call, Refused, Target, Unanswered, Unreachable, asks_engine, hear, near
from .complete import function_ids
from .describe import describe
from .failure import fail
from .output import clean, json_text, show, show_json


def payload_of(pairs: tuple[str, ...], text: str | None) -> Any:
    """The payload of `trigger`: pairs over JSON, `{}` without either. Raises `click.UsageError`.

    `text` is JSON, or `-` for what stands on stdin, or `@FILE` for what stands in a file.
    """
    value: Any = {}
    if text is not None:
        value = read_json(text)
        if pairs and not isinstance(value, dict):
            raise click.UsageError("--json must be an object when combined with kv pairs")
    for pair in pairs:
        key, equals, word = pair.partition("=")
        if not equals:
            raise click.UsageError(f"expected key=value, got `{pair}`")
        if not key:
            raise click.UsageError(f"payload key must not be empty (got `{pair}`)")
        try:
            value[key] = codec.decode_value(word.encode())
        except ProtocolError:
            value[key] = word
    return value


def read_json(text: str) -> Any:
    """The JSON value that `--json` names. Raises `click.UsageError`."""
    source, found = f"`{text}`", text.encode(errors="surrogateescape")
    if text == "-":
        source, found = "on stdin", sys.stdin.buffer.read()
    elif text.startswith("@"):
        source = f"in {text[1:]}"
        try:
            found = Path(text[1:]).read_bytes()
        except OSError as error:
            raise click.UsageError(f"--json: cannot read {text[1:]}: {error.strerror}") from None
    try:
        return codec.decode_value(found)
    except ProtocolError:
        raise click.UsageError(f"--json: invalid JSON {source}") from None


@click.command(add_help_option=False, short_help="Call a function once and print its result (also: t).")
@click.argument("function_path", required=False, shell_complete=function_ids)
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "text", metavar="JSON", help="The payload as JSON; - reads it from stdin, @FILE from a file.")
@click.option("-n", "--namespace", metavar="NS", help="Namespace of the function (default: default).")
@asks_engine
@click.option("-h", "--help", "wants_help", is_flag=True, help="Show this, or with FUNCTION_PATH what it takes.")
@click.pass_context
def trigger(
    context: click.Context,
    function_path: str | None,
    pairs: tuple[str, ...],
    text: str | None,
    namespace: str | None,
    target: Target,
    wants_help: bool,
) -> None:
    """Call FUNCTION_PATH once and print its result as JSON.

    Each VALUE is read as JSON if it is JSON, else as text. Pairs go over the object that --json gives. A function
    without a result prints nothing; one that fails puts its error on stderr, as JSON after `Error:`.

    \b
    Examples:
      iii-trio trigger state::set scope=users key=ada 'value={"age": 36}'
      iii-trio trigger state::get scope=users key=ada
      iii-trio trigger report::build --json @request.json --timeout-ms 600000
      iii-trio trigger state::set --help
    """
    if wants_help:
        if function_path is not None:
            show_help(context, target, function_path, namespace)
        else:
            click.echo(context.get_help())
        return
    if function_path is None:
        raise click.UsageError("iii trigger: missing FUNCTION_PATH. Try: `iii trigger <fn-path> [args]`")
    payload = payload_of(pairs, text)
    meant: list[str] = []

    async def talk(call: Call) -> Any:
        try:
            return await call(function_path, payload, namespace=namespace)
        except FunctionNotFound:
            meant.extend(await _meant(call, function_path))
            raise

    try:
        result = hear(target, talk)
    except Refused as refused:
        error = refused.error
        body = {"code": error.code, "message": error.message, "stacktrace": error.stacktrace}
        hint = f"\nDid you mean {' or '.join(map(clean, meant))}?" if meant else ""
        fail(json_text(body) + hint)
    except Unanswered as unanswered:
        fail(str(unanswered))
    if result is not None:
        show_json(result)


async def _meant(call: Call, function_id: str) -> list[str]:
    """Functions with a similar id; none if the function is there, or if the engine does not tell."""
    try:
        listed = await call("engine::functions::list", {"include_internal": True})
    except InvocationError:
        return []
    ids = {str(row["function_id"]) for row in listed["functions"]}
    return [] if function_id in ids else near(function_id, ids)


def show_help(context: click.Context, target: Target, function_id: str, namespace: str | None) -> None:
    """What a function is and takes, as the engine knows it; without an engine the help of the command."""
    question = {"function_id": function_id} | ({} if namespace is None else {"namespace": namespace})
    try:
        detail = hear(target, lambda call: call("engine::functions::info", question))
    except Unreachable as error:
        click.echo(f"Warning: {error}", err=True)
        click.echo(context.get_help())
    except Refused as refused:
        hint = "" if refused.error.code != FUNCTION_NOT_FOUND else " The engine cannot describe functions."
        fail(f"{refused.error.message}{hint} (`iii-trio functions` lists what there is.)")
    except Unanswered as error:
        fail(str(error))
    else:
        show(describe(detail))
