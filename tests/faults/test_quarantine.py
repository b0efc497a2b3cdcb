"""What kills the processes that run it is set aside with its evidence; whatever was next to it goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pickaxe import Run
from pickaxe.errors import RunPausedError
from pickaxe.store import StepView
from tests.faults.effects_app import deadly, neighbours, poisoned, poisoned_gather
from tests.faults.fleet import FAST, Fleet, WorkerProcess, eventually
from tests.faults.report import Report

pytestmark = pytest.mark.usefixtures("watched")

EXITS = {
    "os._exit": "exit status 7", "exit 0": "exit status 0", "segfault": "SIGSEGV", "sigkill": "SIGKILL",
    "memory": "SIGKILL",
}  # fmt: skip


@pytest.fixture
def fleet(services: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A fleet that looks for who is to blame, as it does by default."""
    settings = {name: value for name, value in FAST.items() if name != "PICKAXE_QUARANTINE_AFTER"}
    with Fleet(services.database_url, services.redis_url, tmp_path, settings) as own:
        request.node.fleet = own
        yield own


def set_aside(fleet: Fleet, run: Any, within: float = 30) -> StepView:
    eventually(lambda: [s for s in run.steps() if s.state == "quarantined"], "a step is quarantined", within)
    [step] = [s for s in run.steps() if s.state == "quarantined"]
    return step


def deadly_once(fleet: Fleet) -> Run[str]:
    """A run whose reduction has killed one worker."""
    run = fleet.enqueue(deadly, "sigkill")
    first = fleet.start("first", pool="solo")
    eventually(lambda: run.status == "waiting", "it waits")
    run.signal("go", True)
    eventually(first.has_died, "the first dies of the reduction")
    return run


@contextmanager
def supervised(fleet: Fleet, **options: Any) -> Iterator[list[WorkerProcess]]:
    """A worker that is started again whenever it dies, as an operator's supervisor does."""
    generations = [fleet.start("worker", **options)]
    over = threading.Event()

    def supervise() -> None:
        while not over.wait(0.05):
            if generations[-1].has_died():
                generations.append(fleet.start("worker", wait=False, **options))

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        yield generations
    finally:
        over.set()
        thread.join()


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=pytest.mark.scenario(26 if how == "memory" else 27)) for how in EXITS]
)
def test_a_step_that_kills_its_process_twice_is_quarantined_and_its_worker_and_neighbours_go_on(
    fleet: Fleet, evidence: Callable[..., None], how: str, report: Report
) -> None:
    others = fleet.enqueue_many(neighbours, [(4, 0.3)] * 3)
    run = fleet.enqueue(poisoned, how, 2)
    worker = fleet.start("worker", pool="prefork", concurrency=3)
    step = set_aside(fleet, run)
    assert fleet.results(others) == [6, 6, 6]
    assert not worker.has_died()
    dead = [e.pid for e in fleet.entries("dies")]
    # The reason may come a moment later than the silence.
    eventually(lambda: all(past["exit"] for past in run.steps()[0].history), "the reasons are known")
    [step] = run.steps()
    assert [(past["attempt"], past["ended"], past["exit"], past["alone"]) for past in step.history] == [
        (1, "died", EXITS[how], True), (2, "died", EXITS[how], True),
    ]  # fmt: skip
    assert [int(past["owner"].split()[1]) for past in step.history] == dead
    assert all(past["started"] < past["died"] for past in step.history)
    assert run.status == "waiting"
    assert step.due is None
    # Nobody touches it, until somebody lets it go.
    assert len(fleet.entries("dies")) == 2
    run.retry(step.key)
    assert fleet.results([run]) == ["survived"]
    report(hits=len(dead), verdict=fleet.check())
    evidence(f"{how}: pids {dead} died of it; the worker {worker.pid} and 12 other calls did not notice")


@pytest.mark.scenario(26)
@pytest.mark.timeout(90)
def test_a_tool_that_hits_its_memory_limit_fails_and_kills_nobody(
    fleet: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    run = fleet.enqueue(poisoned, "memory limit")
    worker = fleet.start("worker", pool="prefork", concurrency=2)
    with pytest.raises(Exception, match="MemoryError"):
        fleet.results([run])
    assert not worker.has_died()
    [step] = run.steps()
    assert step.deaths == 0
    report(hits=1, verdict=fleet.check())
    evidence(f"it failed by {step.error['type']}, and no process died")  # type: ignore[index]


@pytest.mark.timeout(90)
def test_a_quarantined_step_can_be_failed_and_its_agent_goes_on_with_that(fleet: Fleet) -> None:
    run = fleet.enqueue(poisoned_gather, "sigkill", 2, 0.1)
    fleet.start("worker", pool="prefork", concurrency=2)
    step = set_aside(fleet, run)
    run.resolve(step.key, failed="this file cannot be converted", by="Ada")
    with pytest.raises(Exception, match="FailedByPerson: this file cannot be converted"):
        fleet.results([run])
    assert next(s for s in run.steps() if s.key == step.key).history[-1]["by"] == "Ada"
    fleet.check_at_rest()


@pytest.mark.timeout(90)
def test_a_step_that_kills_workers_of_one_process_is_quarantined_though_nobody_saw_how_they_died(
    fleet: Fleet, evidence: Callable[..., None]
) -> None:
    run = fleet.enqueue(poisoned, "os._exit")
    with supervised(fleet) as generations:
        step = set_aside(fleet, run)
        assert fleet.results([fleet.enqueue(neighbours, 2, 0.01)]) == [1]
    assert len(fleet.entries("dies")) == 2
    assert [past["exit"] for past in step.history] == [None, None]
    evidence(f"{len(generations) - 1} workers died of it")


@pytest.mark.scenario(27)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("pool", ["custom", "threads"])
def test_among_many_calls_in_one_process_only_the_deadly_one_is_quarantined(
    fleet: Fleet, evidence: Callable[..., None], pool: str, report: Report
) -> None:
    run = fleet.enqueue(poisoned_gather, "os._exit", 12, 0.6)
    others = fleet.enqueue_many(neighbours, [(6, 0.6)] * 3)
    with supervised(fleet, pool=pool, concurrency=40) as generations:
        step = set_aside(fleet, run, within=60)
        assert step.name == "poison_async"
        assert fleet.results(others) == [15, 15, 15]
        eventually(lambda: [s.state for s in run.steps()].count("succeeded") == 12, "its neighbours have ended")
    shared = [past["alone"] for past in step.history]
    left = "SELECT key FROM pickaxe.step WHERE name = 'neighbour' AND state <> 'succeeded'"
    assert not fleet.query(left)
    evidence(
        f"{len(generations) - 1} processes died; it was to blame for {shared}; the 30 others have ended, of whom "
        f"{fleet.query('SELECT count(*) FROM pickaxe.step WHERE deaths > 0')[0][0] - 1} had shared a death with it"
    )
    assert len(fleet.entries("dies")) <= 4
    run.cancel()
    report(hits=len(fleet.entries("dies")), verdict=fleet.check())


@pytest.mark.timeout(90)
def test_workers_that_are_told_to_stop_charge_nobody(fleet: Fleet, evidence: Callable[..., None]) -> None:
    run = fleet.enqueue(neighbours, 1, 3.0)
    for number in range(3):
        worker = fleet.start(
            f"worker{number}", pool="custom", concurrency=2, environment={"PICKAXE_TEST_SOFT_SHUTDOWN": "0.1"}
        )
        eventually(lambda: fleet.running(worker.pid), "it works")  # noqa: B023 - called before the next one
        worker.send(signal.SIGQUIT)
        eventually(worker.has_died, "it ends")
    [step] = [s for s in run.steps() if s.name == "neighbour"]
    assert step.strikes == 0
    fleet.start("last", pool="custom")
    assert fleet.results([run]) == [0]
    evidence(f"cut short 3 times, attempt {step.attempt + 1} ended")
    fleet.check_at_rest()


@pytest.mark.scenario(27)
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("pool", "how"), [
    ("prefork", "sigkill"), ("prefork", "os._exit"), ("solo", "memory"), ("threads", "segfault"),
])  # fmt: skip
def test_a_run_whose_reduction_kills_its_workers_is_paused_and_goes_on_once_its_agent_is_mended(
    fleet: Fleet, evidence: Callable[..., None], pool: str, how: str, report: Report
) -> None:
    run = fleet.enqueue(deadly, how)
    others = fleet.enqueue_many(neighbours, [(3, 0.3)] * 4)
    with supervised(fleet, pool=pool, concurrency=2) as generations:
        eventually(lambda: run.status == "waiting", "it waits")
        run.signal("go", True)
        eventually(lambda: run.status == "paused", "it is paused", within=60)
        assert fleet.results(others) == [3, 3, 3, 3]
        assert fleet.query("SELECT count(*) FROM pickaxe.step WHERE state IN ('quarantined', 'unknown')") == [(0,)]
    with pytest.raises(RunPausedError, match="its agent's code kills the worker processes"):
        run.result(timeout=30)
    dead = [e.pid for e in fleet.entries("dies")]
    noted = run.view().error["deaths"]  # type: ignore[index]
    known = [int(death["owner"].split()[1]) for death in noted]
    # A message that was left over may have had it reduced once more before there was a suspicion.
    assert len(known) == 2
    assert set(known) <= set(dead)
    assert known[-1] == dead[-1]
    evidence(f"{len(dead)} reductions killed pids {dead}, {len(generations) - 1} workers were started again")
    assert len(dead) <= 4
    generations[-1].kill()
    fleet.start("mended", environment={"PICKAXE_TEST_MENDED": "1"})
    assert run.retry()
    assert fleet.results([run]) == ["survived 1"]
    report(hits=len(dead), verdict=fleet.check())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("place", ["suspect.before", "suspect.after"])
def test_a_worker_that_dies_while_it_looks_into_a_reduction_leaves_that_to_the_next(
    fleet: Fleet, evidence: Callable[..., None], place: str
) -> None:
    run = deadly_once(fleet)
    victim = fleet.start("victim", environment={"PICKAXE_FAILPOINTS": f"{place}=kill"})
    eventually(victim.has_died, f"the victim dies at {place}")
    with supervised(fleet) as generations:
        eventually(lambda: run.status == "paused", "it is paused", within=60)
    dead = fleet.entries("dies")
    evidence(f"pid {victim.pid} died at {place}; the reduction itself killed {len(dead)} more, and is paused")
    assert len(dead) <= 4
    generations[-1].kill()
    fleet.start("mended", environment={"PICKAXE_TEST_MENDED": "1"})
    assert run.retry()
    assert fleet.results([run]) == ["survived 1"]
    fleet.check_at_rest()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("place", ["clear.before", "clear.after"])
def test_a_worker_that_dies_right_after_a_reduction_it_was_wary_of_has_committed_it(
    fleet: Fleet, evidence: Callable[..., None], place: str
) -> None:
    run = deadly_once(fleet)
    mended = {"PICKAXE_TEST_MENDED": "1"}
    victim = fleet.start("victim", environment=mended | {"PICKAXE_FAILPOINTS": f"{place}=kill"})
    eventually(victim.has_died, f"the victim dies at {place}")
    fleet.start("heir", environment=mended)
    assert fleet.results([run]) == ["survived 1"]
    evidence(f"pid {victim.pid} died at {place}; the reduction is its, and nobody is charged with it")
    fleet.check_at_rest()


@pytest.mark.scenario(27)
@pytest.mark.timeout(90)
def test_a_child_that_dies_is_buried_by_its_parent_at_once_and_with_the_reason(
    fleet: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    run = fleet.enqueue(neighbours, 1, 1.0)
    # Nobody would be found dead by silence in the time of this test.
    slow = {"PICKAXE_DEAD_AFTER": "3600", "PICKAXE_VANISHED_AFTER": "3600"}
    worker = fleet.start("worker", pool="prefork", concurrency=2, environment=slow)
    [body] = eventually(fleet.running, "the body runs")
    assert body.pid in [child.pid for child in psutil.Process(worker.pid).children()]
    psutil.Process(body.pid).kill()
    assert fleet.results([run]) == [0]
    [(ended, how)] = fleet.query("SELECT ended, exit FROM pickaxe.worker WHERE pid = %s", body.pid)
    assert (ended, how) == ("died", "SIGKILL")
    evidence(f"pid {body.pid}, a child of {worker.pid}, was buried as {how}")
    report(hits=1, verdict=fleet.check())


@pytest.mark.timeout(90)
@pytest.mark.parametrize("place", ["exit.before", "exit.after"])
def test_a_parent_that_dies_while_it_buries_its_child_leaves_that_to_the_fleet(
    fleet: Fleet, evidence: Callable[..., None], place: str
) -> None:
    run = fleet.enqueue(neighbours, 1, 1.0)
    worker = fleet.start("worker", pool="prefork", concurrency=2, environment={"PICKAXE_FAILPOINTS": f"{place}=kill"})
    [body] = eventually(fleet.running, "the body runs")
    psutil.Process(body.pid).kill()
    eventually(worker.has_died, f"the parent dies at {place}")
    fleet.start("heir", pool="custom")
    assert fleet.results([run]) == [0]
    evidence(f"pid {body.pid} was killed, and its parent {worker.pid} at {place}")
    fleet.check_at_rest()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("place", ["apart.before", "apart.after"])
def test_a_worker_that_dies_while_it_keeps_two_suspects_apart_leaves_both_to_be_run(
    fleet: Fleet, evidence: Callable[..., None], place: str
) -> None:
    forgiving = {"PICKAXE_QUARANTINE_AFTER": "0"}
    run = fleet.enqueue(neighbours, 2, 0.5)
    fleet.start("agents", queues="agents", environment=forgiving)
    suspects = "UPDATE pickaxe.step SET strikes = 1, due = now(), sent_at = NULL WHERE name = 'neighbour' RETURNING key"
    eventually(lambda: len(run.steps()) == 3, "both calls are ready")
    assert len(fleet.query(suspects)) == 2
    victim = fleet.start(
        "victim", pool="custom", concurrency=2, queues="tools",
        environment=forgiving | {"PICKAXE_FAILPOINTS": f"{place}=kill"},
    )  # fmt: skip
    eventually(victim.has_died, f"the victim dies at {place}")
    fleet.start("heir", pool="custom", concurrency=2, environment=forgiving)
    assert fleet.results([run]) == [1]
    evidence(f"pid {victim.pid} died at {place}; strikes are now {[s.strikes for s in run.steps()]}")
    fleet.check_at_rest()
