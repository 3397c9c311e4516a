"""Settings classes: structuring with positions, spellings, bounds, no-ops, schema and tiers."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from attrs import frozen

from iii_trio.config import (
    ConfigError,
    as_value,
    changed_settings,
    load_yaml,
    no_op,
    schema_of,
    setting,
    setting_fields,
    setting_info,
    structure,
)

# ruff: noqa: RUF009


@frozen(kw_only=True)
class Limit:
    """A limit."""

    rate: float = setting(tier="live", ge=0, le=1, doc="Share admitted.")
    label: str | None = setting(None, tier="live", nonempty=True, doc="Name.")


@frozen(kw_only=True)
class Server:
    """A server to test with."""

    port: int = setting(80, tier="rebind", ge=0, le=65535, doc="Port.")
    mode: str = setting("fast", tier="live", choices=("fast", "safe"), doc="Mode.", aliases=("old_mode",))
    tls: bool = setting(False, tier="restart", doc="Encrypt.")
    max_wait_ms: int | None = setting(None, tier="live", unit="ms", ge=1, doc="Longest wait.")
    limit: Limit = setting(Limit(rate=1.0), tier="live", doc="The limit.")
    extra: Limit | None = setting(None, tier="live", doc="Another limit.")
    limits: Mapping[str, Limit] = setting({}, tier="live", doc="Limits by name.")
    names: tuple[str, ...] = setting((), tier="live", doc="Names.")
    raw: Mapping[str, Any] | None = setting(None, tier="restart", doc="Anything.")
    poll_ms: int | None = no_op(why="nothing polls", ge=10, doc="Polling interval.")

    def refusals(self, owner: str) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.tls and self.port == 80:
            yield ("port",), f"{owner} cannot encrypt on port 80"


def read(text: str) -> Any:
    return structure(Server, load_yaml(text, source="c.yaml"), summary="no server")  # type: ignore[arg-type]


def refusals(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith("no server:")
    return [str(problem) for problem in caught.value.problems]


def test_a_full_block() -> None:
    result = read(
        "port: 1\nmode: safe\ntls: true\nmax_wait_ms: 5\nlimit: {rate: 1, label: x}\nextra: {rate: 0.5}\n"
        "limits: {a: {rate: 0}}\nnames: [a, b]\nraw: {any: [1]}\n"
    )
    assert result.settings == Server(
        port=1,
        mode="safe",
        tls=True,
        max_wait_ms=5,
        limit=Limit(rate=1.0, label="x"),
        extra=Limit(rate=0.5),
        limits={"a": Limit(rate=0.0)},
        names=("a", "b"),
        raw={"any": [1]},
    )
    assert result.notes == ()
    assert "extra" in result.given
    assert "poll_ms" not in result.given


@pytest.mark.parametrize("value", [None, {}])
def test_defaults(value: Any) -> None:
    result = structure(Server, value)
    assert result.settings == Server()
    assert result.given == frozenset()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "c.yaml:1:1: prot: unknown key, did you mean 'port'? Known keys: port, mode, tls, max_wait_ms, "),
        ("zzz: 1", "c.yaml:1:1: zzz: unknown key. Known keys: port, "),
        ("\nport: '80'", "c.yaml:2:7: port: expected a whole number, but found the text '80'; remove the quotes"),
        ("port: abc", "c.yaml:1:7: port: expected a whole number, but found the text 'abc'"),
        ("port: 1.5", "c.yaml:1:7: port: expected a whole number, but found the number 1.5"),
        ("port: true", "c.yaml:1:7: port: expected a whole number, but found true"),
        ("port:", "c.yaml:1:1: port: expected a whole number, but found nothing"),
        ("port: []", "c.yaml:1:7: port: expected a whole number, but found a list"),
        ("port: 65536", "c.yaml:1:7: port: must be at most 65535, not 65536"),
        ("port: -1", "c.yaml:1:7: port: must be at least 0, not -1"),
        ("mode: sage", "c.yaml:1:7: mode: must be one of 'fast', 'safe', not 'sage', did you mean 'safe'?"),
        ("mode: 5", "c.yaml:1:7: mode: expected text, but found the number 5; put it in quotes"),
        ("mode: {}", "c.yaml:1:7: mode: expected text, but found a mapping"),
        ("tls: yes", "c.yaml:1:6: tls: expected true or false, but found the text 'yes'"),
        ("tls: 1", "c.yaml:1:6: tls: expected true or false, but found the number 1"),
        ("max_wait_ms: 0", "c.yaml:1:14: max_wait_ms: must be at least 1, not 0"),
        ("limit: 5", "c.yaml:1:8: limit: expected a mapping of keys, but found the number 5"),
        ("limit: {}", "c.yaml:1:8: limit: the key 'rate' is required"),
        ("limit:\n  rate: .nan", "c.yaml:2:9: limit.rate: must be at least 0, not nan"),
        ("limit:\n  rate: '1'", "c.yaml:2:9: limit.rate: expected a number, but found the text '1'; remove the quotes"),
        ("limit: {rate: 1, label: ' '}", "c.yaml:1:25: limit.label: must not be empty"),
        ("limits: [a]", "c.yaml:1:9: limits: expected a mapping of keys, but found a list"),
        ("limits:\n  a: {rate: 2}", "c.yaml:2:13: limits.a.rate: must be at most 1, not 2.0"),
        ("limits:\n  a: {rte: 1, rate: 1}", "c.yaml:2:7: limits.a.rte: unknown key, did you mean 'rate'?"),
        ("names: abc", "c.yaml:1:8: names: expected a list, but found the text 'abc'"),
        ("names:\n- a\n- 5", "c.yaml:3:3: names[1]: expected text, but found the number 5; put it in quotes"),
        ("raw: []", "c.yaml:1:6: raw: expected a mapping of keys, but found a list"),
        ("maxWaitMs: 1\nmax_wait_ms: 2", "c.yaml:2:1: max_wait_ms: the same setting is already given as 'maxWaitMs'"),
        ("tls: true\nport: 80", "c.yaml:2:1: port: Server cannot encrypt on port 80"),
        ("poll_ms: x", "c.yaml:1:10: poll_ms: expected a whole number, but found the text 'x'"),
        ("[]", "c.yaml:1:1: expected a mapping of keys, but found a list"),
    ],
)
def test_refusals_name_file_line_and_key(text: str, message: str) -> None:
    [found] = refusals(text)
    assert found.startswith(message)


def test_all_problems_come_at_once() -> None:
    assert [
        line.split(": ")[:2] for line in refusals("port: x\nlimit: {rate: 7}\nlimits: {a: 1, b: {}}\nnme: 1\n")
    ] == [
        ["c.yaml:4:1", "nme"],
        ["c.yaml:1:7", "port"],
        ["c.yaml:2:15", "limit.rate"],
        ["c.yaml:3:13", "limits.a"],
        ["c.yaml:3:19", "limits.b"],
    ]


def test_a_json_object_is_refused_by_key_alone() -> None:
    with pytest.raises(ConfigError) as caught:
        structure(Server, {"limits": {"a": {"rate": 2}}, "names": [1]})
    assert str(caught.value) == (
        "limits.a.rate: must be at most 1, not 2.0\nnames[0]: expected text, but found the number 1; put it in quotes"
    )


def test_a_whole_number_may_be_written_as_a_float() -> None:
    port = structure(Server, {"port": 8080.0}).settings.port
    assert port == 8080
    assert type(port) is int


def test_old_and_camel_spellings() -> None:
    result = read("old_mode: safe\nmaxWaitMs: 7\n")
    assert (result.settings.mode, result.settings.max_wait_ms) == ("safe", 7)
    assert result.notes == ("c.yaml:1:1: old_mode: 'old_mode' is the old spelling of 'mode'",)
    assert result.given == {"mode", "max_wait_ms"}


@pytest.mark.parametrize(("text", "value"), [("poll_ms: 50", 50), ("poll_ms: 1", None)])
def test_a_no_op_is_noted_and_out_of_bounds_it_is_dropped(text: str, value: int | None) -> None:
    result = read(text)
    assert result.settings.poll_ms == value
    assert result.notes == ("c.yaml:1:10: poll_ms: has no effect, nothing polls",)


def test_a_block_without_content_is_its_default() -> None:
    assert read("limit:\nextra:\n").settings == Server()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 70000}, "Server.port: must be at most 65535, not 70000"),
        ({"mode": "slow"}, "Server.mode: must be one of 'fast', 'safe', not 'slow'"),
        ({"max_wait_ms": 0}, "Server.max_wait_ms: must be at least 1, not 0"),
    ],
)
def test_a_constructor_call_keeps_the_bounds(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Server(**arguments)


def test_metadata_is_readable() -> None:
    info = {attribute.name: setting_info(attribute) for attribute in setting_fields(Server)}
    assert info["port"].tier == "rebind"
    assert (info["max_wait_ms"].unit, info["max_wait_ms"].ge) == ("ms", 1)
    assert (info["poll_ms"].tier, info["poll_ms"].no_op) == (None, "nothing polls")


def test_changes_carry_their_tier() -> None:
    new = Server(port=81, names=("a",), tls=True, poll_ms=20)
    assert changed_settings(Server(), new) == {"port": "rebind", "names": "live", "tls": "restart"}
    assert changed_settings(new, new) == {}


def test_the_schema() -> None:
    schema = schema_of(Server)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert "required" not in schema
    assert schema["properties"]["port"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 65535,
        "default": 80,
        "description": "Port. Rebinds the listener.",
    }
    assert schema["properties"]["mode"]["enum"] == ["fast", "safe"]
    assert schema["properties"]["max_wait_ms"]["type"] == ["integer", "null"]
    assert schema["properties"]["max_wait_ms"]["description"] == "Longest wait. In ms. Takes effect at once."
    assert schema["properties"]["limit"]["required"] == ["rate"]
    assert schema["properties"]["limit"]["default"] == {"rate": 1.0}
    assert schema["properties"]["extra"]["type"] == ["object", "null"]
    assert schema["properties"]["limits"]["additionalProperties"]["properties"]["rate"]["maximum"] == 1
    assert schema["properties"]["names"]["items"] == {"type": "string"}
    assert schema["properties"]["raw"]["additionalProperties"] == {}
    assert schema["properties"]["poll_ms"]["description"] == "Polling interval. Accepted without effect: nothing polls."


def test_as_value_leaves_out_none_and_no_ops() -> None:
    settings = Server(limits={"a": Limit(rate=0.5)}, names=("x",), raw={"k": [1, None]}, poll_ms=20)
    assert as_value(settings) == {
        "port": 80,
        "mode": "fast",
        "tls": False,
        "limit": {"rate": 1.0},
        "limits": {"a": {"rate": 0.5}},
        "names": ["x"],
        "raw": {"k": [1, None]},
    }
