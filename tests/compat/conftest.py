"""Fixtures of the compatibility tests: a laboratory of processes, an engine in it, and the interpreters of other SDKs."""

import importlib.util
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from compat_lab import COMPAT, EXAMPLES, Lab, RunningEngine, need, open_lab

PREPARE = "run `python tests/prepare.py`"


@pytest.fixture
async def lab(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Lab]:
    """Where processes are started; they end with the test."""
    async with open_lab(nursery, tmp_path) as opened:
        yield opened


@pytest.fixture
async def engine(lab: Lab) -> RunningEngine:
    """A running engine."""
    return await lab.engine()


@pytest.fixture(scope="session")
def old_python() -> Path:
    """The interpreter of a virtual environment with the official Python SDK 0.11.6."""
    interpreter = COMPAT / "python" / "0.11.6" / "bin" / "python"
    need((COMPAT / "python" / "0.11.6" / "prepared").exists(), "the Python SDK 0.11.6", PREPARE)
    return interpreter


@pytest.fixture(scope="session")
def new_python() -> Path:
    """The interpreter of these tests, which has the official Python SDK 0.25.0."""
    need(importlib.util.find_spec("iii") is not None, "the Python SDK 0.25.0", "install the extra [test]")
    return Path(sys.executable)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The node_modules with the official Node SDK, of the release that `examples/hello_node` names."""
    need(shutil.which("node") is not None, "node", "install Node 20 or later")
    version = str(json.loads((EXAMPLES / "hello_node" / "package.json").read_text())["dependencies"]["iii-sdk"])
    project = COMPAT / "node" / version
    need((project / "prepared").exists(), f"the Node SDK {version}", PREPARE)
    return project / "node_modules"


@pytest.fixture
def link(tmp_path: Path, node_modules: Path) -> Callable[[Path], Path]:
    """Gives a script to Node beside the node_modules of these tests, which it looks for where the script is."""

    def place(script: Path) -> Path:
        (tmp_path / "node_modules").symlink_to(node_modules, target_is_directory=True)
        return Path(shutil.copy(script, tmp_path))

    return place
