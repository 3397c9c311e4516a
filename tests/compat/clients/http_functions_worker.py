"""A worker of the official Python SDK with HTTP-invoked functions: `http_functions_worker.py PREFIX URL`.

`PREFIX::signed` is the endpoint at URL, `PREFIX::refused` asks for a secret that the engine does not have, and
`PREFIX::forget` takes the first one out. `PREFIX::call` calls whatever it is told to.
"""

import os
import sys
import threading
from typing import Any

from iii import register_worker  # type: ignore[import-untyped,unused-ignore]
from iii_helpers.http import (  # type: ignore[import-untyped,unused-ignore]
    HttpAuthBearer,
    HttpAuthHmac,
    HttpInvocationConfig,
)

prefix, url = sys.argv[1:]
iii = register_worker(os.environ["III_URL"])

signed = iii.register_function(
    f"{prefix}::signed",
    HttpInvocationConfig(
        url=url,
        method="PUT",
        timeout_ms=5000,
        headers={"X-Team": "a"},
        auth=HttpAuthHmac(type="hmac", secret_key="WEBHOOK_SECRET"),
    ),
    description="an endpoint",
)
iii.register_function(
    f"{prefix}::refused",
    HttpInvocationConfig(url=url, auth=HttpAuthBearer(type="bearer", token_key="NO_SUCH_TOKEN")),
)


async def forget(data: Any) -> None:
    signed.unregister()


async def call(data: Any) -> Any:
    try:
        return {"result": await iii.trigger_async({"function_id": data["function_id"], "payload": data["payload"]})}
    except Exception as error:
        return {"code": getattr(error, "code", None), "message": getattr(error, "message", None)}


iii.register_function(f"{prefix}::forget", forget)
iii.register_function(f"{prefix}::call", call)


threading.Event().wait()
