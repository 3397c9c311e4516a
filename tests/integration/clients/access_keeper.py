"""The trusted side of the access tests: auth function, hooks and middleware, on the official Python SDK."""

import os
import threading
from typing import Any

from iii import InitOptions, register_worker
from iii_helpers.worker_connection_manager import (
    AuthInput,
    AuthResult,
    OnFunctionRegistrationInput,
    OnFunctionRegistrationResult,
    OnTriggerRegistrationInput,
    OnTriggerRegistrationResult,
    OnTriggerTypeRegistrationInput,
    OnTriggerTypeRegistrationResult,
)

iii = register_worker(os.environ["III_URL"], InitOptions(worker_name="keeper"))
asked: dict[str, list[Any]] = {}


def auth(data: dict[str, Any]) -> dict[str, Any]:
    request = AuthInput(**data)
    asked.setdefault("auth", []).append(data)
    token = request.headers.get("x-test-token")
    if token != "guest-token":
        raise ValueError(f"no such token: {token}")
    return AuthResult(
        allowed_functions=["acl::asked", "t1::own"],
        forbidden_functions=["public::secret"],
        allow_trigger_type_registration=True,
        function_registration_prefix="t1",
        context={"user": "ada"},
    ).model_dump()


def on_function(data: dict[str, Any]) -> dict[str, Any]:
    request = OnFunctionRegistrationInput(**data)
    asked.setdefault("function", []).append(data)
    if request.function_id == "denied":
        raise ValueError("not this one")
    return OnFunctionRegistrationResult(description="seen").model_dump()


def on_trigger(data: dict[str, Any]) -> dict[str, Any]:
    OnTriggerRegistrationInput(**data)
    asked.setdefault("trigger", []).append(data)
    return OnTriggerRegistrationResult().model_dump()


def on_type(data: dict[str, Any]) -> dict[str, Any]:
    OnTriggerTypeRegistrationInput(**data)
    asked.setdefault("type", []).append(data)
    return OnTriggerTypeRegistrationResult().model_dump()


async def middleware(data: dict[str, Any]) -> Any:
    asked.setdefault("middleware", []).append(data)
    answer = await iii.trigger_async(
        {"function_id": data["function_id"], "payload": data["payload"], "namespace": data["namespace"]}
    )
    return {"through": data["context"]["user"], "answer": answer}


iii.register_function("public::echo", lambda data: data)
iii.register_function("public::secret", lambda data: data)
iii.register_function("private::echo", lambda data: data)
iii.register_function("acl::asked", lambda data: asked)
for hook in (auth, on_function, on_trigger, on_type, middleware):
    iii.register_function(f"acl::{hook.__name__}", hook)
print("keeper is ready", flush=True)
threading.Event().wait()  # from Python 3.12 on, a program whose main thread has ended can start no thread for a handler
