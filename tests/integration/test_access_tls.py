"""TLS on the worker port: handshakes that fail or never end, hang-ups, large messages, and files that cannot be used."""

import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization

from iii_trio.config import ConfigError, TlsSettings
from iii_trio.engine import Listener, Rules, open_engine
from iii_trio.engine.events import Event
from iii_trio.host.access import server_context
from iii_trio.testing.raw import RawWorker
from iii_trio.transport import Connection, Framing, connect

CA = trustme.CA()
ISSUED = CA.issue_cert("127.0.0.1")


@pytest.fixture
def files(tmp_path: Path) -> TlsSettings:
    """Certificate and key of 127.0.0.1."""
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    ISSUED.cert_chain_pems[0].write_to_path(certificate)
    ISSUED.private_key_pem.write_to_path(key)
    return TlsSettings(certificate=str(certificate), key=str(key))


@asynccontextmanager
async def port(files: TlsSettings, handshake_s: float = 10.0, rules: Rules | None = None) -> AsyncIterator[Listener]:
    """A worker port that speaks TLS."""
    with trio.fail_after(30):
        async with open_engine() as core, trio.open_nursery() as nursery:
            listener = Listener(
                core=core,
                host="127.0.0.1",
                port=0,
                handshake_timeout_s=handshake_s,
                rules=rules or Rules(),
                tls=server_context(files),
            )
            await nursery.start(listener.run)
            yield listener
            nursery.cancel_scope.cancel()


async def tcp(listener: Listener) -> trio.SocketStream:
    """A connection that has said nothing yet."""
    return await trio.open_tcp_stream(*listener.addresses[0])


async def secured(listener: Listener) -> trio.SSLStream[trio.SocketStream]:
    """A connection after its TLS handshake."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    stream = trio.SSLStream(await tcp(listener), context, server_hostname="127.0.0.1", https_compatible=True)
    await stream.do_handshake()
    return stream


@asynccontextmanager
async def worker(listener: Listener, target: str = "/") -> AsyncIterator[RawWorker]:
    """A raw worker over TLS."""
    stream = await secured(listener)
    framing, rest = await connect(stream, "127.0.0.1", target)
    async with trio.open_nursery() as nursery:
        raw = RawWorker(Connection(stream, Framing(client=True), name="raw worker"))

        async def run() -> None:
            raw.closed = await raw.connection.run(raw._on_batch, rest=rest)
            raw._wake()

        nursery.start_soon(run)
        yield raw
        raw.cut()
    assert framing.client


async def until(listener: Listener, condition: Callable[[], bool]) -> None:
    """Return when the condition holds, looked at whenever something happens in the core."""
    news = trio.Event()

    def tap(_event: Event) -> None:
        news.set()

    remove = listener.core.events.tap(tap)
    try:
        while not condition():
            await news.wait()
            news = trio.Event()
    finally:
        remove()


async def test_large_messages_go_both_ways(files: TlsSettings) -> None:
    async with port(files) as listener, worker(listener) as one, worker(listener) as other:
        one.introduce(name="one", features=["large-messages.v1"])
        one.register("a::echo")
        other.introduce(name="other", features=["large-messages.v1"])
        await one.settled()
        text = "x" * 8_000_000
        calls = [other.call("a::echo", {"text": text, "n": n}) for n in range(2)]
        for n in range(2):
            asked = await one.next("invokefunction")
            assert asked["data"]["text"] == text
            one.answer(asked, result=[asked["data"]["n"], text])
            assert (await other.result(calls[n]))["result"] == [n, text]


async def test_a_refusal_arrives_over_tls(files: TlsSettings) -> None:
    async with port(files, rules=Rules(token="sesame")) as listener:
        async with worker(listener) as stranger:
            assert (await stranger.next("error"))["error"]["code"] == "AUTH_ERROR"
            assert (await stranger.wait_closed()).code == 1008
        async with worker(listener, "/?token=sesame") as friend:
            await friend.next("workerregistered")


async def test_a_peer_that_vanishes_without_goodbye_is_released(files: TlsSettings) -> None:
    async with port(files) as listener:
        async with worker(listener) as guest:
            guest.register("a::f")
            guest.introduce(name="guest")
            await guest.settled()
            assert listener.core.statistics().workers.connected == 1
        await until(listener, lambda: not len(listener.core.workers))
        assert listener.core.functions.get("default", "a::f") is None


@pytest.mark.parametrize(
    "begins_with", [b"", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n\r\n", os.urandom(300)]
)
async def test_what_is_no_handshake_ends_at_the_deadline(files: TlsSettings, begins_with: bytes) -> None:
    async with port(files, handshake_s=0.2) as listener:
        stream = await tcp(listener)
        await stream.send_all(begins_with)
        with trio.fail_after(5):
            try:
                while await stream.receive_some(4096):
                    pass
            except trio.BrokenResourceError:
                pass  # reset: what it sent was never read
        await stream.aclose()
        async with worker(listener) as neighbour:
            await neighbour.next("workerregistered")
        assert listener.statistics().handshakes == 0


async def test_tls_without_a_request_ends_at_the_deadline(files: TlsSettings) -> None:
    async with port(files, handshake_s=0.3) as listener:
        stream = await secured(listener)
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        with trio.fail_after(5):
            try:
                assert await stream.receive_some(4096) == b""
            except trio.BrokenResourceError:
                pass
        await trio.aclose_forcefully(stream)


async def test_a_client_that_does_not_trust_the_certificate_costs_nothing(files: TlsSettings) -> None:
    async with port(files) as listener:
        stream = trio.SSLStream(await tcp(listener), ssl.create_default_context(), server_hostname="127.0.0.1")
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
        async with worker(listener) as neighbour:
            await neighbour.next("workerregistered")


async def test_old_tls_is_not_spoken(files: TlsSettings) -> None:
    assert server_context(files).minimum_version == ssl.TLSVersion.TLSv1_2


# -- files ------------------------------------------------------------------------------------------------------------


def refusal(settings: TlsSettings) -> str:
    """Why certificate and key cannot be used."""
    with pytest.raises(ConfigError) as caught:
        server_context(settings)
    return str(caught.value)


def test_files_that_are_not_there(files: TlsSettings, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere.pem")
    text = refusal(TlsSettings(certificate=nowhere, key=files.key))
    assert text == f"tls.certificate: cannot read '{nowhere}': No such file or directory"
    text = refusal(TlsSettings(certificate=files.certificate, key=str(tmp_path)))
    assert text == f"tls.key: cannot read '{tmp_path}': Is a directory"


def test_files_of_something_else(files: TlsSettings, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text(json.dumps({"not": "pem"}))
    text = refusal(TlsSettings(certificate=str(other), key=files.key))
    assert text == f"tls.certificate: '{other}' holds no certificate in PEM form"
    text = refusal(TlsSettings(certificate=files.certificate, key=str(other)))
    assert text == f"tls.key: '{other}' holds no private key in PEM form"
    text = refusal(TlsSettings(certificate=files.certificate, key=files.certificate))
    assert text == f"tls.key: '{files.certificate}' holds no private key in PEM form"


def test_a_key_of_another_certificate(files: TlsSettings, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    CA.issue_cert("127.0.0.2").private_key_pem.write_to_path(other)
    text = refusal(TlsSettings(certificate=files.certificate, key=str(other)))
    assert text == f"tls.key: '{other}' is not the key of the certificate '{files.certificate}'"


def test_an_encrypted_key_asks_nobody_for_its_password(files: TlsSettings, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key(ISSUED.private_key_pem.bytes(), None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    text = refusal(TlsSettings(certificate=files.certificate, key=str(encrypted)))
    assert text == (f"tls.key: '{encrypted}' is encrypted; decrypt it, as nobody can be asked for its password here")
