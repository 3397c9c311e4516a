"""`init`, `worker add`, `check` and `serve --create`: what they write, what they say, what they leave alone."""

import ast
import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from iii_trio.cli.main import cli
from iii_trio.cli.starter import starter_config
from iii_trio.config import WORKERS, load_config
from iii_trio.host.plan import NOT_HERE


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of this machine counts, and no variable."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("III_")]:
        monkeypatch.delenv(name)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def done(*arguments: str) -> Result:
    """A command that works; nothing it says is an error."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "Error" not in result.stderr
    return result


def refused(*arguments: str) -> str:
    """The one line of a command that ends with status 1 and prints nothing."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def listed(path: str = "config.yaml") -> list[str]:
    """The names in a file, as it spells them."""
    return [entry.listed_as for entry in load_config(Path(path), {}).entries if entry.listed_as is not None]


# -- init -------------------------------------------------------------------------------------------------------------


def test_init_writes_a_project() -> None:
    result = done("init", "shop")
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "wrote shop/config.yaml",
        "wrote shop/worker.py",
        "wrote shop/.gitignore",
        "wrote shop/.iii/project.ini",
        "Next:",
        "  cd shop",
        "  iii-trio serve worker.py",
        "  curl http://localhost:3111/hello",
    ]
    assert listed("shop/config.yaml")[:2] == ["iii-worker-manager", "http"]
    ast.parse(Path("shop/worker.py").read_text())
    assert "/data/" in Path("shop/.gitignore").read_text().splitlines()
    assert "project_name=shop\n" in Path("shop/.iii/project.ini").read_text()


def test_init_in_this_directory_and_again() -> None:
    Path(".git").mkdir()
    assert "cd " not in done("init").stderr
    Path("worker.py").write_text("mine\n")
    Path("config.yaml").unlink()
    project = Path(".iii/project.ini").read_text()
    again = done("init").stderr
    assert again.splitlines()[0] == "wrote config.yaml"
    assert "worker.py\n" not in again.replace("serve worker.py\n", "")
    assert Path("worker.py").read_text() == "mine\n"
    assert Path(".iii/project.ini").read_text() == project, "the project keeps its id"
    assert done("init").stderr == ".: everything is there already\n"


def test_init_keeps_out_of_a_directory_with_files() -> None:
    Path("config.yaml").write_text("workers: []\n")
    assert refused("init").startswith(". is not empty; name another directory, or give --allow-non-empty")
    assert [path.name for path in Path().iterdir()] == ["config.yaml"]
    done("init", "--allow-non-empty")
    assert Path("config.yaml").read_text() == "workers: []\n"
    assert Path("worker.py").exists()


def test_init_where_nothing_can_be_made() -> None:
    Path("file").write_text("")
    assert refused("init", "file/shop") == "cannot write file/shop: Not a directory"
    assert run("init", "file").exit_code == 2


# -- worker add -------------------------------------------------------------------------------------------------------


def test_a_worker_is_added_to_the_file() -> None:
    Path("config.yaml").write_text("# mine\nworkers: # these\n  - name: http # on 3111\n")
    Path("config.yaml").chmod(0o640)
    assert done("worker", "add", "queue").stdout == (
        "config.yaml:4: 'queue' added. An engine that runs on this file starts it now; others do at their next start.\n"
    )
    assert (
        Path("config.yaml")
        .read_text()
        .startswith("# mine\nworkers: # these\n  - name: http # on 3111\n  - name: queue\n")
    )
    assert listed() == ["http", "queue"]
    assert stat.S_IMODE(Path("config.yaml").stat().st_mode) == 0o640
    assert [path.name for path in Path().iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("name", ["state", "iii-state"])
def test_a_worker_that_is_listed_stays_as_it_is(name: str) -> None:
    text = "workers:\n  - name: http\n  - name: iii-state\n    config: {triggers_enabled: false}\n"
    Path("config.yaml").write_text(text)
    assert done("worker", "add", name).stdout == "config.yaml:3: 'iii-state' is listed already\n"
    assert Path("config.yaml").read_text() == text


def test_without_a_file_the_default_set_keeps_running() -> None:
    result = done("worker", "add", "queue", "-c", "new.yaml")
    assert "'queue' added, in a new file with the default set." in result.stdout
    assert Path("new.yaml").read_text() == starter_config()


def test_line_ends_and_a_byte_order_mark_stay_as_they_are() -> None:
    Path("config.yaml").write_bytes(b"\xef\xbb\xbfworkers:\r\n  - name: http\r\n# end\r\n")
    done("worker", "add", "pubsub")
    assert Path("config.yaml").read_bytes() == (
        b"\xef\xbb\xbfworkers:\r\n  - name: http\r\n  - name: pubsub\r\n# end\r\n"
    )


def test_an_old_spelling_is_written_as_the_present_name() -> None:
    Path("config.yaml").write_text("workers: []\n")
    done("worker", "add", "modules::state::StateModule")
    assert listed() == ["state"]


def test_a_link_stays_a_link() -> None:
    Path("real.yaml").write_text("workers: []\n")
    Path("config.yaml").symlink_to("real.yaml")
    done("worker", "add", "pubsub")
    assert Path("config.yaml").is_symlink()
    assert listed("real.yaml") == ["pubsub"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("qeue", "'qeue' is not a built-in worker, did you mean 'queue'? Installing others is not supported"),
        ("kafka", "'kafka' is not a built-in worker. Installing others is not supported"),
        ("iii-sandbox", "'iii-sandbox' is an external program; this engine does not run it"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, told: str) -> None:
    Path("config.yaml").write_text("workers: []\n")
    assert refused("worker", "add", name).startswith(told)
    assert Path("config.yaml").read_text() == "workers: []\n"


@pytest.mark.parametrize("worker", [worker for worker in WORKERS if worker.canonical in NOT_HERE], ids=str)
def test_what_this_release_has_not_is_not_added(worker: object) -> None:
    name = worker.established  # type: ignore[attr-defined]
    assert refused("worker", "add", name) == f"'{name}' is not part of this release"
    assert not Path("config.yaml").exists()


@pytest.mark.parametrize("worker", [worker for worker in WORKERS if worker.canonical not in NOT_HERE], ids=str)
def test_every_worker_of_this_release_can_be_added(worker: object) -> None:
    name = worker.established  # type: ignore[attr-defined]
    Path("config.yaml").write_text("workers: []\n")
    done("worker", "add", name)
    assert listed() == [name]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("workers: [\n", "Failed to parse config file 'config.yaml': config.yaml:2:1: "),
        ("{data_dir: d}\n", "config.yaml cannot be edited: its form is unusual"),
    ],
)
def test_a_file_that_cannot_be_edited_is_left_alone(text: str, told: str) -> None:
    Path("config.yaml").write_text(text)
    assert refused("worker", "add", "queue").startswith(told)
    assert Path("config.yaml").read_text() == text


def test_a_file_that_is_no_text() -> None:
    Path("config.yaml").write_bytes(b"\xff")
    assert refused("worker", "add", "queue") == "cannot read config.yaml: it is not UTF-8"


def test_a_directory_that_is_not_there() -> None:
    assert refused("worker", "add", "queue", "-c", "no/config.yaml") == (
        "cannot write no/config.yaml: No such file or directory"
    )


# -- check ------------------------------------------------------------------------------------------------------------

GOOD = """\
workers:
  - name: http
    config: {port: 80, default_timeout: 5, trust_proxy: true}
  - class: modules::state::StateModule
    config: {save_interval_ms: 5000}
  - name: iii-sandbox
"""
BAD = """\
workers:
  - name: http
    config: {prot: 80}
  - name: queue
    config:
      queue_configs:
        a: {concurrency: 0}
"""


def test_check_says_what_would_run_and_what_has_no_effect() -> None:
    Path("config.yaml").write_text(GOOD)
    first, _, heading, *lines = done("check").stdout.splitlines()
    assert first == "config.yaml can be used."
    assert heading.split()[:3] == ["WORKER", "LINE", "STATUS"]
    assert lines[0].split() == ["http", "2", "runs", "default_timeout,", "port,", "trust_proxy"]
    assert lines[1].split() == ["modules::state::StateModule", "4", "runs", "save_interval_ms"]
    notes = lines[lines.index("Notes:") :]
    for told in (
        "save_interval_ms",
        "is the old spelling of 'name: iii-state'",
        "'iii-sandbox' is an external program",
    ):
        assert [note for note in notes if told in note and note.startswith("  config.yaml:")], told
    assert [path.name for path in Path().iterdir()] == ["config.yaml"], "nothing was started"


def test_check_says_which_of_two_entries_counts() -> None:
    Path("config.yaml").write_text("workers: [{name: http}, {name: http}, {name: iii-worker-manager}]\n")
    lines = done("check").stdout.splitlines()
    assert [line.split()[2:4] for line in lines if line.startswith("http ")] == [
        ["runs", "defaults"],
        ["listed", "before"],
    ]
    assert [line for line in lines if "stands there again" in line]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "workers:\n- name: http\n  config: {port: 49134, host: 127.0.0.1}\n",
            "'iii-worker-manager' asks for port 49134, and so does 'http'; one of them cannot start",
        ),
        (
            "workers:\n- name: http\n- name: stream\n  config: {port: 3111, host: 0.0.0.0}\n",
            "config.yaml:3: 'stream' asks for port 3111, and so does 'http'; one of them cannot start",
        ),
        (
            "workers:\n- name: http\n  config: {middleware: [{function_id: guard, phase: onRequest}]}\n",
            "config.yaml:2: the middleware 'guard' is never called, for there is no phase 'onRequest'; use preHandler",
        ),
    ],
)
def test_check_remarks_what_cannot_be_meant(text: str, told: str) -> None:
    Path("config.yaml").write_text(text)
    notes = done("check").stdout.partition("Notes:\n")[2].splitlines()
    assert [note for note in notes if note.strip() == told]


def test_ports_of_different_addresses_are_no_remark() -> None:
    Path("config.yaml").write_text(
        "workers: [{name: http, config: {port: 3112, host: 127.0.0.5}}, {name: stream}, {name: admin}]\n"
    )
    assert "Notes" not in done("check").stdout


def test_check_as_json() -> None:
    Path("f.yaml").write_text(GOOD)
    told = json.loads(done("check", "-c", "f.yaml", "--json").stdout)
    assert (told["file"], told["ok"], told["problems"]) == ("f.yaml", True, [])
    assert told["workers"][0] == {
        "name": "http",
        "line": 2,
        "runs": True,
        "settings": ["default_timeout", "port", "trust_proxy"],
    }
    assert len(told["notes"]) == 3


@pytest.mark.parametrize("arguments", [["check"], ["check", "config.yaml"], ["check", "--config", "config.yaml"]])
def test_check_names_every_mistake_with_its_place(arguments: list[str]) -> None:
    Path("config.yaml").write_text(BAD)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    first, second = result.stderr.splitlines()
    assert first.startswith("Error: failed to create worker 'http': config.yaml:3:14: prot: unknown key, did you mean")
    assert second.startswith("failed to create worker 'queue': config.yaml:7:26: queue_configs.a.concurrency: ")


def test_check_names_mistakes_as_json() -> None:
    Path("config.yaml").write_text(BAD)
    result = run("check", "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    told = json.loads(result.stdout)
    assert told["ok"] is False
    places = [(problem["file"], problem["line"], problem["key"]) for problem in told["problems"]]
    assert places == [("config.yaml", 3, "prot"), ("config.yaml", 7, "queue_configs.a.concurrency")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("wokers: []\n", "Failed to parse config file 'config.yaml': config.yaml:1:1: wokers: unknown key"),
        ("data_dir: ${NO_SUCH}\n", "Failed to parse config file 'config.yaml': config.yaml:1:11: Environment variable"),
        (
            "workers: [{name: iii-worker-manager, config: {tls: {certificate: no.pem, key: no.pem}}}]\n",
            "failed to create worker 'iii-worker-manager': config.yaml:1:66: tls.certificate: cannot read 'no.pem': No",
        ),
        (
            "workers:\n- name: http\n  config:\n    tls: {certificate: no.pem, key: no.pem}\n",
            "failed to create worker 'http': config.yaml:4:24: tls.certificate: cannot read 'no.pem': No such file",
        ),
        (
            "workers:\n- name: http\n  config: {request_id_header: x y}\n",
            "failed to create worker 'http': config.yaml:3:11: request_id_header: 'x y' is no header name",
        ),
        (
            "workers:\n- name: state\n  config: {adapter: {name: bridge}}\n",
            "failed to create worker 'state': config.yaml:3:21: adapter.config.bridge_url: ws://localhost:49134 is this",
        ),
    ],
)
def test_check_finds_what_would_stop_the_start(text: str, told: str) -> None:
    Path("config.yaml").write_text(text)
    assert refused("check").startswith(told)


def test_check_without_a_file() -> None:
    assert refused("check").startswith("Config file not found: 'config.yaml'.")
    told = json.loads(run("check", "--json").stdout)
    assert [problem["line"] for problem in told["problems"]] == [None]


def test_check_of_two_files_is_a_usage_error() -> None:
    result = run("check", "a.yaml", "-c", "b.yaml")
    assert result.exit_code == 2
    assert "name the file once" in result.stderr


# -- serve --create ---------------------------------------------------------------------------------------------------


def test_serve_can_begin_with_a_starter_file() -> None:
    assert refused("serve", "--create", "-c", "no/c.yaml") == "cannot write no/c.yaml: No such file or directory"
    result = run("serve", "--create", "gone.py")
    assert result.stderr.splitlines() == ["wrote config.yaml", "Error: cannot run gone.py: no such file"]
    assert Path("config.yaml").read_text() == starter_config()
    Path("config.yaml").write_text("workers: []\n")
    assert run("serve", "--create", "gone.py").stderr == "Error: cannot run gone.py: no such file\n"
    assert Path("config.yaml").read_text() == "workers: []\n"
    assert run("serve", "--create", "--defaults").exit_code == 2
