"""The demo's proof finds what it should find."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pickaxe import Context, Pickaxe, Settings, tool
from pickaxe.demo._check import Proof, Victim, prove
from pickaxe.demo._ledger import keep, read
from tests.unit.test_cli_text import step

RUN = uuid.uuid4()
RECORDED = 1000.0


def line(event: str, key: str, attempt: int, pid: int, at: float) -> str:
    return json.dumps({"event": event, "run": str(RUN), "step": key, "attempt": attempt, "pid": pid, "at": at})


# a#1 ran undisturbed; b#1 was cut short in process 2 at 500, then ran again in process 3.
LEDGER = [
    line("began", "a#1", 1, 1, 400),
    line("ended", "a#1", 1, 1, 401),
    line("began", "b#1", 1, 2, 450),
    line("began", "b#1", 2, 3, 600),
    line("ended", "b#1", 2, 3, 601),
]
VICTIM = Victim("b#1", 1, "worker-2 2", 2, 500.0)


def proof(tmp_path: Path, ledger: list[str]) -> Proof:
    at = datetime.fromtimestamp(RECORDED, UTC)
    died: list[dict[str, Any]] = [{"attempt": 1, "ended": "died", "at": 550.0}]
    steps = [step(key="a#1", finished_at=at), step(key="b#1", attempt=2, history=died, finished_at=at)]
    run = SimpleNamespace(id=RUN)
    node = SimpleNamespace(run=run, steps=steps)
    node.walk = lambda: [node]
    file = tmp_path / "ledger"
    file.write_text("\n".join(ledger) + "\n")
    return prove(node, file, VICTIM)  # type: ignore[arg-type]


def test_a_step_cut_short_and_run_again_is_no_violation(tmp_path: Path) -> None:
    assert proof(tmp_path, LEDGER) == Proof(recorded=2, bodies=3, cut_short=1, unrecorded=0, violations=[])


@pytest.mark.parametrize(
    ("ledger", "expected"),
    [
        ([*LEDGER, line("began", "a#1", 2, 3, 700)], "attempt 2 ran, though its worker did not die"),
        ([*LEDGER, line("began", "a#1", 1, 3, 700)], "an attempt began more than once"),
        ([*LEDGER, line("began", "b#1", 1, 3, 1001)], "began after the result was recorded"),
        (LEDGER[:-1], "no such body came to its end"),
        (LEDGER[2:], "a#1: attempt 1 is recorded, but no such body"),
        ([*LEDGER, line("began", "c#1", 1, 3, 700)], "c#1 of run"),
        ([*LEDGER, line("ended", "b#1", 1, 2, 460)], "was not in the middle of it"),
    ],
)
def test_what_ran_too_often_or_never_is_found(tmp_path: Path, ledger: list[str], expected: str) -> None:
    assert any(expected in violation for violation in proof(tmp_path, ledger).violations)


def test_the_ledger_notes_bodies_that_begin_and_end_and_changes_nothing_else(tmp_path: Path) -> None:
    @tool
    def good(n: int) -> int:
        return n + 1

    @tool
    async def bad() -> int:
        raise ValueError

    file = tmp_path / "ledger"
    app = Pickaxe("ledger-test", tools=[good, bad], settings=Settings(_env_file=None))  # type: ignore[call-arg]
    keep(app.handles.values(), file)
    context = Context(run="r", step="good#1", attempt=3)
    arguments = good.spec.signature.decode_input('{"n": 1}') | good.spec.signature.inject(context)
    assert good.spec.function(**arguments) == 2
    failing = bad.spec.function(**bad.spec.signature.inject(replace(context, step="bad#1")))
    with pytest.raises(ValueError):  # noqa: PT011 - the body's own
        failing.send(None)
    assert bad.spec.is_async
    assert [(b.step, b.attempt, b.ended is not None) for b in read(file)] == [("good#1", 3, True), ("bad#1", 3, False)]
