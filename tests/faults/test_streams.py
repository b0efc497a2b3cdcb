"""A run's stream, while workers die and readers go away and come back."""

from __future__ import annotations

import pytest

from tests.faults.app import expected_load, load, one_slow
from tests.faults.fleet import Fleet, eventually
from tests.faults.report import Report


@pytest.mark.timeout(60)
@pytest.mark.scenario(39)
def test_a_reader_sees_each_attempt_of_a_call_whose_worker_died_and_no_mixture_of_both(
    fleet: Fleet, report: Report
) -> None:
    run = fleet.enqueue(one_slow, 1.0)
    victim = fleet.start("victim")
    eventually(fleet.running, "the body runs")
    moment = fleet.moment(pid=victim.pid)
    told, stream = [], run.stream()
    while not told or told[-1].state != "running":
        told.append(next(stream))
    victim.kill()
    fleet.start("heir")
    told += list(stream)
    of_call = [(t.attempt, t.state) for t in told if t.name == "slow" or t.state == "lost"]
    begun = [state for _, state in of_call if state in ("running", "lost", "succeeded")]
    assert begun == ["running", "lost", "running", "succeeded"], of_call
    assert [a for a, state in of_call if state == "running"] == [1, 2]
    assert told[-1].state == "succeeded"
    assert len({t.id for t in told}) == len(told), "nothing is told twice"
    report(hits=1, verdict=fleet.check(), recovery=fleet.recovery(moment))


@pytest.mark.timeout(60)
@pytest.mark.scenario(39)
def test_a_reader_that_resumes_by_its_cursor_after_every_transition_misses_and_repeats_nothing(
    fleet: Fleet, report: Report
) -> None:
    run = fleet.enqueue(load, 3, 0.2)
    victim = fleet.start("victim", pool="threads", concurrency=2)
    whole, cursor, killed = [], None, 0
    while True:
        # A new reader for every transition, as a page that is loaded anew.
        transition = next(run.stream(cursor), None)
        if transition is None:
            break
        whole.append(transition)
        cursor = transition.cursor
        if transition.state == "running" and not killed and fleet.running(victim.pid):
            victim.kill()
            killed = victim.pid
            fleet.start("heir", pool="threads", concurrency=2)
    assert fleet.results([run]) == [expected_load(3)]
    ids = [t.id for t in whole]
    assert len(ids) == len(set(ids)), "nothing is told twice"
    assert not [t for t in whole if t.kind == "restarted"]
    # What a reader that was there all along has been told.
    assert {t.id for t in run.stream()} <= set(ids)
    report(hits=len(whole), verdict=fleet.check())


@pytest.mark.timeout(60)
@pytest.mark.scenario(39)
def test_a_reader_misses_and_repeats_nothing_though_redis_loses_the_stream(own_fleet: Fleet, report: Report) -> None:
    """What was lost is filled in from the log; or the reader is told that everything is told again."""
    run = own_fleet.enqueue(load, 3, 0.3)
    own_fleet.start("one", pool="threads", concurrency=2)
    stream, told = run.stream(), []
    while not told or told[-1].state != "running":
        told.append(next(stream))
    lost = own_fleet.client.redis.dbsize()
    own_fleet.client.redis.flushall()
    told += list(stream)
    restarts = [i + 1 for i, t in enumerate(told) if t.kind == "restarted"]
    last = told[restarts[-1] :] if restarts else told
    assert len({t.id for t in last}) == len(last), "nothing is told twice"
    ended = {f"{step.key}:{step.state}" for step in run.steps()}
    assert ended <= {t.id for t in last}, "nothing is missed"
    assert "run:succeeded" in {t.id for t in last}
    report(hits=lost, verdict=own_fleet.check())
