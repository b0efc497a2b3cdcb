"""A worker dies around a tool's effect. What happens to that effect is what its tool's policy says, by the ledger."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pickaxe.store import StepView
from tests.faults.effects_app import pays
from tests.faults.fleet import Fleet, WorkerProcess, eventually

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
    number = 2 if place in ("claim.after", "settle.before", "settle.after") else 1
    return fleet.start("victim", environment={"PICKAXE_FAILPOINTS": f"{place}=kill@{number}"}, **options)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", AROUND)
def test_an_at_most_once_call_whose_worker_dies_is_unknown_and_goes_on_when_a_person_has_spoken(
    fleet: Fleet, evidence: Callable[..., None], place: str
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
    fleet.check_at_rest()
    assert set(effects(fleet).values()) == {1}
