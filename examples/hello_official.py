"""The hello system with the official Python SDK, unmodified: an HTTP route, a durable topic, a stored greeting.

First shell, the engine::

    pip install iii-trio
    python -m iii_trio serve

Second shell, this worker::

    pip install iii-sdk
    python examples/hello_official.py

Third shell::

    curl http://localhost:3111/hello
    python -m iii_trio trigger state::list scope=greetings

`python -m iii_trio serve examples/hello_official.py` does the work of the first two shells in one.
"""

import os
import signal
import threading
import uuid
from typing import Any

from iii import InitOptions, register_worker
from iii_helpers.http import HttpResponse

iii = register_worker(os.environ.get("III_URL", "ws://localhost:49134"), InitOptions(worker_name="hello-official"))


def api(request: dict[str, Any]) -> HttpResponse[dict[str, str]]:
    """`GET /hello`: put a greeting into the queue and answer at once."""
    name = request["query_params"].get("name", "World")
    greeting = {"id": str(uuid.uuid4()), "name": name}
    iii.trigger({"function_id": "enqueue", "payload": {"topic": "greetings", "data": greeting}})
    return HttpResponse(
        statusCode=200,
        body={
            "message": "Hello request received! Processing in background.",
            "status": "processing",
            "appName": "III App",
        },
    )


def process(greeting: dict[str, Any]) -> None:
    """Store one greeting. A queue delivers at least once: the id is the key, so a repetition changes nothing."""
    stored = {"id": greeting["id"], "greeting": f"Hello, {greeting['name']}!"}
    iii.trigger({"function_id": "state::set", "payload": {"scope": "greetings", "key": greeting["id"], "data": stored}})


iii.register_function("hello::api", api, description="Answers GET /hello")
iii.register_function("hello::process", process, description="Stores a greeting")
iii.register_trigger(
    {"type": "http", "function_id": "hello::api", "config": {"api_path": "hello", "http_method": "GET"}}
)
iii.register_trigger({"type": "queue", "function_id": "hello::process", "config": {"topic": "greetings"}})

stop = threading.Event()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stop.set())
stop.wait()
iii.shutdown()
