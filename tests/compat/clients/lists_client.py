"""The list helpers of an old official Python SDK (up to 0.8): every line printed is one answer as it was parsed."""

import asyncio
import os
from typing import Any

import iii as sdk  # type: ignore[import-untyped,unused-ignore]


def say(what: str, names: list[str]) -> None:
    print(what, *sorted(names), flush=True)


async def echo(data: Any) -> Any:
    return data


async def main() -> None:
    worker = sdk.III(os.environ["III_URL"])
    mine = f"lists::{os.environ['RELEASE']}"
    worker.register_function(mine, echo)
    await worker.connect()
    heard = asyncio.Queue()  # type: ignore[var-annotated]
    unsubscribe = worker.on_functions_available(lambda functions: heard.put_nowait([f.function_id for f in functions]))
    while mine not in await heard.get():
        pass
    say("available", [mine])
    functions = await worker.list_functions()
    say("functions", [function.function_id for function in functions])
    workers = await worker.list_workers()
    say("workers", [f"{row.name}:{row.status}:{row.function_count}:{len(row.functions)}" for row in workers])
    # the first event after this one must not be heard any more
    unsubscribe()
    worker.register_function(f"{mine}::later", echo)
    await asyncio.sleep(0.5)
    say("after", [str(heard.qsize())])
    await worker.shutdown()


asyncio.run(main())
