"""Registrations that are admitted, and their calls: the delegate behind HTTP-invoked functions.

A call is one task with one deadline. An attempt takes its turn among the calls of the host, looks the host up and checks
every address, connects to one of those, sends, reads, and says what the answer means. Cancelling the call closes its
connection.
"""

import logging
import uuid
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Final

import httpcore
import trio
from attrs import define, field, frozen

from ...config import HttpFunctionsSettings
from ...engine import Call, Engine, FunctionEntry, LocalPeer
from ...protocol import Json, errors
from ...protocol.errors import WireError
from ...protocol.limits import HTTP_CHECKS, HTTP_LOOKUP_S
from . import addresses, messages
from .targets import Target, make_target
from .transport import Answer, Destination, Destinations, Reading, cause, read_answer
from .urls import LookupFailed, UrlRefused, UrlRules

log = logging.getLogger(__name__)

FAILURES: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)
RETRIED_STATUSES: Final = frozenset({502, 503, 504})
RETRIED_ERRORS: Final = frozenset({errors.HTTP_REQUEST_FAILED, errors.HTTP_RESPONSE_FAILED})
BACKOFF_S: Final = 0.1
BACKOFF_MOST_S: Final = 2.0


@frozen
class RunnerStatistics:
    """Counters since the module started, and what it does now.

    `calls` that began, `failed` ones among those that ended, `retries` beyond first attempts, `refused` registrations.
    `running` calls use `hosts` hosts over `connections` connections; `reading_bytes` of responses are held, and `checks`
    registrations wait for the lookup of their host.
    """

    calls: int = 0
    failed: int = 0
    retries: int = 0
    refused: int = 0
    running: int = 0
    hosts: int = 0
    connections: int = 0
    reading_bytes: int = 0
    checks: int = 0


@define
class Stage:
    """How far a call has come: what its time-out says, and as what it counts."""

    text: str
    code: str = errors.HTTP_REQUEST_FAILED


@define(eq=False)
class Runner:
    """See `Delegate`. `variable` gives the value of an environment variable, None if there is none."""

    settings: HttpFunctionsSettings
    core: Engine
    peer: LocalPeer
    rules: UrlRules
    destinations: Destinations
    variable: Callable[[str], str | None]
    reading: Reading = field(init=False)
    _checks: "trio.MemorySendChannel[tuple[FunctionEntry, Target]]" = field(init=False)
    checks: "trio.MemoryReceiveChannel[tuple[FunctionEntry, Target]]" = field(init=False)
    _calls: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _retries: int = field(default=0, init=False)
    _refused: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.reading = Reading(self.settings.response_limit)
        self._checks, self.checks = trio.open_memory_channel(HTTP_CHECKS)

    # -- registrations ------------------------------------------------------------------------------------------------

    def admit(self, entry: FunctionEntry) -> None:
        """See `Delegate`: everything is checked here but what the host's name stands for. Secrets are read now."""

        def variable(name: str) -> str | None:
            globs = self.settings.security.env_allowlist
            if globs is None:
                globs = ("*",) if entry.owner.session is None else ()
            if not any(fnmatchcase(name, glob) for glob in globs):
                text = f"the environment variable {errors.shorten(name, 200)} is not in `security.env_allowlist`"
                raise WireError(text, errors.FORBIDDEN)
            return self.variable(name)

        try:
            target = make_target(entry.invocation, self.rules.check, variable)
        except WireError:
            self._refused += 1
            raise
        entry.executor = self.peer
        entry.handler = (True, Serving(self, target))

    def verify(self, entry: FunctionEntry) -> None:
        """See `Delegate`: have the host looked up. The registration stands meanwhile, each call checks for itself."""
        _, serving = entry.handler
        target: Target = serving.target
        if not self.rules.security.block_private_ips or addresses.parse(target.endpoint.host) is not None:
            return
        try:
            self._checks.send_nowait((entry, target))
        except trio.WouldBlock:
            text = f"{HTTP_CHECKS} registrations wait for a lookup of their hosts; register it again later"
            self._refuse(entry, WireError(text, errors.WORKER_OVERLOADED))

    async def check(self) -> None:
        """Look up the hosts of new registrations, one after the other, for ever; several tasks do."""
        async for entry, target in self.checks:
            if not _stands(entry):
                continue
            host, why = target.endpoint.host, f"no answer in {HTTP_LOOKUP_S:g} s"
            with trio.move_on_after(HTTP_LOOKUP_S):
                try:
                    await self.rules.look_up(target.endpoint)
                except UrlRefused as error:
                    why = cause(error)
                    if not (isinstance(error, LookupFailed) and error.temporary):
                        if _stands(entry):
                            self._refuse(entry, error)
                        continue
                else:
                    continue
            log.warning("function %r: %s cannot be looked up now (%s); its calls will try", entry.exposed_id, host, why)

    def _refuse(self, entry: FunctionEntry, error: WireError) -> None:
        self._refused += 1
        self.core.delegation.refuse(entry, error)

    # -- calls --------------------------------------------------------------------------------------------------------

    async def invoke(self, target: Target, call: Call, data: Json) -> Json:
        """Run one call; its result. Raises `WireError`."""
        self._calls += 1
        try:
            return await self._invoke(target, call, data)
        except WireError:
            self._failed += 1
            raise

    async def _invoke(self, target: Target, call: Call, data: Json) -> Json:
        body = messages.request_body(call, data)
        attempts = 1 + (self.settings.retries if target.idempotent else 0)
        stage = Stage("")
        request_id = str(uuid.uuid4())
        with (
            self.destinations.use(target.endpoint, len(body)) as destination,
            trio.move_on_after(target.timeout_s),
        ):
            metadata = messages.metadata_header(call)
            for attempt in range(1, attempts + 1):
                try:
                    answer = await self._attempt(target, destination, call, request_id, body, metadata, stage)
                except WireError as error:
                    if attempt == attempts or error.code not in RETRIED_ERRORS:
                        raise
                else:
                    if attempt == attempts or answer.status not in RETRIED_STATUSES:
                        return messages.response_result(answer.status, answer.reason, answer.body)
                self._retries += 1
                await trio.sleep(min(BACKOFF_S * 2 ** (attempt - 1), BACKOFF_MOST_S))
        raise WireError(f"timed out after {round(target.timeout_s * 1000)} ms: {stage.text}", stage.code)

    async def _attempt(
        self,
        target: Target,
        destination: Destination,
        call: Call,
        request_id: str,
        body: bytes,
        metadata: bytes,
        stage: Stage,
    ) -> Answer:
        endpoint = target.endpoint
        where = endpoint.authority
        stage.text, stage.code = f"as many calls of {where} as may run at once did not end", errors.HTTP_REQUEST_FAILED
        async with destination.slots:
            stage.text = f"the lookup of {endpoint.host} did not end"
            found = await self._look_up(target)
            stage.text = f"{where} could not be connected to or did not answer"
            timestamp = str(int(self.core.clock.wall()))
            headers = messages.request_headers(target, call, request_id, body, timestamp, metadata)
            try:
                async with destination.open(target.method, found, headers, endpoint.target, body) as response:
                    stage.text, stage.code = f"the answer of {where} did not end", errors.HTTP_RESPONSE_FAILED
                    return await read_answer(response, self.reading)
            except FAILURES as error:
                if stage.code == errors.HTTP_RESPONSE_FAILED:
                    text = f"the answer of {where} broke off: {cause(error)}"
                elif isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout):
                    text = f"cannot connect to {where}: {cause(error)}"
                else:
                    text = f"request to {where} failed: {cause(error)}"
                raise WireError(text, stage.code) from error

    async def _look_up(self, target: Target) -> tuple[str, ...]:
        """The checked addresses of the host. Where no rule asks for them, a lookup that fails is a failed connection."""
        try:
            return await self.rules.look_up(target.endpoint)
        except LookupFailed as error:
            if self.rules.security.block_private_ips:
                raise
            text = f"cannot connect to {target.endpoint.authority}: {cause(error)}"
            raise WireError(text, errors.HTTP_REQUEST_FAILED) from error

    def statistics(self) -> RunnerStatistics:
        """A frozen picture."""
        hosts = list(self.destinations)
        return RunnerStatistics(
            calls=self._calls,
            failed=self._failed,
            retries=self._retries,
            refused=self._refused,
            running=self.peer.tasks,
            hosts=len(hosts),
            connections=sum(host.connections for host in hosts),
            reading_bytes=self.reading.held,
            checks=self.checks.statistics().current_buffer_used,
        )


@frozen(eq=False)
class Serving:
    """The handler of one function: its target, and who runs it."""

    runner: Runner
    target: Target

    async def __call__(self, call: Call, data: Json) -> Json:
        return await self.runner.invoke(self.target, call, data)


def _stands(entry: FunctionEntry) -> bool:
    """Whether a registration still is its owner's claim on the id."""
    return entry.owner.functions.get((entry.namespace, entry.id)) is entry
