"""A worker dies around a tool's effect. What happens to that effect is what its tool's policy says, by the ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pickaxe.store import StepView
from tests.faults.effects_app import one_transfer, pays, pays_many, pays_raising, transfers
from tests.faults.fleet import Fleet, WorkerProcess, eventually
from tests.faults.report import Report, Verdict

pytestmark = pytest.mark.usefixtures("watched")

AROUND = ["claim.after", "effect.before", "effect.after", "settle.before", "settle.after"]
"""Where a worker dies: after the intent, before and after the effect, before and after its result is recorded."""


def effects(fleet: Fleet) -> Counter[str]:
    """How often each call has had its effect."""
    return Counter(entry.key for entry in fleet.entries("effect"))


def step_of(run: Any, name: str) -> StepView:
    return next(step for step in run.steps() if step.name == name)


def aside(run: Any, name: str, state: str = "unknown") -> StepView:
    """The step, once it is set aside."""
    eventually(lambda: [s for s in run.steps() if s.name == name and s.state == state], f"{name} is {state}")
    return step_of(run, name)


def victim_of(fleet: Fleet, place: str, **options: Any) -> WorkerProcess:
    """A worker that dies there: in the payment, not in the step before it."""
    number = 1 if place.startswith(("effect", "transaction")) else 2
    # Every call has a message, a claim and a settling of its own: these are the places to die at.
    environment = {"PICKAXE_FAILPOINTS": f"{place}=kill@{number}", "PICKAXE_CONTINUATION": "plain"}
    return fleet.start("victim", environment=environment, **options)


@pytest.mark.scenario(24)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", AROUND)
def test_an_at_most_once_call_whose_worker_dies_is_unknown_and_goes_on_when_a_person_has_spoken(
    fleet: Fleet, evidence: Callable[..., None], place: str, report: Report
) -> None:
    run = fleet.enqueue(pays, "plain", 50)
    victim = victim_of(fleet, place)
    eventually(victim.has_died, f"the victim dies at {place}")
    fleet.start("heir")
    if place == "settle.after":
        assert fleet.results([run]) == [50]
    else:
        step = aside(run, "pay")
        assert "whether its effect happened is not known" in (step.reason or "")
        assert step.attempt == 1
        assert run.status == "waiting"
        happened = sum(effects(fleet).values())
        evidence(f"pid {victim.pid} died at {place}, the effect had happened {happened} times, the step is unknown")
        if happened:
            run.resolve(step.key, result=50, by="test")
        else:
            run.resolve(step.key, again=True, by="test")
        assert fleet.results([run]) == [50]
    report(hits=1, verdict=fleet.check())
    assert set(effects(fleet).values()) == {1}


@pytest.mark.scenario(24)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", AROUND)
@pytest.mark.parametrize(("which", "name", "pool"), [
    ("checked", "pay_checked", "solo"), ("async", "pay_async", "custom"), ("inline", "pay_inline", "solo"),
])  # fmt: skip
def test_an_at_most_once_call_whose_worker_dies_is_reconciled_and_has_its_effect_once(
    fleet: Fleet, evidence: Callable[..., None], which: str, name: str, pool: str, place: str, report: Report
) -> None:
    run = fleet.enqueue(pays, which, 50)
    at = "commit.after" if (which, place) == ("inline", "claim.after") else place
    victim = victim_of(fleet, at, pool=pool)
    eventually(victim.has_died, f"the victim dies at {at}")
    happened = sum(effects(fleet).values())
    fleet.start("heir", pool=pool)
    # 1001: what the reconcile returns when it finds the effect. Else the body runs again.
    expected = 1001 if happened and place != "settle.after" else 50
    assert fleet.results([run]) == [expected]
    report(hits=1, verdict=fleet.check())
    step = step_of(run, name)
    evidence(
        f"pid {victim.pid} died at {at}, the effect had happened {happened} times; asked {len(asked(fleet))} times"
    )
    assert set(effects(fleet).values()) == {1}
    assert len(asked(fleet)) == (0 if place == "settle.after" else 1)
    assert [past["ended"] for past in step.history] == {
        (False, False): ["died", "did not happen"], (True, False): ["died"], (True, True): [],
    }[bool(happened), place == "settle.after"]  # fmt: skip


@pytest.mark.scenario(24)
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("answers", "expected", "questions"), [
    ("fails twice", 1003, 3),
    ("unsure twice", 1003, 3),
    ("dies once", 1002, 2),
    ("failed", "ToolError: tool 'pay_checked' failed: NonRetryableError: the bank has refused it", 1),
])  # fmt: skip
def test_a_reconcile_is_asked_until_it_knows_though_it_fails_or_its_worker_dies(
    fleet: Fleet, evidence: Callable[..., None], answers: str, expected: Any, questions: int, report: Report
) -> None:
    run = fleet.enqueue(pays, "checked", 50, answers)
    victim = victim_of(fleet, "effect.after")
    eventually(victim.has_died, "the victim dies after its effect")
    heirs = [fleet.start("heir")]
    if answers == "dies once":
        eventually(heirs[0].has_died, "the heir dies in the reconcile")
        heirs.append(fleet.start("another"))
    assert fleet.results([run]) == [expected]
    report(hits=1, verdict=fleet.check())
    evidence(f"asked {len(asked(fleet))} times, by {len({entry.pid for entry in asked(fleet)})} processes")
    assert len(asked(fleet)) == questions
    assert set(effects(fleet).values()) == {1}
    assert len([e for e in fleet.entries("start") if "pay_checked" in e.key]) == 1


@pytest.mark.scenario(24)
@pytest.mark.timeout(60)
def test_a_reconcile_that_kills_its_workers_is_left_to_a_person(
    fleet: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    run = fleet.enqueue(pays, "checked", 50, "dies")
    victim = fleet.start(
        "victim", pool="prefork",
        environment={"PICKAXE_FAILPOINTS": "effect.after=kill", "PICKAXE_QUARANTINE_AFTER": "2"},
    )  # fmt: skip
    eventually(lambda: fleet.entries("effect"), "the victim has had its effect")
    eventually(lambda: aside_for_good(run), "nobody asks any more")
    step = step_of(run, "pay_checked")
    assert "its reconcile kills the worker processes that run it" in (step.reason or "")
    evidence(f"{len(asked(fleet))} question(s) killed children of pid {victim.pid}, which lives")
    assert not victim.has_died()
    run.resolve(step.key, failed="the bank says no")
    assert "the bank says no" in fleet.results([run])[0]
    report(hits=3, verdict=fleet.check())
    assert set(effects(fleet).values()) == {1}


def asked(fleet: Fleet) -> list[Any]:
    return fleet.entries("asked")


def aside_for_good(run: Any) -> bool:
    return any(step.state == "unknown" and step.due is None for step in run.steps())


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("how", "expected", "starts"), [
    ("refused", 3, 3),
    ("later", 2, 2),
    ("broken", "ToolError: tool 'pay_raising' failed: ConnectionResetError: the line went dead in the middle", 1),
])  # fmt: skip
def test_an_at_most_once_call_that_raises_is_repeated_only_after_what_its_retries_name(
    fleet: Fleet, how: str, expected: Any, starts: int
) -> None:
    run = fleet.enqueue(pays_raising, how)
    fleet.start("one")
    assert fleet.results([run]) == [expected]
    assert len(fleet.entries("start")) == starts


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_an_at_most_once_call_that_runs_out_of_time_is_reconciled_whether_or_not_it_can_be_interrupted(
    fleet: Fleet, evidence: Callable[..., None], pool: str
) -> None:
    run = fleet.enqueue(pays, "in time", 50)
    fleet.start("one", pool=pool, concurrency=2)
    assert fleet.results([run]) == [1001]
    fleet.check_at_rest()
    [past] = step_of(run, "pay_in_time").history
    evidence(f"in {pool}: {past['ended']}, {past['message']}")
    assert past["ended"] == "unknown"
    assert set(effects(fleet).values()) == {1}


@pytest.mark.scenario(4)
@pytest.mark.timeout(60)
def test_a_frozen_at_most_once_call_is_reconciled_elsewhere_and_its_own_result_is_refused(
    fleet: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    run = fleet.enqueue(pays, "checked", 50, "look", 0.5)
    zombie = fleet.start("zombie")
    eventually(lambda: fleet.entries("effect"), "the effect has happened")
    zombie.send(signal.SIGSTOP)
    fleet.start("heir")
    assert fleet.results([run]) == [1001]
    zombie.send(signal.SIGCONT)
    eventually(lambda: "came too late and was refused" in zombie.text(), "the zombie's result is refused")
    report(hits=1, verdict=fleet.check())
    evidence(f"pid {zombie.pid} froze after its effect; {asked(fleet)[0].pid} found it; the zombie was refused")
    assert set(effects(fleet).values()) == {1}


@pytest.mark.scenario(41)
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("which", "pool"), [("async", "custom"), ("checked", "prefork")])
def test_an_at_most_once_call_that_a_cold_shutdown_cuts_short_is_reconciled(
    fleet: Fleet, evidence: Callable[..., None], which: str, pool: str, report: Report
) -> None:
    run = fleet.enqueue(pays, which, 50, "look", 20.0)
    old = fleet.start("old", pool=pool, concurrency=2, environment={"PICKAXE_TEST_SOFT_SHUTDOWN": "0.2"})
    eventually(lambda: fleet.entries("effect"), "the effect has happened")
    fleet.start("new", pool=pool, concurrency=2)
    old.send(signal.SIGQUIT)
    assert fleet.results([run]) == [1001]
    eventually(old.has_died, "the old worker ends")
    report(hits=1, verdict=fleet.check())
    ends = [past["ended"] for past in step_of(run, f"pay_{which}").history]
    evidence(f"pid {old.pid} was told to stop after the effect: {ends}")
    assert set(effects(fleet).values()) == {1}


@pytest.mark.timeout(60)
def test_a_call_that_is_set_aside_gives_its_place_in_a_gather_to_the_others(
    fleet: Fleet, evidence: Callable[..., None]
) -> None:
    run = fleet.enqueue(pays_many, [1, 2, 3], 1)
    victim = fleet.start("victim", environment={"PICKAXE_FAILPOINTS": "effect.before=kill"})
    eventually(victim.has_died, "the victim dies before the effect")
    fleet.start("heir")
    eventually(lambda: len(effects(fleet)) == 2, "the others have their effects")
    eventually(lambda: [s.state for s in run.steps() if s.name == "pay"].count("succeeded") == 2, "they have ended")
    step = aside(run, "pay")
    assert "gather" not in [s.state for s in run.steps()]
    evidence(f"{step.key} is unknown, the others have ended within a cap of one")
    run.resolve(step.key, again=True)
    assert fleet.results([run]) == [[1, 2, 3]]
    fleet.check_at_rest()
    assert set(effects(fleet).values()) == {1}


GIVE = """
import sys
from pickaxe.client import Client
from pickaxe import Settings
run = Client(Settings()).run(sys.argv[1])
run.resolve(sys.argv[2], result=50, by="a process that dies")
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("place", "holds"), [("resolve.before", False), ("resolve.after", True), ("publish.before", True)]
)
def test_a_verdict_given_by_a_process_that_dies_holds_or_can_be_given_again(
    fleet: Fleet, services: Any, evidence: Callable[..., None], place: str, holds: bool
) -> None:
    run = fleet.enqueue(pays, "plain", 50)
    victim = victim_of(fleet, "effect.after")
    eventually(victim.has_died, "the victim dies after its effect")
    fleet.start("heir")
    step = aside(run, "pay")
    environment = {**os.environ, **services.environment, "PICKAXE_FAILPOINTS": f"{place}=kill"}
    given = subprocess.run([sys.executable, "-c", GIVE, run.id, step.key], env=environment, timeout=30)
    assert given.returncode == -signal.SIGKILL
    if not holds:
        assert aside(run, "pay").state == "unknown"
        run.resolve(step.key, result=50, by="another")
    assert fleet.results([run]) == [50]
    evidence(f"the person's process died at {place}; {step_of(run, 'pay').history[-1]['by']} decided")
    fleet.check_at_rest()


# Transactional tools: what they do is rows of Pickaxe's own database.


@pytest.fixture
def tables(fleet: Fleet) -> Fleet:
    fleet.execute("CREATE TABLE public.effect (key text, attempt integer, pid integer)")
    fleet.execute("CREATE TABLE public.balance (amount integer NOT NULL)")
    fleet.execute("INSERT INTO public.balance VALUES (0)")
    return fleet


def check_transfers(fleet: Fleet, count: int, total: int) -> Verdict:
    """I4: each call has had its effect once, and nothing of any other attempt is left."""
    verdict = fleet.check()
    rows = fleet.query("SELECT key, attempt FROM public.effect")
    assert len(rows) == len({key for key, _ in rows}) == count
    assert fleet.query("SELECT amount FROM public.balance") == [(total,)]
    recorded = {
        f"{run}/{key}": attempt
        for run, key, attempt in fleet.query(
            "SELECT run_id, key, attempt FROM pickaxe.step WHERE name LIKE 'transfer%%'"
        )
    }
    assert dict(rows) == recorded, "what is committed is the effect of the attempt whose result was recorded"
    return verdict


@pytest.mark.scenario(24)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", [*AROUND, "transaction.before", "transaction.after"])
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_transactional_call_has_its_effect_exactly_once_wherever_its_worker_dies(
    tables: Fleet, evidence: Callable[..., None], place: str, pool: str, report: Report
) -> None:
    run = tables.enqueue(transfers, 7)
    victim = victim_of(tables, place, pool=pool)
    eventually(victim.has_died, f"the victim dies at {place}")
    left = tables.query("SELECT count(*) FROM public.effect")[0][0]
    tables.start("heir", pool=pool)
    assert tables.results([run]) == [21]
    report(hits=1, verdict=check_transfers(tables, 3, 21))
    evidence(f"pid {victim.pid} died at {place} with {left} effect(s) committed; in the end there are 3 of 3 calls")


@pytest.mark.timeout(60)
def test_a_transactional_call_that_fails_leaves_nothing_behind_and_is_tried_again(tables: Fleet) -> None:
    run = tables.enqueue(transfers, 7, 0.0, 2)
    tables.start("one")
    assert tables.results([run]) == [21]
    check_transfers(tables, 3, 21)
    assert step_of(run, "transfer").attempt == 3


@pytest.mark.scenario(4)
@pytest.mark.timeout(60)
def test_a_frozen_transactional_call_neither_holds_up_its_heir_nor_has_an_effect_of_its_own(
    tables: Fleet, evidence: Callable[..., None], report: Report
) -> None:
    run = tables.enqueue(one_transfer, 7, 1.0)
    zombie = tables.start("zombie")
    eventually(lambda: tables.entries("holds"), "it holds the lock of the row that the next attempt needs")
    zombie.send(signal.SIGSTOP)
    tables.start("heir")
    assert tables.results([run]) == [7]
    zombie.send(signal.SIGCONT)
    eventually(lambda: "lost its transaction" in zombie.text(), "the zombie finds its transaction gone")
    report(hits=1, verdict=check_transfers(tables, 1, 7))
    evidence(
        f"pid {zombie.pid} froze with its transaction open; attempt {step_of(run, 'transfer').attempt} was committed"
    )


@pytest.mark.scenario(11)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_transactional_call_whose_connection_is_cut_runs_again_and_that_costs_none_of_its_tries(
    tables: Fleet, evidence: Callable[..., None], pool: str, report: Report
) -> None:
    run = tables.enqueue(one_transfer, 7, 1.0)
    worker = tables.start("one", pool=pool)
    eventually(lambda: tables.entries("holds"), "it is in the middle of its transaction")
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pickaxe %%'"
    assert tables.query(cut)
    assert tables.results([run]) == [7]
    report(hits=1, verdict=check_transfers(tables, 1, 7))
    step = step_of(run, "transfer")
    evidence(
        f"its connection was cut in attempt {step.attempt - 1}; {worker.text().count('lost its transaction')} lost"
    )
    assert step.attempt - step.deaths == 1
