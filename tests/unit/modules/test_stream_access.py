"""Who gets in and who may join: the auth function, `stream:join` and `stream:leave` (spec/state-stream.md §6.2, §7.2)."""

from typing import Any

import pytest
import trio
import trio.testing
from module_harness import Recorder, ask, bind, record
from stream_harness import address, stream

from iii_trio.config import StreamSettings
from iii_trio.engine import NOTHING, BindingState, Call, LocalPeer, Outcome
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import WireError
from iii_trio.protocol.limits import HOOK_S
from iii_trio.transport import HandshakeError


def answers(value: Any) -> Outcome:
    return Outcome(Json.of(value))


def failing(peer: LocalPeer, function_id: str) -> None:
    def fail(call: Call, data: Json) -> Outcome:
        raise WireError("no", "denied")

    peer.register(function_id, fail)


def hanging(peer: LocalPeer, function_id: str) -> list[str]:
    cancelled: list[str] = []

    async def hang(call: Call, data: Json) -> Json:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(function_id)
        raise AssertionError

    peer.register(function_id, hang, task=True)
    return cancelled


# -- the auth function ------------------------------------------------------------------------------------------------


async def test_the_auth_function_is_asked_before_the_upgrade_and_its_context_stays() -> None:
    async with stream(auth_function="auth") as (core, user, port):
        auth = record(user, "auth", answers({"context": {"user": "ü"}}))
        joined = record(user, "joined")
        bind(core, user, "stream:join", "joined", {})
        client = await port.connect("/any/where?a=1&b=x%20y&a=2&c=&d&=e", Authorization="Bearer t", x_twice="1")
        [asked] = auth.payloads
        assert asked["path"] == "/any/where"
        assert asked["query_params"] == {"a": ["1", "2"], "b": ["x y"], "c": [""], "d": [""], "": ["e"]}
        assert asked["headers"]["authorization"] == "Bearer t"
        assert asked["headers"]["x-twice"] == "1"
        assert set(asked) == {"headers", "path", "query_params", "addr"}
        await client.join("1", "i")
        assert joined.payloads == [
            {"subscription_id": "1", "stream_name": "s", "group_id": "g", "id": "i", "context": {"user": "ü"}}
        ]


@pytest.mark.parametrize("result", [{}, {"context": None}, {"unauthorized": False}])
async def test_an_object_without_context_lets_in_with_null(result: Any) -> None:
    async with stream(auth_function="auth") as (core, user, port):
        record(user, "auth", answers(result))
        joined = record(user, "joined")
        bind(core, user, "stream:join", "joined", None)
        await (await port.connect()).join()
        assert joined.payloads[0]["context"] is None


@pytest.mark.parametrize(
    "result",
    [answers({"unauthorized": True}), NOTHING, Outcome(NULL), answers("yes"), answers([])],
    ids=["says no", "nothing", "null", "text", "array"],
)
async def test_what_is_no_admission_is_a_401(result: Outcome) -> None:
    async with stream(auth_function="auth") as (_, user, port):
        record(user, "auth", result)
        with pytest.raises(HandshakeError) as refused:
            await port.connect()
        assert refused.value.status == 401
        assert port.module.statistics().sockets.refused == 1  # type: ignore[union-attr]


async def test_an_error_is_a_401_and_a_missing_function_a_503() -> None:
    async with stream(auth_function="auth") as (_, user, port):
        with pytest.raises(HandshakeError) as refused:
            await port.connect()
        assert refused.value.status == 503
        failing(user, "auth")
        with pytest.raises(HandshakeError) as refused:
            await port.connect()
        assert refused.value.status == 401
        assert b"denied" not in refused.value.body, "why is the log's business"


async def test_an_auth_function_that_never_answers_has_five_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with stream(auth_function="auth") as (_, user, port):
        cancelled = hanging(user, "auth")
        before = trio.current_time()
        with pytest.raises(HandshakeError) as refused:
            await port.connect()
        assert (refused.value.status, cancelled) == (503, ["auth"])
        assert HOOK_S <= trio.current_time() - before < HOOK_S + 3


async def test_a_client_that_hangs_up_while_it_is_being_judged_cancels_the_call(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with stream(auth_function="auth") as (_, user, port):
        cancelled = hanging(user, "auth")
        with trio.move_on_after(1):
            await port.connect()
        await trio.sleep(HOOK_S + 1)
        assert cancelled == ["auth"]
        assert port.module.statistics().sockets.handshakes == 0  # type: ignore[union-attr]


async def test_a_changed_auth_function_holds_for_new_connections_only() -> None:
    async with stream() as (_, user, port):
        client = await port.connect()
        record(user, "auth", answers({"unauthorized": True}))
        port.module.settings.set(StreamSettings(auth_function="auth"))
        with pytest.raises(HandshakeError):
            await port.connect()
        assert await client.join() == []


async def test_the_sub_protocol_of_browsers_is_agreed_on() -> None:
    async with stream(auth_function="auth") as (_, user, port):
        auth = record(user, "auth", answers({}))
        for offered, agreed in [("Authorization, a-token", True), ("chat, Authorization", True), ("chat", False)]:
            here, there = trio.testing.memory_stream_pair()
            port.serving.start_soon(port.module.handle, there)
            await here.send_all(
                b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
                b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-protocol: %s\r\n\r\n" % offered.encode()
            )
            answer = bytes(await here.receive_some()).lower()
            assert answer.startswith(b"http/1.1 101 ")
            assert (b"sec-websocket-protocol: authorization\r\n" in answer) is agreed
            await here.aclose()
        assert auth.payloads[0]["headers"]["sec-websocket-protocol"] == "Authorization, a-token"


@pytest.mark.parametrize(
    ("allowed", "origin", "status"),
    [
        (None, "https://evil.example", None),
        (("*",), "https://evil.example", None),
        (("https://App.example:443",), "https://app.example", None),
        ((), "https://app.example", 403),
        ((), None, None),
        (("https://app.example",), None, None),
        (("https://app.example",), "https://evil.example", 403),
        (("https://app.example",), "null", 403),
    ],
)
async def test_pages_of_other_origins_may_be_kept_out(
    allowed: tuple[str, ...] | None, origin: str | None, status: int | None
) -> None:
    async with stream(allowed_origins=allowed) as (_, _user, port):
        headers = {} if origin is None else {"origin": origin}
        if status is None:
            assert await (await port.connect(**headers)).join() == []
            return
        with pytest.raises(HandshakeError) as refused:
            await port.connect(**headers)
        assert refused.value.status == status
        assert b"add it to `allowed_origins` of iii-stream" in refused.value.body


# -- join and leave ---------------------------------------------------------------------------------------------------


async def test_every_join_handler_is_asked_in_turn_and_one_no_is_enough() -> None:
    async with stream() as (core, user, port):
        yes, no = (
            record(user, "yes", answers({"unauthorized": False})),
            record(user, "no", answers({"unauthorized": True})),
        )
        last = record(user, "last")
        for name in ("yes", "no", "last"):
            bind(core, user, "stream:join", name, {}, metadata={"handler": name})
        client = await port.connect()
        client.send("join", "1", "i")
        message = await client.next()
        assert (message["streamName"], message["groupId"], message["id"]) == ("s", "g", "i")
        assert message["event"] == {"type": "unauthorized"}
        assert [len(one.payloads) for one in (yes, no, last)] == [1, 1, 1]
        assert last.metadata == [{"handler": "last"}]
        await ask(user, "stream::set", {**address(), "data": 1})
        no.answer = NOTHING
        assert await client.join("1", "i") == 1
        assert not client.messages


@pytest.mark.parametrize(
    "result",
    [
        NOTHING,
        Outcome(NULL),
        answers({}),
        answers({"unauthorized": "yes"}),
        answers({"unauthorized": None}),
        answers(7),
    ],
)
async def test_any_other_answer_lets_in(result: Outcome) -> None:
    async with stream() as (core, user, port):
        record(user, "joined", result)
        bind(core, user, "stream:join", "joined", {})
        assert await (await port.connect()).join() == []


async def test_a_join_handler_that_fails_or_hangs_refuses(autojump_clock: trio.testing.MockClock) -> None:
    async with stream() as (core, user, port):
        client = await port.connect()
        bind(core, user, "stream:join", "gone", {"stream_name": "gone"})
        failing(user, "fails")
        bind(core, user, "stream:join", "fails", {"stream_name": "fails"})
        cancelled = hanging(user, "hangs")
        bind(core, user, "stream:join", "hangs", {"stream_name": "hangs"})
        for name in ("gone", "fails", "hangs"):
            client.send("join", streamName=name)
            assert (await client.event())[1] == "unauthorized"
        assert cancelled == ["hangs"]
        assert await client.join(streamName="another") == []


async def test_a_slow_join_delays_its_own_socket_alone() -> None:
    async with stream() as (core, user, port):
        hanging(user, "hangs")
        bind(core, user, "stream:join", "hangs", {"stream_name": "slow"})
        slow, quick = await port.connect(), await port.connect()
        slow.send("join", streamName="slow")
        slow.send("join", "2")
        assert await quick.join() == []
        await trio.testing.wait_all_tasks_blocked()
        assert not slow.messages
        slow.connection.abort()
        await slow.end()


async def test_frames_behind_a_slow_join_are_bounded() -> None:
    async with stream() as (core, user, port):
        hanging(user, "hangs")
        bind(core, user, "stream:join", "hangs", {"stream_name": "slow"})
        client = await port.connect()
        client.send("join", streamName="slow")
        for number in range(5_000):
            client.send("join", str(number))
            if number % 100 == 0:
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        connections = list(port.module._parts.sockets._open)  # type: ignore[union-attr]
        assert connections[0].statistics().reading_paused


async def test_a_socket_that_ends_during_a_join_cancels_the_handler() -> None:
    async with stream() as (core, user, port):
        cancelled = hanging(user, "hangs")
        bind(core, user, "stream:join", "hangs", {})
        client = await port.connect()
        client.send("join")
        await trio.testing.wait_all_tasks_blocked()
        client.connection.abort()
        await client.end()
        await trio.testing.wait_all_tasks_blocked()
        assert cancelled == ["hangs"]
        assert port.module.statistics().hub.subscribers == 0  # type: ignore[union-attr]


def event(subscription: str, item: str | None = None, name: str = "s", context: Any = None) -> dict[str, Any]:
    return {"subscription_id": subscription, "stream_name": name, "group_id": "g", "id": item, "context": context}


async def test_leave_handlers_hear_of_each_subscription_once() -> None:
    async with stream() as (core, user, port):
        left = record(user, "left")
        bind(core, user, "stream:leave", "left", {}, metadata=[1])
        client = await port.connect()
        await client.join("1")
        await client.join("2", "i")
        client.send("leave", "1", groupId="a lie", streamName="another")
        client.send("leave", "1")
        client.send("leave", "somebody else's")
        await left.wait(1)
        await client.close()
        assert await left.wait(2) == [event("1"), event("2", "i")]
        assert left.metadata == [[1], [1]]
        await trio.testing.wait_all_tasks_blocked()
        assert len(left.payloads) == 2


async def test_join_and_leave_look_at_stream_and_condition() -> None:
    async with stream() as (core, user, port):
        heard: dict[str, Recorder] = {}
        for kind in ("join", "leave"):
            for name, config in [
                ("mine", {"stream_name": "s"}),
                ("other", {"stream_name": "t"}),
                ("all", {}),
                ("empty", {"stream_name": ""}),
                ("checked", {"condition_function_id": "condition"}),
            ]:
                heard[f"{kind} {name}"] = record(user, f"{kind} {name}")
                bind(core, user, f"stream:{kind}", f"{kind} {name}", config)
        condition = record(user, "condition", answers(False))
        client = await port.connect()
        await client.join("1")
        client.send("leave", "1")
        await condition.wait(2)
        await trio.testing.wait_all_tasks_blocked()
        assert {name for name, one in heard.items() if one.payloads} == {
            f"{kind} {name}" for kind in ("join", "leave") for name in ("mine", "all", "empty")
        }
        assert condition.payloads == [event("1"), event("1")]


async def test_a_condition_that_fails_refuses_the_join() -> None:
    async with stream() as (core, user, port):
        handler = record(user, "handler")
        failing(user, "condition")
        bind(core, user, "stream:join", "handler", {"condition_function_id": "condition"})
        client = await port.connect()
        client.send("join")
        assert (await client.event())[1] == "unauthorized"
        assert handler.payloads == []


@pytest.mark.parametrize("config", [[], "x", {"stream_name": 1}, {"condition_function_id": ""}])
@pytest.mark.parametrize("kind", ["stream:join", "stream:leave", "stream"])
async def test_configs_that_do_not_fit_are_refused(kind: str, config: Any) -> None:
    async with stream() as (core, user, _port):
        record(user, "handler")
        with pytest.raises(WireError, match="Failed to deserialize stream trigger: ") as refused:
            bind(core, user, kind, "handler", config)
        assert refused.value.code == "trigger_registration_failed"
        found = core.triggers.get("handler")
        assert found is None or found.state is BindingState.REFUSED
