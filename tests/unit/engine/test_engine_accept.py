"""The accept loop of the worker port: no file descriptors left, resets, names of tasks, and nothing kept of who has gone."""

import errno
import gc
import logging
import weakref

import pytest
import trio
import trio.testing

from iii_trio.engine import Engine, Listener
from iii_trio.modules.introspection.tasks import task_tree
from iii_trio.testing.raw import RawPort, dial


def names() -> list[str]:
    """The names of all tasks."""
    found, todo = [], [task_tree()]
    while todo:
        node = todo.pop()
        found.append(node["name"])
        todo += node["children"]
    return found


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_without_file_descriptors_it_waits_a_second_and_goes_on(
    core: Engine,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    times: list[float] = []
    really = trio.SocketListener.accept

    async def accept(self: trio.SocketListener) -> trio.SocketStream:
        times.append(trio.current_time())
        if len(times) <= 2:
            raise OSError(code, "no room")
        return await really(self)

    monkeypatch.setattr(trio.SocketListener, "accept", accept)
    listener = Listener(core=core, host="127.0.0.1", port=0)
    await nursery.start(listener.run)
    with caplog.at_level(logging.ERROR):
        await trio.sleep(3)
    assert [round(time - times[0], 3) for time in times] == [0, 1, 2]
    assert [record.message for record in caplog.records] == ["no socket can be accepted for 1 s: no room"] * 2
    worker = await dial(nursery, listener.addresses[0][1])
    await worker.settled()
    nursery.cancel_scope.cancel()


async def test_another_error_of_accept_ends_the_port(core: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def accept(self: trio.SocketListener) -> trio.SocketStream:
        raise OSError(errno.EINVAL, "not listening")

    monkeypatch.setattr(trio.SocketListener, "accept", accept)
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="not listening")):
        await Listener(core=core, host="127.0.0.1", port=0).run()


async def test_every_task_of_the_port_has_a_name_of_ours(core: Engine, nursery: trio.Nursery) -> None:
    listener = Listener(core=core, host="localhost", port=0)
    await nursery.start(listener.run, name="worker port")
    port = listener.addresses[0][1]
    worker = await dial(nursery, port)
    await worker.settled()
    shown = names()
    assert f"accept 127.0.0.1:{port}" in shown
    assert sum(name.startswith("socket 127.0.0.1:") for name in shown) == 1
    assert f"worker {worker.worker_id} writer" in shown
    assert not [name for name in shown if "serve_listeners" in name]
    nursery.cancel_scope.cancel()


async def test_nothing_is_kept_of_a_worker_that_has_gone(
    core: Engine, port: RawPort, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    await nursery.start(port.listener.run)
    worker = await port.connect(name="short-lived")
    await worker.settled()
    peer = core.workers.get(worker.worker_id)
    assert peer is not None
    kept = weakref.ref(peer)
    await trio.sleep(1.5)  # the sweeper has been there
    worker.cut()
    await port.gone(worker)
    del peer
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    assert kept() is None
    nursery.cancel_scope.cancel()
