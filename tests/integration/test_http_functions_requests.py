"""HTTP-invoked functions against endpoints on real sockets: requests, answers, deadlines, limits, pinned addresses, TLS."""

import json
import ssl
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import httpcore
import pytest
import trio
import trio.testing
import trustme
from endpoint_lab import JSON_OK, Endpoint, Request, answering, engine_lab

from iii_trio.modules.http_functions import transport
from iii_trio.modules.http_functions.signing import signature


async def hang(stream: trio.abc.Stream, request: Request) -> None:
    """Never answer."""
    await trio.sleep_forever()


# -- requests


async def test_a_request_as_the_specification_wants_it() -> None:
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(answering(JSON_OK))
        await lab.register("external::notify", f"{endpoint.url}?a=1&b=%20", headers={"X-A": "1", "Content-Type": "x/y"})
        answer = await lab.ask("external::notify", {"n": 1, "text": "ä"})
        assert answer["result"] == {"ok": True}
        (request,) = endpoint.requests
        assert request.line == "POST /hook?a=1&b=%20 HTTP/1.1"
        assert request.json == {"n": 1, "text": "ä", "_caller_worker_id": lab.worker.worker_id}
        assert request.header("host") == f"127.0.0.1:{endpoint.port}"
        assert request.header("content-type") == "x/y", "a configured header takes the place of ours"
        assert request.header("x-iii-function-path") == "external::notify"
        request_id = request.header("x-iii-invocation-id") or ""
        assert uuid.UUID(request_id).version == 4
        assert request_id != answer["invocation_id"], "a caller chooses that one, and may choose it twice"
        assert abs(int(request.header("x-iii-timestamp") or 0) - lab.core.clock.wall()) < 60
        assert (request.header("x-a"), request.header("accept")) == ("1", "*/*")
        for name in ("traceparent", "baggage", "x-iii-metadata", "user-agent", "accept-encoding", "x-iii-signature"):
            assert request.header(name) is None
        assert not request.head_alone


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_every_method_has_a_body(method: str) -> None:
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(answering(JSON_OK))
        await lab.register("f", endpoint.url, method=method)
        assert (await lab.ask("f", [1, None]))["result"] == {"ok": True}
        (request,) = endpoint.requests
        assert request.line.startswith(f"{method} ")
        assert (request.body, request.header("content-type")) == (b"[1, null]", "application/json")


async def test_trace_and_metadata_go_along() -> None:
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(answering(JSON_OK))
        await lab.register("f", endpoint.url)
        traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await lab.ask(
            "f", 1, traceparent=traceparent, baggage="a=1,iii.function.id=old", metadata={"try": 2, "ä": "\n"}
        )
        await lab.ask("f", 2, traceparent="x\r\nEvil: 1", baggage="b=\r\n2", metadata={"long": "x" * 5000})
        first, second = endpoint.requests
        assert first.header("traceparent") == traceparent
        assert first.header("baggage") == "a=1,iii.function.id=f"
        assert json.loads(first.header("x-iii-metadata") or "") == {"try": 2, "ä": "\n"}
        for name in ("traceparent", "baggage", "evil", "x-iii-metadata"):
            assert second.header(name) is None


async def test_any_id_of_a_function_fits_into_a_header() -> None:
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(answering(JSON_OK))
        await lab.register(" päy\r\nEvil: 1 ", endpoint.url)
        assert (await lab.ask(" päy\r\nEvil: 1 "))["result"] == {"ok": True}
        (request,) = endpoint.requests
        assert request.header("x-iii-function-path") == "p%C3%A4y%0D%0AEvil: 1"
        assert request.header("evil") is None


async def test_a_signed_request_is_signed_over_what_was_sent() -> None:
    async with engine_lab(environment={"KEY": "s3cret"}) as lab:
        endpoint = await lab.endpoint(answering(JSON_OK))
        await lab.register("f", endpoint.url, auth={"type": "hmac", "secret_key": "KEY"})
        await lab.ask("f", {"n": 1})
        (request,) = endpoint.requests
        timestamp = request.header("x-iii-timestamp") or ""
        assert request.header("x-iii-signature") == signature(b"s3cret", timestamp, request.body)


async def test_head_and_body_leave_in_one_send() -> None:
    seen: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some(65536)
        seen.append(received.partition(b"\r\n\r\n")[2])
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

    async with engine_lab() as lab:
        (listener,) = await lab.nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        await lab.register("f", f"http://127.0.0.1:{listener.socket.getsockname()[1]}/")
        for number in range(5):
            answer = await lab.ask("f", {"number": number})
            assert "error" not in answer
        assert [json.loads(body)["number"] for body in seen] == [0, 1, 2, 3, 4]


async def test_connections_are_kept_for_a_while_and_closed_when_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HTTP_IDLE_S", 1.0)
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(answering(JSON_OK))
        await lab.register("f", endpoint.url)
        for _ in range(3):
            await lab.ask("f")
        assert endpoint.connections == 1
        assert (lab.module.statistics().hosts, lab.module.statistics().connections) == (1, 1)
        await endpoint.until(lambda: endpoint.ended == 1)
        await trio.testing.wait_all_tasks_blocked()
        assert (lab.module.statistics().hosts, lab.module.statistics().calls) == (0, 3)
        assert (await lab.ask("f"))["result"] == {"ok": True}


# -- answers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.0 200 OK\r\n\r\n[1]", [1]),
        (b'HTTP/1.1 200 OK\r\n\r\n{"a":1}', {"a": 1}),
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n', {"a": 1}),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7", 7),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", None),
        (b"HTTP/1.1 307 Moved\r\nLocation: /elsewhere\r\n\r\n{}", {}),
    ],
)
async def test_answers_that_are_results(answer: bytes, expected: object) -> None:
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(answering(answer), close=True)
        await lab.register("f", endpoint.url)
        frame = await lab.ask("f")
        assert "error" not in frame
        assert frame.get("result") == expected
        assert len(endpoint.requests) == 1, "no redirect is followed"


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "invalid_response", "malformed"),
        (b'HTTP/1.1 402 Pay\r\n\r\n{"error":{"code":"broke","message":"no money"}}', "broke", "no money"),
        (b"HTTP/1.1 400 Bad\r\n\r\n", "http_error", "HTTP 400 Bad Request"),
        (b"", "http_request_failed", "without sending a response"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "http_request_failed", "request to 127.0.0.1"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "http_request_failed", "request to 127.0.0.1"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, "http_request_failed", "request to 127.0.0.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1", "http_response_failed", "broke off"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
            "http_response_failed",
            "broke off",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
            "http_response_failed",
            "broke off",
        ),
    ],
)
async def test_answers_that_are_errors(answer: bytes, code: str, text: str) -> None:
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(answering(answer), close=True)
        await lab.register("f", endpoint.url)
        told = await lab.error("f")
        assert told[0] == code
        assert text in told[1]
        assert (lab.module.statistics().failed, lab.module.statistics().reading_bytes) == (1, 0)


@pytest.mark.parametrize(
    "head",
    [b"", b"Content-Length: 900000000\r\n", b"Transfer-Encoding: chunked\r\n"],
    ids=["endless", "long", "chunked"],
)
async def test_a_huge_answer_is_not_read_on(head: bytes) -> None:
    async def flood(stream: trio.abc.Stream, request: Request) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
        chunk = b"x" * 65536
        while True:
            await stream.send_all(b"10000\r\n" + chunk + b"\r\n" if b"chunked" in head else chunk)

    async with engine_lab(response_limit=300_000) as lab:
        endpoint = await lab.endpoint(flood)
        await lab.register("f", endpoint.url)
        code, message = await lab.error("f")
        assert code == "payload_too_large"
        assert "300000 bytes" in message
        await endpoint.until(lambda: endpoint.ended == 1)
        assert lab.module.statistics().reading_bytes == 0


async def test_an_answer_before_the_body_was_read_counts() -> None:
    async def early(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await stream.send_eof()
        with trio.move_on_after(5):
            while await stream.receive_some(65536):
                pass

    async with engine_lab() as lab:
        (listener,) = await lab.nursery.start(partial(trio.serve_tcp, early, 0, host="127.0.0.1"))
        await lab.register("f", f"http://127.0.0.1:{listener.socket.getsockname()[1]}/")
        code, message = await lab.error("f", "x" * 5_000_000)
        assert code == "http_error"
        assert message.startswith("HTTP 413 ")


# -- deadlines and cancellation


async def test_nobody_listens() -> None:
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(hang)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        await listener.aclose()
        await lab.register("f", f"http://127.0.0.1:{port}/")
        code, message = await lab.error("f")
        assert code == "http_request_failed"
        assert "connect" in message.lower()
        assert "refused" in message.lower()
        assert endpoint.connections == 0


async def test_an_endpoint_that_never_answers_costs_its_time_and_its_connection() -> None:
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(hang)
        await lab.register("f", endpoint.url, timeout_ms=150)
        code, message = await lab.error("f")
        assert code == "http_request_failed"
        assert (
            message == f"timed out after 150 ms: 127.0.0.1:{endpoint.port} could not be connected to or did not answer"
        )
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert lab.module.statistics().connections == 0


async def test_an_answer_that_dribbles_is_cut_at_the_deadline() -> None:
    async def dribble(stream: trio.abc.Stream, request: Request) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.02)

    async with engine_lab() as lab:
        endpoint = await lab.endpoint(dribble)
        await lab.register("f", endpoint.url, timeout_ms=500)
        code, message = await lab.error("f")
        assert code == "http_response_failed"
        assert "timed out" in message
        await endpoint.until(lambda: endpoint.ended == 1)


async def test_the_deadline_of_the_call_counts_when_it_is_sooner() -> None:
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(hang)
        await lab.register("f", endpoint.url)
        code, _ = await lab.error("f", deadline_ms=100)
        assert code == "TIMEOUT"
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (lab.module.statistics().running, lab.module.statistics().connections) == (0, 0)


async def test_a_cancelled_call_closes_its_connection() -> None:
    async def wait_for_end(stream: trio.abc.Stream, request: Request) -> None:
        assert await stream.receive_some(1) == b""

    async with engine_lab() as lab:
        endpoint = await lab.endpoint(wait_for_end)
        await lab.register("f", endpoint.url)
        call = lab.worker.call("f")
        await endpoint.until(lambda: len(endpoint.requests) == 1)
        lab.worker.send({"type": "cancelinvocation", "invocation_id": call})
        await endpoint.until(lambda: endpoint.ended == 1)
        assert lab.module.statistics().running == 0


async def test_a_caller_that_leaves_and_an_owner_that_leaves() -> None:
    go = trio.Event()

    async def wait_for_go(stream: trio.abc.Stream, request: Request) -> None:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await stream.receive_some(1)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await go.wait()
            await stream.send_all(JSON_OK)
            nursery.cancel_scope.cancel()

    async with engine_lab() as lab:
        endpoint = await lab.endpoint(wait_for_go, close=True)
        await lab.register("f", endpoint.url)
        leaving, staying = await lab.port.connect(name="l"), await lab.port.connect(name="s")
        leaving.call("f", 1)
        await endpoint.until(lambda: len(endpoint.requests) == 1)
        leaving.cut()
        await endpoint.until(lambda: endpoint.ended == 1)

        call = staying.call("f", 2)
        await endpoint.until(lambda: len(endpoint.requests) == 2)
        lab.worker.cut()
        await lab.port.gone(lab.worker)
        go.set()
        assert (await staying.result(call))["result"] == {"ok": True}, "a request that has been made is let finish"
        assert (await staying.ask("f"))["error"]["code"] == "function_not_found"


# -- how much at once


async def test_calls_beyond_what_a_host_takes_wait_and_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(transport, "HTTP_HOST_RUNNING", 2)
    monkeypatch.setattr(transport, "HTTP_HOST_WAITING", 2)
    go = trio.Event()

    async def wait_for_go(stream: trio.abc.Stream, request: Request) -> None:
        await go.wait()
        await stream.send_all(JSON_OK)

    async with engine_lab() as lab:
        endpoint, other = await lab.endpoint(wait_for_go), await lab.endpoint(answering(JSON_OK))
        await lab.register("f", endpoint.url)
        await lab.register("g", other.url)
        calls = [lab.worker.call("f", number) for number in range(5)]
        refused = await lab.worker.next("invocationresult")
        assert refused["error"]["code"] == "worker_overloaded"
        assert f"127.0.0.1:{endpoint.port} does not keep up" in refused["error"]["message"]
        await endpoint.until(lambda: len(endpoint.requests) == 2)
        assert (await lab.ask("g"))["result"] == {"ok": True}, "one slow host does not hold up another"
        go.set()
        for call in calls:
            if call != refused["invocation_id"]:
                assert (await lab.worker.result(call))["result"] == {"ok": True}
        assert endpoint.connections == 2


async def test_large_payloads_for_one_host_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HTTP_HOST_BYTES", 1_000_000)
    async with engine_lab() as lab:
        endpoint = await lab.endpoint(hang)
        await lab.register("f", endpoint.url)
        calls = [lab.worker.call("f", "x" * 800_000) for _ in range(2)]
        refused = await lab.worker.next("invocationresult")
        assert refused["invocation_id"] in calls
        assert refused["error"]["code"] == "worker_overloaded"


# -- retries

BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "retries", "requests"), [("GET", 2, 3), ("PUT", 2, 3), ("POST", 2, 1), ("PATCH", 2, 1), ("GET", 0, 1)]
)
async def test_only_idempotent_requests_are_repeated_and_only_on_request(
    method: str, retries: int, requests: int
) -> None:
    async with engine_lab(retries=retries) as lab:
        endpoint = await lab.endpoint(answering(BUSY, BUSY, JSON_OK))
        await lab.register("f", endpoint.url, method=method)
        answer = await lab.ask("f")
        assert len(endpoint.requests) == requests
        assert lab.module.statistics().retries == requests - 1
        assert ("error" not in answer) is (requests == 3)
        ids = {request.header("x-iii-invocation-id") for request in endpoint.requests}
        assert len(ids) == 1, "an endpoint can tell a repetition"


async def test_a_connection_that_breaks_is_tried_again_and_an_error_is_not() -> None:
    answers = [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n1", b"HTTP/1.1 404 No\r\n\r\n"]
    async with engine_lab(retries=5) as lab:
        endpoint = await lab.endpoint(answering(*answers), close=True)
        await lab.register("f", endpoint.url, method="GET")
        assert await lab.error("f") == ("http_error", "HTTP 404 Not Found")
        assert len(endpoint.requests) == 3


# -- neighbours


async def test_an_answer_in_many_small_chunks_leaves_others_their_turns() -> None:
    async with engine_lab() as lab:
        body = b"[" + b"1," * 5_000 + b"1]"
        chunks = b"".join(b"1\r\n%c\r\n" % one for one in body) + b"0\r\n\r\n"
        endpoint = await lab.endpoint(answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks))
        await lab.register("f", endpoint.url)
        steps: list[int] = []

        async def watch() -> None:
            seen = 0
            while True:
                held = lab.module.statistics().reading_bytes
                steps.append(held - seen)
                seen = held
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            assert len((await lab.ask("f"))["result"]) == 5_001
            nursery.cancel_scope.cancel()
        assert 1 <= max(steps) <= 10, "bytes, here chunks, between two turns of another task"


async def test_interim_answers_without_end_leave_others_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read = httpcore.TrioBackend.connect_tcp

    async def connect(*args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        stream = await read(*args, **options)
        plain = stream.read

        async def recorded(max_bytes: int, timeout: float | None = None) -> bytes:
            sizes.append(max_bytes)
            return await plain(max_bytes, timeout)

        stream.read = recorded  # type: ignore[method-assign]
        return stream

    monkeypatch.setattr(httpcore.TrioBackend, "connect_tcp", connect)
    async with engine_lab() as lab:
        interim = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5_000
        endpoint = await lab.endpoint(answering(interim + JSON_OK))
        await lab.register("f", endpoint.url)
        assert (await lab.ask("f"))["result"] == {"ok": True}
        assert sizes
        assert max(sizes) <= transport.READ_BYTES <= 16_384, "what is parsed without a pause"


# -- addresses


class Rebinding:
    """A resolver that changes its mind: the answers in turn, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def test_a_name_that_turns_to_this_machine_after_its_registration_is_blocked() -> None:
    resolver = Rebinding(["93.184.215.14"], ["127.0.0.1"])
    async with engine_lab(resolve=resolver, block_private_ips=True) as lab:
        endpoint = await lab.endpoint(answering(JSON_OK))
        await lab.register("f", f"http://rebind.example:{endpoint.port}/")
        await trio.testing.wait_all_tasks_blocked()
        assert resolver.asked == 1
        assert await lab.error("f") == ("url_validation_failed", "Private IP blocked")
        assert resolver.asked == 2
        assert endpoint.connections == 0


@pytest.mark.parametrize(
    "turned", [["::ffff:127.0.0.1"], ["64:ff9b::7f00:1"], ["0.0.0.0"], ["169.254.169.254"], ["8.8.8.8", "127.0.0.1"]]
)
async def test_whatever_it_turns_to(turned: list[str]) -> None:
    async with engine_lab(resolve=Rebinding(["93.184.215.14"], turned), block_private_ips=True) as lab:
        await lab.register("f", "http://rebind.example/")
        await trio.testing.wait_all_tasks_blocked()
        assert await lab.error("f") == ("url_validation_failed", "Private IP blocked")


async def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    """The name is looked up once per call: were it looked up again to connect, the second answer would be used."""
    resolver = Rebinding(["127.0.0.1"], ["127.0.0.9"])
    async with engine_lab(resolve=resolver) as lab:
        endpoint = await lab.endpoint(answering(JSON_OK))
        await lab.register("f", f"http://pinned.example:{endpoint.port}/x")
        assert resolver.asked == 0, "without the rule nobody looks names up at registration"
        assert (await lab.ask("f"))["result"] == {"ok": True}
        assert resolver.asked == 1
        assert endpoint.requests[0].header("host") == f"pinned.example:{endpoint.port}"
        code, message = await lab.error("f")
        assert code == "http_request_failed"
        assert "127.0.0.9" in message, "a kept connection to the former address is not used"
        assert resolver.asked == 2


async def test_the_next_address_is_tried_and_the_good_one_remembered() -> None:
    resolver = Rebinding(["127.0.0.9", "127.0.0.1"])
    async with engine_lab(resolve=resolver) as lab:
        endpoint = await lab.endpoint(answering(JSON_OK))
        await lab.register("f", f"http://two.example:{endpoint.port}/x")
        for _ in range(2):
            assert (await lab.ask("f"))["result"] == {"ok": True}
        assert endpoint.connections == 1


async def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine_lab() as lab:
        proxy, endpoint = await lab.endpoint(answering(JSON_OK)), await lab.endpoint(answering(JSON_OK))
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        await lab.register("f", endpoint.url)
        await lab.ask("f")
        assert (proxy.connections, endpoint.connections) == (0, 1)


async def test_ipv6_endpoints() -> None:
    try:
        listeners = await trio.open_tcp_listeners(0, host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with engine_lab() as lab:
        endpoint = Endpoint(answering(JSON_OK), port=listeners[0].socket.getsockname()[1])
        lab.nursery.start_soon(trio.serve_listeners, endpoint.serve, listeners)
        await lab.register("f", f"http://[::1]:{endpoint.port}/x")
        assert (await lab.ask("f"))["result"] == {"ok": True}
        assert endpoint.requests[0].header("host") == f"[::1]:{endpoint.port}"


# -- TLS


async def test_tls_is_verified_against_the_name_and_the_name_is_sent() -> None:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("right.example").configure_cert(server)
    authority.configure_trust(client)
    names: list[str | None] = []
    server.sni_callback = lambda socket, name, context: names.append(name)
    async with engine_lab(resolve=Rebinding(["127.0.0.1"]), tls=client, require_https=True) as lab:
        endpoint = await lab.endpoint(answering(JSON_OK), tls=server)
        await lab.register("right", f"https://right.example:{endpoint.port}/")
        await lab.register("wrong", f"https://wrong.example:{endpoint.port}/")
        for _ in range(2):
            assert (await lab.ask("right"))["result"] == {"ok": True}
        assert not endpoint.requests[0].head_alone, "head and body are one record"
        assert endpoint.connections == 1
        code, message = await lab.error("wrong")
        assert code == "http_request_failed"
        assert "certificate" in message.lower()
        assert names == ["right.example", "wrong.example"]
        assert len(endpoint.requests) == 2


async def test_an_endpoint_that_speaks_no_tls_and_one_that_hangs_in_the_handshake() -> None:
    async with engine_lab(tls=ssl.create_default_context()) as lab:
        endpoint = await lab.endpoint(answering(JSON_OK))
        silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await lab.register("plain", f"https://127.0.0.1:{silent[0].socket.getsockname()[1]}/", timeout_ms=150)
        code, message = await lab.error("plain")
        assert code == "http_request_failed"
        assert "timed out" in message
        await silent[0].aclose()
        assert endpoint.connections == 0
