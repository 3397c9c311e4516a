"""Schemathesis against a worker of our SDK: what the OpenAPI document says is what the port does, on strange input too."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from compat_lab import CLIENTS, need

from iii_trio.testing.process import run_engine

OPERATIONS = 8
PATIENCE_S = 120


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a shop's document."""
    need(importlib.util.find_spec("schemathesis") is not None, "Schemathesis", "install the extra [test]")
    config = tmp_path / "config.yaml"
    config.write_text("workers:\n  - name: http\n    config: {openapi_path: /openapi.json}\n")
    async with run_engine(tmp_path, str(CLIENTS / "http_shop.py"), "--config", str(config)) as engine:
        with trio.fail_after(PATIENCE_S):
            await engine.line("worker shop: connected")
        yield f"http://127.0.0.1:{engine.http_port}/openapi.json"


async def run(directory: Path, url: str, *arguments: str) -> None:
    """Run its command in a process of its own, for its pytest plugin and its settings are not for this suite."""
    fixed = ("--checks", "all", "--suppress-health-check", "all", "--warnings", "off", "--no-color")
    bounded = ("--request-timeout", "20", "--continue-on-failure", "--generation-deterministic")
    command = [sys.executable, "-m", "schemathesis.cli", "run", url, *fixed, *bounded, *arguments]
    ran = await trio.run_process(command, cwd=directory, check=False, capture_stdout=True, stderr=subprocess.STDOUT)
    said = ran.stdout.decode()
    assert ran.returncode == 0, said
    assert f"Selected: {OPERATIONS}/{OPERATIONS}" in said, said
    found = re.search(r"(\d+) generated, (\d+) passed", said)
    assert found is not None, said
    assert found[1] == found[2]
    assert int(found[1]) >= 100


async def test_the_port_does_what_the_document_says(tmp_path: Path, url: str) -> None:
    await run(tmp_path, url, "--phases", "coverage,fuzzing", "--max-examples", "5")


@pytest.mark.long
async def test_it_does_for_those_with_a_token_too(tmp_path: Path, url: str) -> None:
    await run(tmp_path, url, "--phases", "coverage", "-H", "Authorization: Bearer shop-1")


@pytest.mark.long
@pytest.mark.parametrize("seed", ["1"])
async def test_it_does_for_long(tmp_path: Path, url: str, seed: str) -> None:
    await run(tmp_path, url, "--phases", "coverage,fuzzing", "--max-examples", "400", "--seed", seed)
