"""Random programs in memory: replayed from the beginning before each arrival, and in many orders of arrival.

The same plans and the same model as in the fault suite, without services, and many of them in seconds.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pickaxe.errors import RunCancelledError, RunFailedError
from pickaxe.testing import simulate
from tests.faults.random_model import Outcome, deliveries, outcome_of
from tests.faults.random_plans import draw
from tests.faults.random_programs import TOOLS, play

COUNT = 150
FIRST = int(os.environ.get("PICKAXE_TEST_SEED") or random.SystemRandom().randrange(2**31))


def for_one_run(plan: dict[str, Any]) -> bool:
    """Whether only the root run needs something from outside: a simulation cannot reach its child runs."""
    return all(delivery.run == plan["label"] or delivery.kind == "event" for delivery in deliveries(plan))


def simulated(plan: dict[str, Any], seed: int, done: Counter[tuple[str, str]]) -> Any:
    chance = random.Random(seed)
    signals: list[Any] = []
    events: list[Any] = []
    cancel = None
    for delivery in deliveries(plan):
        at = chance.choice([0, 0.01, 0.3, 2])
        if delivery.kind == "signal":
            signals += [(at, delivery.name, value) for value in delivery.values]
        elif delivery.kind == "event":
            for to, n in (("nobody", -1), (delivery.name, delivery.values[0]), (delivery.name, -2)):
                events.append((at, delivery.name, {"to": to, "n": n}))
        else:
            cancel = "2d"
    replaced = {tool: counted(done) for tool in TOOLS}
    return simulate(
        play, plan, tools=replaced, signals=signals, events=events, cancel=cancel, crash="everywhere", shuffle=seed
    )


def counted(done: Counter[tuple[str, str]]) -> Callable[..., int]:
    """What the tools do, with a counter for a ledger."""

    def work(label: str, n: int, fails: int = 0, seconds: float = 0) -> int:
        if fails < 0 or done[label, "refused"] < fails:
            done[label, "refused"] += 1
            raise ValueError(label)
        done[label, "did"] += 1
        return 3 * n + 1

    return work


def judge(outcome: Outcome, simulation: Any, done: Counter[tuple[str, str]]) -> None:
    assert simulation.state == outcome.state
    if outcome.state == "succeeded":
        assert simulation.result() == outcome.value
    else:
        with pytest.raises((RunFailedError, RunCancelledError)) as caught:
            simulation.result()
        if outcome.state == "failed":
            assert caught.value.error["type"] == outcome.value
    assert {label for label, _ in done} <= set(outcome.effects)
    for label, effect in outcome.effects.items():
        for word, times in (("did", effect.did), ("refused", effect.refused)):
            assert (times if effect.certain else 0) <= done[label, word] <= times, (label, word, done[label, word])


def test_random_programs_come_to_what_their_model_says_however_often_they_are_replayed() -> None:
    states: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + COUNT):
        plan = draw(seed, "p")
        if not for_one_run(plan):
            continue
        outcome, done = outcome_of(plan), Counter[tuple[str, str]]()
        try:
            judge(outcome, simulated(plan, seed, done), done)
        except BaseException as error:
            raise AssertionError(f"PICKAXE_TEST_SEED={seed} replays this: {error}\n{plan}") from error
        states[outcome.state] += 1
    assert states["succeeded"] > COUNT / 4
    assert states["failed"]
