"""What operators do with queues: redrive and discard dead letters, purge, pause, forget a subscriber (§5.4, §6).

Each is a chain of operations on the log, a page at a time, so that a hundred thousand messages stop nothing else. A page
counts when it stands on disk; an error in the middle is answered, and leaves what was done before it done.
"""

from collections.abc import Callable, Iterator
from typing import Final

from attrs import define

from ...protocol.errors import WireError
from ...stores import Done, Failed, Job, OnDone, Result, Trimmed
from .dispatch import ENDED, ActiveQueue
from .lanes import Target
from .names import Kind, QueueKey
from .queues import PAGE, PAUSED_NOTE, Queues

QUEUE_NOT_FOUND: Final = "queue_not_found"
SUBSCRIBER_NOT_FOUND: Final = "subscriber_not_found"
SUBSCRIBER_LIVE: Final = "subscriber_live"


@define(eq=False)
class Operations:
    """See the module. Every method answers through `on_done` once all of it stands on disk."""

    queues: Queues

    # -- dead letters -------------------------------------------------------------------------------------------------

    def redrive(self, name: str, on_done: OnDone[int]) -> None:
        """Return the dead letters that there are now to their queues, the oldest first; answers how many."""
        log, clock = self.queues.log, self.queues.core.clock

        def one(queue: ActiveQueue, on_done: OnDone[int]) -> None:
            total = 0

            def counted(result: Result[int]) -> None:
                if isinstance(result, Failed):
                    on_done(result)
                else:
                    page(result.value)

            def page(left: int) -> None:
                def moved(result: Result[list[Job]]) -> None:
                    nonlocal total
                    if isinstance(result, Failed):
                        on_done(result)
                        return
                    for job in result.value:
                        queue.revive(job)
                    total += len(result.value)
                    page(left - len(result.value) if result.value else 0)

                if queue.closed:
                    on_done(ENDED)
                elif left:
                    log.redrive(queue.key.text, min(left, PAGE), clock.wall_ms(), moved)
                else:
                    on_done(Done(total))

            log.dead_count(queue.key.text, counted)

        _each(list(self.queues.resolve(name)), one, on_done)

    def redrive_one(self, name: str, message_id: str, on_done: OnDone[int]) -> None:
        """Return the dead letter of that id to its queue; answers 1, or 0 when there is none."""

        def one(queue: ActiveQueue, on_done: OnDone[int]) -> None:
            def moved(result: Result[Job | None]) -> None:
                if isinstance(result, Failed):
                    on_done(result)
                    return
                if result.value is not None:
                    queue.revive(result.value)
                on_done(Done(int(result.value is not None)))

            self.queues.log.redrive_one(queue.key.text, message_id, self.queues.core.clock.wall_ms(), moved)

        _each(list(self.queues.resolve(name)), one, on_done, enough=1)

    def discard_one(self, name: str, message_id: str, on_done: OnDone[int]) -> None:
        """Drop the dead letter of that id; answers 1, or 0 when there is none."""

        def one(queue: ActiveQueue, on_done: OnDone[int]) -> None:
            def dropped(result: Result[bool]) -> None:
                if isinstance(result, Failed):
                    on_done(result)
                    return
                queue.machine.exhumed(int(result.value))
                self.queues.tidy(queue)
                on_done(Done(int(result.value)))

            self.queues.log.discard(queue.key.text, message_id, dropped)

        _each(list(self.queues.resolve(name)), one, on_done, enough=1)

    def purge_dead(self, name: str, on_done: OnDone[int]) -> None:
        """Drop all dead letters of a queue or topic; answers how many."""
        _each(list(self.queues.resolve(name)), self._purge_dead, on_done)

    def _purge_dead(self, queue: ActiveQueue, on_done: OnDone[int]) -> None:
        total = 0

        def page() -> None:
            if queue.closed:
                on_done(ENDED)
                return
            self.queues.log.trim(queue.key.text, 0, 0, PAGE, dropped)

        def dropped(result: Result[Trimmed]) -> None:
            nonlocal total
            if isinstance(result, Failed):
                on_done(result)
                return
            queue.machine.exhumed(result.value.count)
            total += result.value.count
            if result.value.count == PAGE:
                page()
            else:
                self.queues.tidy(queue)
                on_done(Done(total))

        page()

    # -- live messages ------------------------------------------------------------------------------------------------

    def purge(self, name: str, on_done: OnDone[int]) -> None:
        """Drop what waits or is delayed in a queue or topic; answers how many. What is being handled goes on."""
        queues = list(self.queues.resolve(name))

        def waiting(result: Result[int]) -> None:
            if isinstance(result, Failed) or any(queue.key.kind is Kind.NAMED for queue in queues):
                on_done(result)
            else:
                self._purge_unclaimed(name, result.value, on_done)

        _each([queue for queue in queues if queue.machine.unbegun], self._purge, waiting)

    def _purge(self, queue: ActiveQueue, on_done: OnDone[int]) -> None:
        def purged(result: Result[int]) -> None:
            self.queues.tidy(queue)
            on_done(result)

        queue.purge(PAGE, purged)

    def _purge_unclaimed(self, topic: str, total: int, on_done: OnDone[int]) -> None:
        def removed(result: Result[int]) -> None:
            nonlocal total
            if isinstance(result, Failed):
                on_done(result)
                return
            self.queues.dropped_unclaimed(topic, result.value)
            total += result.value
            if result.value == PAGE:
                page()
            else:
                on_done(Done(total))

        def page() -> None:
            if self.queues.closed:
                on_done(ENDED)
                return
            self.queues.log.remove_unclaimed(QueueKey(Kind.UNCLAIMED, topic).text, PAGE, removed)

        page()

    # -- decisions that stay ------------------------------------------------------------------------------------------

    def pause(self, name: str, paused: bool, on_done: OnDone[bool]) -> None:
        """Stop or resume the deliveries of a queue or topic, over restarts too; answers whether that changed anything.

        Raises `WireError` when there is no queue or topic of that name.
        """
        if not self.queues.known(name):
            raise WireError(f"there is no queue or topic '{name}'", QUEUE_NOT_FOUND)
        named = any(queue.key.kind is Kind.NAMED for queue in self.queues.resolve(name))
        key = Queues.pause_name(QueueKey(Kind.NAMED if named else Kind.UNCLAIMED, name))

        def noted(result: Result[bool]) -> None:
            if isinstance(result, Failed):
                on_done(result)
                return
            changed = (key in self.queues.paused) is not paused
            self.queues.pause(set(self.queues.paused | {key} if paused else self.queues.paused - {key}))
            on_done(Done(changed))

        self.queues.log.note(PAUSED_NOTE, key, b"" if paused else None, noted)

    def forget(self, topic: str, target: Target, on_done: OnDone[int]) -> None:
        """Forget a subscriber that will not come back, with its messages and dead letters; answers how many they were.

        Raises `WireError` when there is no such subscriber, or when it is there.
        """
        queue = self.queues.destination(topic, target)
        if queue is None:
            text = f"topic '{topic}' has no subscriber '{target[1]}' in namespace '{target[0]}'"
            raise WireError(text, SUBSCRIBER_NOT_FOUND)
        if queue.shares:
            text = (
                f"'{target[1]}' is subscribed to topic '{topic}' at this moment by {len(queue.shares)} trigger(s): "
                "unregister them, or stop the worker, before it is forgotten"
            )
            raise WireError(text, SUBSCRIBER_LIVE)
        total, remembered = 0, queue.remembered

        def forgotten(result: Result[bool]) -> None:
            if isinstance(result, Failed):
                if remembered:
                    self.queues.remember_again(queue)
                on_done(result)
            else:
                self._purge(queue, purged)

        def purged(result: Result[int]) -> None:
            nonlocal total
            if isinstance(result, Failed):
                on_done(result)
                return
            total = result.value
            self._purge_dead(queue, buried)

        def buried(result: Result[int]) -> None:
            on_done(Done(total + result.value) if isinstance(result, Done) else result)

        self.queues.forget(queue, forgotten)


def _each(
    queues: list[ActiveQueue],
    operation: Callable[[ActiveQueue, OnDone[int]], None],
    on_done: OnDone[int],
    enough: int | None = None,
) -> None:
    """Do something with one queue after the other and answer the sum; stops when that is `enough`, or at an error."""
    left: Iterator[ActiveQueue] = iter(queues)
    total = 0

    def go_on() -> None:
        queue = next(left, None)
        if queue is None or (enough is not None and total >= enough):
            on_done(Done(total))
        elif queue.closed:
            on_done(ENDED)
        else:
            operation(queue, done)

    def done(result: Result[int]) -> None:
        nonlocal total
        if isinstance(result, Failed):
            on_done(result)
            return
        total += result.value
        go_on()

    go_on()
