"""The race between result, response channel, client and clock: the table of spec/http.md §12, row by row."""

import pytest

from iii_trio.engine import NOTHING, Outcome
from iii_trio.modules.http.decision import ALWAYS, RACE, Answer, Event, ResponseDecision, Waiting
from iii_trio.protocol import ABSENT, NULL, Json
from iii_trio.protocol.errors import WireError

WAYS = {Waiting.BOTH: (), Waiting.CHANNEL: (Event.NOTHING,), Waiting.CALL: (Event.LOST,)}
"""What leads to each thing that is waited for."""


@pytest.mark.parametrize(
    ("events", "answer"),
    [
        ((Event.BYTES,), Answer.STREAM),
        ((Event.VALUE,), Answer.RESULT),
        ((Event.NOTHING,), None),
        ((Event.NOTHING, Event.BYTES), Answer.STREAM),
        ((Event.NOTHING, Event.CLOSED), Answer.DESCRIBED),
        ((Event.NOTHING, Event.LOST), Answer.DESCRIBED),
        ((Event.NOTHING, Event.UNUSED), Answer.EMPTY),
        ((Event.ERROR,), Answer.FAILED),
        ((Event.CLOSED,), Answer.DESCRIBED),
        ((Event.LOST,), None),
        ((Event.LOST, Event.VALUE), Answer.RESULT),
        ((Event.LOST, Event.NOTHING), Answer.DESCRIBED),
        ((Event.LOST, Event.ERROR), Answer.FAILED),
        ((Event.VALUE, Event.BYTES), Answer.STREAM),
        ((Event.ERROR, Event.BYTES), Answer.STREAM),
        ((Event.BYTES, Event.VALUE), Answer.STREAM),
        ((Event.BYTES, Event.ERROR), Answer.STREAM),
        ((Event.CLOSED, Event.BYTES), Answer.DESCRIBED),
        ((Event.DEADLINE, Event.BYTES), Answer.TIMED_OUT),
        ((Event.UNUSED,), None),
    ],
)
def test_every_row_of_the_race(events: tuple[Event, ...], answer: Answer | None) -> None:
    decision = ResponseDecision(0)
    for event in events:
        decision.feed(event)
    assert decision.answer is answer


@pytest.mark.parametrize("waiting", Waiting)
@pytest.mark.parametrize("event", Event)
def test_every_event_in_every_state_does_what_the_tables_say_and_tells_once(waiting: Waiting, event: Event) -> None:
    decision, steps = ResponseDecision(0), []
    for before in WAYS[waiting]:
        decision.feed(before)
    assert decision.waiting is waiting
    decision.on_step = lambda: steps.append(1)
    decision.feed(event)
    step = ALWAYS.get(event) or RACE.get((waiting, event))
    if isinstance(step, Answer):
        assert decision.answer is step
    else:
        assert (decision.answer, decision.waiting) == (None, step or waiting)
    assert len(steps) == (step is not None)


@pytest.mark.parametrize("first", ALWAYS)
@pytest.mark.parametrize("second", Event)
def test_what_always_decides_decides_for_good(first: Event, second: Event) -> None:
    decision, outcome = ResponseDecision(0), Outcome(Json(b"1"))
    decision.feed(first, outcome)
    decision.feed(second, NOTHING)
    assert (decision.answer, decision.outcome) == (ALWAYS[first], outcome)


def test_an_answer_that_was_taken_is_overtaken_by_nothing() -> None:
    decision = ResponseDecision(0)
    decision.feed(Event.VALUE, Outcome(Json(b"1")))
    assert decision.take() is Answer.RESULT
    decision.feed(Event.BYTES)
    assert decision.answer is Answer.RESULT


def test_outcomes_are_events() -> None:
    answers = []
    for outcome in (Outcome(Json(b"0")), Outcome(NULL), Outcome(ABSENT), Outcome.failed(WireError("no", "x"))):
        decision = ResponseDecision(0)
        decision.feed_outcome(outcome)
        answers.append((decision.answer, decision.waiting))
    assert answers == [
        (Answer.RESULT, Waiting.BOTH),
        (None, Waiting.CHANNEL),
        (None, Waiting.CHANNEL),
        (Answer.FAILED, Waiting.BOTH),
    ]
