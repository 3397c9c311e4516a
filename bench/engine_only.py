"""The engine with nothing but its worker port, for measurements: `python bench/engine_only.py PORT`.

Access checks, limits, deadlines and cleanup are on; modules and stores are not there.
"""

import sys

import trio

from iii_trio.engine import Listener, open_engine


async def main(port: int) -> None:
    """Serve until killed."""
    async with open_engine() as core, trio.open_nursery() as nursery:
        await nursery.start(Listener(core=core, host="127.0.0.1", port=port).run)
        core.serving()


trio.run(main, int(sys.argv[1]))
