"""Signals and events at every moment: never lost, never taken twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.app import ask_after, ask_in_time, hear_event
from tests.faults.fleet import Fleet, eventually
from tests.faults.report import Report


@pytest.mark.scenario(22)
@pytest.mark.timeout(60)
def test_a_signal_sent_before_the_run_has_begun_is_taken(fleet: Fleet, report: Report) -> None:
    runs = [fleet.enqueue(ask_in_time, 30, answer=n) for n in range(5)]
    fleet.start("one")
    assert fleet.results(runs) == [["in time", n] for n in range(5)]
    report(hits=len(runs), verdict=fleet.check())


@pytest.mark.scenario(22)
@pytest.mark.timeout(60)
def test_signals_that_race_with_the_commit_that_parks_the_run_are_never_lost(
    fleet: Fleet, seed: int, evidence: Callable[..., None], report: Report
) -> None:
    rounds, chance = 60, random.Random(seed)
    runs = fleet.enqueue_many(ask_after, [(rounds,)] * 6)
    # With a message for each reduction, runs are found in both states often enough.
    plain = {"PICKAXE_CONTINUATION": "plain"}
    fleet.start("one", pool="threads", concurrency=3, wait=False, environment=plain)
    fleet.start("two", pool="threads", concurrency=3, environment=plain)
    states: Counter[str] = Counter()

    def send() -> None:
        for number in range(rounds):
            for run in runs:
                states[str(run.status)] += 1
                run.signal("answer", number)
            time.sleep(chance.uniform(0, 0.004))

    sender = threading.Thread(target=send)
    sender.start()
    results = fleet.results(runs)
    sender.join()
    assert results == [list(range(rounds))] * 6
    report(hits=states["ready"], verdict=fleet.check())
    evidence(f"{sum(states.values())} signals, sent to runs that were {dict(states)}")
    assert states["waiting"] > 0
    assert states["ready"] > 0


@pytest.mark.scenario(22)
@pytest.mark.timeout(60)
def test_at_the_instant_of_the_time_out_a_signal_is_in_time_or_late_and_never_lost(
    fleet: Fleet, seed: int, evidence: Callable[..., None], report: Report
) -> None:
    chance, timeout = random.Random(seed), 0.4
    fleet.start("one", pool="threads", concurrency=4, wait=False)
    fleet.start("two", pool="threads", concurrency=4)
    outcomes: Counter[str] = Counter()
    for _ in range(3):
        runs = [fleet.enqueue(ask_in_time, timeout) for _ in range(12)]
        senders = []
        for run in runs:
            eventually(run.state, "it asks")
            due = fleet.query("SELECT min(due) FROM pickaxe.step WHERE run_id = %s AND kind = 'timer'", run.id)[0][0]
            at = (due.timestamp() if due else time.time()) + chance.gauss(0, 0.03)
            sender = threading.Timer(max(0.0, at - time.time()), run.signal, ["answer", run.id])
            sender.start()
            senders.append(sender)
        for run, (when, answer) in zip(runs, fleet.results(runs), strict=True):
            assert answer == run.id
            outcomes[when] += 1
        for sender in senders:
            sender.join()
    report(hits=min(outcomes["late"], outcomes["in time"]), verdict=fleet.check())
    # A step for every outcome: a wait that was answered in time, or one that was given up and one that was answered.
    taken = fleet.query(
        "SELECT run_id, count(*) FROM pickaxe.step WHERE kind = 'signal' AND state = 'succeeded' GROUP BY 1"
    )
    assert all(count == 1 for _, count in taken)
    assert len(taken) == 36
    evidence(f"the time-out won {outcomes['late']} times, the signal {outcomes['in time']} times")
    assert outcomes["late"] >= 3
    assert outcomes["in time"] >= 3


@pytest.mark.scenario(22)
@pytest.mark.timeout(60)
def test_events_that_race_with_the_wait_for_them_are_heard_by_every_run_once(
    fleet: Fleet, seed: int, evidence: Callable[..., None], report: Report
) -> None:
    chance = random.Random(seed)
    fleet.start("one", pool="threads", concurrency=4, wait=False)
    fleet.start("two", pool="threads", concurrency=4)
    woken = 0
    keys = [f"event-{number}" for number in range(20)]
    runs = []
    for key in keys:
        early = key in keys[::3]
        if early:
            fleet.client.publish_event(key, key)
        runs += fleet.enqueue_many(hear_event, [(key, 60)] * 2)
        time.sleep(chance.uniform(0, 0.02))
        if not early:
            woken += fleet.client.publish_event(key, key)
    assert fleet.results(runs) == [key for key in keys for _ in range(2)]
    report(hits=len(runs) - woken, verdict=fleet.check())
    evidence(f"{woken} of {len(runs)} runs were already waiting, the others looked back")
    assert woken < len(runs)
