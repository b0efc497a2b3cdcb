"""Random programs, whose results and effects are known beforehand, on a fleet in peace and on one under a nemesis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.fleet import Fleet
from tests.faults.random_runs import Programs
from tests.faults.soak import Arena

CALM = {"PICKAXE_VANISHED_AFTER": "30", "PICKAXE_DEAD_AFTER": "30"}


@pytest.mark.timeout(120)
def test_random_programs_come_to_what_their_model_says_and_every_effect_happens_once(
    fleet: Fleet, seed: int, evidence: Callable[..., None]
) -> None:
    with Programs(fleet, seed, 12, span=3) as programs:
        for name, pool in (("one", "threads"), ("two", "custom")):
            fleet.start(name, pool=pool, concurrency=4, wait=False, environment=CALM)
        for label in programs.plans:
            programs.start(label)
        programs.finish()
        evidence(programs.judge())
        repeats = fleet.query("SELECT count(*) FROM pickaxe.step WHERE deaths > 0")[0][0]
        assert repeats == 0, f"{repeats} calls were repeated though nobody died"


@pytest.mark.timeout(240)
def test_random_programs_under_a_nemesis_come_to_the_same(
    tmp_path: Path, seed: int, evidence: Callable[..., None]
) -> None:
    with Arena(tmp_path) as arena:
        for one in (seed, seed + 1):
            evidence(arena.fight(one))
