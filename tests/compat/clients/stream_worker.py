"""A worker of the official Python SDK, 0.25, that uses streams: `stream_worker.py PREFIX`.

`PREFIX::call` calls a function and tells the result, `PREFIX::seen` tells which events of stream PREFIX it was triggered
with, and it keeps the data of the stream `PREFIX-own` itself.
"""

import asyncio
import os
import sys
import threading
import warnings
from typing import Any

warnings.simplefilter("ignore", FutureWarning)

from iii import register_worker  # type: ignore[import-untyped,unused-ignore]  # noqa: E402
from iii.helpers import create_stream  # type: ignore[import-untyped,unused-ignore]  # noqa: E402
from iii.stream import (  # type: ignore[import-untyped,unused-ignore]  # noqa: E402
    IStream,
    StreamDeleteResult,
    StreamSetResult,
)

prefix = sys.argv[1]
iii = register_worker(os.environ["III_URL"])
events: list[Any] = []
news = asyncio.Event()
kept: dict[tuple[str, str], Any] = {}


class Own(IStream[Any]):  # type: ignore[misc,unused-ignore]
    async def get(self, input: Any) -> Any:
        return kept.get((input.group_id, input.item_id))

    async def set(self, input: Any) -> Any:
        place = (input.group_id, input.item_id)
        old, kept[place] = kept.get(place), {**input.data, "own": True}
        return StreamSetResult(old_value=old, new_value=kept[place])

    async def delete(self, input: Any) -> Any:
        return StreamDeleteResult(old_value=kept.pop((input.group_id, input.item_id), None))

    async def list(self, input: Any) -> Any:
        return [value for (group, _), value in kept.items() if group == input.group_id]

    async def list_groups(self, input: Any) -> Any:
        return sorted({group for group, _ in kept})

    async def update(self, input: Any) -> Any:
        raise AssertionError("the SDK registers no update, so the engine makes one of get and set")


async def call(data: Any) -> Any:
    try:
        return {"result": await iii.trigger_async({"function_id": data["function_id"], "payload": data["payload"]})}
    except Exception as error:
        return {"raised": str(error)}


async def on_event(event: Any) -> None:
    events.append(event)
    news.set()


async def seen(data: Any) -> Any:
    while len(events) < data["count"]:
        news.clear()
        await news.wait()
    return events


iii.register_function(f"{prefix}::on_event", on_event)
iii.register_trigger({"type": "stream", "function_id": f"{prefix}::on_event", "config": {"stream_name": prefix}})
create_stream(iii, f"{prefix}-own", Own())
iii.register_function(f"{prefix}::call", call)
iii.register_function(f"{prefix}::seen", seen)
threading.Event().wait()
