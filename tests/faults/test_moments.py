"""Everything that can come between two things, comes between them: signals, timers, children, cancels, one by one.

Who comes first holds the row, and who comes second is seen to wait for it, before either goes on.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from pickaxe._states import StepState
from pickaxe.client import Run
from pickaxe.engine import _cancellation
from pickaxe.errors import ResolveError
from tests.faults.app import ask_in_time
from tests.faults.audit import Barrier
from tests.faults.fleet import Fleet
from tests.faults.moments import ROUNDS, Moments, adds_two, hears, hears_two
from tests.faults.report import Report

SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]
TIMES = [pytest.param(100, id="100"), pytest.param(10_000, id="10000", marks=SLOW)]
FEWER = [pytest.param(100, id="100"), pytest.param(1_000, id="1000", marks=SLOW)]
PARK, SIGNAL, FIRE = "commit_reduction", "send_signal", "pickaxe.settle"
"""Words of the statements that park a run, send it a signal, and fire its timer."""


@pytest.fixture
def moments(fleet: Fleet) -> Iterator[Moments]:
    moments = Moments(fleet)
    yield moments
    moments.close()


# A signal, and the statement that parks its run.


def between(moments: Moments, _barrier: Barrier, run: Run[Any], send: Callable[[], bool]) -> None:
    """After the log was read, before the statement is sent."""
    moments.database.before = ("commit", send)
    moments.reduce(run)


def before(moments: Moments, barrier: Barrier, run: Run[Any], send: Callable[[], bool]) -> None:
    """While the signal is being written: the parking statement has come, and waits for it."""
    moments.in_order(barrier, send, partial(moments.reduce, run))


def during(moments: Moments, barrier: Barrier, run: Run[Any], send: Callable[[], bool]) -> None:
    """While the run is being parked: the signal has come, and waits for that."""
    moments.in_order(barrier, partial(moments.reduce, run), send)


def after(moments: Moments, _barrier: Barrier, run: Run[Any], send: Callable[[], bool]) -> None:
    """As soon as it is parked."""
    moments.reduce(run)
    send()


@pytest.mark.scenario(22)
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(("place", "holds"), [(between, PARK), (before, SIGNAL), (during, PARK), (after, PARK)])
def test_a_signal_at_this_moment_of_parking_wakes_its_run_and_is_taken_once(
    moments: Moments, report: Report, place: Callable[..., None], holds: str, times: int
) -> None:
    with moments.barrier("run", holds) as barrier:
        for start in range(0, 2 * times, 2 * ROUNDS):
            run, numbers = moments.fleet.enqueue(hears, 2 * ROUNDS), range(start, start + 2 * ROUNDS)
            for number in numbers[::2]:
                run.signal("answer", number)  # so that there is something to reduce
                place(moments, barrier, run, partial(run.signal, "answer", number + 1))
                row = moments.row(run)
                # Whoever parks it looks at once at what came meanwhile.
                assert row.state != "waiting" or row.head == row.wake, f"nobody would look at signal {number}: {row}"
            moments.reduce(run)
            assert run.result(timeout=5) == list(numbers)
    report(hits=times, verdict=moments.fleet.check())


# A signal, and the instant at which the wait for it times out.


def signal_holds(moments: Moments, barrier: Barrier, run: Run[Any], send: Callable[[], bool]) -> str:
    """The timer fires while the signal is being written."""
    moments.in_order(barrier, send, moments.fire)
    return "in time"


def timer_holds(moments: Moments, barrier: Barrier, run: Run[Any], send: Callable[[], bool]) -> str:
    """The signal comes while the timer fires."""
    moments.in_order(barrier, moments.fire, send)
    return "late"


def signal_during_time_out(moments: Moments, _barrier: Barrier, run: Run[Any], send: Callable[[], bool]) -> str:
    """The signal comes when the reduction that sees the time-out has read its log, and has not written yet."""
    assert moments.fire() == 1
    moments.database.before = ("commit", send)
    moments.reduce(run)
    return "late"


def time_out_during_signal(moments: Moments, _barrier: Barrier, run: Run[Any], send: Callable[[], bool]) -> str:
    """The timer fires when the reduction that sees the signal has read its log, and has not written yet."""
    send()
    moments.database.before = ("commit", moments.fire)
    moments.reduce(run)
    return "in time"


@pytest.mark.scenario(22)
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(
    ("place", "holds"),
    [(signal_holds, SIGNAL), (timer_holds, FIRE), (signal_during_time_out, PARK), (time_out_during_signal, PARK)],
)
def test_at_the_instant_of_the_time_out_whoever_came_first_has_won_and_the_other_is_not_lost(
    moments: Moments, report: Report, place: Callable[..., str], holds: str, times: int
) -> None:
    with moments.barrier("run", holds) as barrier:
        for number in range(times):
            run = moments.fleet.enqueue(ask_in_time, 3600)
            moments.reduce(run)
            moments.due(run)
            when = place(moments, barrier, run, partial(run.signal, "answer", number))
            moments.reduce(run)
            assert run.result(timeout=5) == [when, number]
    report(hits=times, verdict=moments.fleet.check())


LATE = """
SELECT coalesce(t.seq < s.seq, false) FROM pickaxe.step t JOIN pickaxe.signal s ON s.run_id = t.run_id
WHERE t.run_id = %s AND t.kind = 'timer' AND s.name = 'answer'
"""
"""Whether the log has the time-out before the signal."""


@pytest.mark.scenario(22)
@pytest.mark.parametrize("times", TIMES)
def test_a_signal_and_a_time_out_that_both_wait_for_a_run_being_parked_count_in_the_order_of_the_log(
    moments: Moments, report: Report, times: int
) -> None:
    won: Counter[str] = Counter()
    with moments.barrier("run", PARK) as barrier:
        for number in range(times):
            run = moments.fleet.enqueue(ask_in_time, 3600)
            moments.reduce(run)
            moments.due(run)
            run.signal("nobody asks for this")  # so that it is parked once more, with its timer due
            acts = [partial(run.signal, "answer", number), moments.fire]
            moments.in_order(barrier, partial(moments.reduce, run), *(acts if number % 2 else reversed(acts)))
            moments.reduce(run)
            [(is_late,)] = moments.fleet.query(LATE, run.id)
            won["late" if is_late else "in time"] += 1
            assert run.result(timeout=5) == ["late" if is_late else "in time", number]
    report(hits=min(won["late"], won["in time"]), verdict=moments.fleet.check())


# The last two of a gather, in lockstep.


@pytest.mark.scenario(23)
@pytest.mark.parametrize("times", FEWER)
def test_the_last_two_children_that_end_in_lockstep_wake_their_parent_once(
    moments: Moments, report: Report, times: int
) -> None:
    with moments.barrier("run", PARK, "NEW.state = 'succeeded'") as barrier:
        for number in range(times):
            run, children = two_parked(moments)
            for child in children:
                child.signal("answer", number)
            moments.messages(run)
            moments.at_once(barrier, *(partial(moments.reduce, child) for child in children))
            assert moments.messages(run) == 1, "its message was not sent, or twice"
            assert (moments.row(run).wake, str(moments.row(run).state)) == (1, "ready")
            moments.reduce(run)
            assert run.result(timeout=5) == [[number], [number]]
    report(hits=times, verdict=moments.fleet.check())


def two_parked(moments: Moments) -> tuple[Run[Any], list[Run[Any]]]:
    """A run that waits for its two children, which wait for an answer each."""
    run = moments.fleet.enqueue(hears_two)
    moments.reduce(run)
    children = moments.children(run)
    for child in children:
        moments.reduce(child)
    return run, children


@pytest.mark.scenario(23)
@pytest.mark.parametrize("times", FEWER)
def test_the_last_two_calls_that_end_in_lockstep_wake_their_run_once(
    moments: Moments, report: Report, times: int
) -> None:
    moments.store.register_worker("worker", name="worker", pid=1, handles=[])
    with moments.barrier("step", "pickaxe.settle", "NEW.kind = 'gather'") as barrier:
        for _ in range(times):
            run = moments.fleet.enqueue(adds_two)
            moments.reduce(run)
            keys = [step.key for step in moments.store.view_steps(uuid.UUID(run.id)) if step.kind == "tool"]
            for key in keys:
                assert moments.store.claim(uuid.UUID(run.id), key, 1, "worker", grace=2)
            settled = moments.in_order(barrier, *(partial(settle, moments, run, key) for key in keys))
            assert [s.accepted for s in settled] == [True, True]
            assert [s.woken for s in settled] == [False, True]
            assert not settle(moments, run, keys[0]).accepted, "a second result was taken"
            moments.reduce(run)
            assert run.result(timeout=5) == 6
    report(hits=times)


def settle(moments: Moments, run: Run[Any], key: str) -> Any:
    return moments.store.settle(
        uuid.UUID(run.id), key, StepState.SUCCEEDED, origin=[StepState.RUNNING], output="3", attempt=1, owner="worker"
    )


# A child that ends, and its cancellation.


@pytest.mark.scenario(23)
@pytest.mark.parametrize("times", FEWER)
@pytest.mark.parametrize("force", [True, False], ids=["forced", "told"])
@pytest.mark.parametrize("cancel_first", [True, False], ids=["cancel first", "end first"])
def test_a_child_that_ends_while_it_is_cancelled_ends_one_way_and_its_parent_hears_of_that_once(
    moments: Moments, report: Report, cancel_first: bool, force: bool, times: int
) -> None:
    cancelled = cancel_first and force  # who is only told has got its answer before that, and so ends as if it were not
    with moments.barrier("run", "cancel_run" if cancel_first else PARK) as barrier:
        for number in range(times):
            run, [first, second] = two_parked(moments)
            first.signal("answer", number)
            acts = [partial(first.cancel, force=force), partial(moments.reduce, first)]
            moments.in_order(barrier, *(acts if cancel_first else reversed(acts)))
            moments.reduce(first)
            assert first.status == ("cancelled" if cancelled else "succeeded")
            second.signal("answer", number)
            moments.reduce(second)
            moments.reduce(run)
            assert run.result(timeout=5) == ["ChildRunError" if cancelled else [number], [number]]
            assert moments.row(run).wake == 1
    report(hits=times, verdict=moments.fleet.check())


@pytest.mark.scenario(23)
@pytest.mark.parametrize("times", FEWER)
@pytest.mark.parametrize("cancelled", [True, False], ids=["cancel first", "end first"])
def test_a_child_that_ends_while_its_parent_is_cancelled_changes_nothing_for_that(
    moments: Moments, report: Report, cancelled: bool, times: int
) -> None:
    with moments.barrier("step", "cancel_run" if cancelled else PARK, "NEW.kind IN ('gather', 'child')") as barrier:
        for number in range(times):
            run, [first, second] = two_parked(moments)
            first.signal("answer", number)
            cancel = partial(run.cancel, "enough", force=True)
            acts = [cancel, partial(moments.reduce, first)]
            moments.in_order(barrier, *(acts if cancelled else reversed(acts)))
            assert run.status == "cancelled"
            assert first.status == "succeeded"
            moments.reduce(second)
            assert second.status == "cancelled", "it was told with its parent"
            wake = moments.row(run).wake
            moments.reduce(run)
            assert moments.row(run).wake == wake
            assert [str(s.state) for s in moments.store.view_steps(uuid.UUID(run.id)) if s.kind == "gather"] == [
                "cancelled"
            ]
    report(hits=times, verdict=moments.fleet.check())


@pytest.mark.scenario(23)
def test_whatever_is_tried_with_a_child_that_is_done_is_refused_and_changes_nothing(
    moments: Moments, report: Report
) -> None:
    run, children = two_parked(moments)
    for number, child in enumerate(children):
        child.signal("answer", number)
        moments.reduce(child)
    child, steps = children[0], moments.store.view_steps(uuid.UUID(run.id))
    [key] = [s.key for s in steps if s.kind == "child"][:1]
    known = "SELECT s::text FROM pickaxe.step s ORDER BY 1", "SELECT r::text FROM pickaxe.run r ORDER BY 1"
    before = [moments.fleet.query(query) for query in known]
    for retry in (partial(run.retry, key), partial(child.retry, "answer#1"), partial(run.resolve, key, again=True)):
        with pytest.raises(ResolveError, match="is succeeded"):
            retry()
    assert not child.retry()
    assert not child.cancel()
    assert not child.cancel(force=True)
    assert not child.signal("answer", 3)
    for _ in range(3):  # its message, delivered again and again
        moments.reduce(child)
    assert moments.store.claim(uuid.UUID(run.id), key, 1, "worker", grace=2) is None
    assert _cancellation.cancel(moments.engine, uuid.UUID(child.id), reason="its parent no longer waits") is False
    assert [moments.fleet.query(query) for query in known] == before
    moments.reduce(run)
    assert run.result(timeout=5) == [[0], [1]]
    report(hits=10, verdict=moments.fleet.check())
