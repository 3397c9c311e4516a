"""The queue under load for a minute holds as much at the end as at the beginning; `queue_soak.py` does it for longer."""

from pathlib import Path

import pytest
from queue_soak import RETAINED, soak


@pytest.mark.long
async def test_a_minute_of_load_leaves_memory_files_and_tasks_as_they_were(tmp_path: Path) -> None:
    report = await soak(tmp_path, 60)
    text = "\n".join(report.lines())
    assert (report.lost, report.left) == (0, 0), text
    assert report.failed > report.sent / 10, text
    assert report.dead <= RETAINED, text
    before, after = report.quarter(1), report.quarter(3)
    assert after.rss <= before.rss * 1.05 + 2**20, text
    assert after.stored <= before.stored * 1.25 + 2**20, text
    assert after.files <= before.files + 2, text
    assert after.tasks <= before.tasks + 10, text  # consumers come as they are needed, up to the concurrency
