"""A worker of the official Python SDK, 0.11 or later, that streams: `channel_worker.py PREFIX`.

`PREFIX::produce` writes to the end it is given, `PREFIX::consume` reads from it, `PREFIX::give` and `PREFIX::fetch` make
a channel of their own and hand one end to another worker's `consume` or `produce`.
"""

import asyncio
import hashlib
import os
import sys
import threading
from typing import Any

from iii import register_worker  # type: ignore[import-untyped,unused-ignore]

prefix = sys.argv[1]
iii = register_worker(os.environ["III_URL"])
PATTERN = bytes(range(251))


def data_of(size: int) -> bytes:
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


async def create() -> Any:
    try:
        from iii.helpers import create_channel_async  # type: ignore[import-untyped,unused-ignore]
    except ImportError:  # releases before 0.20
        return await iii.create_channel_async(8)
    return await create_channel_async(iii, 8)


async def write(writer: Any, size: int) -> None:
    await writer.send_message_async("begin ä€🙂")
    await writer.write(data_of(size))
    await writer.send_message_async("end")
    await writer.close_async()


async def read(reader: Any) -> Any:
    texts: list[str] = []
    reader.on_message(texts.append)
    data = await reader.read_all()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "texts": texts}


async def produce(data: Any) -> str:
    await write(data["target"], data["bytes"])
    return "produced"


async def consume(data: Any) -> Any:
    return await read(data["source"])


async def give(data: Any) -> Any:
    channel = await create()
    payload = {"source": channel.reader_ref.model_dump()}
    call = iii.trigger_async({"function_id": data["to"], "payload": payload})
    result, _ = await asyncio.gather(call, write(channel.writer, data["bytes"]))
    return result


async def fetch(data: Any) -> Any:
    channel = await create()
    payload = {"target": channel.writer_ref.model_dump(), "bytes": data["bytes"]}
    call = iii.trigger_async({"function_id": data["from"], "payload": payload})
    _, result = await asyncio.gather(call, read(channel.reader))
    return result


async def leave(data: Any) -> None:
    """Write something, and end the process in the middle of it."""
    await data["target"].write(b"half")
    await asyncio.sleep(0.2)
    os._exit(3)


for handler in (produce, consume, give, fetch, leave):
    iii.register_function(f"{prefix}::{handler.__name__}", handler)
threading.Event().wait()
