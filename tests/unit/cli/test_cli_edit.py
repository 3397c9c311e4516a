"""One more worker in a configuration text: the rest of it stays, character by character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iii_trio.cli.edit import NotEditable, add_entry
from iii_trio.cli.starter import starter_config
from iii_trio.config import ConfigError, parse_config
from iii_trio.config.names import BY_SPELLING

PUBSUB = BY_SPELLING["pubsub"]


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("", "workers:\n  - name: pubsub\n"),
        ("# empty\n", "# empty\nworkers:\n  - name: pubsub\n"),
        ("data_dir: d", "data_dir: d\nworkers:\n  - name: pubsub\n"),
        ("workers: []", "workers:\n  - name: pubsub\n"),
        ("workers: [ ] # none yet\ndata_dir: d\n", "workers: # none yet\n  - name: pubsub\ndata_dir: d\n"),
        ("workers: [{name: http}]\n", "workers: [{name: pubsub}, {name: http}]\n"),
        ("workers: [ {name: http, config: {port: ${P}}} ]", "workers: [{name: pubsub}, {name: http, config: {port: ${P}}} ]"),
        ("workers:\n- name: http\n", "workers:\n- name: http\n- name: pubsub\n"),
        ("workers:\n  - name: http", "workers:\n  - name: http\n  - name: pubsub\n"),
        ("workers:\r\n  - name: http\r\n", "workers:\r\n  - name: http\r\n  - name: pubsub\r\n"),
        (
            "workers:\n    - name: http\n      config: {port: ${P:3111}} # the port\n\n# the end\n",
            "workers:\n    - name: http\n      config: {port: ${P:3111}} # the port\n    - name: pubsub\n\n# the end\n",
        ),
        (
            "workers:\n  - name: state\n\n  - name: http\n    # config:\n    #   port: 1\n\ndata_dir: d\n",
            "workers:\n  - name: state\n\n  - name: http\n    # config:\n    #   port: 1\n\n  - name: pubsub\n\ndata_dir: d\n",
        ),
        ("workers:\n  -\n    name: http\ndata_dir: d\n", "workers:\n  -\n    name: http\n  - name: pubsub\ndata_dir: d\n"),
        ("modules:\n  - name: http\n", "modules:\n  - name: http\nworkers:\n  - name: pubsub\n"),
        ("\ufeffworkers: []\n", "\ufeffworkers:\n  - name: pubsub\n"),
    ],
)  # fmt: skip
def test_the_entry_is_added_and_nothing_else_changes(text: str, edited: str) -> None:
    assert add_entry(text, "config.yaml", PUBSUB, "pubsub") == edited


@pytest.mark.parametrize(
    "text",
    [
        "- a list\n",
        "just text\n",
        "workers: 7\n",
        "workers:\n",
        "{data_dir: d}\n",
        "data_dir: d\n...\n",
        "workers: &list\n  - name: http\nmodules: *list\n",
    ],
)
def test_a_text_that_cannot_be_edited_safely_is_refused(text: str) -> None:
    with pytest.raises(NotEditable):
        add_entry(text, "config.yaml", PUBSUB, "pubsub")


def test_a_text_that_is_no_yaml_is_refused_as_such() -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml:2:1"):
        add_entry("workers: [\n", "config.yaml", PUBSUB, "pubsub")


COMMENTS = st.sampled_from(["", "# a comment\n", "\n", "  # indented\n", "\n\n"])
ENTRIES = st.sampled_from(
    [
        "- name: http\n",
        "- name: http # here\n  config:\n    port: ${PORT:80}\n",
        "- {name: state}\n",
        "-\n  name: queue\n  config: {queue_configs: {a: {type: standard}}}\n",
        '- name: "iii-exec"\n  config:\n    exec: ["a: b # c"]\n',
        "- name: iii-exec\n  config:\n    exec:\n      - |\n        echo 1\n\n        echo 2\n",
    ]
)


@settings(max_examples=40, deadline=None)
@given(
    head=st.sampled_from(["", "data_dir: d\n", "# head\n\ndata_dir: d # inline\n"]),
    indent=st.sampled_from(["", "  ", "      "]),
    entries=st.lists(st.tuples(COMMENTS, ENTRIES), min_size=1, max_size=4),
    tail=st.tuples(COMMENTS, st.sampled_from(["", "shutdown_grace_ms: 7\n"])),
)
def test_every_line_survives_in_its_place(
    head: str, indent: str, entries: list[tuple[str, str]], tail: tuple[str, str]
) -> None:
    listed = "".join(
        comment + "".join(indent + line for line in entry.splitlines(keepends=True)) for comment, entry in entries
    )
    text = head + "workers:\n" + listed + "".join(tail)
    edited = add_entry(text, "config.yaml", PUBSUB, "pubsub")
    before, after = text.splitlines(), edited.splitlines()
    added = [line for line in after if line.strip() == "- name: pubsub"]
    assert len(added) == 1
    index = after.index(added[0])
    rest = [*after[:index], *after[index + 1 :]]
    assert [line for line in rest if line.strip()] == [line for line in before if line.strip()]
    assert abs(len(rest) - len(before)) <= 1, "at most an empty line more"
    names = [entry.name for entry in parse_config(edited, "config.yaml", {}).entries if entry.listed_as]
    assert names[-1] == "pubsub"
    assert len(names) == len(entries) + 1


def test_the_starter_file_can_be_read_and_takes_workers() -> None:
    config = parse_config(starter_config(), "config.yaml", {})
    assert not config.notes
    assert {"http", "state", "queue", "pubsub", "worker-manager"} <= {e.name for e in config.entries if e.listed_as}
    edited = add_entry(starter_config(), "config.yaml", BY_SPELLING["iii-exec"], "iii-exec")
    assert edited.startswith(starter_config())


def test_comments_of_the_starter_file_are_what_may_be_set() -> None:
    text = starter_config().replace("# config:", "config:").replace("#   ", "  ")
    config = parse_config(text, "config.yaml", {})
    assert dict(config.find("http")[0].config)["port"] == 3111
    assert dict(config.find("queue")[0].config)["queue_configs"]["default"]["max_retries"] == 3
