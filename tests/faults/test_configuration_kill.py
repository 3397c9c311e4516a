"""kill -9 while the configuration is written: what was acknowledged stands, and what was not is old or new, never torn."""

import random
from pathlib import Path

import pytest
import trio

from iii_trio import InvocationStopped, NotConnected, open_client
from iii_trio.modules.configuration.files import read_entry
from iii_trio.testing.process import run_engine


@pytest.mark.parametrize("seed", range(2))
async def test_an_acknowledged_value_survives_kill_9(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    enough, pause_s = chance.randrange(3, 20), chance.uniform(0, 0.02)
    acknowledged, reached = 0, trio.Event()
    with trio.fail_after(60):
        async with run_engine(tmp_path) as engine, open_client(engine.url) as client:
            about = {"id": "mine", "name": "m" * 5_000, "description": "", "schema": {}}
            await client.call("configuration::register", {**about, "initial_value": {"n": 0}})
            async with trio.open_nursery() as nursery:

                async def write() -> None:
                    nonlocal acknowledged
                    try:
                        while True:
                            await client.call("configuration::set", {"id": "mine", "value": {"n": acknowledged + 1}})
                            acknowledged += 1
                            if acknowledged == enough:
                                reached.set()
                    except (NotConnected, InvocationStopped):
                        return

                nursery.start_soon(write)
                await reached.wait()
                await trio.sleep(pause_s)  # any instant of a write is as good as any other
                await engine.kill()
                nursery.cancel_scope.cancel()
        stored = read_entry(tmp_path / "data" / "config" / "mine.yaml").kept.decode()["n"]
        assert stored in (acknowledged, acknowledged + 1)
        async with run_engine(tmp_path) as engine, open_client(engine.url) as client:
            assert (await client.call("configuration::get", {"id": "mine"}))["value"] == {"n": stored}
            await client.call("configuration::register", {**about, "schema": {"type": "object"}})
            await client.call("configuration::set", {"id": "mine", "value": {"n": -1}})
