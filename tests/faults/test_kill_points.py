"""kill -9 of a worker at every place in the engine that has a name."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import places
from tests.faults.app import expected, expected_load, load, program
from tests.faults.fleet import Fleet, eventually, host
from tests.faults.report import Report

ELSEWHERE = {
    "suspect.before": "test_a_worker_that_dies_while_it_looks_into_a_reduction_leaves_that_to_the_next",
    "suspect.after": "test_a_worker_that_dies_while_it_looks_into_a_reduction_leaves_that_to_the_next",
    "clear.before": "test_a_worker_that_dies_right_after_a_reduction_it_was_wary_of_has_committed_it",
    "clear.after": "test_a_worker_that_dies_right_after_a_reduction_it_was_wary_of_has_committed_it",
    "apart.before": "test_a_worker_that_dies_while_it_keeps_two_suspects_apart_leaves_both_to_be_run",
    "apart.after": "test_a_worker_that_dies_while_it_keeps_two_suspects_apart_leaves_both_to_be_run",
    "exit.before": "test_a_parent_that_dies_while_it_buries_its_child_leaves_that_to_the_fleet",
    "exit.after": "test_a_parent_that_dies_while_it_buries_its_child_leaves_that_to_the_fleet",
    "resolve.before": "test_a_verdict_given_by_a_process_that_dies_holds_or_can_be_given_again",
    "resolve.after": "test_a_verdict_given_by_a_process_that_dies_holds_or_can_be_given_again",
}
"""Places that no healthy run passes, or no worker, and the tests that kill there."""
PLACES = places.ENGINE
PASSED = [place for place in PLACES if place not in ELSEWHERE]
OFTEN = {"advance", "claim", "settle", "commit", "publish", "sweep", "reclaim"}


def test_the_places_were_found_in_the_source() -> None:
    assert {"claim.before", "commit.after", "settle.before", "sweep.before"} <= set(places.ENGINE)
    assert {"enqueue.before", "signal.after", "event.before", "resume.after"} <= set(places.CLIENT)


@pytest.mark.scenario(2, 16)
@pytest.mark.timeout(60)
def test_an_error_at_every_place_in_one_worker_that_lives_on_costs_no_step_and_no_run(
    fleet: Fleet, seed: int, evidence: Callable[..., None], report: Report
) -> None:
    """The worse case: nobody is declared dead, so nobody else may take what this worker has claimed and dropped."""
    chance = random.Random(seed)
    armed = {place: chance.randint(1, 4) if place.partition(".")[0] in OFTEN else 1 for place in PASSED}
    run = fleet.enqueue(program, 3, answer=11)
    worker = fleet.start(
        "one", environment={"PICKAXE_FAILPOINTS": ",".join(f"{place}=raise@{time}" for place, time in armed.items())}
    )
    assert fleet.results([run]) == [expected(3, 11)]
    verdict = fleet.check()
    assert not worker.has_died()
    hit = [place for place in PASSED if f"failpoint {place}" in worker.text()]
    evidence(f"raised at {len(hit)} of {len(PASSED)} places; not at {sorted(set(PASSED) - set(hit))}")
    assert len(hit) > len(PASSED) / 2
    report(hits=len(hit), verdict=verdict)


@pytest.mark.scenario(44)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["claim.after", "settle.before", "commit.after"])
def test_a_killed_worker_is_replaced_within_seconds_at_the_default_settings(
    services: Any, tmp_path: Path, evidence: Callable[..., None], place: str, report: Report
) -> None:
    with Fleet(services.database_url, services.redis_url, tmp_path, settings={}) as fleet:
        victim = fleet.start("victim", environment={"PICKAXE_FAILPOINTS": f"{place}=kill@2"})
        heir = fleet.start("heir", queues="nothing")
        run = fleet.enqueue(load, 2)
        eventually(victim.has_died, f"the victim dies at {place}")
        died = time.monotonic()
        fleet.client.publisher  # noqa: B018 - makes the app that the next line needs
        fleet.client._app.control.add_consumer("agents", destination=[f"heir@{host()}"])
        fleet.client._app.control.add_consumer("tools", destination=[f"heir@{host()}"])
        assert fleet.results([run]) == [expected_load(2)]
        evidence(f"pid {victim.pid} died at {place}; pid {heir.pid} had finished {time.monotonic() - died:.1f} s later")
        report(hits=1, verdict=fleet.check())


@pytest.mark.slow
@pytest.mark.scenario(2)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", PASSED)
def test_a_worker_that_is_killed_there_costs_no_step_and_no_run(
    fleet: Fleet, seed: int, evidence: Callable[..., None], place: str, report: Report
) -> None:
    time_of_death = random.Random(seed).randint(1, 8) if place.partition(".")[0] in OFTEN else 1
    run = fleet.enqueue(program, 3, answer=11)
    victim = fleet.start("victim", environment={"PICKAXE_FAILPOINTS": f"{place}=kill@{time_of_death}"})
    eventually(victim.has_died, f"the victim dies at {place}")
    assert victim.process.returncode == -9
    evidence(f"pid {victim.pid} died at {place}, time {time_of_death}, running {[e.key[37:] for e in fleet.running()]}")
    fleet.start("heir")
    assert fleet.results([run]) == [expected(3, 11)]
    report(hits=1, verdict=fleet.check())
