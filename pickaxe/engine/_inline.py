"""Calls that are run where they were asked for: claimed in the commit that makes them, without a message."""

from __future__ import annotations

import time
import uuid

from pickaxe import _values
from pickaxe._specs import ToolSpec
from pickaxe._states import StepState
from pickaxe.core._records import Request
from pickaxe.engine._claims import Attempt, own, token
from pickaxe.engine._engine import Engine
from pickaxe.engine._plan import GRACE, Plan, turn_ends
from pickaxe.store import Claim, RunRow


def tokens(run: uuid.UUID, plan: Plan) -> list[str]:
    """The names of the attempts that `take` will own."""
    return [token(run, request.key, before + 1) for request, before in plan.inline]


def take(engine: Engine, row: RunRow, plan: Plan) -> list[Attempt]:
    """Own the calls of a plan that are to be run here. `row` is the run after the plan's commit."""
    attempts, ahead = [], plan.ahead
    for request, before in plan.inline:
        new = plan.states.get(request.key) == StepState.RUNNING
        claim = _born(row, request) if new else None
        owner = plan.owner if claim is not None else engine.owner
        if claim is None:
            # Its time begins when those before it have had theirs.
            grace = None if ahead is None else ahead + GRACE
            claim = engine.store.claim(row.id, request.key, before + 1, owner, grace=grace)
            ahead = turn_ends(ahead, request)
        if claim is not None:
            attempts.append(own(engine, _spec(engine, request), claim, owner))
    return attempts


def _spec(engine: Engine, request: Request) -> ToolSpec:
    if request.body is None:
        return engine.tools[request.name]
    assert isinstance(request.body, ToolSpec)
    return request.body


def _born(row: RunRow, request: Request) -> Claim:
    # Inserted as running, by this process, in the commit that has just succeeded.
    read = time.monotonic()  # before anything that takes time
    now = row.now + read - row.read
    total = request.options.get("total_timeout")
    options = _values.load(_values.dump(dict(request.options)))
    return Claim(
        row.id, request.key, request.name, request.digest, request.input, options, 1, 0, request.group, None,
        row.agent, row.root, row.queue, row.priority, row.chapter, row.epoch, row.head, row.wake,
        None if total is None else now + float(total), now, read=read,
    )  # fmt: skip
