"""The blocks of the built-in workers: defaults, adapters, queue rules, schemas."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from iii_trio.config import (
    LOOPBACK,
    SETTINGS,
    ConfigError,
    CronSettings,
    HttpSettings,
    QueueModuleSettings,
    QueueSettings,
    StateSettings,
    StreamSettings,
    WorkerManagerSettings,
    as_value,
    parse_config,
    read_settings,
    schema_of,
    setting_fields,
    setting_info,
    structure,
)


def read(name: str, block: str) -> Any:
    """The settings of the worker `name` from a file whose block starts on line 3."""
    indented = "".join(f"      {line}\n" for line in block.splitlines())
    config = parse_config(f"workers:\n  - name: {name}\n    config:\n{indented}", "c.yaml", {})
    entry = config.entries[0]
    return read_settings(SETTINGS[entry.name], entry)


def refusal(name: str, block: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(name, block)
    prefix = f"failed to create worker '{name}': "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


def test_documented_defaults() -> None:
    assert as_value(WorkerManagerSettings()) == {"port": 49134, "host": LOOPBACK, "handshake_timeout_ms": 10000}
    assert as_value(HttpSettings()) == {
        "port": 3111,
        "host": LOOPBACK,
        "default_timeout": 30000,
        "concurrency_request_limit": 1024,
        "middleware": [],
        "body_limit": 16777216,
        "concurrency_queue_limit": 1024,
        "stream_idle_timeout": 3600000,
        "trust_proxy": False,
        "null_result_timeout": 5_000,
        "expose_errors": True,
        "http2": True,
        "request_id_header": "x-request-id",
        "ignore_trailing_slash": False,
        "access_log": False,
    }
    assert as_value(StateSettings()) == {"adapter": {"name": "kv", "config": {}}, "triggers_enabled": True}
    assert (StreamSettings().port, StreamSettings().adapter.config.channel_size) == (3112, 256)
    assert as_value(QueueSettings()) == {
        "type": "standard",
        "max_retries": 3,
        "concurrency": 10,
        "backoff_ms": 1000,
        "timeout_ms": 1800000,
    }
    assert as_value(CronSettings())["adapter"]["config"] == {
        "store_method": "in_memory",
        "lock_ttl_ms": 30000,
        "lock_index": "cron_locks",
    }


@pytest.mark.parametrize("cls", SETTINGS.values())
def test_defaults_survive_a_round_trip(cls: type[Any]) -> None:
    value = as_value(cls())
    assert structure(cls, json.loads(json.dumps(value))).settings == cls()
    assert structure(cls, {}).settings == cls()


@pytest.mark.parametrize("cls", SETTINGS.values())
def test_every_setting_is_documented(cls: type[Any]) -> None:
    for attribute in setting_fields(cls):
        info = setting_info(attribute)
        assert info.doc.endswith(".")
        assert info.tier is not None or info.no_op
        assert not attribute.name.endswith("_ms") or info.unit == "ms"


# A reader of the schemas, small enough to trust: what it accepts must be what `structure` accepts.

KEYWORDS = {"title", "description", "type", "properties", "additionalProperties", "required", "default", "items"} | {
    "enum",
    "minimum",
    "maximum",
    "minLength",
}
TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int}
TYPES |= {"boolean": bool, "null": type(None)}


def accepts(schema: Mapping[str, Any], value: Any) -> bool:
    assert set(schema) <= KEYWORDS
    kinds = schema.get("type", list(TYPES))
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if isinstance(value, TYPES[kind]) and not (isinstance(value, bool) and kind in ("integer", "number")):
            break
    else:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    if isinstance(value, str):
        return len(value) >= int(schema.get("minLength", 0))
    if isinstance(value, list):
        return all(accepts(schema.get("items", {}), item) for item in value)
    if isinstance(value, dict):
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        return set(schema.get("required", ())) <= set(value) and all(
            accepts(properties[key], item) if key in properties else bool(rest is not False and accepts(rest, item))
            for key, item in value.items()
        )
    return True


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        *((name, as_value(cls()), True) for name, cls in SETTINGS.items()),
        ("http", {"port": 0, "cors": None, "middleware": [{"function_id": "a"}]}, True),
        ("http", {"port": 65536}, False),
        ("http", {"concurrency_request_limit": 0}, False),
        ("http", {"cors": {"allowed_headers": []}}, False),
        ("http", {"middleware": [{"phase": "preHandler"}]}, False),
        ("http", {"middleware": [{"function_id": ""}]}, False),
        ("http", {"host": ""}, False),
        ("http", {"prot": 1}, False),
        ("http", {"body_limit": 1048576, "trust_proxy": False, "request_id_header": "x-request-id"}, True),
        ("state", {"max_value_bytes": 0}, False),
        ("state", {"max_value_bytes": 1, "save_interval_ms": 100}, True),
        ("state", {"adapter": {"name": "kv", "config": {"store_method": "in_memory"}}}, True),
        ("state", {"adapter": {"name": "nope"}}, False),
        ("state", {"adapter": {"name": "kv", "config": {"store_method": "nope"}}}, False),
        ("state", {"adapter": {"name": "kv", "config": {"redis_url": "x"}}}, False),
        ("state", {"adapter": {"name": "kv", "more": 1}}, False),
        ("stream", {"auth_function": None}, True),
        ("queue", {"queue_configs": {"q": {"type": "standard", "max_priority": 255}}}, True),
        ("queue", {"queue_configs": {"q": {"type": "lifo"}}}, False),
        ("queue", {"queue_configs": {"q": {"max_retries": -1}}}, False),
        ("queue", {"queue_configs": {"q": {"max_priority": 256}}}, False),
        ("queue", {"queue_configs": {"q": {"retries": 1}}}, False),
        ("pubsub", {"adapter": {"name": "local", "config": {"redis_url": "x"}}}, False),
        ("cron", {"adapter": {"name": "kv", "config": {"lock_ttl_ms": 0}}}, False),
        ("cron", {"weekday_numbering": "posix"}, True),
        ("worker-manager", {"rbac": {"anything": [1]}, "handshake_timeout_ms": 1}, True),
        ("worker-manager", {"registration_namespace_grace_ms": 1}, False),
    ],
)
def test_schema_and_structuring_agree(name: str, value: dict[str, Any], good: bool) -> None:
    schema = schema_of(SETTINGS[name])
    assert schema.pop("$schema") == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(schema)) == schema
    assert accepts(schema, value) is good
    if good:
        structure(SETTINGS[name], value)
    else:
        with pytest.raises(ConfigError):
            structure(SETTINGS[name], value)


@pytest.mark.parametrize(
    ("adapter", "directory"),
    [
        ("", "fallback"),
        ("adapter: {name: kv}", "fallback"),
        ("adapter: {name: builtin}", "fallback"),
        ("adapter: {name: in_memory}", None),
        ("adapter: {name: file_based}", "fallback"),
        ("adapter: {name: kv, config: {store_method: in_memory}}", None),
        ("adapter: {name: kv, config: {store_method: in_memory, file_path: ./x}}", None),
        ("adapter: {name: kv, config: {store_method: file_based}}", "fallback"),
        ("adapter: {name: kv, config: {store_method: file_based, file_path: ./data/s.db}}", "data/s.db"),
        ("adapter: {name: kv, config: {file_path: ./x}}", "x"),
        ("adapter: {name: in_memory, config: {store_method: file_based}}", "fallback"),
        ("adapter: {name: kv, config: }", "fallback"),
        ("adapter:", "fallback"),
    ],
)
@pytest.mark.parametrize("name", ["iii-state", "iii-queue", "iii-stream"])
def test_stores_are_durable_unless_memory_is_asked_for(name: str, adapter: str, directory: str | None) -> None:
    found = read(name, adapter).settings.adapter.directory(Path("fallback"))
    assert found == (None if directory is None else Path(directory))


@pytest.mark.parametrize(
    ("name", "spelled", "canonical"),
    [
        ("state", "modules::state::adapters::KvStore", "kv"),
        ("stream", "modules::stream::adapters::KvStore", "kv"),
        ("cron", "modules::cron::KvCronAdapter", "kv"),
        ("queue", "modules::queue::BuiltinQueueAdapter", "builtin"),
        ("pubsub", "modules::pubsub::LocalAdapter", "local"),
    ],
)
@pytest.mark.parametrize("key", ["class", "name"])
def test_old_adapter_classes(name: str, key: str, spelled: str, canonical: str) -> None:
    result = read(name, f"adapter:\n  {key}: {spelled}")
    assert result.settings.adapter.name == canonical
    old = ("c.yaml:5:9: adapter.class: 'class' is the old spelling of 'name'",)
    assert result.notes == (old if key == "class" else ())


@pytest.mark.parametrize(
    ("name", "block", "message"),
    [
        (
            "iii-state",
            "triggers_enabled: true\nadapter:\n  name: redis\n  config: {redis_url: 'redis://h'}",
            (
                "c.yaml:6:15: adapter.name: the adapter 'redis' is not part of this release. "
                "Available: [kv, builtin, in_memory, file_based, bridge]"
            ),
        ),
        (
            "queue",
            "adapter: {class: 'modules::queue::RabbitMQAdapter', config: {amqp_url: x}}",
            (
                "c.yaml:4:24: adapter.class: the adapter 'rabbitmq' is not part of this release. "
                "Available: [builtin, kv, in_memory, file_based]"
            ),
        ),
        (
            "iii-stream",
            "adapter: {name: nats}",
            (
                "c.yaml:4:23: adapter.name: Adapter factory 'nats' not found. "
                "Available: [kv, builtin, in_memory, file_based, bridge]"
            ),
        ),
        (
            "iii-stream",
            "adapter: {name: bridge, config: {bridge_url: 'http://h:1'}}",
            "c.yaml:4:40: adapter.config.bridge_url: 'http://h:1' is no WebSocket URL; give one like ws://localhost:49134",
        ),
        (
            "iii-stream",
            "adapter: {name: kv, config: {bridge_url: 'ws://h:1'}}",
            "c.yaml:4:36: adapter.config.bridge_url: the adapter 'kv' has no 'bridge_url'; it belongs to the adapter 'bridge'",
        ),
        (
            "iii-pubsub",
            "adapter: {name: nats}",
            "c.yaml:4:23: adapter.name: Adapter factory 'nats' not found. Available: [local]",
        ),
        (
            "iii-cron",
            "adapter: {name: 'a::b::Own'}",
            "c.yaml:4:23: adapter.name: Adapter factory 'a::b::Own' not found. Available: [kv]",
        ),
        (
            "iii-state",
            "adapter: {name: kv, config: {store_method: file}}",
            ("c.yaml:4:50: adapter.config.store_method: must be one of 'in_memory', 'file_based', not 'file'"),
        ),
        (
            "iii-state",
            "adapter: {name: kv, config: {}, kind: x}",
            "c.yaml:4:39: adapter.kind: unknown key. Known keys: name, config",
        ),
        (
            "iii-pubsub",
            "adapter: {name: local, config: {x: 1}}",
            "c.yaml:4:39: adapter.config.x: unknown key. Known keys: none",
        ),
        (
            "iii-http",
            "port: ${PORT:text}",
            "c.yaml:4:13: port: expected a whole number, but found the text 'text'",
        ),
        (
            "iii-http",
            "concurrency_request_limit: 0",
            "c.yaml:4:34: concurrency_request_limit: must be at least 1, not 0",
        ),
        (
            "iii-http",
            "cors: {allow_origins: []}",
            (
                "c.yaml:4:14: cors.allow_origins: unknown key, did you mean 'allowed_origins'? "
                "Known keys: allowed_origins, allowed_methods"
            ),
        ),
        (
            "iii-http",
            "middleware:\n  - {phase: preHandler}",
            "c.yaml:5:11: middleware[0]: the key 'function_id' is required",
        ),
        (
            "queue",
            "queue_configs:\n  q: {type: lifo}",
            "c.yaml:5:19: queue_configs.q.type: Queue 'q' has invalid type 'lifo'. Must be 'standard' or 'fifo'",
        ),
        (
            "queue",
            "queue_configs:\n  q:\n    type: fifo",
            "c.yaml:6:11: queue_configs.q.type: Queue 'q' is of type 'fifo' but 'message_group_field' is not set",
        ),
        (
            "queue",
            "queue_configs: {q: {type: fifo, message_group_field: ''}}",
            "c.yaml:4:60: queue_configs.q.message_group_field: Queue 'q' has an empty 'message_group_field'",
        ),
        (
            "queue",
            "queue_configs: {q: {concurrency: 0}}",
            "c.yaml:4:40: queue_configs.q.concurrency: Queue 'q' has 'concurrency' 0; it must be at least 1",
        ),
        (
            "queue",
            "queue_configs: {q: {max_priority: 0}}",
            "c.yaml:4:41: queue_configs.q.max_priority: Queue 'q' has 'max_priority' 0; it must be between 1 and 255",
        ),
        (
            "queue",
            "queue_configs: {q: {timeout_ms: 0}}",
            "c.yaml:4:39: queue_configs.q.timeout_ms: Queue 'q' has 'timeout_ms' 0; it must be at least 1",
        ),
        (
            "queue",
            "queue_configs: {q: {max_retrys: 0}}",
            "c.yaml:4:27: queue_configs.q.max_retrys: unknown key, did you mean 'max_retries'? Known keys: type, ",
        ),
        (
            "queue",
            "queue_configs: {'': {}}",
            "c.yaml:4:23: queue_configs: queue name is required",
        ),
        (
            "queue",
            "queue_configs: {' q': {}}",
            "c.yaml:4:23: queue_configs. q: queue name must not have leading or trailing whitespace",
        ),
    ],
)
def test_refusals_name_file_line_and_key(name: str, block: str, message: str) -> None:
    assert refusal(name, block).startswith(message)


def test_the_default_queue_is_always_there() -> None:
    assert dict(QueueModuleSettings().queue_configs) == {"default": QueueSettings()}
    added = read("queue", "queue_configs: {payment: {type: fifo, message_group_field: id}}").settings.queue_configs
    assert dict(added) == {
        "default": QueueSettings(),
        "payment": QueueSettings(type="fifo", message_group_field="id"),
    }
    own = read("queue", "queue_configs: {default: {concurrency: 1, backoffMs: 5}}").settings.queue_configs
    assert dict(own) == {"default": QueueSettings(concurrency=1, backoff_ms=5)}
    with pytest.raises(TypeError):
        own["default"] = QueueSettings()


def test_middleware_runs_in_order_of_priority() -> None:
    block = "middleware:\n" + "".join(
        f"  - {{function_id: {name}, priority: {priority}}}\n" for name, priority in [("a", 5), ("b", -1), ("c", 5)]
    )
    assert [item.function_id for item in read("http", block).settings.middleware] == ["b", "a", "c"]


def test_keys_without_effect_are_listed() -> None:
    queue = read(
        "queue",
        "queue_configs: {q: {poll_interval_ms: 0, redeliver_on_engine_restart: true}}\n"
        "adapter: {config: {save_interval_ms: 5}}",
    )
    assert queue.notes == (
        "c.yaml:4:45: queue_configs.q.poll_interval_ms: has no effect, queues wake at once instead of polling",
        (
            "c.yaml:4:77: queue_configs.q.redeliver_on_engine_restart: has no effect, "
            "an interrupted delivery is always repeated"
        ),
        "c.yaml:5:44: adapter.config.save_interval_ms: has no effect, every write is on disk before it is acknowledged",
    )
    state = read("state", "save_interval_ms: 5000")
    assert state.notes[0].startswith("c.yaml:4:25: save_interval_ms: has no effect")
    http = read(
        "http", "trust_proxy: true\nnot_found_function: x::y\nignore_trailing_slash: true\nrequest_id_header: x"
    )
    assert http.notes == ()


def test_given_keys_are_known_for_the_start_log() -> None:
    assert read("http", "port: 0\ndefaultTimeout: 5").given == {"port", "default_timeout"}
