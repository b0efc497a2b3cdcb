"""Processes that are declared dead and are not, and processes that are dead and seem not to be."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import psutil
import pytest

from tests.faults.app import expected_load, load, one_slow
from tests.faults.fleet import Fleet, eventually
from tests.faults.report import Report


@pytest.mark.scenario(4)
@pytest.mark.timeout(60)
def test_a_frozen_worker_is_replaced_and_its_late_result_is_refused(
    fleet: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    run = fleet.enqueue(one_slow, 0.6)
    zombie = fleet.start("zombie")
    [frozen] = eventually(fleet.running, "the body runs")
    zombie.send(signal.SIGSTOP)
    fleet.start("heir")
    # The heir must also depose the zombie as the sweeper, for a frozen process keeps its lock.
    assert fleet.results([run]) == [49]
    [second] = [e for e in fleet.entries("start") if e.pid != zombie.pid]
    zombie.send(signal.SIGCONT)
    eventually(lambda: "came too late and was refused" in zombie.text(), "the zombie's result is refused")
    eventually(lambda: "it takes a new name" in zombie.text(), "the zombie takes a new name")
    evidence(f"pid {zombie.pid} froze in attempt {frozen.attempt}; pid {second.pid} ran attempt {second.attempt}")
    report(hits=1, verdict=fleet.check())
    # Under its new name it works again, by itself.
    fleet.workers[1].kill()
    again = fleet.enqueue(one_slow, 0.01)
    assert fleet.results([again]) == [49]
    assert fleet.entries("start")[-1].pid == zombie.pid


@pytest.mark.scenario(4)
@pytest.mark.timeout(60)
def test_a_worker_frozen_again_and_again_under_load_costs_nothing(
    fleet: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    runs = fleet.enqueue_many(load, [(n, 0.2) for n in range(10)])
    zombie = fleet.start("zombie", pool="threads", concurrency=4, wait=False)
    fleet.start("steady", pool="threads", concurrency=4)
    for deaths in (1, 2, 3):
        eventually(lambda: fleet.running(zombie.pid), "the zombie runs something")
        zombie.send(signal.SIGSTOP)
        died = "SELECT count(*) FROM pickaxe.worker WHERE ended = 'died' HAVING count(*) >= %s"
        eventually(partial(fleet.query, died, deaths), "the zombie is declared dead")
        zombie.send(signal.SIGCONT)
        eventually(partial(zombie.has_said, "it takes a new name", deaths), "it takes a new name")
        runs += fleet.enqueue_many(load, [(n, 0.2) for n in range(10, 14)])
    assert sorted(fleet.results(runs)) == sorted(expected_load(n) for n in [*range(10), *list(range(10, 14)) * 3])
    report(hits=deaths, verdict=fleet.check())
    evidence(f"declared dead {deaths} times, refused {zombie.text().count('came too late')} results")


@pytest.mark.scenario(4)
@pytest.mark.timeout(60)
def test_workers_that_were_all_frozen_at_once_do_not_declare_each_other_dead(
    fleet: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    run = fleet.enqueue(one_slow, 12.0)
    workers = [fleet.start(f"worker{n}") for n in range(3)]
    eventually(fleet.running, "the body runs")
    silent = "SELECT count(*) FROM pickaxe.worker WHERE beat_at < clock_timestamp() - interval '{} s'"
    for _ in range(3):
        for worker in workers:
            worker.send(signal.SIGSTOP)
        eventually(lambda: fleet.query(silent.format(2.5)) == [(3,)], "all are silent for longer than the living are")
        for worker in workers:
            worker.send(signal.SIGCONT)
        eventually(lambda: fleet.query(silent.format(1)) == [(0,)], "they beat again, or are declared dead")
        assert fleet.query("SELECT count(*) FROM pickaxe.worker WHERE ended = 'died'") == [(0,)]
    assert fleet.results([run]) == [49]
    assert len(fleet.entries("start")) == 1
    report(hits=3, verdict=fleet.check())
    evidence("three workers were frozen together three times, and none of them was declared dead")


@pytest.mark.scenario(8)
@pytest.mark.timeout(60)
def test_a_sweeper_that_is_killed_is_replaced_at_once_with_the_children_it_had_forked(
    fleet: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    # Not to be mistaken for one that has only fallen silent.
    environment = {"PICKAXE_VANISHED_AFTER": "3600"}
    leader = fleet.start("leader", pool="prefork", concurrency=1, environment=environment)
    eventually(lambda: leader.has_said("this process sweeps from now on"), "it sweeps")
    # A child that is forked now inherits whatever its parent has open, the connection that holds the lock included.
    [child] = psutil.Process(leader.pid).children()
    child.kill()
    eventually(
        lambda: [c for c in psutil.Process(leader.pid).children() if c.pid != child.pid], "another takes its place"
    )
    run = fleet.enqueue(one_slow, 15)
    [body] = eventually(fleet.running, "the new child runs a call")
    assert body.pid not in (child.pid, leader.pid)
    heir = fleet.start("heir", environment=environment)
    os.kill(leader.pid, signal.SIGKILL)
    eventually(lambda: heir.has_said("this process sweeps from now on"), "the heir sweeps")
    assert [entry.pid for entry in fleet.running()] == [body.pid], "it had to wait for the child to end"
    evidence(f"pid {leader.pid} died while its child {body.pid} ran a call; pid {heir.pid} swept before that was over")
    assert fleet.results([run]) == [49]
    report(hits=1, verdict=fleet.check())
