"""A tree of calls across processes that unwinds like one nursery when the client at its root hangs up.

`GET /tree` is served by the worker `front`, which calls `branch::work` and `middle::work` at the same time; both of them
call `leaf::work`. Three of the workers are processes of this file. `middle` is one of the official Python SDK
(`cancel_tree_middle.py`), which knows nothing of cancellation; without that SDK it is left out.

    iii-trio serve examples/cancel_tree.py
    curl 'http://localhost:3111/tree?seconds=30'        # and then Ctrl-C

Every process that waited prints why it gives up, the caller before the one that it called, and cleans up. Only the part
of the tree below `middle` works to its end, and its answer is dropped: nobody waits for it.

Against an engine that runs already: `python examples/cancel_tree.py`, with its address in III_URL.
"""

import importlib.util
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from iii_trio import Client, FunctionNotFound, HttpResponse, Invocation, Worker

MIDDLE = Path(__file__).with_name("cancel_tree_middle.py")

front = Worker("front", description="Answers GET /tree")
branch = Worker("branch", description="Leaves its work to a leaf")
leaf = Worker("leaf", description="Works for some seconds")


def say(text: str) -> None:
    print(text, flush=True)


async def ask(who: str, client: Client, invocation: Invocation, function_id: str, seconds: float) -> Any:
    """Call a function, and say so when its answer is not wanted any more."""
    try:
        return await client.call(function_id, {"seconds": seconds, "for": who}, timeout=None)
    except trio.Cancelled:
        say(f"{who}: gives up {function_id}: {invocation.cancel_reason}")
        raise


@frozen
class Query:
    seconds: float = 30


@frozen
class TreeRequest:
    """What the handler wants to know of the request; a `seconds` that is no number is answered 400."""

    query_params: Query


@front.http("GET", "tree")
@front.function("front::tree")
async def tree(request: TreeRequest, *, client: Client, invocation: Invocation) -> HttpResponse:
    seconds = request.query_params.seconds
    answers: dict[str, Any] = {}

    async def part(function_id: str) -> None:
        try:
            answers[function_id] = await ask("front", client, invocation, function_id, seconds)
        except FunctionNotFound:
            answers[function_id] = "nobody serves it"

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(part, "branch::work")
            nursery.start_soon(part, "middle::work")
    finally:
        say("front: has cleaned up")
    return HttpResponse(200, body=answers)


@branch.function("branch::work")
async def pass_on(data: dict[str, Any], *, client: Client, invocation: Invocation) -> Any:
    say(f"branch: asks leaf::work for {data['for']}")
    return await ask("branch", client, invocation, "leaf::work", data["seconds"])


@leaf.function("leaf::work")
async def work(data: dict[str, Any], *, invocation: Invocation) -> str:
    say(f"leaf: works for {data['for']}")
    try:
        await trio.sleep(data["seconds"])
    except trio.Cancelled:
        say(f"leaf: stops working for {data['for']}: {invocation.cancel_reason}")
        raise
    say(f"leaf: is done for {data['for']}")
    return f"{data['seconds']} s of work"


WORKERS = {"front": front, "branch": branch, "leaf": leaf}


async def every_process() -> None:
    """All workers, each a process of its own, until a signal."""
    commands = [[sys.executable, __file__, name] for name in WORKERS]
    if importlib.util.find_spec("iii") is not None:
        commands.append([sys.executable, str(MIDDLE)])
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            for command in commands:
                nursery.start_soon(partial(trio.run_process, command, check=False))
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


if __name__ == "__main__":
    if len(sys.argv) > 1:
        WORKERS[sys.argv[1]].serve()
    else:
        trio.run(every_process)
