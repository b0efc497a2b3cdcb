"""Inline steps: memoised like any other, run in the agent's own process, without a message."""

from __future__ import annotations

import uuid
from typing import Any

from pickaxe import _values
from pickaxe._specs import ToolSpec
from pickaxe.core._records import Request
from pickaxe.engine._claims import GRACE, own, token
from pickaxe.engine._effects import perform
from pickaxe.engine._engine import Engine
from pickaxe.engine._plan import Plan
from pickaxe.store import Claim, RunRow


def run_all(engine: Engine, row: RunRow, plan: Plan) -> bool:
    """Run the inline steps of a plan. True if the run has something new to reduce."""
    woken = False
    for request, attempts_before in plan.inline:
        claim = _new(row, request) if attempts_before == 0 and request.key in plan.states else None
        owner = plan.owner if claim is not None else engine.owner
        claim = claim or engine.store.claim(row.id, request.key, attempts_before + 1, owner, grace=GRACE)
        if claim is not None:
            settled = perform(own(engine, _spec(request), claim, owner))
            woken = woken or (settled is not None and settled.woken)
    return woken


def tokens(row: RunRow, plan: Plan) -> list[str]:
    """The names of the attempts that `run_all` will make."""
    return [token(row.id, request.key, before + 1) for request, before in plan.inline]


def _spec(request: Request) -> ToolSpec:
    body: Any = request.body
    assert isinstance(body, ToolSpec)
    return body


def _new(row: RunRow, request: Request) -> Claim:
    # Inserted as running, by this process, in the commit that has just succeeded.
    options = _values.load(_values.dump(dict(request.options)))
    return Claim(
        row.id, request.key, request.name, request.input, options, 1, 0, request.group, None,
        row.agent, row.root, row.queue, row.priority, None, row.now,
    )  # fmt: skip


def wake_inline(engine: Engine, run: uuid.UUID) -> bool:
    """A due inline step runs where its agent runs: wake the run. True if it must be published."""
    return engine.store.wake(run)
