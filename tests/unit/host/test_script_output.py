"""How what scripts print appears in the engine's log."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from iii_trio.host.output import ScriptLog


def logged(caplog: pytest.LogCaptureFixture, *lines: str, name: str = "mail") -> list[tuple[str, str]]:
    caplog.clear()
    log = ScriptLog()
    with caplog.at_level(logging.DEBUG):
        for line in lines:
            log.line(name, line)
    assert {record.source for record in caplog.records} == {name}  # type: ignore[attr-defined]
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_line_has_the_level_it_begins_with(caplog: pytest.LogCaptureFixture) -> None:
    lines = ("hello %s", "WARNING iii_trio.sdk: careful", "DEBUG x: y", "INFORMATION is no level", "ERROR", "")
    assert logged(caplog, *lines) == [
        ("INFO", "hello %s"),
        ("WARNING", "iii_trio.sdk: careful"),
        ("DEBUG", "x: y"),
        ("INFO", "INFORMATION is no level"),
        ("INFO", "ERROR"),
        ("INFO", ""),
    ]


CHAIN = """
import logging
logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
try:
    try:
        {}["missing"]
    except KeyError as error:
        raise ExceptionGroup("several", [ValueError("inner")]) from error
except ExceptionGroup:
    logging.exception("failed")
print("after", flush=True)
"""


@pytest.mark.parametrize("level", ["ERROR", "WARNING"])
def test_a_traceback_stays_with_its_record(caplog: pytest.LogCaptureFixture, level: str) -> None:
    source = CHAIN.replace('logging.exception("failed")', f'logging.{level.lower()}("failed", exc_info=True)')
    run = subprocess.run([sys.executable, "-c", source], check=True, text=True, capture_output=True)
    found = logged(caplog, *run.stderr.splitlines(), *run.stdout.splitlines())
    assert found[-1] == ("INFO", "after")
    assert {shown for shown, _ in found[:-1]} == {level}
    assert found[0] == (level, "root: failed")
    assert (level, "KeyError: 'missing'") in found


def test_a_script_that_dies_of_an_exception_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "print('up', flush=True); 1/0"], check=False, text=True, capture_output=True
    )
    found = logged(caplog, *run.stdout.splitlines(), *run.stderr.splitlines(), "again")
    assert [level for level, _ in found] == ["INFO", *["ERROR"] * (len(found) - 2), "INFO"]


def test_a_script_that_cannot_be_compiled_is_an_error(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    script = tmp_path / "half.py"
    script.write_text("def (\n")
    run = subprocess.run([sys.executable, str(script)], check=False, text=True, capture_output=True)
    found = logged(caplog, "up", *run.stderr.splitlines(), "again")
    assert "SyntaxError" in found[-2][1]
    assert [level for level, _ in found] == ["INFO", *["ERROR"] * (len(found) - 2), "INFO"]


def test_a_stack_in_a_log_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    lines = ("Stack (most recent call last):", '  File "x.py", line 3, in <module>', "    f()", "after")
    assert {level for level, _ in logged(caplog, *lines)} == {"INFO"}


def test_scripts_do_not_mix(caplog: pytest.LogCaptureFixture) -> None:
    log = ScriptLog()
    with caplog.at_level(logging.DEBUG):
        for name, line in (
            ("a", "ERROR x"),
            ("b", "plain"),
            ("a", "Traceback (most recent call last):"),
            ("b", "  x"),
            ("a", "  y"),
        ):
            log.line(name, line)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO", "ERROR", "INFO", "ERROR"]
