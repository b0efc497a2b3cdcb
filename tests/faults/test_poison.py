"""Agents, tools and rows that break what touches them: each ends or waits, visibly, and its neighbours go on."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pickaxe.errors import RunFailedError, RunPausedError
from tests.faults.app import chapters, endless, exiting, fails_early, sized, spinning, steps, tool_that_exits
from tests.faults.fleet import Fleet, eventually


def test_an_input_that_no_longer_fits_fails_a_run_that_has_not_begun(fleet: Fleet) -> None:
    run = fleet.enqueue(sized, 1)
    fleet.query("UPDATE pickaxe.run SET input = %s WHERE id = %s RETURNING 1", json.dumps({"n": "no number"}), run.id)
    fleet.start("one")
    with pytest.raises(RunFailedError, match=r"the input of agent 'sized' does not fit: n: .*'no number'"):
        fleet.results([run])
    fleet.check()


def test_an_input_that_no_longer_fits_pauses_a_run_that_has_begun_and_retry_resumes_it(fleet: Fleet) -> None:
    run = fleet.enqueue(endless)
    fleet.start("one")
    eventually(lambda: run.status == "waiting", "it waits")
    set_input = "UPDATE pickaxe.run SET input = %s WHERE id = %s RETURNING 1"
    fleet.query(set_input, json.dumps({"unknown": 1}), run.id)
    run.signal("never")
    with pytest.raises(RunPausedError, match="the input of agent 'endless' does not fit"):
        fleet.results([run])
    fleet.query(set_input, "{}", run.id)
    assert run.retry()
    assert fleet.results([run]) == [None]
    fleet.check()


@pytest.mark.parametrize("agent", [exiting, spinning])
def test_an_agent_that_exits_or_spins_fails_and_leaves_its_worker_alone(fleet: Fleet, agent: object) -> None:
    run = fleet.enqueue(agent)
    worker = fleet.start("one")
    with pytest.raises(RunFailedError, match=r"SystemExit|spins"):
        fleet.results([run])
    assert fleet.results([fleet.enqueue(sized, 1)]) == [2]
    assert not worker.has_died()
    fleet.check()


@pytest.mark.parametrize("pool", ["solo", "prefork", "custom"])
@pytest.mark.parametrize("name", ["exits", "exits_async"])
def test_a_tool_that_exits_fails_and_leaves_its_worker_alone(fleet: Fleet, name: str, pool: str) -> None:
    run = fleet.enqueue(tool_that_exits, name)
    worker = fleet.start("one", pool=pool)
    assert fleet.results([run]) == ["ToolError"]
    assert fleet.results([fleet.enqueue(sized, 1)]) == [2]
    assert not worker.has_died()
    assert [e.attempt for e in fleet.entries("start") if "exits" in e.key] == ["1"]


def test_a_failure_in_a_gather_wakes_the_agent_though_its_chord_is_not_over(fleet: Fleet) -> None:
    """A chord's body comes after all of its calls, and the sweeper would take an hour here."""
    run = fleet.enqueue(fails_early)
    fleet.start("one", pool="threads", concurrency=3, environment={"PICKAXE_REDISPATCH_AFTER": "3600"})
    assert fleet.results([run]) == ["ToolError"]
    assert [str(step.state) for step in run.steps() if step.name == "slow"] == ["cancelled"]


def test_a_reduction_that_breaks_down_says_so_and_is_tried_again_with_a_growing_delay(
    fleet: Fleet, evidence: Callable[..., None]
) -> None:
    run = fleet.enqueue(endless)
    fleet.start("one")
    eventually(lambda: run.status == "waiting", "it waits")
    # Nothing that Pickaxe would write: its own code breaks down over it.
    fleet.query("UPDATE pickaxe.step SET kind = 'unheard of' WHERE run_id = %s RETURNING 1", run.id)
    run.signal("never")
    eventually(lambda: "broke down" in (run.view().reason or ""), "the run says why it does not go on")
    assert "'unheard of' is not a valid StepKind" in (run.view().reason or "")
    dispatches = "SELECT dispatches FROM pickaxe.run WHERE id = %s"
    eventually(lambda: fleet.query(dispatches, run.id)[0][0] >= 4, "it is tried again")
    assert fleet.results([fleet.enqueue(sized, 1)]) == [2]
    fleet.query("UPDATE pickaxe.step SET kind = 'signal' WHERE run_id = %s RETURNING 1", run.id)
    assert fleet.results([run]) == [None]
    assert run.view().reason is None
    fleet.check()
    evidence("the run went on by itself once the row was mended")


def test_chapters_have_steps_and_idempotency_keys_of_their_own(fleet: Fleet) -> None:
    run = fleet.enqueue(chapters, 3)
    fleet.start("one")
    assert fleet.results([run]) == [3 + 2 + 1 + 0 + 4]
    fleet.check()
    assert len({entry.key for entry in fleet.entries("start")}) == 8


def test_a_hundred_steps_in_a_row_never_wait_for_the_sweeper(fleet: Fleet, evidence: Callable[..., None]) -> None:
    fleet.start("one", environment={"PICKAXE_REDISPATCH_AFTER": "3600"})
    fleet.results([fleet.enqueue(steps, 5)])
    run = fleet.enqueue(steps, 100)
    assert fleet.results([run]) == [sum(range(100))]
    [(spent,)] = fleet.query(
        "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM pickaxe.run WHERE id = %s", run.id
    )
    evidence(f"{spent / 100 * 1000:.1f} ms per step")
