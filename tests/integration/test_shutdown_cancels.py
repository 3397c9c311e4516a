"""SIGTERM with work under way: what does not end in time is told `shutdown`, and what has not begun never does."""

import signal
from pathlib import Path

import trio

from iii_trio.testing import dial, run_engine

CONFIG = """
shutdown_grace_ms: 2000
workers:
  - name: iii-http
"""


async def test_running_calls_are_cancelled_with_shutdown_and_late_bodies_are_turned_away(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    async with run_engine(tmp_path, "-c", str(path)) as engine:
        worker = await dial(nursery, engine.port)
        worker.introduce(name="w", features=["cancel.v1"])
        worker.register("w::hangs")
        config = {"api_path": "late", "http_method": "POST"}
        worker.send(
            {"type": "registertrigger", "id": "t", "trigger_type": "http", "function_id": "w::f"} | {"config": config}
        )
        worker.register("w::f")
        call = worker.call("w::hangs")
        invocation = await worker.next("invokefunction")
        await worker.settled()
        async with await trio.open_tcp_stream("127.0.0.1", engine.http_port) as client:
            head = b"POST /late HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n"
            await client.send_all(head + b'{"a"')
            # a request that comes after it is answered once the engine has read the head before it
            async with await trio.open_tcp_stream("127.0.0.1", engine.http_port) as other:
                await other.send_all(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
                assert b" 404 " in await other.receive_some()
            engine.signal(signal.SIGTERM)
            await engine.line("SIGTERM: stopping")
            await client.send_all(b":1}")
            answer = b""
            with trio.fail_after(20):
                async for chunk in client:
                    answer += chunk
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"engine_draining" in answer
        told = await worker.next("cancelinvocation")
        assert (told["invocation_id"], told["reason"]) == (invocation["invocation_id"], "shutdown")
        # its last words still reach whoever waits
        worker.answer(invocation, result="saved what there was")
        assert (await worker.result(call))["result"] == "saved what there was"
        closed = await worker.wait_closed()
        assert closed.code == 1012
        assert not [frame for frame in worker.frames if frame["type"] == "invokefunction"]
        assert await engine.wait() == 0
