"""The queue as a module of the engine: what it is given, what it registers, what it listens to."""

import trio
from attrs import define, field

from ...config import Live, QueueModuleSettings
from ...engine import Engine, open_local
from ...engine.events import Event, FunctionsChanged
from ...stores import JobLog
from . import functions, management
from .definitions import Keeper
from .operations import Operations
from .queues import Queues, QueuesStatistics
from .subscriptions import CONFIG_FORMAT, DESCRIPTION, TRIGGER_TYPE, Subscriptions


@define(eq=False)
class QueueModule:
    """Named queues and topics (spec/queue.md): at least once, in order per group, on disk before any receipt.

    `log` must belong to this engine alone, and be closed after the module has ended. `keeper` is where definitions made
    at runtime are kept; without one they are kept in the log.
    """

    settings: Live[QueueModuleSettings]
    log: JobLog
    keeper: Keeper | None = None
    _queues: Queues | None = field(default=None, init=False)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started` is called when every stored message is taken in and all is registered.

        Raises `StoreError` when the log cannot be read. Cancelled, it gives its calls up and leaves their messages
        stored; what a handler has answered before is being written down nevertheless.
        """
        async with open_local(core, "queue") as peer, trio.open_nursery() as nursery:
            queues = Queues(
                core=core, peer=peer, log=self.log, settings=self.settings, nursery=nursery, keeper=self.keeper
            )

            def on_event(event: Event) -> None:
                if isinstance(event, FunctionsChanged) and event.available:
                    queues.appeared((event.namespace, event.function_id))

            endings = [
                core.events.tap(on_event),
                core.on_drain(queues.drain),
                queues.close,
            ]
            try:
                await queues.load()
                # not before: queues that are made while the log is being counted would not know what stands in it
                endings.append(self.settings.subscribe(queues.changed))
                self._queues = queues
                functions.register(peer, queues)
                management.register(peer, Operations(queues))
                peer.provide(TRIGGER_TYPE, Subscriptions(queues), description=DESCRIPTION, config_format=CONFIG_FORMAT)
                nursery.start_soon(queues.definitions.move, name="definitions of queues")
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._queues = None
                for end in endings:
                    end()

    def statistics(self) -> QueuesStatistics:
        """A frozen picture of all queues; empty while the module does not run."""
        return QueuesStatistics((), 0, 0) if self._queues is None else self._queues.statistics()
