"""Every kept release of the official SDKs as a real process: called, calling, over HTTP, with large and with empty values,
and with errors; then the same again after the engine was stopped and started under the running workers.

All releases run at once on one engine, and each case of each release is a test of its own: the module's run is done
once, and a test tells how its case ended there.
"""

import ast
import hashlib
import importlib.util
import re
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import trio
from attrs import define, field, frozen
from compat_lab import CLIENTS, COMPAT, DEADLINE_S, Frame, Lab, Peer, Process, RunningEngine, need, open_lab

LARGE: Final = 1_500_000
OLD_PYTHON_LIMIT: Final = 1024 * 1024
"""The largest message, in bytes, that Python releases before 0.24 take; a larger one ends their connection."""
GRACE_S: Final = 5.0
"""What a running engine takes, by default, to end its work after SIGTERM."""
MOMENTS: Final = ("started", "restarted")


def text(size: int) -> str:
    """The text that a worker's `large` answers with."""
    return ("0123456789" * (size // 10 + 1))[:size]


@frozen
class Release:
    """One release of an official SDK, and in what form it shows what the engine sends."""

    language: str
    version: str

    @property
    def name(self) -> str:
        return f"{self.language}-{self.version}"

    @property
    def prefix(self) -> str:
        """What the ids of its functions and the path of its route begin with."""
        return self.name.replace(".", "-")

    @property
    def number(self) -> tuple[int, ...]:
        return tuple(map(int, self.version.split(".")))

    @property
    def installed(self) -> bool:
        if (self.language, self.version) == ("python", "0.25.0"):
            return importlib.util.find_spec("iii") is not None
        return (COMPAT / self.language / self.version / "prepared").exists() and bool(shutil.which(self.language))

    @property
    def takes_large(self) -> bool:
        """Whether it takes messages above 1 MiB."""
        return self.language == "node" or self.number >= (0, 24)

    async def start(self, lab: Lab, engine: RunningEngine) -> Process:
        """Start the worker. Node looks for its modules where the script is, so each release has a copy."""
        installed = COMPAT / self.language / self.version
        if self.language == "node":
            place = lab.directory / self.name
            place.mkdir()
            (place / "node_modules").symlink_to(installed / "node_modules", target_is_directory=True)
            script = Path(shutil.copy(CLIENTS / "release_worker.mjs", place))
            return await lab.script(engine, "node", script, self.prefix)
        own = installed / "bin" / "python"
        interpreter = own if own.exists() else Path(sys.executable)
        return await lab.script(engine, interpreter, CLIENTS / "release_worker.py", self.prefix)

    def shown(self, told: Mapping[str, Any]) -> tuple[str, str]:
        """Code and message of an error that the SDK has raised, which it must have done in the form of this release."""
        if self.language == "python" and self.number < (0, 9):
            assert (told["raised"], told["code"]) == ("Exception", None), told
            body = ast.literal_eval(told["text"])
            return body["code"], body["message"]
        assert told["raised"] == ("IIIInvocationError" if self.number < (0, 19) else "InvocationError"), told
        code, message = told["code"], told["message"]
        if self.language == "node":
            assert told["text"] == f"{told['raised']}: {message}"
            return code, message.removeprefix(f"{code}: ")
        assert told["text"] == f"{code}: {message}"
        return code, message


RELEASES: Final = (
    Release("python", "0.2.0"),
    Release("python", "0.3.0"),
    Release("python", "0.8.3"),
    Release("python", "0.11.6"),
    Release("python", "0.22.1"),
    Release("python", "0.25.0"),
    Release("node", "0.11.6"),
    Release("node", "0.22.1"),
)


@define(eq=False)
class Subject:
    """A running worker of one release, and a peer of its own that calls it and provides what it calls."""

    release: Release
    neighbour: Release
    engine: RunningEngine
    peer: Peer
    seen: list[Frame] = field(factory=list, init=False)
    """The calls that `keep` of the peer has got."""

    @property
    def prefix(self) -> str:
        return self.release.prefix

    def raw(self, name: str) -> str:
        """The id of a function of the peer."""
        return f"raw-{self.prefix}::{name}"

    async def prepare(self) -> None:
        """Provide the peer's functions, and wait until the worker is there with its function and its route."""

        def keep(frame: Frame) -> Frame:
            self.seen.append(frame)
            return {"result": None}

        declined = {"code": "card_declined", "message": "not enough money", "stacktrace": "till, line 1"}
        provided: dict[str, Callable[[Frame], Frame]] = {
            "keep": keep,
            "absent": lambda frame: {},
            "decline": lambda frame: {"error": declined},
            "large": lambda frame: {"result": text(frame["data"]["bytes"])},
        }
        for name, answer in provided.items():
            await self.peer.provide(self.raw(name), answer)
        await self.peer.has(*map(self.raw, provided), f"{self.prefix}::page")
        await self.peer.route(f"{self.prefix}/things/:id")

    async def ask(self, name: str, data: Any = None) -> Frame:
        """Call a function of the worker; the frame that answers."""
        return await self.peer.ask(f"{self.prefix}::{name}", data)

    async def make_call(self, function_id: str, **more: Any) -> dict[str, Any]:
        """Have the worker call a function, with `payload` if given; what its SDK gave back or raised."""
        told: dict[str, Any] = await self.peer.call(f"{self.prefix}::call", {"function_id": function_id, **more})
        return told

    async def connection(self) -> str:
        """The id of the worker's connection: another one after a reconnect."""
        return str((await self.row())["id"])

    async def row(self) -> dict[str, Any]:
        """What the engine lists of the worker."""
        listed = await self.peer.call("engine::workers::list", {})
        (row,) = [row for row in listed["workers"] if f"{self.prefix}::echo" in row["functions"]]
        return dict(row)


def own(value: dict[str, Any]) -> dict[str, Any]:
    """An object as its sender wrote it: the engine adds the caller's id."""
    return {key: item for key, item in value.items() if key != "_caller_worker_id"}


async def called(subject: Subject) -> None:
    """It is registered, under its name and version, and answers another peer's calls."""
    row = await subject.row()
    assert (row["runtime"], row["version"]) == (subject.release.language, subject.release.version)
    assert row["status"] == "connected"
    given = {"text": 'ä€🙂 "\\\n', "n": -1.5, "deep": [{"empty": [], "null": None}]}
    assert own((await subject.ask("echo", given))["result"]) == given
    values: list[Any] = [[1, None, {"deep": []}], "", 0, False]
    for value in values:
        assert (await subject.ask("echo", value))["result"] == value


async def calls(subject: Subject) -> None:
    """It calls a built-in function, one of its own from within a handler, and one of another release's worker."""
    place = {"scope": "releases", "key": subject.prefix}
    value = {"release": subject.release.version}
    told = await subject.make_call("state::set", payload={**place, "value": value})
    assert told["result"]["new_value"] == value
    assert await subject.make_call("state::get", payload=place) == {"result": value}
    await subject.make_call("state::delete", payload=place)
    for release in (subject.release, subject.neighbour):
        await subject.peer.has(f"{release.prefix}::echo")
        told = await subject.make_call(f"{release.prefix}::echo", payload={"from": subject.prefix})
        assert own(told["result"]) == {"from": subject.prefix}, f"from {release.name}"


async def http(subject: Subject) -> None:
    """Its route answers a request, with path parameter, query and body passed in, and status, header and body passed out."""
    url = f"http://127.0.0.1:{subject.engine.http_port}/{subject.prefix}/things/7?color=dark%20red"
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as client:
        answer = await client.post(url, json={"n": 1})
    assert (answer.status_code, answer.headers["x-prefix"]) == (201, subject.prefix), answer.text
    assert answer.json() == {"id": "7", "query": {"color": "dark red"}, "body": {"n": 1}}


async def large(subject: Subject) -> None:
    """1.5 MB go out whole, and in whole where the release takes them; elsewhere their sender is told, to the byte, and
    the worker's connection lives."""
    before = await subject.connection()
    assert (await subject.ask("large", {"bytes": LARGE}))["result"] == text(LARGE)
    echoed = await subject.ask("echo", text(LARGE))
    result = await subject.make_call(subject.raw("large"), payload={"bytes": LARGE}, measure=True)
    if subject.release.takes_large:
        assert echoed["result"] == text(LARGE)
        assert result == measured(LARGE)
    else:
        assert echoed["error"]["code"] == "payload_too_large", echoed
        room = LARGE - over(echoed["error"]["message"])
        assert (await subject.ask("echo", text(room)))["result"] == text(room)
        assert (await subject.ask("echo", text(room + 1)))["error"]["code"] == "payload_too_large"

        code, message = subject.release.shown(result)
        assert code == "payload_too_large"
        room = LARGE - over(message)
        ask = {"payload": {"bytes": room}, "measure": True}
        assert await subject.make_call(subject.raw("large"), **ask) == measured(room)
        refused = await subject.make_call(subject.raw("large"), payload={"bytes": room + 1}, measure=True)
        assert subject.release.shown(refused)[0] == "payload_too_large"
    assert await subject.connection() == before, "the worker has reconnected"


def measured(size: int) -> dict[str, Any]:
    """What a worker tells of a text of this size."""
    return {"length": size, "sha256": hashlib.sha256(text(size).encode()).hexdigest()}


def over(message: str) -> int:
    """By how many bytes a message was too large for a release that takes 1 MiB, as its sender is told."""
    numbers = re.search(r"The message is (\d+) bytes; its receiver takes (\d+) bytes", message)
    assert numbers, message
    size, limit = map(int, numbers.groups())
    assert limit == OLD_PYTHON_LIMIT
    return size - limit


async def null(subject: Subject) -> None:
    """No payload and no result, in both directions; Node tells null and nothing apart."""
    function_id = f"{subject.prefix}::is_null"
    ids = [await subject.peer.invoke(function_id, data=None), await subject.peer.invoke(function_id)]
    assert [frame["result"] for frame in await subject.peer.answers(ids)] == [True, True]

    subject.seen.clear()
    assert await subject.make_call(subject.raw("keep"), payload=None) == {"result": None}
    assert await subject.make_call(subject.raw("keep")) == {"result": None}
    assert [frame["data"] for frame in subject.seen] == [None, None]

    node = subject.release.language == "node"
    nothing = {"undefined": True} if node else {"result": None}
    assert await subject.make_call(subject.raw("absent"), payload=1) == nothing
    assert await subject.make_call("state::get", payload={"scope": "releases", "key": "none"}) == nothing

    answer = await subject.ask("nothing")
    assert "error" not in answer
    if subject.release.language == "python" and subject.release.number >= (0, 24):
        assert answer["result"] is None
    else:
        assert "result" not in answer, "what the worker leaves out is not made up"
    if node:
        assert (await subject.ask("null"))["result"] is None


async def unknown(subject: Subject) -> None:
    """Its call of a function that nobody has fails, in its own form, at once and with a text that names the function."""
    code, message = subject.release.shown(await subject.make_call("nobody::has::this", payload={}))
    assert code == "function_not_found"
    assert "nobody::has::this" in message


async def error(subject: Subject) -> None:
    """An error of another worker's own code is raised with code and message; what it raises itself arrives as its SDK
    puts it, which in every release is `invocation_failed`: a code that a handler gives is in the text."""
    declined = await subject.make_call(subject.raw("decline"), payload={})
    assert subject.release.shown(declined) == ("card_declined", "not enough money")
    if subject.release.number >= (0, 9):
        assert declined["stacktrace"] == "till, line 1"

    crash = (await subject.ask("crash", {}))["error"]
    assert (crash["code"], crash["message"]) == ("invocation_failed", "the handler has crashed")
    own_code = (await subject.ask("decline", {}))["error"]
    kept = "" if subject.release.number < (0, 9) else "card_declined: "
    assert (own_code["code"], own_code["message"]) == ("invocation_failed", f"{kept}not enough money")

    neighbours = f"{subject.neighbour.prefix}::crash"
    await subject.peer.has(neighbours)
    seen = subject.release.shown(await subject.make_call(neighbours, payload={}))
    assert seen == ("invocation_failed", "the handler has crashed")


CASES: Final[Mapping[str, Callable[[Subject], Awaitable[None]]]] = {
    one.__name__: one for one in (called, calls, http, large, null, unknown, error)
}

Outcomes = dict[tuple[str, str, str], Exception | None]
"""How each case ended: by release, case, and moment."""


async def failure_of(what: str, worker: Process, steps: Callable[[], Awaitable[None]]) -> Exception | None:
    """What a part of a run has failed with, and what the worker had printed by then."""
    try:
        await steps()
        assert worker.popen.returncode is None, "the worker has ended"
    except Exception as failure:
        failure.add_note("\n".join([f"{what}: the worker has printed", *worker.lines]))
        return failure
    return None


async def run_cases(subject: Subject, worker: Process, moment: str, outcomes: Outcomes) -> None:
    """All cases of one release, one after the other. One that fails spares the rest; without the worker all fail."""
    name = subject.release.name
    absent = await failure_of(f"{name}, {moment}", worker, subject.prepare)
    for title, case in CASES.items():
        failure = absent or await failure_of(f"{name}, {title}, {moment}", worker, partial(case, subject))
        outcomes[name, title, moment] = failure


async def run(lab: Lab, stops: Sequence[signal.Signals], moments: Sequence[str]) -> Outcomes:
    """All installed releases at once, each with all cases, at the first moment and again after each stop of the engine."""
    releases = [release for release in RELEASES if release.installed]
    outcomes: Outcomes = {}
    engine = await lab.engine()
    workers = [await release.start(lab, engine) for release in releases]
    for moment, stop in zip(moments, (None, *stops), strict=True):
        if stop is not None:
            status = await engine.process.stop(stop, within_s=3 * GRACE_S)
            assert status == (0 if stop is signal.SIGTERM else -stop)
            engine = await lab.engine(after=engine)
        async with trio.open_nursery() as nursery:
            for index, (release, worker) in enumerate(zip(releases, workers, strict=True)):
                subject = Subject(release, releases[index - 1], engine, await lab.peer(engine))
                nursery.start_soon(run_cases, subject, worker, moment, outcomes)
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """How all cases ended, before and after the engine was stopped and started on the same ports."""

    async def main() -> Outcomes:
        async with trio.open_nursery() as nursery:
            async with open_lab(nursery, tmp_path_factory.mktemp("releases")) as lab:
                found = await run(lab, [signal.SIGTERM], MOMENTS)
            nursery.cancel_scope.cancel()
        return found

    return trio.run(main)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_release(outcomes: Outcomes, release: Release, case: str, moment: str) -> None:
    need(release.installed, f"the SDK {release.name}", "run `python tests/prepare.py`")
    failure = outcomes[release.name, case, moment]
    if failure is not None:
        raise failure


@pytest.mark.long
async def test_every_release_is_whole_after_each_of_eight_restarts(lab: Lab) -> None:
    for release in RELEASES:
        need(release.installed, f"the SDK {release.name}", "run `python tests/prepare.py`")
    stops = [signal.SIGTERM, signal.SIGKILL] * 4
    moments = ["started", *(f"after {stop.name} {number}" for number, stop in enumerate(stops, 1))]
    outcomes = await run(lab, stops, moments)
    assert len(outcomes) == len(RELEASES) * len(CASES) * len(moments)
    failures = [failure for failure in outcomes.values() if failure is not None]
    if failures:
        raise ExceptionGroup(f"{len(failures)} cases", failures)
