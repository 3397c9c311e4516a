"""The text of starter files: a configuration with comments, the entry of one worker in it, a hello worker."""

import json
from collections.abc import Mapping
from typing import Any, Final, get_args, get_origin

from attrs import NOTHING, has

from ..config import SETTINGS, WORKERS, WorkerName, setting_fields, setting_info
from ..host.plan import NOT_HERE

_HEAD: Final = """\
# What the engine runs. `iii-trio check` reads this file without starting anything, `iii-trio worker add NAME` adds a
# built-in worker. A lone ${NAME} or ${NAME:default} is replaced from the environment.

# Where state and queues are kept.
data_dir: ./data

# How long running calls may take to end after SIGTERM or Ctrl-C.
shutdown_grace_ms: 5000

workers:
  # The port that workers connect to; only programs on this machine reach it.
  - name: iii-worker-manager
    config:
      port: ${III_PORT:49134}
"""

HELLO: Final = '''\
"""A worker that says hello: a route that answers at once, and a queue behind it that does the work."""

from iii_trio import Client, HttpRequest, HttpResponse, Worker

worker = Worker("hello", description="Greets whoever asks")


@worker.http("GET", "hello")
@worker.function("hello::api", description="Answers GET /hello and leaves the rest to the queue")
async def hello(request: HttpRequest, *, client: Client) -> HttpResponse:
    name = request.query_params.get("name", "world")
    await client.enqueue("default", "hello::remember", {"name": name})
    return HttpResponse(200, body={"message": f"Hello, {name}!"})


@worker.function("hello::remember", description="Stores whom we have greeted")
async def remember(message: dict, *, client: Client) -> None:
    await client.state["greeted"].set(message["name"], True)


if __name__ == "__main__":
    worker.serve()
'''

IGNORED: Final = """\
/data/
__pycache__/
.venv/
"""


def short_name(worker: WorkerName) -> str:
    """The name a file gives a worker: the short one, where other engines know it too."""
    return worker.canonical if worker.canonical in {"http", "state", "pubsub", "cron", "queue"} else worker.established


def starter_config() -> str:
    """A configuration file with the default set of workers."""
    listed = [w for w in WORKERS if w.default_set and not w.always_on and w.canonical not in NOT_HERE]
    return _HEAD + "".join("\n" + entry_text(worker, short_name(worker), "  ") for worker in listed)


def entry_text(worker: WorkerName, name: str, indent: str) -> str:
    """The entry of a worker as lines of a block list, with what may be set, and its default, in comments."""
    lines = [f"- name: {name}"]
    if settings := _defaults(worker):
        lines += ["  # config:", *(f"  #   {line}" for line in settings)]
    return "".join(f"{indent}{line}\n" for line in lines)


def _defaults(worker: WorkerName) -> list[str]:
    """What may be set for a worker, with the defaults, as lines of YAML."""
    cls: type[Any] | None = SETTINGS.get(worker.canonical)
    return [] if cls is None else _settings(cls)


def _settings(cls: type[Any]) -> list[str]:
    """The plain settings that have a default, and of named blocks the one called `default`; other blocks are left out."""
    lines = []
    for attribute in setting_fields(cls):
        if setting_info(attribute).no_op or attribute.default is NOTHING:
            continue
        if isinstance(attribute.default, bool | int | str):
            lines.append(f"{attribute.name}: {json.dumps(attribute.default)}")
        elif get_origin(attribute.type) is Mapping and has(block := get_args(attribute.type)[1]):
            lines += [f"{attribute.name}:", "  default:", *(f"    {line}" for line in _settings(block))]
    return lines
