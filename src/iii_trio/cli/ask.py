"""Commands that ask a running engine: `trigger` and `tree`."""

import json
import os
import sys
import uuid
from typing import Any, Final

import click
import trio

from ..protocol import codec
from ..protocol.errors import ProtocolError, WireError
from ..sdk import InvocationError, InvocationTimeout, NotConnected, Reconnect, open_client
from .describe import describe
from .failure import fail

NO_ANSWER: Final = (
    "Timed out waiting for the engine (no response within the timeout). "
    "Is the engine running at the given address and port?"
)
TIMEOUT_MS: Final = 30_000


class Unanswered(Exception):
    """A call has no result; `str()` is what to tell the user."""


class Unreachable(Unanswered):
    """Nothing that could answer is there."""


def payload_of(pairs: tuple[str, ...], text: str | None) -> Any:
    """The payload of `trigger` (spec/pubsub-cron-config-cli.md §8.1): pairs over JSON. Raises `click.UsageError`."""
    value: Any = {}
    if text is not None:
        try:
            value = codec.decode_value(text.encode())
        except ProtocolError:
            raise click.UsageError(f"--json: invalid JSON `{text}`") from None
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


def url_of(url: str | None, address: str | None, port: int | None) -> str:
    """Where to connect: `--url`, else `--address`/`--port`, else III_URL, else the default worker port."""
    if url:
        return url
    if address is None and port is None:
        return os.environ.get("III_URL", "").strip() or "ws://localhost:49134"
    host = address or "localhost"
    return f"ws://[{host}]:{port or 49134}" if ":" in host else f"ws://{host}:{port or 49134}"


async def ask(url: str, function_id: str, payload: Any, timeout_s: float, namespace: str | None) -> Any:
    """One call over a connection of its own: its result. Raises `Unanswered`; what is not there fails at once."""
    name = f"iii-cli:trigger:{uuid.uuid4().hex[:8]}"  # parallel runs must not claim one name
    try:
        with trio.fail_after(timeout_s):
            async with open_client(url, name=name, reconnect=Reconnect(max_retries=0)) as client:
                return await client.call(function_id, payload, timeout=timeout_s, namespace=namespace)
    except NotConnected as error:
        raise Unreachable(
            f"No engine answers at {url}: {error.message}. Is it running there? "
            "(`python -m iii_trio serve` starts one.)"
        ) from None
    except (InvocationTimeout, trio.TooSlowError):
        raise Unreachable(NO_ANSWER) from None
    except InvocationError as error:
        body = {"code": error.code, "message": error.message, "stacktrace": error.stacktrace}
        raise Unanswered(json.dumps(body, indent=2, ensure_ascii=False)) from None
    except WireError as error:
        raise Unanswered(error.message) from None
    except ValueError as error:  # an address that is none
        raise Unreachable(str(error)) from None


CONNECTION: Final = (
    click.option("--url", help="The engine, as ws://host:port; also III_URL."),
    click.option("--address", help="Its host (default localhost)."),
    click.option("--port", type=click.IntRange(1, 65535), help="Its worker port (default 49134)."),
    click.option("--timeout-ms", type=click.IntRange(min=1), default=TIMEOUT_MS, show_default=True),
)


def connection_options(command: Any) -> Any:
    """Add the options that say which engine is meant."""
    for option in reversed(CONNECTION):
        command = option(command)
    return command


@click.command(add_help_option=False)
@click.argument("function_path", required=False)
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "text", help="The payload as JSON.")
@click.option("-n", "--namespace", help="Namespace of the function.")
@connection_options
@click.option("-h", "--help", "wants_help", is_flag=True, help="Show this, or with FUNCTION_PATH what it takes.")
@click.pass_context
def trigger(
    context: click.Context,
    function_path: str | None,
    pairs: tuple[str, ...],
    text: str | None,
    namespace: str | None,
    url: str | None,
    address: str | None,
    port: int | None,
    timeout_ms: int,
    wants_help: bool,
) -> None:
    """Call FUNCTION_PATH once and print its result as JSON.

    Each VALUE is read as JSON if it is JSON, else as text: `trigger state::get scope=s key=k`.
    """
    where, timeout_s = url_of(url, address, port), timeout_ms / 1000
    if wants_help:
        if function_path is not None:
            show_help(context, where, function_path, timeout_s, namespace)
        else:
            click.echo(context.get_help())
        return
    if function_path is None:
        raise click.UsageError("iii trigger: missing FUNCTION_PATH. Try: `iii trigger <fn-path> [args]`")
    payload = payload_of(pairs, text)
    try:
        result = trio.run(ask, where, function_path, payload, timeout_s, namespace)
    except Unanswered as error:
        fail(str(error))
    if result is not None:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))


def show_help(context: click.Context, url: str, function_id: str, timeout_s: float, namespace: str | None) -> None:
    """What a function is and takes, as the engine knows it; without an engine the help of the command."""
    question = (
        {"function_id": function_id} if namespace is None else {"function_id": function_id, "namespace": namespace}
    )
    try:
        detail = trio.run(ask, url, "engine::functions::info", question, timeout_s, None)
    except Unreachable as error:
        click.echo(f"Warning: {error}", err=True)
        click.echo(context.get_help())
    except Unanswered as error:
        fail(str(error))
    else:
        click.echo(describe(detail))


def draw(node: dict[str, Any], prefix: str = "", mark: str = "") -> list[str]:
    """A task tree as lines of text."""
    lines = [prefix + mark + str(node["name"])]
    children = node.get("children", [])
    inner = prefix + {"": "", "├─ ": "│  ", "└─ ": "   "}[mark]
    for child in children:
        lines += draw(child, inner, "└─ " if child is children[-1] else "├─ ")
    return lines


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection_options
def tree(as_json: bool, url: str | None, address: str | None, port: int | None, timeout_ms: int) -> None:
    """Print the live task tree of a running engine."""
    try:
        result = trio.run(ask, url_of(url, address, port), "engine::tree", {}, timeout_ms / 1000, None)
    except Unanswered as error:
        fail(str(error))
    if as_json:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        sys.stdout.write("\n".join(draw(result)) + "\n")
