"""Redis emptied and restarted, Postgres crashed: under load, with calls running."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pickaxe.embedded import Services
from pickaxe.store import Database, migrate
from tests.faults.app import expected, expected_load, load, one_slow, program
from tests.faults.fleet import Fleet, eventually, patiently


@pytest.fixture
def own_services() -> Iterator[Services]:
    """Servers of this test's own, to be broken."""
    with Services.start(durable=False) as services:
        database = Database(services.database_url)
        migrate(database)
        database.close()
        yield services


@pytest.fixture
def own_fleet(own_services: Services, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with Fleet(own_services.database_url, own_services.redis_url, tmp_path) as fleet:
        request.node.fleet = fleet
        yield fleet


def under_load(fleet: Fleet) -> list[Any]:
    """Two workers and more runs than they finish soon; returns once bodies are running."""
    runs = fleet.enqueue_many(load, [(n, 0.3) for n in range(16)])
    fleet.start("one", pool="threads", concurrency=4, wait=False)
    fleet.start("two", pool="threads", concurrency=4)
    eventually(lambda: len(fleet.running()) >= 3 and len(fleet.entries("end")) >= 6, "calls are running")
    return runs


def finish(fleet: Fleet, runs: list[Any], more: Any) -> float:
    """All results are right, and everything comes to rest. Returns how long that took."""
    since = time.monotonic()
    assert patiently(more, time.monotonic() + 40) == expected(2, 9)
    assert fleet.results(runs) == [expected_load(n) for n in range(16)]
    spent = time.monotonic() - since
    fleet.check()
    assert all(not worker.has_died() for worker in fleet.workers)
    return spent


@pytest.mark.timeout(60)
def test_an_emptied_redis_costs_seconds_and_no_run(own_fleet: Fleet, evidence: Callable[..., None]) -> None:
    fleet, redis = own_fleet, own_fleet.client.redis
    more = fleet.enqueue(program, 2, answer=9)
    runs = under_load(fleet)
    lost = []
    for _ in range(3):
        lost.append(redis.dbsize())
        redis.flushall()
        fleet.await_more("start")
    evidence(f"flushed three times, with {lost} keys and {len(fleet.running())} bodies running")
    assert all(lost)
    evidence(f"finished {finish(fleet, runs, more):.1f} s later")


@pytest.mark.timeout(60)
def test_a_redis_that_comes_back_empty_costs_seconds_and_no_run(
    own_fleet: Fleet, own_services: Services, evidence: Callable[..., None]
) -> None:
    fleet = own_fleet
    more = fleet.enqueue(program, 2, answer=9)
    runs = under_load(fleet)
    before = own_services.redis.pid
    own_services.redis.stop()
    running = len(fleet.running())
    time.sleep(1.0)  # the length of the outage, not a wait for something
    own_services.redis.start()
    assert own_services.redis.pid != before
    evidence(f"restarted Redis (pid {before} to {own_services.redis.pid}) with {running} bodies running")
    assert running
    evidence(f"finished {finish(fleet, runs, more):.1f} s later")


@pytest.mark.timeout(60)
def test_a_postgres_that_crashes_under_load_costs_seconds_and_no_run(
    own_fleet: Fleet, own_services: Services, evidence: Callable[..., None]
) -> None:
    fleet = own_fleet
    more = fleet.enqueue(program, 2, answer=9)
    runs = under_load(fleet)
    for _ in range(2):
        running, before = len(fleet.running()), own_services.postgres.pid
        own_services.postgres.restart(mode="immediate")
        evidence(f"crashed Postgres (pid {before}) with {running} bodies running")
        fleet.await_more("end")
    evidence(f"finished {finish(fleet, runs, more):.1f} s later")
    buried = fleet.query("SELECT count(*) FROM pickaxe.worker WHERE ended = 'died'")[0][0]
    assert buried == 0, f"{buried} living processes were declared dead because Postgres was away"


@pytest.mark.timeout(60)
def test_a_result_waits_for_a_postgres_that_is_away_for_long(
    own_fleet: Fleet, own_services: Services, evidence: Callable[..., None]
) -> None:
    run = own_fleet.enqueue(one_slow, 1.0)
    own_fleet.start("one")
    eventually(own_fleet.running, "the body runs")
    own_services.postgres.stop(mode="immediate")
    eventually(lambda: own_fleet.entries("end"), "the body ends while Postgres is away")
    time.sleep(7)  # longer than a statement is tried again
    own_services.postgres.start()
    assert own_fleet.results([run]) == [49]
    own_fleet.check()
    starts = own_fleet.entries("start")
    evidence(f"the body ended while Postgres was away for 7 s, and ran {len(starts)} time(s)")
    assert len(starts) == 1
