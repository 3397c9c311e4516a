"""What a client says of itself on every connection (spec/sdk.md §1, §2)."""

import itertools
import os
import platform
import socket
from typing import Final

from iii_trio.__about__ import __version__
from iii_trio.protocol import codec
from iii_trio.protocol.errors import blank_namespace_text
from iii_trio.protocol.json import Json
from iii_trio.protocol.messages import RegisterWorker

RUNTIME: Final = "python-trio"
FEATURES: Final = ("cancel.v1", "large-messages.v1")

_unnamed = itertools.count(1)


def default_name() -> str:
    """`hostname:pid`, and for further clients of this process `hostname:pid-2` …: names are held by one at a time."""
    number = next(_unnamed)
    name = f"{socket.gethostname()}:{os.getpid()}"
    return name if number == 1 else f"{name}-{number}"


def namespace_of(option: str | None) -> str | None:
    """What an option or else `III_NAMESPACE` names; None is the engine's default. Raises `ValueError` if blank."""
    if option is None:
        return os.environ.get("III_NAMESPACE", "").strip() or None
    if not option.strip():
        raise ValueError(blank_namespace_text())
    return option


def greeting(name: str, namespace: str | None, description: str | None) -> Json:
    """The payload of `engine::workers::register`."""
    return Json(
        codec.encode_fields(
            RegisterWorker(
                runtime=RUNTIME,
                version=__version__,
                name=name,
                description=description,
                os=f"{platform.system()} {platform.release()} ({platform.machine()})",
                pid=os.getpid(),
                isolation=os.environ.get("III_ISOLATION") or None,
                namespace=namespace,
                features=FEATURES,
            )
        )
    )


def worker_name(option: str | None) -> str:
    """A worker's name: `III_WORKER_NAME`, else the option, else the default."""
    return os.environ.get("III_WORKER_NAME", "").strip() or option or default_name()
