"""The engine's config file: names of every generation, always-on workers, old shapes, and each refusal."""

from pathlib import Path

import pytest

from iii_trio.config import WORKERS, ConfigError, EngineConfig, default_config, load_config, parse_config

ALWAYS_ON = ["worker-manager", "engine-functions", "configuration", "observability", "telemetry"]

REALISTIC = """\
# The shape the official SDK suites run against. Set ${NOT_EXPANDED_HERE} first.
registration_namespace_grace_ms: ${GRACE_MS:750}
shutdown_grace_ms: 2000
max_buffered_bytes: 268435456

workers:
  - name: iii-worker-manager
    config:
      port: 49199
      host: 127.0.0.1
  - name: iii-worker-manager
    config:
      port: ${RBAC_PORT:49135}
      rbac:
        auth_function_id: test::rbac-worker::auth
        expose_functions:
          - match("test::ew::*")
          - metadata:
              public: true
  - name: iii-observability
    config:
      enabled: ${OTEL_ENABLED:true}
      exporter: memory
      logs_console_output: false
  - name: iii-http
    config:
      port: ${HTTP_PORT:3199}
      host: 127.0.0.1
      default_timeout: 30000
      concurrency_request_limit: 1024
      cors:
        allowed_origins: ${ORIGINS:["*"]}
        allowed_methods: [GET, POST, PUT, DELETE, OPTIONS]
  - name: iii-stream
    config:
      port: 3112
      adapter:
        name: kv
        config:
          store_method: file_based
          file_path: ./data/stream_store
  - name: iii-state
    config:
      adapter: {name: kv, config: {store_method: file_based, file_path: ./data/state_store.db}}
  - name: iii-queue
    config:
      queue_configs:
        default: {max_retries: 5, concurrency: 5, type: standard}
        payment:
          type: fifo
          max_retries: 10
          message_group_field: transaction_id
      adapter:
        name: builtin
  - name: iii-pubsub
    config:
      adapter:
        name: local
  - name: iii-cron
"""


def parse(text: str, environ: dict[str, str] | None = None) -> EngineConfig:
    return parse_config(text, "config.yaml", environ or {})


def refusal(text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ)
    return str(caught.value)


def names(config: EngineConfig) -> list[str]:
    return [entry.name for entry in config.entries]


def test_a_realistic_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(REALISTIC, encoding="utf-8")
    config = load_config(path, {"HTTP_PORT": "8080"})
    assert config.source == path
    assert (config.grace_ms, config.shutdown_grace_ms, config.default_invocation_timeout_ms) == (750, 2000, 3_600_000)
    assert config.max_buffered_bytes == 256 * 1024 * 1024
    assert config.data_dir == Path("./data")
    assert config.notes == ()
    assert [entry.instance for entry in config.entries] == [
        "worker-manager",
        "worker-manager#1",
        "observability",
        "http",
        "stream",
        "state",
        "queue",
        "pubsub",
        "cron",
        "engine-functions",
        "configuration",
        "telemetry",
    ]
    main, second = config.find("worker-manager")
    assert (main.config["port"], second.config["port"], second.line) == (49199, 49135, 11)
    [http] = config.find("http")
    assert http.listed_as == "iii-http"
    assert http.config["port"] == 8080
    assert http.config["cors"]["allowed_origins"] == ["*"]
    [observability] = config.find("observability")
    assert observability.config["enabled"] is True
    [telemetry] = config.find("telemetry")
    assert (telemetry.listed_as, telemetry.line, telemetry.config, telemetry.label) == (None, None, {}, "iii-telemetry")


def test_the_default_set() -> None:
    config = default_config({})
    assert set(names(config)) == {*ALWAYS_ON, "http", "state", "stream", "queue", "pubsub", "cron"}
    assert all(entry.listed_as is None and not entry.config for entry in config.entries)
    assert (config.source, config.grace_ms, config.notes) == (None, 5000, ())


@pytest.mark.parametrize("text", ["", "workers: []", "modules: []", "# nothing\n"])
def test_always_on_workers_run_unlisted(text: str) -> None:
    assert names(parse(text)) == ALWAYS_ON


@pytest.mark.parametrize(
    ("key", "spelled", "canonical"),
    [("name", spelling, worker.canonical) for worker in WORKERS for spelling in {worker.established, worker.canonical}]
    + [("class", worker.legacy_class, worker.canonical) for worker in WORKERS if worker.legacy_class],
)
def test_every_spelling_of_a_worker(key: str, spelled: str, canonical: str) -> None:
    config = parse(f"workers:\n  - {key}: {spelled}\n    config: {{x: 1}}\n")
    entry = config.entries[0]
    assert (entry.name, entry.instance, entry.listed_as, entry.line) == (canonical, canonical, spelled, 2)
    assert entry.config == {"x": 1}
    assert names(config).count(canonical) == 1
    assert len(config.notes) == (key == "class")


def test_the_spec_table_of_names() -> None:
    table = {worker.legacy_class: worker.canonical for worker in WORKERS if worker.legacy_class}
    assert table["modules::api::RestApiModule"] == "http"
    assert table["modules::shell::ExecModule"] == "exec"
    assert table["modules::bridge_client::BridgeClientModule"] == "bridge"
    assert [worker.canonical for worker in WORKERS if worker.always_on] == ALWAYS_ON
    assert {worker.canonical for worker in WORKERS if not worker.default_set} == {
        "http-functions",
        "exec",
        "bridge",
        "admin",
    }


def test_modules_come_after_workers_and_old_shapes_are_noted() -> None:
    config = parse(
        "port: 4000\nmodules:\n  - class: modules::api::RestApiModule\n  - name: iii-state\nworkers:\n  - name: cron\n"
    )
    assert names(config)[:3] == ["cron", "http", "state"]
    [manager] = config.find("worker-manager")
    assert manager.config == {"port": 4000}
    assert config.notes == (
        "config.yaml:2:1: 'modules' is the old spelling of 'workers'",
        "config.yaml:3:5: 'class: modules::api::RestApiModule' is the old spelling of 'name: iii-http'",
        "config.yaml:1:7: the top-level 'port' is the old place of the port of 'iii-worker-manager'",
    )


def test_the_top_level_port_yields_to_the_managers_own() -> None:
    config = parse("port: 4000\nworkers:\n  - name: iii-worker-manager\n    config: {port: 5000}\n")
    assert config.find("worker-manager")[0].config == {"port": 5000}
    assert "the top-level 'port' is ignored" in config.notes[0]
    joined = parse("port: 4000\nworkers:\n  - name: iii-worker-manager\n    config: {host: '::1'}\n")
    assert joined.find("worker-manager")[0].config == {"host": "::1", "port": 4000}


def test_repeated_names_become_instances() -> None:
    config = parse("workers: [{name: iii-http}, {name: iii-http}, {name: iii-cron}, {name: iii-http}]")
    assert [entry.instance for entry in config.entries[:4]] == ["http", "http#1", "cron", "http#2"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "workers:\n  - name: iii-cron\n  - name: cron\n",
            [
                (
                    "- 'iii-cron' is the deprecated name for 'cron', but both are present. "
                    "Remove 'iii-cron' from your configuration. (config.yaml:2)"
                )
            ],
        ),
        (
            (
                "workers:\n  - name: queue\n  - name: iii-queue\n  - name: http\nmodules:\n"
                "  - class: modules::api::RestApiModule\n"
            ),
            [
                (
                    "- 'modules::api::RestApiModule' is the deprecated name for 'http', but both are present. "
                    "Remove 'modules::api::RestApiModule' from your configuration. (config.yaml:6)"
                ),
                (
                    "- 'iii-queue' is the deprecated name for 'queue', but both are present. "
                    "Remove 'iii-queue' from your configuration. (config.yaml:3)"
                ),
            ],
        ),
    ],
)
def test_two_spellings_of_one_worker_are_refused(text: str, lines: list[str]) -> None:
    assert refusal(text).split("\n") == ["Duplicate worker configurations:", *lines]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers:", "config.yaml:1:1: workers: expected a list of workers, but found nothing; an empty list is "),
        ("workers: {}", "config.yaml:1:10: workers: expected a list of workers"),
        ("modules:\n", "config.yaml:1:1: modules: expected a list of workers, but found nothing"),
        ("wrokers: []", "config.yaml:1:1: wrokers: unknown key, did you mean 'workers'? Known keys: "),
        ("[]", "config.yaml:1:1: expected a mapping of keys, but found a list"),
        ("text", "expected a mapping of keys, but found the text 'text'"),
        (
            "max_buffered_bytes: 1000000",
            "config.yaml:1:21: max_buffered_bytes: must be at least 134217728, not 1000000",
        ),
        ("shutdown_grace_ms: -1", "config.yaml:1:20: shutdown_grace_ms: must be at least 0, not -1"),
        ("data_dir: ''", "config.yaml:1:11: data_dir: must not be empty"),
        ("port: 70000", "config.yaml:1:7: port: must be at most 65535, not 70000"),
        ("workers:\n- iii-http", "config.yaml:2:3: expected a mapping with the key `name`; write `- name: iii-http`"),
        ("workers: [{config: {}}]", "config.yaml:1:11: expected a `name`"),
        ("workers: [{name: }]", "config.yaml:1:11: expected a `name`"),
        ("workers: [{name: 5}]", "config.yaml:1:18: expected the name of a worker to be text"),
        ("workers: [{name: iii-http, class: x}]", "config.yaml:1:11: expected either `name` or `class`"),
        ("workers: [{name: http, config: []}]", "config.yaml:1:32: expected the config of 'http' to be a mapping"),
        (
            "workers:\n  - name: iii-http\n    image: ghcr.io/x/y:1\n",
            (
                "config.yaml:3:5: Worker 'iii-http' is a built-in worker and cannot have an 'image' field. "
                "Remove 'image' or use a different name."
            ),
        ),
        (
            "workers: [{name: iii-htp}]",
            (
                "config.yaml:1:18: unknown worker 'iii-htp', did you mean 'iii-http'? Only built-in workers stand here; "
                "workers of your own connect by themselves. Known names: iii-worker-manager, iii-engine-functions, "
            ),
        ),
        ("workers: [{class: modules::x::Y, image: z}]", "config.yaml:1:19: unknown worker 'modules::x::Y'"),
        ("workers: [{name: a: b}]", "config.yaml:1:19: expected"),
        (
            "data_dir: ${DATA}",
            "config.yaml:1:11: Environment variable 'DATA' not set and no default provided",
        ),
    ],
)
def test_refusals_name_file_line_and_key(text: str, message: str) -> None:
    assert refusal(text).startswith(f"Failed to parse config file 'config.yaml': {message}")


def test_all_bad_entries_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("workers:\n  - name: nope\n  - name: iii-http\n    image: x\n  - 7\n  - name: iii-cron\n")
    assert [problem.position.line for problem in caught.value.problems if problem.position] == [2, 4, 5]


def test_known_external_programs_are_skipped_with_a_note() -> None:
    config = parse("workers:\n  - name: iii-sandbox\n    image: x/y\n  - name: iii-worker-ops\n  - name: iii-http\n")
    assert names(config) == ["http", *ALWAYS_ON]
    assert config.notes == (
        "config.yaml:2:11: 'iii-sandbox' is an external program that this engine does not run; skipped",
        "config.yaml:4:11: 'iii-worker-ops' is an external program that this engine does not run; skipped",
    )


def test_unknown_keys_of_an_entry_are_ignored_with_a_note() -> None:
    config = parse("workers: [{name: iii-http, confg: {port: 1}, config: }]")
    assert config.entries[0].config == {}
    assert config.notes == ("config.yaml:1:28: the key 'confg' of 'iii-http' is ignored, did you mean 'config'?",)


@pytest.mark.parametrize(("value", "grace"), [("0", 0), ("1200", 1200)])
def test_the_environment_overrides_the_grace(value: str, grace: int) -> None:
    environ = {"III_NAMESPACE_GRACE_MS": value}
    assert parse("registration_namespace_grace_ms: 9", environ).grace_ms == grace
    assert default_config(environ).grace_ms == grace


@pytest.mark.parametrize("value", ["", "-1", "5s", "1.5", "²"])
def test_a_bad_grace_in_the_environment_is_refused(value: str) -> None:
    message = f"III_NAMESPACE_GRACE_MS: expected a whole number of milliseconds, but found '{value}'"
    assert refusal("", {"III_NAMESPACE_GRACE_MS": value}) == message


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert str(caught.value).startswith(f"Config file not found: '{path}'. ")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path, {})
    assert str(caught.value) == f"Failed to read config file '{tmp_path}': Is a directory"
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert str(caught.value) == f"Failed to read config file '{path}': byte 3 is not UTF-8"


def test_entries_compare_by_content_for_reload() -> None:
    one = parse("workers: [{name: iii-http, config: {port: 1}}]").entries[0]
    two = parse("# moved\nworkers:\n  - name: iii-http\n    config:\n      port: 1\n").entries[0]
    assert one.config == two.config
    assert (one.name, one.instance) == (two.name, two.instance)
