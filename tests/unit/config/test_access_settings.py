"""The access control keys of a worker port: what they become, and refusals that name line and key."""

from typing import Any

import pytest

from iii_trio.config import (
    ConfigError,
    ExposeSettings,
    RbacSettings,
    StreamSettings,
    TlsSettings,
    WorkerManagerSettings,
    as_value,
    default_config,
    parse_config,
    read_settings,
    schema_of,
    structure,
)

FULL = """
token: "${TOKEN:sesame}"
middleware_function_id: acl::middleware
tls: {certificate: server.pem, key: server.key}
rbac:
  expose_functions:
    - match("public::*")
    - match('api::*')
    - match: raw("*")
      namespace: tenant
    - metadata: {public: true, team: 'match("a*")', tags: [1, {a: null}]}
  on_function_registration_function_id: acl::f
  on_trigger_registration_function_id: acl::t
  onTriggerTypeRegistrationFunctionId: acl::y
"""


def read(block: str, environ: dict[str, str] | None = None) -> Any:
    """The settings of a worker port whose block starts on line 3."""
    indented = "".join(f"      {line}\n" for line in block.strip("\n").splitlines())
    config = parse_config(f"workers:\n  - name: iii-worker-manager\n    config:\n{indented}", "c.yaml", environ or {})
    return read_settings(WorkerManagerSettings, config.entries[0])


def refusal(block: str, environ: dict[str, str] | None = None) -> str:
    """Why a block is refused, without the words that are always the same."""
    with pytest.raises(ConfigError) as caught:
        read(block, environ)
    prefix = "failed to create worker 'iii-worker-manager':"
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix).strip()


def test_everything_that_can_be_said() -> None:
    settings = read(FULL, {"TOKEN": "from outside"}).settings
    assert settings.token == "from outside"
    assert settings.middleware_function_id == "acl::middleware"
    assert settings.tls == TlsSettings(certificate="server.pem", key="server.key")
    assert settings.rbac == RbacSettings(
        expose_functions=(
            ExposeSettings(match="public::*"),
            ExposeSettings(match="api::*"),
            ExposeSettings(match='raw("*")', namespace="tenant"),
            ExposeSettings(metadata={"public": True, "team": 'match("a*")', "tags": [1, {"a": None}]}),
        ),
        on_function_registration_function_id="acl::f",
        on_trigger_registration_function_id="acl::t",
        on_trigger_type_registration_function_id="acl::y",
    )


def test_it_survives_a_round_trip() -> None:
    settings = read(FULL).settings
    assert structure(WorkerManagerSettings, as_value(settings)).settings == settings


def test_nothing_said_restricts_nothing() -> None:
    settings = WorkerManagerSettings()
    assert (settings.token, settings.rbac, settings.tls, settings.middleware_function_id) == (None, None, None, None)
    assert settings.allowed_origins is StreamSettings().allowed_origins is None


@pytest.mark.parametrize("cls", [WorkerManagerSettings, StreamSettings])
def test_origins_are_a_list_that_may_be_empty_and_spelled_as_browsers_spell_them(cls: type[Any]) -> None:
    for allowed in ([], ["*"], ["https://App.example", "http://localhost:3000", "null"]):
        settings = structure(cls, {"allowed_origins": allowed}).settings
        assert settings.allowed_origins == tuple(allowed)
        assert structure(cls, as_value(settings)).settings == settings
    with pytest.raises(ConfigError) as caught:
        structure(cls, {"allowed_origins": ["http://a/", "https://b", "c"]})
    assert [line.partition(" is no web origin")[0] for line in str(caught.value).splitlines() if line] == [
        "allowed_origins: 'http://a/'",
        "allowed_origins: 'c'",
    ]


def test_an_empty_rbac_block_exposes_nothing() -> None:
    assert read("rbac: {}").settings.rbac == RbacSettings()


KNOWN = (
    "auth_function_id, expose_functions, on_function_registration_function_id, "
    "on_trigger_registration_function_id, on_trigger_type_registration_function_id"
)
FILTER = "match, metadata, namespace"
NO_VALUE = "has no value; give it one or take the key out"
NO_ORIGIN = "is no web origin, which ends with the host or the port"
NO_FILTER = 'expected match("pattern") or a mapping with `match` or `metadata`, but found'
NO_METADATA = "an empty mapping is what every function's metadata matches; name at least one key"
TWO_GATES = "`rbac.auth_function_id` decides who may connect; a port has either that or a token"
EXPOSE = "rbac:\n  expose_functions:\n    - "


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("token:", f"c.yaml:4:7: token: {NO_VALUE}"),
        ('token: "${TOKEN:}"', "c.yaml:4:14: token: must not be empty"),
        ("token: ${TOKEN:}", f"c.yaml:4:14: token: {NO_VALUE}"),
        ("rbac:", f"c.yaml:4:7: rbac: {NO_VALUE}"),
        ("tls: null", f"c.yaml:4:12: tls: {NO_VALUE}"),
        ("middleware_function_id: ~", f"c.yaml:4:31: middleware_function_id: {NO_VALUE}"),
        ("rbac: {auth_function_id: null}", f"c.yaml:4:32: rbac.auth_function_id: {NO_VALUE}"),
        ("tls: {certificate: a}", "c.yaml:4:12: tls: the key 'key' is required"),
        ("tls: {certificate: a, key: b, ca: c}", "c.yaml:4:37: tls.ca: unknown key. Known keys: certificate, key"),
        ("allowed_origins:", f"c.yaml:4:7: allowed_origins: {NO_VALUE}"),
        (
            "allowed_origins: ['http://localhost:3000/']",
            f"c.yaml:4:7: allowed_origins: 'http://localhost:3000/' {NO_ORIGIN}; write http://localhost:3000",
        ),
        ("token: t\nrbac: {auth_function_id: a::b}", f"c.yaml:4:7: token: {TWO_GATES}"),
        (
            "rbac:\n  auth_funtion_id: a::b",
            f"c.yaml:5:9: rbac.auth_funtion_id: unknown key, did you mean 'auth_function_id'? Known keys: {KNOWN}",
        ),
        (f"{EXPOSE}public::*", f"c.yaml:6:13: rbac.expose_functions[0]: {NO_FILTER} 'public::*'"),
        (f"{EXPOSE}match(public)", f"c.yaml:6:13: rbac.expose_functions[0]: {NO_FILTER} 'match(public)'"),
        (
            f"{EXPOSE}namespace: a",
            "c.yaml:6:13: rbac.expose_functions[0]: expected either `match` or `metadata`, but found neither",
        ),
        (
            f"{EXPOSE}{{match: a, metadata: {{b: 1}}}}",
            "c.yaml:6:13: rbac.expose_functions[0]: expected either `match` or `metadata`, but found both",
        ),
        (f"{EXPOSE}metadata: {{}}", f"c.yaml:6:13: rbac.expose_functions[0].metadata: {NO_METADATA}"),
        (
            f"{EXPOSE}{{match: a, name: b}}",
            f"c.yaml:6:24: rbac.expose_functions[0].name: unknown key, did you mean 'namespace'? Known keys: {FILTER}",
        ),
        (
            "rbac:\n  expose_functions: all",
            "c.yaml:5:27: rbac.expose_functions: expected a list, but found the text 'all'",
        ),
        (
            "rbac:\n  expose_functions: [1]",
            "c.yaml:5:28: rbac.expose_functions[0]: expected a mapping of keys, but found the number 1",
        ),
    ],
)
def test_refusals_name_line_and_key(block: str, message: str) -> None:
    assert refusal(block) == message


def test_several_mistakes_are_told_together() -> None:
    text = refusal("rbac:\n  auth_function_id: ''\n  expose_functions: [a, b]\ntls: {}")
    assert [line.split(": ")[1] for line in text.splitlines()] == [
        "rbac.auth_function_id",
        "rbac.expose_functions[0]",
        "rbac.expose_functions[1]",
        "tls",
        "tls",
    ]


def test_other_unknown_keys_of_rbac_are_ignored_with_a_note() -> None:
    structured = read("rbac:\n  quota: 1")
    assert structured.settings.rbac == RbacSettings()
    assert structured.notes == ("c.yaml:5:9: rbac.quota: unknown key, ignored",)


def test_the_schema_takes_both_forms_of_a_filter() -> None:
    rbac = schema_of(WorkerManagerSettings)["properties"]["rbac"]
    assert rbac["type"] == "object"
    assert rbac["properties"]["expose_functions"]["items"]["type"] == ["object", "string"]


def test_the_token_of_the_environment() -> None:
    assert default_config({}).token is None
    assert default_config({"III_TOKEN": "  "}).token is None
    config = default_config({"III_TOKEN": "sesame"})
    assert config.token == "sesame"
    assert "sesame" not in repr(config)
