"""What the broker may do to messages: deliver them again and again, in any order, or never."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pickaxe.client import Run
from tests.faults.app import expected, expected_load, load, one_slow, program
from tests.faults.fleet import Entry, Fleet, eventually
from tests.faults.report import Report

EVERY_MESSAGE = {"PICKAXE_CONTINUATION": "plain"}
"""Each call and each reduction has a message of its own."""


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
            environment=EVERY_MESSAGE | {"PICKAXE_TEST_BROKER": "triple", "PICKAXE_TEST_SEED": str(seed)},
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
    environment = EVERY_MESSAGE | {
        "PICKAXE_TEST_SWEEPERS": "all", "PICKAXE_TEST_BROKER": "drop", "PICKAXE_REDISPATCH_AFTER": "0.2",
    }  # fmt: skip
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
            environment=EVERY_MESSAGE | {"PICKAXE_TEST_BROKER": "drop", "PICKAXE_REDISPATCH_AFTER": "0.2"},
        )
    assert fleet.results(runs) == [expected(4, 5), *(expected_load(n) for n in range(3))]
    report(hits=len(fleet.entries("dropped")), verdict=fleet.check())
    dropped = fleet.entries("dropped")
    evidence(f"{len(dropped)} messages were dropped")
    assert len(dropped) >= len({e.key for e in fleet.entries("start")})


@pytest.mark.timeout(60)
@pytest.mark.scenario(17)
def test_messages_that_are_delivered_again_long_after_their_runs_have_ended_change_nothing(
    fleet: Fleet, seed: int, report: Report
) -> None:
    chance, redis = random.Random(seed), fleet.client.redis
    runs = [fleet.enqueue(program, 1, answer=1), *fleet.enqueue_many(load, [(n,) for n in range(4)])]
    fleet.start("one", pool="threads", concurrency=4, environment={"PICKAXE_TEST_BROKER": "capture"})
    assert fleet.results(runs) == [expected(1, 1), *(expected_load(n) for n in range(4))]
    fleet.check()
    captured = [(name, body) for name in ("agents", "tools") for body in redis.lrange(f"captured:{name}", 0, -1)]
    chance.shuffle(captured)
    known = "SELECT s::text FROM pickaxe.step s WHERE run_id = ANY(%s::uuid[]) ORDER BY 1"
    ids = [run.id for run in runs]
    before = fleet.query(known, ids)
    for name, body in captured:
        redis.lpush(f"{name}\x06\x164", body)
    eventually(lambda: all(redis.llen(f"{name}\x06\x164") == 0 for name in ("agents", "tools")), "all are taken")
    again = fleet.enqueue_many(load, [(9,)])
    assert fleet.results(again) == [expected_load(9)]
    assert fleet.query(known, ids) == before
    report(hits=len(captured), verdict=fleet.check())


@pytest.mark.timeout(90)
@pytest.mark.scenario(18)
@pytest.mark.parametrize("pool", ["threads", pytest.param("prefork", marks=pytest.mark.slow)])
def test_a_call_that_takes_longer_than_the_brokers_patience_and_comes_again_runs_once(
    fleet: Fleet, report: Report, pool: str
) -> None:
    """Redis notes only what no log knows. Here it notes every message, and so delivers again what takes long."""
    runs, bodies = outlast(fleet, pool, {"PICKAXE_TEST_BROKER": "noted"})
    assert fleet.client.redis.zcard("unacked_index")
    eventually(lambda: deliveries(fleet, bodies) > 3, "it is delivered again", 20)
    assert fleet.results(runs) == [49] * 3
    verdict = fleet.check()
    assert verdict.again == 0
    report(hits=deliveries(fleet, bodies) - 3, verdict=verdict)


@pytest.mark.timeout(90)
@pytest.mark.scenario(18)
def test_a_call_that_takes_longer_than_the_brokers_patience_is_delivered_once(fleet: Fleet, report: Report) -> None:
    runs, bodies = outlast(fleet, "threads", {})
    assert not fleet.client.redis.zcard("unacked_index")
    assert fleet.results(runs) == [49] * 3
    verdict = fleet.check()
    assert (verdict.again, deliveries(fleet, bodies)) == (0, 3)
    report(hits=len([e for e in fleet.entries("end") if e.at > bodies[0].at + 3 * PATIENCE]), verdict=verdict)


PATIENCE = 2


def outlast(fleet: Fleet, pool: str, environment: Mapping[str, str]) -> tuple[list[Run[Any]], list[Entry]]:
    """Three calls that take four times as long as the broker is patient, and their beginnings."""
    for name in ("one", "two"):
        patience = EVERY_MESSAGE | {"PICKAXE_TEST_VISIBILITY": str(PATIENCE)}
        fleet.start(name, pool=pool, concurrency=2, environment={**patience, **environment})
    runs = fleet.enqueue_many(one_slow, [(4.5 * PATIENCE,) for _ in range(3)])
    eventually(lambda: len(fleet.running()) == 3, "the bodies run")
    return runs, fleet.running()


def deliveries(fleet: Fleet, bodies: Sequence[Entry]) -> int:
    """How often the messages of these calls were received, by any worker."""
    return sum(w.text().count(f"{e.key.replace('/', ':')}:1] received") for w in fleet.workers for e in bodies)
