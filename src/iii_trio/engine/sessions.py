"""Who may connect to a worker port, and what the connection may do then: token, auth function, session (§14.1, §14.2).

Nothing of a connection is read before it is admitted: its frames wait in the kernel's buffers. A refusal is worded here
and sent by the listener, after the upgrade, because old SDKs never come back after an HTTP error (spec/sdk.md §7).
"""

import hmac
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from attrs import field, frozen

from ..protocol import EMPTY_OBJECT, NULL, Json, codec, errors
from ..protocol.errors import ProtocolError, WireError
from ..protocol.limits import HOOK_S
from ..transport import Request
from .access import NO_HOOKS, ExposeFilter, Hooks, Session, grant

if TYPE_CHECKING:
    from .engine import Engine


@frozen(kw_only=True)
class Rules:
    """What one worker port asks of those who connect, and what it lets them do. The default admits everybody.

    `token` and `auth_function_id` say who gets in. `expose` of None means that there is no `rbac` block: who got in may
    do everything. Calls go through `middleware_function_id`.
    """

    token: str | None = field(default=None, repr=False)
    auth_function_id: str | None = None
    expose: tuple[ExposeFilter, ...] | None = None
    hooks: Hooks = NO_HOOKS
    middleware_function_id: str | None = None

    @property
    def restricts(self) -> bool:
        """Whether there is anything that a stranger may not do here."""
        return self.token is not None or self.expose is not None

    def protected(self) -> set[str]:
        """The functions that no session may register: those that these rules call, if an auth function tells who is who.

        Without one nobody on this port can be told from anybody else, and its hooks may come from there as well.
        """
        hooks = self.hooks
        if self.auth_function_id is None:
            return set()
        called = {self.auth_function_id, self.middleware_function_id, hooks.function, hooks.trigger, hooks.trigger_type}
        return {function_id for function_id in called if function_id is not None}


EVERYBODY: Final = Rules()


@frozen(kw_only=True)
class AuthResult:
    """What an auth function answers; null counts as left out."""

    namespaces: dict[str, tuple[str, ...]] = field(factory=dict)
    allowed_functions: tuple[str, ...] = ()
    forbidden_functions: tuple[str, ...] = ()
    allowed_trigger_types: tuple[str, ...] | None = None
    allow_trigger_type_registration: bool = False
    allow_function_registration: bool = True
    context: Json = EMPTY_OBJECT
    function_registration_prefix: str | None = None


_read_result: Final = codec.reader(AuthResult)


async def admit(core: "Engine", rules: Rules, request: Request, address: str) -> Session | None:
    """Decide on a fresh socket: its session, or None for a trusted one.

    Raises `WireError` with code `AUTH_ERROR`: no or the wrong token, or an auth function that is not there, fails, does
    not answer within `HOOK_S` seconds, or answers what is no verdict. Cancelled, it cancels the call.
    """
    if rules.token is not None and not _has_token(request, rules.token):
        text = "this port asks for a token: send it as `Authorization: Bearer …` (SDKs take it from III_TOKEN) or `?token=…`"
        raise WireError(text, errors.AUTH_ERROR)
    if rules.expose is None:
        return None
    if rules.auth_function_id is None:
        return Session(expose=rules.expose, hooks=rules.hooks)
    try:
        asked = Json.of(auth_input(request, address))
        answer = await core.local.invoke(rules.auth_function_id, asked, timeout_s=HOOK_S)
    except WireError as error:
        raise WireError(errors.shorten(error.message), errors.AUTH_ERROR) from None
    if answer.absent or answer == NULL:
        raise WireError("auth function returned no result", errors.AUTH_ERROR)
    try:
        result = _read_result(answer.raw)
    except ProtocolError as error:
        raise WireError(f"auth function returned no verdict: {error}", errors.AUTH_ERROR) from None
    return session_of(result, rules)


def session_of(result: AuthResult, rules: Rules) -> Session:
    """The session that an auth function's answer describes."""
    types = result.allowed_trigger_types
    return Session(
        namespaces={space: tuple(map(grant, grants)) for space, grants in result.namespaces.items()},
        allowed=frozenset(result.allowed_functions),
        forbidden=frozenset(result.forbidden_functions),
        expose=rules.expose,
        trigger_types=None if types is None else frozenset(types),
        may_register_functions=result.allow_function_registration,
        may_register_types=result.allow_trigger_type_registration,
        prefix=result.function_registration_prefix or "",
        context=result.context,
        hooks=rules.hooks,
    )


def auth_input(request: Request, address: str) -> dict[str, Any]:
    """What an auth function is asked. The last of repeated headers counts; headers that are not ASCII are left out."""
    headers = {name.lower(): value for name, value in request.headers if value.isascii()}
    return {"headers": headers, "query_params": query_params(request.query), "ip_address": address}


def query_params(query: str) -> dict[str, list[str]]:
    """The query as name → values, percent-decoded (ours, §20.27). A `+` is a plus: tokens have more of them than spaces."""
    params: dict[str, list[str]] = {}
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            params.setdefault(unquote(name), []).append(unquote(value))
    return params


def _has_token(request: Request, token: str) -> bool:
    given = query_params(request.query).get("token", [])
    for name, value in request.headers:
        scheme, _, credentials = value.strip().partition(" ")
        if name.lower() == "authorization" and scheme.lower() == "bearer":
            # headers are bytes to HTTP, and were read as Latin-1
            given.append(credentials.strip().encode("latin-1").decode(errors="replace"))
    wanted = token.encode()
    return any(hmac.compare_digest(one.encode(errors="replace"), wanted) for one in given)
