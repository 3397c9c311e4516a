"""Config files of the reference engine, of each generation, start unmodified: what becomes of every key they use.

The table names each key that real files have with its fate. `honoured`: it means what it means there. `aliased`: an older
spelling, said in one note. `no-op`: accepted without effect, said in one note. `refused`: what this release cannot do and
must not pass over, with a text that says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from iii_trio.config import SETTINGS, ConfigError, parse_config, setting_fields, setting_info, structure
from iii_trio.host.plan import Overrides, make_plan

KEYS: list[tuple[str, str, Any, str]] = [
    ("worker-manager", "port", 49134, "honoured"),
    ("worker-manager", "host", "0.0.0.0", "honoured"),
    ("worker-manager", "handshake_timeout_ms", 10000, "honoured"),
    ("worker-manager", "middleware_function_id", "my::middleware", "honoured"),
    ("worker-manager", "rbac.auth_function_id", "my::auth", "honoured"),
    ("worker-manager", "rbac.expose_functions", ['match("api::*")', {"metadata": {"public": True}}], "honoured"),
    ("worker-manager", "rbac.on_function_registration_function_id", "my::hook", "honoured"),
    ("worker-manager", "rbac.on_trigger_registration_function_id", "my::hook", "honoured"),
    ("worker-manager", "rbac.on_trigger_type_registration_function_id", "my::hook", "honoured"),
    ("http", "port", 3111, "honoured"),
    ("http", "host", "0.0.0.0", "honoured"),
    ("http", "default_timeout", 30000, "honoured"),
    ("http", "concurrency_request_limit", 1024, "honoured"),
    ("http", "cors.allowed_origins", ["http://localhost:3000", "http://localhost:5173"], "honoured"),
    ("http", "cors.allowed_methods", ["GET", "POST", "PUT", "DELETE", "OPTIONS"], "honoured"),
    ("http", "body_limit", 1048576, "honoured"),
    ("http", "defaultTimeout", 30000, "honoured"),
    ("state", "adapter.name", "kv", "honoured"),
    ("state", "adapter.class", "modules::state::adapters::KvStore", "aliased"),
    ("state", "adapter.name", "redis", "refused"),
    ("state", "adapter.name", "bridge", "honoured"),
    (
        "stream",
        "adapter",
        {"class": "modules::stream::adapters::Bridge", "config": {"bridge_url": "ws://h:1"}},
        "aliased",
    ),
    ("queue", "adapter.name", "bridge", "refused"),
    ("state", "adapter.config.store_method", "file_based", "honoured"),
    ("state", "adapter.config.file_path", "./data/state_store.db", "honoured"),
    ("state", "adapter.config.save_interval_ms", 5000, "no-op"),
    ("state", "triggers_enabled", True, "honoured"),
    ("state", "max_value_bytes", 1048576, "honoured"),
    ("state", "save_interval_ms", 5000, "no-op"),
    ("stream", "port", 3112, "honoured"),
    ("stream", "host", "0.0.0.0", "honoured"),
    ("stream", "auth_function", "my::auth", "honoured"),
    ("stream", "adapter.name", "kv", "honoured"),
    ("stream", "adapter.class", "modules::stream::adapters::KvStore", "aliased"),
    ("stream", "adapter.class", "modules::stream::adapters::RedisAdapter", "refused"),
    ("stream", "adapter.config.store_method", "in_memory", "honoured"),
    ("stream", "adapter.config.file_path", "./data/stream_store", "honoured"),
    ("stream", "adapter.config.channel_size", 256, "honoured"),
    ("stream", "adapter.config.save_interval_ms", 5000, "no-op"),
    ("queue", "adapter.name", "builtin", "honoured"),
    ("queue", "adapter.class", "modules::queue::BuiltinQueueAdapter", "aliased"),
    ("queue", "adapter.class", "modules::queue::adapters::RabbitMQAdapter", "refused"),
    ("queue", "adapter.name", "in_memory", "honoured"),
    ("queue", "adapter.config.store_method", "file_based", "honoured"),
    ("queue", "adapter.config.file_path", "./data/queue", "honoured"),
    ("queue", "adapter.config.max_attempts", 3, "honoured"),
    ("queue", "adapter.config.backoff_ms", 1000, "honoured"),
    ("queue", "adapter.config.concurrency", 10, "honoured"),
    ("queue", "adapter.config.mode", "fifo", "honoured"),
    ("queue", "adapter.config.save_interval_ms", 5000, "no-op"),
    ("queue", "adapter.config.poll_interval_ms", 100, "no-op"),
    ("queue", "queue_configs.mail.max_retries", 3, "honoured"),
    ("queue", "queue_configs.mail.concurrency", 10, "honoured"),
    ("queue", "queue_configs.mail.type", "standard", "honoured"),
    ("queue", "queue_configs.mail", {"type": "fifo", "message_group_field": "order_id"}, "honoured"),
    ("queue", "queue_configs.mail.backoff_ms", 1000, "honoured"),
    ("queue", "queue_configs.mail.timeout_ms", 30000, "honoured"),
    ("queue", "queue_configs.mail.poll_interval_ms", 100, "no-op"),
    ("queue", "queue_configs.mail.redeliver_on_engine_restart", True, "no-op"),
    ("pubsub", "adapter.name", "local", "honoured"),
    ("pubsub", "adapter.class", "modules::pubsub::LocalAdapter", "aliased"),
    ("pubsub", "adapter.class", "modules::pubsub::RedisAdapter", "refused"),
    ("cron", "adapter.name", "kv", "honoured"),
    ("cron", "adapter.class", "modules::cron::KvCronAdapter", "aliased"),
    ("cron", "adapter.class", "modules::cron::RedisCronAdapter", "refused"),
    ("cron", "adapter.config.lock_ttl_ms", 30000, "honoured"),
    ("cron", "adapter.config.lock_index", "cron_locks", "honoured"),
    ("cron", "adapter.config.save_interval_ms", 5000, "no-op"),
    ("http-functions", "security.url_allowlist", ["*"], "honoured"),
    ("http-functions", "security.block_private_ips", True, "honoured"),
    ("http-functions", "security.require_https", True, "honoured"),
    ("configuration", "adapter.name", "fs", "honoured"),
    ("configuration", "adapter.config.directory", "./config", "honoured"),
    ("configuration", "ttl_seconds", 0, "honoured"),
    ("configuration", "adapter.name", "bridge", "refused"),
]


def nested(path: str, value: Any) -> Any:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def fate(worker: str, block: Mapping[str, Any]) -> str:
    try:
        read = structure(SETTINGS[worker], block)
    except ConfigError as error:
        return "refused" if "not part of this release" in str(error) else str(error)
    if not read.notes:
        return "honoured"
    (note,) = read.notes
    return "no-op" if "has no effect" in note else "aliased" if "is the old spelling of" in note else note


@pytest.mark.parametrize(("worker", "path", "value", "expected"), KEYS, ids=lambda value: str(value)[:40])
def test_every_key_has_its_fate(worker: str, path: str, value: Any, expected: str) -> None:
    assert fate(worker, nested(path, value)) == expected


def test_the_table_has_every_key_that_is_passed_over() -> None:
    listed = {(worker, path.split(".")[-1]) for worker, path, _, expected in KEYS if expected == "no-op"}
    for worker, cls in SETTINGS.items():
        for attribute in setting_fields(cls):
            if setting_info(attribute).no_op and worker != "http":
                assert (worker, attribute.name) in listed


SHIPPED = """
# what the reference of 0.23 writes and its documentation shows
registration_namespace_grace_ms: 5000
workers:
  - name: iii-worker-manager
    config:
      port: ${III_PORT:49134}
      host: 127.0.0.1
  - name: configuration
    config:
      adapter: {name: fs, config: {directory: ./config}}
  - name: iii-http
    config:
      port: 3111
      host: 127.0.0.1
      default_timeout: 30000
      concurrency_request_limit: 1024
      cors:
        allowed_origins: [http://localhost:3000]
        allowed_methods: [GET, POST]
  - name: iii-state
    config:
      adapter:
        name: kv
        config: {store_method: file_based, file_path: ./data/state_store.db, save_interval_ms: 5000}
  - name: iii-stream
    config: {port: 3112, host: 127.0.0.1, adapter: {name: kv}}
  - name: iii-queue
    config:
      queue_configs:
        default: {max_retries: 5, concurrency: 5, type: standard, poll_interval_ms: 100}
      adapter: {name: builtin}
  - name: iii-pubsub
    config: {adapter: {name: local}}
  - name: iii-cron
    config: {adapter: {name: kv}}
  - name: iii-observability
    config:
      enabled: true
      service_name: ${SERVICE_NAME:iii}
      exporter: ${OTEL_EXPORTER_TYPE:memory}
      metrics_enabled: true
      logs_enabled: true
      level: info
      format: default
  - name: iii-exec
    config: {exec: ["npm run dev"], watch: ["src/**/*.ts"]}
  - name: iii-worker-ops
"""

LEGACY = """
port: 49200
modules:
  - class: modules::api::RestApiModule
    config: {port: 3111, host: 127.0.0.1, default_timeout: 30000}
  - class: modules::state::StateModule
    config: {adapter: {class: modules::state::adapters::KvStore, config: {store_method: in_memory}}}
  - class: modules::queue::QueueModule
    config: {adapter: {class: modules::queue::BuiltinQueueAdapter}}
  - class: modules::pubsub::PubSubModule
    config: {adapter: {class: modules::pubsub::LocalAdapter}}
  - class: modules::observability::OtelModule
    config: {level: info}
"""


def planned(text: str) -> Any:
    return make_plan(parse_config(text, "config.yaml", {}), Overrides())


def test_the_shipped_file_starts_and_each_remark_is_made_once() -> None:
    plan = planned(SHIPPED)
    assert [block.entry.label for block in plan.blocks.values()] == [
        "iii-worker-manager",
        "configuration",
        "iii-http",
        "iii-state",
        "iii-stream",
        "iii-queue",
        "iii-pubsub",
    ] + [label for label in ("iii-cron",) if label in {block.entry.label for block in plan.blocks.values()}]
    assert len(plan.notes) == len(set(plan.notes))
    remarks = "\n".join(plan.notes)
    assert remarks.count("save_interval_ms: has no effect") == 1
    assert remarks.count("poll_interval_ms: has no effect") == 1
    assert "iii-worker-ops" in remarks
    assert plan.entries_directory() == Path("config")


def test_a_file_of_the_oldest_generation_starts_and_says_how_it_is_written_today() -> None:
    plan = planned(LEGACY)
    assert plan.listeners[0].port == 49200
    assert (plan.http.port, plan.state.adapter.config.store_method) == (3111, "in_memory")
    remarks = "\n".join(plan.notes)
    for old in ("'modules' is the old spelling of 'workers'", "the top-level 'port' is the old place"):
        assert old in remarks
    assert remarks.count("is the old spelling of 'name:") == 5
    assert remarks.count("'class' is the old spelling of 'name'") == 3


def test_a_worker_that_stands_there_twice_runs_once_but_ports_are_many() -> None:
    plan = planned(
        """
workers:
  - {name: iii-http, config: {port: 1}}
  - {name: iii-worker-manager, config: {port: 2}}
  - {name: iii-worker-manager, config: {port: 3}}
  - {name: iii-http, config: {port: 4}}
"""
    )
    assert plan.http.port == 1
    assert [listener.port for listener in plan.listeners] == [2, 3]
    assert list(plan.blocks) == ["http", "worker-manager", "worker-manager#1", "configuration"]
    assert plan.notes == ["'iii-http' stands there again; one of a kind runs, and the first one counts"]


def test_the_directory_of_entries_follows_the_data() -> None:
    named = "workers: [{name: configuration, config: {adapter: {name: fs, config: {directory: here}}}}]"
    assert planned(named).entries_directory() == Path("here")
    assert planned("data_dir: /srv/iii\nworkers: []").entries_directory() == Path("/srv/iii/config")
    assert planned("workers: [{name: configuration, config: {adapter: {name: in_memory}}}]").entries_directory() is None
