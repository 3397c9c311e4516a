"""The hello system as one worker: an HTTP route that answers at once and leaves the work to a queue.

    iii-trio serve examples/hello_worker.py
    curl http://localhost:3111/hello
    iii-trio trigger state::list scope=greetings

The engine's address is taken from III_URL, ws://127.0.0.1:49134 by default.
"""

from datetime import UTC, datetime
from uuid import uuid4

from attrs import frozen

from iii_trio import Client, HttpRequest, HttpResponse, Worker

worker = Worker("hello", description="Greets whoever asks")


@frozen
class Greeting:
    """What the queue carries from the route to the worker behind it, and what is stored in the end."""

    id: str
    text: str
    received_at: datetime


@worker.http("GET", "hello")
@worker.function("hello::api", description="Answers GET /hello and enqueues the greeting")
async def hello(request: HttpRequest, *, client: Client) -> HttpResponse:
    name = request.query_params.get("name", "world")
    greeting = Greeting(id=str(uuid4()), text=f"Hello, {name}!", received_at=datetime.now(UTC))
    await client.enqueue("default", "hello::process", greeting)
    client.log.info("greeting enqueued", {"id": greeting.id})
    return HttpResponse(
        200,
        body={
            "message": "Hello request received! Processing in background.",
            "status": "processing",
            "appName": "III App",
        },
    )


@worker.function("hello::process", description="Stores a greeting", concurrency=4)
async def process(greeting: Greeting, *, client: Client) -> None:
    await client.state["greetings"].set(greeting.id, greeting)
    client.log.info("greeting stored", {"id": greeting.id})


if __name__ == "__main__":
    worker.serve()
