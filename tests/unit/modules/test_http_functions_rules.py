"""Signatures, addresses, URL rules and what a registration's `invocation` may say (spec/http.md §17 to §19)."""

import os
import socket
import threading
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from iii_trio.config import ConfigError, HttpFunctionsSecurity, HttpFunctionsSettings, structure
from iii_trio.modules.http_functions import urls
from iii_trio.modules.http_functions.addresses import is_public
from iii_trio.modules.http_functions.signing import signature
from iii_trio.modules.http_functions.targets import make_target
from iii_trio.modules.http_functions.urls import LookupFailed, SystemResolver, UrlRefused, UrlRules, parse_url
from iii_trio.protocol import Json, errors
from iii_trio.protocol.errors import WireError
from iii_trio.protocol.limits import DEADLINE_S


@pytest.mark.parametrize(
    ("secret", "timestamp", "body", "expected"),
    [
        (b"secret", "1000", b"hello", "cfef82098fd2d00d43b8884c6e161980a3d1a4cf12dacf4703d31f84d9221f0b"),
        (
            b"top-secret",
            "1700000000",
            b'{"hello":"world"}',
            "f9226225162a02514f904a5e9480a83fbbffe061e53322664660921dec3697a3",
        ),
    ],
)
def test_signature_vectors_of_the_specification(secret: bytes, timestamp: str, body: bytes, expected: str) -> None:
    assert signature(secret, timestamp, body) == f"sha256={expected}"


# -- addresses

NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.1"),
    *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
    "255.255.255.255",
    *("::", "::1", "::7f00:1", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "100::1"),
    *("2001:db8::1", "2001::1", "2001:0:7f00:1::", "2001:10::1", "2001:20::1", "3fff::1", "5f00::1", "4000::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0.0.0.0", "::ffff:169.254.169.254", "::ffff:100.64.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::808:808", "2002:7f00:1::", "2002:c0a8:101::1"),
    *("2002:a00:1::1", "2002:6440:1::"),
]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_addresses_that_are_not_on_the_public_internet(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        *("1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.0.1.1"),
        *("198.17.0.1", "198.20.0.1", "223.255.255.255", "2606:4700::1111", "2a00:1450:4001::1", "2002:808:808::1"),
        *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
    ],
)
def test_addresses_that_are(text: str) -> None:
    assert is_public(ip_address(text))


@given(st.ip_addresses(v=4))
def test_ipv4_in_any_dress_is_judged_as_ipv4(address: IPv4Address) -> None:
    inner = int(address)
    dressed = (0xFFFF << 32 | inner, 0x64FF9B << 96 | inner, 0x2002 << 112 | inner << 80 | 1)
    assert {is_public(IPv6Address(one)) for one in dressed} == {is_public(address)}
    assert address.is_global or not is_public(address), "whatever Python holds to be private is private"


@given(st.ip_addresses(v=6))
def test_ipv6_is_public_where_it_is_global_unicast_only(address: IPv6Address) -> None:
    plain = address.ipv4_mapped is None and address not in IPv6Network("64:ff9b::/96")
    assert not (plain and is_public(address)) or address in IPv6Network("2000::/3")


# -- URLs


def rules(*found: str | OSError, **security: Any) -> UrlRules:
    """Rules whose resolver finds these addresses, or raises."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        for one in found:
            if isinstance(one, OSError):
                raise one
        return [one for one in found if isinstance(one, str)]

    return UrlRules(HttpFunctionsSecurity(**security), resolve)


@pytest.mark.parametrize(
    ("url", "security", "message"),
    [
        ("", {}, "Invalid URL"),
        ("not a url", {}, "Invalid URL"),
        ("example.com/x", {}, "Invalid URL"),
        ("/only/a/path", {}, "Invalid URL"),
        ("http://[::1", {}, "Invalid URL"),
        ("https://", {}, "Invalid URL"),
        ("https:///path", {}, "Invalid URL"),
        ("https://example.com:0/", {}, "Invalid URL"),
        ("https://example.com:70000/", {}, "Invalid URL"),
        ("https://exa mple.com/", {}, "Invalid URL"),
        ("https://.example.com/", {}, "Invalid URL"),
        ("https://0177.0.0.1/", {}, "Invalid URL"),
        ("https://example.com/\r\nX: 1", {}, "Invalid URL"),
        ("http://example.com/", {}, "HTTPS is required"),
        ("ftp://example.com/", {}, "HTTPS is required"),
        ("ftp://example.com/", {"require_https": False}, "Invalid URL"),
        ("http://", {"require_https": True}, "HTTPS is required"),
        ("https://example.com/", {"url_allowlist": ("*.example.com",)}, "URL not in allowlist"),
        ("https://evil.com/?example.com", {"url_allowlist": ("example.com",)}, "URL not in allowlist"),
        ("https://example.com@evil.com/", {"url_allowlist": ("example.com",)}, "URL not in allowlist"),
        ("https://127.0.0.1/", {"url_allowlist": ("127.0.0.1",)}, "Private IP blocked"),
        ("https://[::1]/", {}, "Private IP blocked"),
        ("https://[::ffff:127.0.0.1]/", {}, "Private IP blocked"),
        ("https://[::ffff:7f00:1]:8443/", {}, "Private IP blocked"),
        ("https://0.0.0.0/", {}, "Private IP blocked"),
        ("https://169.254.169.254/latest/meta-data", {}, "Private IP blocked"),
    ],
)
def test_urls_that_are_refused(url: str, security: dict[str, Any], message: str) -> None:
    with pytest.raises(UrlRefused) as caught:
        rules(**security).check(url)
    assert (caught.value.code, caught.value.message) == ("url_validation_failed", message)


@pytest.mark.parametrize(
    ("url", "allowlist"),
    [
        ("https://Example.COM/x", ("example.com",)),
        ("https://example.com/x", ("EXAMPLE.com",)),
        ("https://a.b.example.com/x", ("*.example.com",)),
        ("https://api7.example.com/x", ("api[0-9].example.com", "other")),
        ("https://api7.example.com/x", ("api?.example.com",)),
        ("https://[2606:4700::1111]/x", ("[2606:4700::1111]",)),
        ("https://anything.at.all/x", ()),
    ],
)
def test_urls_that_the_allowlist_has(url: str, allowlist: tuple[str, ...]) -> None:
    assert rules(url_allowlist=allowlist).check(url).scheme == "https"


def test_an_endpoint_has_what_a_request_needs() -> None:
    endpoint = parse_url("https://us%65r:p%20w@BÜCHER.example:8443/a%20b/../c?q=1&r=%C3%A4#part")
    assert (endpoint.scheme, endpoint.host, endpoint.port) == ("https", "xn--bcher-kva.example", 8443)
    assert endpoint.authority == "xn--bcher-kva.example:8443"
    assert endpoint.target.endswith(b"c?q=1&r=%C3%A4")
    assert endpoint.credentials == ("user", "p w")
    assert "p w" not in repr(endpoint)
    assert parse_url("http://[2606:4700::1111]").authority == "[2606:4700::1111]"


@pytest.mark.parametrize(
    "found",
    [
        ("127.0.0.1",),
        ("8.8.8.8", "10.0.0.1"),
        ("::ffff:192.168.0.1",),
        ("2606:4700::1111", "fe80::1%eth0"),
    ],
)
async def test_one_private_address_of_a_name_is_enough(found: tuple[str, ...]) -> None:
    checked = rules(*found)
    endpoint = checked.check("https://example.com/")
    with pytest.raises(UrlRefused, match="Private IP blocked"):
        await checked.look_up(endpoint)


async def test_public_addresses_are_used_in_the_order_of_the_resolver() -> None:
    checked = rules("8.8.8.8", "2606:4700::1111", "8.8.8.8")
    assert await checked.look_up(checked.check("https://example.com/")) == ("8.8.8.8", "2606:4700::1111")


@pytest.mark.parametrize(
    ("found", "temporary"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), False),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (OSError("something else"), False),
        ("not-an-address", False),
    ],
)
async def test_a_name_nobody_knows(found: str | OSError, temporary: bool) -> None:
    checked = rules(found)
    with pytest.raises(LookupFailed, match="DNS lookup failed") as caught:
        await checked.look_up(checked.check("https://example.com/"))
    assert caught.value.temporary is temporary


async def test_number_forms_of_an_address_are_names_that_resolve_to_it() -> None:
    checked = UrlRules(HttpFunctionsSecurity(), SystemResolver())
    for host in ("2130706433", "0x7f.1", "0x7f000001", "127.1", "localhost"):
        with pytest.raises(UrlRefused, match="Private IP blocked"):
            await checked.look_up(checked.check(f"https://{host}/"))


async def test_who_asks_for_a_host_that_is_being_looked_up_shares_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    go = threading.Event()

    def look_up(host: str, port: int) -> list[str]:
        asked.append(host)
        assert go.wait(10)
        if host == "nowhere.example":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
        return ["8.8.8.8"]

    monkeypatch.setattr(urls, "look_up", look_up)
    resolver = SystemResolver()
    found: list[object] = []

    async def ask(host: str) -> None:
        try:
            found.append(await resolver(host, 443))
        except socket.gaierror as error:
            found.append(error.errno)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            async with trio.open_nursery() as leaving:
                leaving.start_soon(ask, "slow.example")
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(100):
                    nursery.start_soon(ask, "slow.example")
                await trio.testing.wait_all_tasks_blocked()
                first.cancel()
        for _ in range(3):
            nursery.start_soon(ask, "nowhere.example")
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert found.count(["8.8.8.8"]) == 100
    assert found.count(socket.EAI_AGAIN) == 3
    assert sorted(asked) == ["nowhere.example", "slow.example", "slow.example"], "one more for those whose asker left"


# -- targets

SECRETS = {
    "KEY": "s3cret",
    "EMPTY": "",
    "BAD": "a\nb",
    "BYTES": os.fsdecode(b"\xff\xfe\x01"),
    "HIGH": os.fsdecode(b"\xff"),
}


def target(invocation: dict[str, Any]) -> Any:
    checked = rules(require_https=False)
    return make_target(
        Json.of({"url": "http://example.com/x", **invocation}),
        checked.check,
        SECRETS.get,
    )


def test_defaults_of_an_invocation() -> None:
    made = target({})
    assert (made.method, made.timeout_s, made.headers, made.secret) == ("POST", 30.0, (), None)
    made = target({"method": None, "timeout_ms": None, "headers": None, "auth": None})
    assert (made.method, made.timeout_s, made.headers, made.secret) == ("POST", 30.0, (), None)
    assert target({"timeout_ms": 10**400}).timeout_s == DEADLINE_S  # more than a float holds


def test_kinds_of_auth() -> None:
    assert target({"auth": {"type": "hmac", "secret_key": "KEY"}}).secret == b"s3cret"
    assert target({"auth": {"type": "bearer", "token_key": "KEY"}}).headers == ((b"Authorization", b"Bearer s3cret"),)
    api_key = {"type": "api_key", "header": "X-Key", "value_key": "KEY"}
    assert target({"auth": api_key, "headers": {"x-key": "other", "X-A": "1"}}).headers == (
        (b"X-Key", b"s3cret"),
        (b"X-A", b"1"),
    )
    assert target({"url": "http://u:p@example.com/"}).headers == ((b"Authorization", b"Basic dTpw"),)


def test_secrets_need_not_be_utf_8() -> None:
    assert target({"auth": {"type": "hmac", "secret_key": "BYTES"}}).secret == b"\xff\xfe\x01"
    assert target({"auth": {"type": "bearer", "token_key": "HIGH"}}).headers == ((b"Authorization", b"Bearer \xff"),)


def test_secrets_are_not_shown() -> None:
    for auth in ({"type": "hmac", "secret_key": "KEY"}, {"type": "bearer", "token_key": "KEY"}):
        assert "s3cret" not in repr(target({"auth": auth, "headers": {"X": "s3cret"}}))
    assert "p4ss" not in repr(target({"url": "http://u:p4ss@example.com/"}))


@pytest.mark.parametrize(
    ("invocation", "code", "text"),
    [
        ({"auth": {"type": "hmac", "secret_key": "NONE"}}, errors.SECRET_NOT_FOUND, "Secret not found: NONE"),
        ({"auth": {"type": "hmac", "secret_key": "EMPTY"}}, errors.SECRET_NOT_FOUND, "Secret not found: EMPTY"),
        ({"auth": {"type": "bearer", "token_key": "NONE"}}, errors.TOKEN_NOT_FOUND, "Token not found: NONE"),
        (
            {"auth": {"type": "api_key", "header": "X", "value_key": "NONE"}},
            errors.API_KEY_NOT_FOUND,
            "API key not found: NONE",
        ),
        ({"auth": {"type": "bearer", "token_key": "BAD"}}, errors.INVALID_MESSAGE, "environment variable"),
        ({"auth": {"type": "bearer"}}, errors.INVALID_MESSAGE, "needs token_key"),
        ({"auth": {"type": "api_key", "value_key": "KEY"}}, errors.INVALID_MESSAGE, "needs header"),
        ({"auth": {"type": "digest"}}, errors.INVALID_MESSAGE, "hmac, bearer and api_key"),
        ({"auth": "bearer"}, errors.INVALID_MESSAGE, "invocation"),
        ({"method": "post"}, errors.INVALID_MESSAGE, "method 'post'"),
        ({"method": "CONNECT"}, errors.INVALID_MESSAGE, "method 'CONNECT'"),
        ({"timeout_ms": 0}, errors.INVALID_MESSAGE, "at least 1"),
        ({"url": None}, errors.INVALID_MESSAGE, "url"),
        ({"url": 7}, errors.INVALID_MESSAGE, "url"),
        ({"headers": {"X": "a\r\nY: b"}}, errors.INVALID_MESSAGE, "cannot carry"),
        ({"headers": {"X Y": "a"}}, errors.INVALID_MESSAGE, "no name of a header"),
        ({"headers": {"Host": "internal"}}, errors.INVALID_MESSAGE, "set by the engine"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, errors.INVALID_MESSAGE, "set by the engine"),
        ({"headers": {"X-III-Signature": "sha256=00"}}, errors.INVALID_MESSAGE, "set by the engine"),
        ({"url": "gopher://example.com/"}, errors.URL_VALIDATION_FAILED, "Invalid URL"),
    ],
)
def test_invocations_that_are_refused(invocation: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(WireError) as caught:
        target(invocation)
    assert caught.value.code == code
    assert text in caught.value.message
    assert "a\nb" not in caught.value.message


# -- settings


def test_settings_have_the_documented_defaults_and_refuse_unknown_keys() -> None:
    read = structure(HttpFunctionsSettings, {"security": {"url_allowlist": []}}).settings
    assert read.security == HttpFunctionsSecurity()
    assert (read.security.url_allowlist, read.security.block_private_ips, read.security.require_https) == (
        ("*",),
        True,
        True,
    )
    assert read.retries == 0
    for block in ({"securty": {}}, {"security": {"allowlist": []}}, {"security": {"url_allowlist": ["[a"]}}):
        with pytest.raises(ConfigError):
            structure(HttpFunctionsSettings, block)
