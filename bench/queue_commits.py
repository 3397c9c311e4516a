"""The limit of a durable queue: the same rows written and removed with the same commits, and nothing else.

usage: queue_commits.py DIRECTORY P SECONDS        prints one JSON line: {"producers","per_s"}
As the engine does it: P messages are appended in one transaction, which is forced to the disk and also removes the P
before them, through the engine's own tables, pragmas and threadless commit: what a queue could do if reading frames,
routing and delivering cost nothing, and every receipt waited for its own commit only.
"""

import json
import sys
import time
from pathlib import Path

from iii_trio.stores import Fsync, NewJob
from iii_trio.stores.desk import Submission
from iii_trio.stores.sqlite_file import open_file

DIRECTORY, PRODUCERS, SECONDS = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
PAYLOAD = b'{"sent":123456789012345,"group":12345,"pad":"' + b"x" * 120 + b'"}'


def submission(work: object) -> Submission:
    """One operation, as a handle would submit it."""
    return Submission(work, lambda _: None, 0, None, writes=True)  # type: ignore[arg-type]


file = open_file(DIRECTORY / "commits.db", Fsync.ALWAYS, check=False)
job = NewJob("i" * 36, "named:bench", "default", "bench::handle", PAYLOAD, 3, 1000, 1, 1, message_id="i" * 36)
handled, start = 0, time.perf_counter()
done: list[int] = []
while time.perf_counter() - start < SECONDS:
    group = [submission(lambda tables: tables.jobs.append([job])) for _ in range(PRODUCERS)]
    endings = [submission(lambda tables, seq=seq: tables.jobs.ack(seq)) for seq in done]
    file.commit([*group, *endings])
    done = [one.result.unwrap()[0].seq for one in group if one.result is not None]
    handled += PRODUCERS
elapsed = time.perf_counter() - start
file.close()
print(json.dumps({"producers": PRODUCERS, "per_s": round(handled / elapsed)}))
