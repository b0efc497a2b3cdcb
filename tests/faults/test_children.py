"""Trees of runs: cancelled, held back, cut short."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pickaxe.errors import RunCancelledError
from tests.faults.app import capped_kids, detached_kids, endless, expected_load, family, load, tells_and_waits
from tests.faults.fleet import Fleet, eventually
from tests.faults.report import Report


def waiting(fleet: Fleet, agent: str, count: int) -> None:
    query = "SELECT count(*) FROM pickaxe.run WHERE agent = %s AND state = 'waiting'"
    eventually(lambda: fleet.query(query, agent)[0][0] >= count, f"{count} runs of {agent} are parked")


ELSEWHERE = ["cancel.before", "commit.before", "commit.after", "publish.before"]


@pytest.mark.scenario(2, 23)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["cancel.after", *(pytest.param(name, marks=pytest.mark.slow) for name in ELSEWHERE)])
def test_a_cancelled_tree_ends_to_its_last_leaf_though_the_worker_dies_on_the_way(
    fleet: Fleet, evidence: Callable[..., None], place: str, report: Report
) -> None:
    run = fleet.enqueue(family, 3)
    first = fleet.start("first")
    waiting(fleet, "family", 15)
    first.kill()
    victim = fleet.start("victim", environment={"PICKAXE_FAILPOINTS": f"{place}=kill@3"})
    run.cancel("that is enough")
    eventually(victim.has_died, "the victim dies")
    left = fleet.query("SELECT count(*) FROM pickaxe.run WHERE state NOT IN ('cancelled')")[0][0]
    evidence(f"pid {victim.pid} died at {place} with {left} of 15 runs not yet over")
    assert left
    fleet.start("heir")
    with pytest.raises(RunCancelledError, match="that is enough"):
        fleet.results([run])
    report(hits=left, verdict=fleet.check())
    assert fleet.query("SELECT count(*) FROM pickaxe.run WHERE state = 'cancelled'")[0][0] == 15


@pytest.mark.slow
@pytest.mark.scenario(23)
@pytest.mark.timeout(60)
def test_child_runs_go_on_when_the_workers_of_their_parent_and_of_their_own_are_killed_in_turn(
    fleet: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    runs = fleet.enqueue_many(load, [(n,) for n in range(8)])
    for number in range(4):
        worker = fleet.start(f"worker{number}", pool="prefork", concurrency=2)
        fleet.await_more("end", 6)
        running = eventually(fleet.running, "it works")
        worker.kill()
        evidence(f"killed pid {worker.pid} and its children with {len(running)} bodies running")
        assert running
    fleet.start("last", pool="prefork", concurrency=2)
    assert fleet.results(runs) == [expected_load(n) for n in range(8)]
    report(hits=4, verdict=fleet.check())


@pytest.mark.scenario(23)
@pytest.mark.timeout(60)
def test_a_child_that_is_cancelled_while_its_gathers_cap_holds_it_back_still_counts(
    fleet: Fleet, report: Report
) -> None:
    run = fleet.enqueue(capped_kids, 4, 2)
    fleet.start("one")
    waiting(fleet, "endless", 2)
    kids = fleet.client.store.children(run.view().id)
    held = [kid for kid in kids if kid.due is None and kid.state == "ready"]
    assert len(held) == 2
    for kid in held:
        fleet.client.run(kid.id).cancel()
    for kid in kids:
        fleet.client.run(kid.id).cancel()
    assert fleet.results([run]) == [["ChildRunError"] * 4]
    report(hits=len(held), verdict=fleet.check())


@pytest.mark.timeout(60)
def test_a_detached_child_goes_on_and_one_that_was_never_started_ends(fleet: Fleet) -> None:
    run = fleet.enqueue(detached_kids)
    fleet.start("one")
    assert fleet.results([run]) == ["timed out"]
    [left] = eventually(
        lambda: [r for r in fleet.leftovers() if r[1] == "endless"] if len(fleet.leftovers()) == 2 else [],
        "only the detached child is left",
    )
    fleet.client.run(left[0]).signal("never")
    fleet.check()


@pytest.mark.timeout(60)
def test_a_parent_that_waits_for_a_cancelled_child_goes_on_when_that_has_ended(fleet: Fleet) -> None:
    run = fleet.enqueue(tells_and_waits, 5)
    fleet.start("one")
    assert fleet.results([run]) == [5]
    fleet.check()
    assert fleet.query("SELECT state FROM pickaxe.run WHERE agent = 'patient'") == [("cancelled",)]
    assert fleet.query("SELECT state FROM pickaxe.step WHERE name = 'add'") == [("succeeded",)]


@pytest.mark.timeout(60)
def test_a_run_that_is_cancelled_before_it_begins_ends_at_once_and_its_message_does_nothing(fleet: Fleet) -> None:
    run = fleet.enqueue(endless)
    assert run.cancel()
    assert run.status == "cancelled"
    fleet.start("one")
    after = fleet.enqueue(family, 1)
    waiting(fleet, "family", 3)
    assert run.steps() == []
    after.cancel()
    fleet.check()
