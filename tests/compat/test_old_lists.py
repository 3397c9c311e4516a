"""The list helpers of the oldest official SDKs, which parse strictly, against what this engine lists (spec/sdk.md §11)."""

from typing import Final

from compat_lab import CLIENTS, COMPAT, Lab, Process, RunningEngine, need

RELEASES: Final = ("0.2.0", "0.3.0", "0.8.3")


async def test_old_sdks_read_what_is_listed(lab: Lab, engine: RunningEngine) -> None:
    peer = await lab.peer(engine)
    # a worker that says little of itself, and a function that says much
    await peer.send(
        {"type": "registerfunction", "id": "typed::f", "request_format": {"type": "object"}, "metadata": {"a": 1}}
    )
    await peer.has("typed::f")
    clients: dict[str, Process] = {}
    for release in RELEASES:
        python = COMPAT / "python" / release
        need((python / "prepared").exists(), f"the Python SDK {release}", "run `python tests/prepare.py`")
        clients[release] = await lab.start(
            f"lists {release}",
            python / "bin" / "python",
            CLIENTS / "lists_client.py",
            III_URL=engine.url,
            RELEASE=release,
        )
    for release, client in clients.items():
        await client.output(lambda lines: any(line.startswith("after ") for line in lines))
        said = dict(
            line.split(" ", 1)
            for line in client.lines
            if line.split(" ")[0] in ("available", "functions", "workers", "after")
        )
        assert said["available"] == f"lists::{release}"
        assert {"typed::f", f"lists::{release}", "state::set"} <= set(said["functions"].split())
        rows = said["workers"].split()
        assert any(row.startswith("iii-engine-functions:available:") for row in rows)
        mine = [row for row in rows if ":connected:" in row]
        assert mine, rows
        assert all(row.split(":")[-1] == row.split(":")[-2] for row in rows), "as many functions as it counts"
        assert said["after"] == "0"
