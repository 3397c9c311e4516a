"""Bodies that are never held in memory: an upload that is read as it comes, a download, and events for a browser.

    iii-trio serve examples/http_streams.py
    curl -T some-large-file http://localhost:3111/uploads/mine
    curl http://localhost:3111/squares?up_to=1000000 -o squares.csv
    curl -N http://localhost:3111/ticks

A client that leaves cancels its handler; one that reads or a handler that takes slowly slows the other one down.
"""

import hashlib
import json

import trio

from iii_trio import HttpRequest, HttpResponse, Worker

worker = Worker("streams", description="Uploads, downloads and events")


@worker.http("PUT", "uploads/:name")
@worker.function("streams::upload", description="Tells the size and the checksum of what it is sent")
async def upload(request: HttpRequest) -> HttpResponse:
    digest, size = hashlib.sha256(), 0
    async for chunk in request.request_body:
        digest.update(chunk)
        size += len(chunk)
    name = request.path_params["name"]
    return HttpResponse(201, body={"name": name, "size": size, "sha256": digest.hexdigest()})


@worker.http("GET", "squares")
@worker.function("streams::squares", description="A table as long as one likes")
async def squares(request: HttpRequest) -> HttpResponse | None:
    try:
        up_to = int(str(request.query_params.get("up_to", "100")))
    except ValueError:
        return HttpResponse(400, body={"error": "up_to must be a number"})
    async with await request.respond(200, {"content-type": "text/csv"}) as response:
        for start in range(0, up_to, 1000):
            lines = (f"{number},{number * number}\n" for number in range(start, min(start + 1000, up_to)))
            await response.send_all("".join(lines).encode())
    return None


@worker.http("GET", "ticks")
@worker.function("streams::ticks", description="Server-sent events: one a second, ten of them")
async def ticks(request: HttpRequest) -> None:
    head = {"content-type": "text/event-stream", "cache-control": "no-store"}
    async with await request.respond(200, head) as response:
        for number in range(1, 11):
            await response.send_all(f"data: {json.dumps({'tick': number})}\n\n".encode())
            await trio.sleep(1)


if __name__ == "__main__":
    worker.serve()
