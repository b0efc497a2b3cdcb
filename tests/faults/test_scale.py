"""Many at once: thousands of runs that are ready, running and parked when Redis is emptied; long logs; many timers."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from tests.faults.app import ask_after, endless, kids_at_once, naps, one_slow_async, sized, steps_inline
from tests.faults.fleet import Fleet, eventually
from tests.faults.report import Report


def count(fleet: Fleet, agent: str, state: str) -> int:
    query = "SELECT count(*) FROM pickaxe.run WHERE agent = %s AND state = %s"
    return int(fleet.query(query, agent, state)[0][0])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.scenario(14)
def test_an_emptied_redis_with_ten_thousand_ready_a_thousand_running_and_a_thousand_parked(
    own_fleet: Fleet, report: Report
) -> None:
    fleet = own_fleet
    parked = fleet.enqueue_many(endless, [()] * 1000)
    pool = fleet.start("pool", pool="custom", concurrency=1200, queues="tools")
    agents = [fleet.start(f"agents{n}", queues="agents") for n in range(2)]
    eventually(lambda: count(fleet, "endless", "waiting") == 1000, "a thousand are parked", 120)
    running = fleet.enqueue_many(one_slow_async, [(45.0,)] * 1000)
    eventually(lambda: len(fleet.running(pool.pid)) >= 1000, "a thousand are running", 120)
    ready = fleet.enqueue_many(sized, [(n,) for n in range(10_000)])
    moment, keys = fleet.moment(), fleet.client.redis.dbsize()
    waiting = count(fleet, "sized", "ready")
    fleet.client.redis.flushall()
    for run in parked:
        run.signal("never")
    since = time.monotonic()
    assert fleet.results(ready, 600) == [n + 1 for n in range(10_000)]
    spent = time.monotonic() - since
    assert fleet.results(running, 200) == [49] * 1000
    assert fleet.results(parked, 200) == [None] * 1000
    verdict = fleet.check(within=60)
    report(
        hits=keys, verdict=verdict, recovery=fleet.recovery(moment), ready_when_flushed=waiting, seconds_for_ready=spent
    )
    assert not any(worker.has_died() for worker in [pool, *agents])


@contextmanager
def signalling(runs: list[Any], rounds: int, chance: random.Random, pause: float) -> Iterator[None]:
    def send() -> None:
        for number in range(rounds):
            for run in runs:
                run.signal("answer", number)
            time.sleep(chance.uniform(0, pause))

    senders = [threading.Thread(target=send)]
    for sender in senders:
        sender.start()
    yield
    for sender in senders:
        sender.join()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.scenario(22)
def test_ten_thousand_signals_at_every_moment_of_a_wait_are_each_taken_once(
    fleet: Fleet, seed: int, report: Report
) -> None:
    rounds, runs = 500, fleet.enqueue_many(ask_after, [(500,)] * 20)
    for name in ("one", "two"):
        fleet.start(name, pool="threads", concurrency=3)
    with signalling(runs, rounds, random.Random(seed), 0.05):
        results = fleet.results(runs, 500)
    assert results == [list(range(rounds))] * 20
    report(hits=rounds * 20, verdict=fleet.check())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.scenario(23)
def test_five_hundred_children_that_end_at_once_are_joined_once(fleet: Fleet, report: Report) -> None:
    run = fleet.enqueue(kids_at_once, 500)
    workers = [fleet.start(f"worker{n}", pool="threads", concurrency=4) for n in range(2)]
    eventually(lambda: count(fleet, "hears", "waiting") == 500, "five hundred children wait", 120)
    since = time.monotonic()
    assert fleet.client.publish_event("all of you", 1) == 500
    assert fleet.results([run], 200) == [500]
    report(hits=500, verdict=fleet.check(), seconds=time.monotonic() - since)
    assert not any(worker.has_died() for worker in workers)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.scenario(42)
def test_ten_thousand_parked_runs_cost_a_worker_no_memory_and_redis_no_key(fleet: Fleet, report: Report) -> None:
    worker = fleet.start("one")
    fleet.results(fleet.enqueue_many(sized, [(n,) for n in range(200)]))

    def memory() -> float:
        return psutil.Process(worker.pid).memory_info().rss / 2**20

    def park(number: int) -> None:
        before = count(fleet, "endless", "waiting")
        fleet.enqueue_many(endless, [()] * number)
        eventually(lambda: count(fleet, "endless", "waiting") == before + number, f"{number} more are parked", 300)

    park(1000)
    first, keys = memory(), set(fleet.client.redis.keys("*"))
    park(9000)
    grown = memory() - first

    def new() -> list[str]:
        return [key for key in fleet.client.redis.keys("*") if key not in keys and "stream" not in key]

    # What the worker had taken from a long queue and not begun was sent again, once, and is taken now.
    eventually(lambda: not new(), "no key is left", 5)
    left = fleet.query("SELECT count(*) FROM pickaxe.run WHERE state = 'waiting' AND due IS NOT NULL")[0][0]
    report(hits=10_000, mib_first=first, mib_grown=grown, keys=len(new()))
    assert left == 0
    assert grown < 10, f"{grown:.1f} MiB for 9,000 parked runs"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.scenario(42)
def test_a_hundred_thousand_timers_that_are_due_at_once_all_fire(fleet: Fleet, report: Report) -> None:
    runs = fleet.enqueue_many(naps, [(1000,)] * 100)
    for name in ("one", "two"):
        fleet.start(name)
    due = "SELECT count(*) FROM pickaxe.step WHERE kind = 'timer' AND state = 'waiting'"
    eventually(lambda: fleet.query(due)[0][0] >= 100_000, "they all sleep", 300)
    fleet.query(
        "UPDATE pickaxe.step SET due = clock_timestamp() WHERE kind = 'timer' AND state = 'waiting' RETURNING 1"
    )
    since = time.monotonic()
    assert fleet.results(runs, 400) == [1000] * 100
    report(hits=100_000, verdict=fleet.check(within=60), seconds=time.monotonic() - since)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.scenario(42)
def test_a_run_of_fifty_thousand_steps_is_replayed_in_bounded_memory(fleet: Fleet, report: Report) -> None:
    total = int(os.environ.get("PICKAXE_TEST_STEPS", "50000"))
    run = fleet.enqueue(steps_inline, total)
    first = fleet.start("first")
    eventually(lambda: run.state() == "asleep", "it has made its steps", 800)
    first.kill()
    heir = fleet.start("heir")
    before, since = psutil.Process(heir.pid).memory_info().rss, time.monotonic()
    run.signal("go on")
    assert fleet.results([run], 120) == [total + 1]
    spent = time.monotonic() - since
    grown = (psutil.Process(heir.pid).memory_info().rss - before) / 2**20
    report(hits=total, verdict=fleet.check(), replay_seconds=spent, mib=grown)
    assert grown < 1024
