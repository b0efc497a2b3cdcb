"""Workers that are told to stop while they work."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from pickaxe.embedded import Services
from tests.faults.app import expected_load, load, one_slow, one_slow_async
from tests.faults.fleet import Fleet, eventually
from tests.faults.report import Report


@pytest.mark.scenario(12, 41)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_a_worker_that_is_told_to_stop_finishes_its_call_while_its_namesake_takes_over(
    fleet: Fleet, evidence: Callable[..., None], pool: str, report: Report
) -> None:
    run = fleet.enqueue(one_slow, 1.5)
    old = fleet.start("same", pool=pool)
    [body] = eventually(fleet.running, "the body runs")
    old.send(signal.SIGTERM)
    more = fleet.enqueue_many(load, [(n,) for n in range(3)])
    new = fleet.start("same", pool=pool)
    assert fleet.results([run]) == [49]
    assert fleet.results(more) == [expected_load(n) for n in range(3)]
    eventually(old.has_died, "the old worker ends")
    evidence(f"pid {old.pid} was told to stop while {body.pid} ran attempt {body.attempt}; {new.pid} has the same name")
    report(hits=1, verdict=fleet.check())
    assert len([e for e in fleet.entries("start") if e.key == body.key]) == 1, "no attempt was burned"
    assert not new.has_died()


@pytest.mark.scenario(41)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("pool", ["prefork", "custom"])
def test_a_cold_shutdown_hands_its_calls_to_another_worker(
    fleet: Fleet, evidence: Callable[..., None], pool: str, report: Report
) -> None:
    run = fleet.enqueue(one_slow_async, 4)
    old = fleet.start("old", pool=pool, concurrency=2, environment={"PICKAXE_TEST_SOFT_SHUTDOWN": "0.2"})
    [body] = eventually(fleet.running, "the body runs")
    new = fleet.start("new", pool=pool, concurrency=2)
    old.send(signal.SIGQUIT)
    [again] = eventually(lambda: [e for e in fleet.entries("start") if e.pid != body.pid], "another worker runs it")
    evidence(f"pid {body.pid} was cut short in attempt {body.attempt}, pid {again.pid} ran attempt {again.attempt}")
    assert fleet.results([run]) == [49]
    eventually(old.has_died, "the old worker ends")
    report(hits=1, verdict=fleet.check())
    assert not new.has_died()


@pytest.mark.scenario(12, 41)
@pytest.mark.timeout(60)
def test_rolling_restarts_under_load_lose_nothing(fleet: Fleet, evidence: Callable[..., None], report: Report) -> None:
    runs = fleet.enqueue_many(one_slow_async, [(1.0,)] * 2)
    generation = [fleet.start(f"worker{i}", pool="threads", concurrency=3) for i in range(2)]
    for _ in range(2):
        for place, old in enumerate(generation):
            # More work than the others can finish while this one is busy with its share.
            runs += fleet.enqueue_many(load, [(n, 0.2) for n in range(8)])
            eventually(partial(fleet.running, old.pid), "it works")
            old.send(signal.SIGTERM)
            generation[place] = fleet.start(old.name, pool="threads", concurrency=3, wait=False)
            eventually(old.has_died, "the old worker ends")
    assert fleet.results(runs) == [49, 49, *[expected_load(n) for n in range(8)] * 4]
    report(hits=4, verdict=fleet.check())
    burned = [e for e in fleet.entries("start") if e.attempt != "1"]
    evidence(f"4 restarts while calls ran; {len(burned)} of {len(fleet.entries('start'))} calls were run again")
    assert not burned


@pytest.mark.timeout(60)
@pytest.mark.scenario(41)
@pytest.mark.parametrize("pool", ["threads", "custom"])
def test_a_worker_that_is_told_to_stop_twice_hands_its_calls_back_at_once_and_burns_no_attempt(
    fleet: Fleet, report: Report, pool: str
) -> None:
    run = fleet.enqueue(one_slow_async, 6)
    old = fleet.start("old", pool=pool, concurrency=2, environment={"PICKAXE_TEST_SOFT_SHUTDOWN": "0.2"})
    [body] = eventually(fleet.running, "the body runs")
    fleet.start("new", pool=pool, concurrency=2)
    old.send(signal.SIGTERM)
    eventually(lambda: old.has_said("Warm shutdown"), "it has heard the first")
    old.send(signal.SIGTERM)
    told = fleet.moment(pid=body.pid)
    eventually(old.has_died, "the old worker ends")
    assert fleet.results([run]) == [49]
    verdict = fleet.check()
    tried = fleet.query("SELECT attempt - deaths FROM pickaxe.step WHERE kind = 'tool'")
    assert tried == [(1,)], "what was cut short is no try of its own"
    report(hits=1, verdict=verdict, recovery=fleet.recovery(told))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.scenario(41)
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_worker_obeys_though_redis_and_postgres_are_gone(
    own_fleet: Fleet, own_services: Services, report: Report, pool: str
) -> None:
    """Once its grace is over: what it could not record is run again by others."""
    own_fleet.enqueue_many(load, [(n, 0.3) for n in range(6)])
    worker = own_fleet.start("one", pool=pool, concurrency=3)
    own_fleet.await_more("end", 2)
    own_services.redis.stop()
    own_services.postgres.stop(mode="immediate")
    worker.send(signal.SIGTERM)
    since = time.monotonic()
    try:
        eventually(worker.has_died, "the worker ends", within=45)
        report(hits=1, ended_within=time.monotonic() - since)
    finally:
        own_services.postgres.start()
        own_services.redis.start()
