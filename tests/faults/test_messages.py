"""What the broker may do to messages: deliver them again and again, in any order, or never."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.app import expected, expected_load, load, program
from tests.faults.fleet import Fleet
from tests.faults.report import Report


@pytest.mark.scenario(17)
@pytest.mark.timeout(60)
def test_messages_delivered_three_times_and_out_of_order_change_nothing(
    fleet: Fleet, seed: int, evidence: Callable[..., None], report: Report
) -> None:
    runs = [fleet.enqueue(program, n, answer=n) for n in (1, 2)]
    more = fleet.enqueue_many(load, [(n,) for n in range(6)])
    for name in ("one", "two"):
        fleet.start(
            name,
            pool="threads",
            concurrency=4,
            environment={"PICKAXE_TEST_BROKER": "triple", "PICKAXE_TEST_SEED": str(seed)},
        )
    assert fleet.results(runs) == [expected(1, 1), expected(2, 2)]
    assert fleet.results(more) == [expected_load(n) for n in range(6)]
    report(hits=len(fleet.entries("tripled")), verdict=fleet.check())
    tripled = fleet.entries("tripled")
    starts = fleet.entries("start")
    evidence(f"{len(tripled)} messages were sent three times; {len(starts)} bodies ran, each attempt once")
    assert len(tripled) > len(starts) / 2


@pytest.mark.scenario(8)
@pytest.mark.timeout(60)
def test_several_sweepers_at_once_do_no_harm(fleet: Fleet, evidence: Callable[..., None], report: Report) -> None:
    runs = [fleet.enqueue(program, 4, answer=5), *fleet.enqueue_many(load, [(n,) for n in range(6)])]
    fleet.client.redis.flushdb()
    environment = {"PICKAXE_TEST_SWEEPERS": "all", "PICKAXE_TEST_BROKER": "drop", "PICKAXE_REDISPATCH_AFTER": "0.2"}
    workers = [
        fleet.start(name, pool="threads", concurrency=3, environment=environment) for name in ("one", "two", "three")
    ]
    assert fleet.results(runs) == [expected(4, 5), *(expected_load(n) for n in range(6))]
    report(hits=len(fleet.entries("dropped")), verdict=fleet.check())
    sweepers = [w.pid for w in workers if "this process sweeps from now on" in w.text()]
    evidence(f"{len(sweepers)} processes swept at the same time, {len(fleet.entries('dropped'))} messages were dropped")
    assert len(sweepers) == 3


@pytest.mark.scenario(16)
@pytest.mark.timeout(60)
def test_when_every_message_is_lost_the_sweeper_alone_finishes_the_runs(
    fleet: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    runs = [fleet.enqueue(program, 4, answer=5), *fleet.enqueue_many(load, [(n,) for n in range(3)])]
    fleet.client.redis.flushdb()  # the messages that enqueue itself has sent
    for name in ("one", "two"):
        fleet.start(
            name,
            pool="threads",
            concurrency=4,
            environment={"PICKAXE_TEST_BROKER": "drop", "PICKAXE_REDISPATCH_AFTER": "0.2"},
        )
    assert fleet.results(runs) == [expected(4, 5), *(expected_load(n) for n in range(3))]
    report(hits=len(fleet.entries("dropped")), verdict=fleet.check())
    dropped = fleet.entries("dropped")
    evidence(f"{len(dropped)} messages were dropped")
    assert len(dropped) >= len({e.key for e in fleet.entries("start")})
