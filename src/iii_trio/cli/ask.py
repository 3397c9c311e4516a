"""Commands that ask a running engine: `trigger` and `tree`."""

import json
import os
import sys
from typing import Any

import click
import trio

from ..protocol.errors import WireError
from ..sdk import InvocationError, InvocationTimeout, NotConnected, Reconnect, open_client
from .serve import fail, leaves

NO_ANSWER = (
    "Timed out waiting for the engine (no response within the timeout). "
    "Is the engine running at the given address and port?"
)


def payload_of(pairs: tuple[str, ...], text: str | None) -> Any:
    """The payload of `trigger` (spec/pubsub-cron-config-cli.md §8.1): pairs over JSON. Raises `click.UsageError`."""
    value: Any = {}
    if text is not None:
        try:
            value = json.loads(text)
        except ValueError:
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
            value[key] = json.loads(word)
        except ValueError:
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
    """One call over a connection of its own. Raises `InvocationError`; an engine that is not there fails at once."""
    with trio.fail_after(timeout_s):
        name = f"iii-cli:{os.getpid()}"  # parallel runs must not claim one name
        async with open_client(url, name=name, reconnect=Reconnect(max_retries=0)) as client:
            return await client.call(function_id, payload, timeout=timeout_s, namespace=namespace)


def run(url: str, function_id: str, payload: Any, timeout_ms: int, namespace: str | None = None) -> Any:
    """`ask` for the command line: errors become text on stderr and exit status 1."""
    try:
        return trio.run(ask, url, function_id, payload, timeout_ms / 1000, namespace)
    except* (WireError, OSError, trio.TooSlowError) as group:
        error = next(leaves(group))
        if isinstance(error, NotConnected | OSError):
            fail(f"No engine answers at {url}: {error}. Is it running there? (`python -m iii_trio serve` starts one.)")
        if isinstance(error, InvocationTimeout | trio.TooSlowError):
            fail(NO_ANSWER)
        if isinstance(error, InvocationError):
            body = {"code": error.code, "message": error.message, "stacktrace": error.stacktrace}
            fail(json.dumps(body, indent=2, ensure_ascii=False))
        raise


CONNECTION = (
    click.option("--url", help="The engine, as ws://host:port; also III_URL."),
    click.option("--address", help="Its host (default localhost)."),
    click.option("--port", type=int, help="Its worker port (default 49134)."),
    click.option("--timeout-ms", type=click.IntRange(min=1), default=30_000, show_default=True),
)


def connection_options(command: Any) -> Any:
    """Add the options that say which engine is meant."""
    for option in reversed(CONNECTION):
        command = option(command)
    return command


@click.command()
@click.argument("function_path", required=False)
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "text", help="The payload as JSON.")
@click.option("-n", "--namespace", help="Namespace of the function.")
@connection_options
def trigger(
    function_path: str | None,
    pairs: tuple[str, ...],
    text: str | None,
    namespace: str | None,
    url: str | None,
    address: str | None,
    port: int | None,
    timeout_ms: int,
) -> None:
    """Call FUNCTION_PATH once and print its result as JSON.

    Each VALUE is read as JSON if it is JSON, else as text: `trigger state::get scope=s key=k`.
    """
    if function_path is None:
        raise click.UsageError("iii trigger: missing FUNCTION_PATH. Try: `iii trigger <fn-path> [args]`")
    result = run(url_of(url, address, port), function_path, payload_of(pairs, text), timeout_ms, namespace)
    if result is not None:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))


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
    result = run(url_of(url, address, port), "engine::tree", {}, timeout_ms)
    if as_json:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        sys.stdout.write("\n".join(draw(result)) + "\n")
