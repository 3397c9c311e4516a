"""The hello system without an SDK: JSON frames over one WebSocket, each of them printed as it goes by.

First shell, the engine::

    pip install iii-trio
    python -m iii_trio serve

Second shell, this worker, which prints `<-` before what the engine sent and `->` before what it sent itself::

    pip install websockets
    python examples/hello_raw.py

Third shell::

    curl http://localhost:3111/hello
    python -m iii_trio trigger state::list scope=greetings

`python -m iii_trio serve examples/hello_raw.py` does the work of the first two shells in one.
"""

import json
import os
import signal
import sys
import uuid
from collections.abc import Callable
from typing import Any

from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

Frame = dict[str, Any]

HELLO = {
    "message": "Hello request received! Processing in background.",
    "status": "processing",
    "appName": "III App",
}


class Worker:
    """One connection. Whoever calls a function is told of its answer by `then`, so nothing ever waits but the reader."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.waiting: dict[str, Callable[[Frame], None]] = {}
        self.functions: dict[str, Callable[[Frame], None]] = {"hello::api": self.api, "hello::process": self.process}

    def send(self, frame: Frame) -> None:
        """Send one frame, and print it."""
        text = json.dumps(frame)
        print("->", text, flush=True)
        self.socket.send(text)

    def call(self, function_id: str, data: Any, then: Callable[[Frame], None]) -> None:
        """Call a function of anybody's; `then` gets the frame with its answer."""
        invocation_id = str(uuid.uuid4())
        self.waiting[invocation_id] = then
        self.send(
            {"type": "invokefunction", "invocation_id": invocation_id, "function_id": function_id, "data": data},
        )

    def answer(self, invocation: Frame, **outcome: Any) -> None:
        """Answer a call that the engine routed here: `result=…` or `error=…`."""
        keys = {key: invocation[key] for key in ("invocation_id", "function_id")}
        self.send({"type": "invocationresult", **keys, **outcome})

    def api(self, invocation: Frame) -> None:
        """`GET /hello`: put a greeting into the queue, and answer once its receipt is here."""
        name = invocation["data"]["query_params"].get("name", "World")
        greeting = {"id": str(uuid.uuid4()), "name": name}

        def queued(reply: Frame) -> None:
            if "error" in reply:
                self.answer(invocation, error=reply["error"])
            else:
                self.answer(invocation, result={"status_code": 200, "body": HELLO})

        self.call("enqueue", {"topic": "greetings", "data": greeting}, queued)

    def process(self, invocation: Frame) -> None:
        """Store one greeting. The answer, once it is on disk, takes the message off the queue; an error brings it again."""
        greeting = invocation["data"]
        stored = {"id": greeting["id"], "greeting": f"Hello, {greeting['name']}!"}

        def written(reply: Frame) -> None:
            if "error" in reply:
                self.answer(invocation, error=reply["error"])
            else:
                self.answer(invocation, result=None)

        self.call("state::set", {"scope": "greetings", "key": greeting["id"], "value": stored}, written)

    def run(self) -> None:
        """Introduce this worker, register two functions and two triggers, then serve until the engine goes away."""
        about = {"runtime": "python", "version": "0", "name": "hello-raw", "pid": os.getpid()}
        introduce = {"type": "invokefunction", "function_id": "engine::workers::register", "data": about}
        self.send({**introduce, "action": {"type": "void"}})
        for function_id in self.functions:
            self.send({"type": "registerfunction", "id": function_id})
        bindings: list[tuple[str, str, Frame]] = [
            ("http", "hello::api", {"api_path": "hello", "http_method": "GET"}),
            ("queue", "hello::process", {"topic": "greetings"}),
        ]
        for trigger_type, function_id, config in bindings:
            binding = {"id": str(uuid.uuid4()), "trigger_type": trigger_type}
            self.send({"type": "registertrigger", **binding, "function_id": function_id, "config": config})
        for text in self.socket:
            print("<-", text, flush=True)
            frame = json.loads(text)
            if frame["type"] == "invokefunction":
                self.functions[frame["function_id"]](frame)
            elif frame["type"] == "invocationresult":
                self.waiting.pop(frame["invocation_id"])(frame)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
try:
    with connect(os.environ.get("III_URL", "ws://localhost:49134"), max_size=64 * 1024 * 1024) as socket:
        Worker(socket).run()
except ConnectionClosedError as end:
    sys.exit(f"the engine has closed the connection: {end}")
except KeyboardInterrupt:
    pass
