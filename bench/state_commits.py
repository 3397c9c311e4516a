"""The limit of durable state: the same rows read and written with the same commits, and nothing else.

usage: state_commits.py DIRECTORY OPERATION N SECONDS        prints one JSON line: {"operation","in_flight","per_s"}
N operations in each transaction, each transaction forced to the disk, through the engine's own tables: what `state::set`
could do if reading frames, routing and answering cost nothing. OPERATION is set, update or get.
"""

import json
import sys
import time
from pathlib import Path

from iii_trio.modules.updates import decide
from iii_trio.stores import Fsync, parse_ops
from iii_trio.stores.desk import Submission
from iii_trio.stores.sqlite_file import open_file

DIRECTORY, OPERATION, IN_FLIGHT, SECONDS = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
KEYS = 1_000
VALUE = b'{"n":12345,"pad":"' + b"x" * 120 + b'"}'
OPS = parse_ops([{"type": "increment", "path": "n", "by": 1}])


def submission(number: int) -> Submission:
    """One operation, as a handle would submit it."""
    key = f"key-{number % KEYS}"

    def work(tables: object) -> object:
        values = tables.values  # type: ignore[attr-defined]
        if OPERATION == "set":
            return values.set("state", "bench", key, VALUE)
        if OPERATION == "get":
            return values.get("state", "bench", key)
        return values.update("state", "bench", key, lambda old: decide(OPS, None, old))

    return Submission(work, lambda _: None, 0, None, writes=OPERATION != "get")


file = open_file(DIRECTORY / "commits.db", Fsync.ALWAYS, check=False)
done, start = 0, time.perf_counter()
while time.perf_counter() - start < SECONDS:
    file.commit([submission(done + number) for number in range(IN_FLIGHT)])
    done += IN_FLIGHT
elapsed = time.perf_counter() - start
file.close()
print(json.dumps({"operation": OPERATION, "in_flight": IN_FLIGHT, "per_s": round(done / elapsed)}))
