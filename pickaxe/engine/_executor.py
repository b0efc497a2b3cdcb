"""The heart: how a run moves. Load, reduce, commit, publish; nothing here holds a lock.

```
execute(run)                  what an agent's message asks for
    load     the run's row and log                       (nothing is claimed)
    reduce   the agent's coroutine over the log          (pure: a lost race costs CPU, no more)
    commit   everything it decided, if nothing has moved (one statement)
    publish  what the commit says should be in the broker (may fail: the sweeper repeats it)
    and return the calls that this process is to run itself

go_on(outcome)                the same after a call, with its outcome in the same commit
```
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from typing import Any

from pickaxe._failpoints import failpoint
from pickaxe._states import RunState, StepKind, StepState
from pickaxe._texts import storable
from pickaxe.core._records import Decision
from pickaxe.engine import _errors, _inline
from pickaxe.engine._attempts import insist, told, unless_lost
from pickaxe.engine._cancellation import cancel_orphans
from pickaxe.engine._claims import Attempt, token
from pickaxe.engine._dispatch import agent_message, dispatch, publish, publish_run
from pickaxe.engine._doubt import is_once
from pickaxe.engine._engine import Engine
from pickaxe.engine._plan import Plan, plan_steps
from pickaxe.engine._quarantine import watched
from pickaxe.engine._released import publish_released
from pickaxe.engine._sticky import Kept
from pickaxe.engine._stint import Stint
from pickaxe.engine._transitions import run_entry, step_entry
from pickaxe.engine._turns import Turn, decide, ending, let_go, next_turn, turn_after
from pickaxe.errors import ServiceUnavailableError
from pickaxe.store import Commit, Log, Outcome, RunRow, Settled

logger = logging.getLogger("pickaxe.agent")

ROUNDS = 100
"""Reductions in a row after which a run makes way for others, and queues up again."""

NOTHING_SETTLED = Settled(accepted=True, woken=False, seq=None, released=[])

Ending = tuple[RunState, str | None, str | None]


def execute(engine: Engine, run: uuid.UUID, stint: Stint) -> list[Attempt]:
    """Bring a run as far as it can go now. A duplicate or late message finds nothing to do.

    Returns the calls to be run here next.
    """
    for _ in range(ROUNDS):
        try:
            turn = next_turn(engine, run)
            if turn is None or turn.row.state is not RunState.READY:
                stint.woken = False
                let_go(engine, turn)
                return []
            with watched(engine, turn.row, wary=stint.wary) as may_go:
                if not may_go:
                    stint.woken = False
                    let_go(engine, turn)
                    return []
                _, commit, attempts = _carry_out(engine, turn, *_decided(engine, turn, stint), None)
        except ServiceUnavailableError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            # Not the agent's doing, or it would have been recorded. The sweeper tries again, and everybody can see why.
            reason = f"its reduction broke down, and is tried again later: {type(error).__name__}: {error}"
            engine.store.defer_run(run, reason[: _errors.MESSAGE_CAP], engine.settings.redispatch_cap)
            raise
        stint.woken = commit.moved
        if attempts or (commit.committed and not commit.moved):
            return attempts
    publish_run(engine, run)
    return []


def go_on(engine: Engine, outcome: Outcome, stint: Stint) -> list[Attempt] | None:
    """Record an outcome and the reduction that follows from it, in one commit. None: nothing was recorded.

    Returns the calls to be run here next.
    """
    claim = outcome.claim
    if claim.group is not None or claim.deaths or is_once(claim.options):
        return None  # what may not be lost, or was lost once, is recorded before the agent sees it
    try:
        turn = turn_after(engine, claim)
        if turn is None:
            return None
        decision, plan = _decided(engine, turn, stint, outcome)
    except Exception as error:  # noqa: BLE001 - whatever it is, it will be met again, by a reduction of its own
        logger.info("run %s: its reduction waits until the outcome is recorded: %r", claim.run, error)
        return None
    settled, commit, attempts = _carry_out(engine, turn, decision, plan, outcome)
    stint.woken = settled.woken or commit.moved
    return execute(engine, claim.run, stint) if stint.woken and not attempts else attempts


def _decided(engine: Engine, turn: Turn, stint: Stint, outcome: Outcome | None = None) -> tuple[Decision, Plan]:
    try:
        decision = decide(engine, turn, outcome)
        plan = plan_steps(
            turn.row, decision, turn.log, owner=engine.owner, redispatch=engine.settings.redispatch_after,
            here=stint.next_call(decision),
        )  # fmt: skip
    except BaseException:
        turn.close()
        raise
    return decision, plan


def _carry_out(
    engine: Engine, turn: Turn, decision: Decision, plan: Plan, outcome: Outcome | None
) -> tuple[Settled, Commit, list[Attempt]]:
    """Commit and publish a decision, with the outcome that it follows from. Returns the calls to be run here."""
    row = turn.row
    with engine.running.expected(_inline.tokens(row.id, plan)):
        try:
            end = ending(engine, engine.agents[row.agent], decision)
            settled, commit = _commit(engine, row, decision, plan, end, outcome)
        except BaseException:
            turn.close()
            raise
        after = replace(
            row, epoch=row.epoch + 1, head=max(row.head, decision.head), wake=row.wake + (outcome is not None),
            started=row.now if row.started is None else row.started,
        )  # fmt: skip
        _keep(engine, turn, after, decision, commit)
        if not commit.committed:
            return settled, commit, []
        engine.transitions.tell(row.id, *_entries(row, decision, turn.log, end))
        _publish(engine, row, decision, plan, commit)
        return settled, commit, _inline.take(engine, after, plan)


def _keep(engine: Engine, turn: Turn, after: RunRow, decision: Decision, commit: Commit) -> None:
    # A run that waits for something else than a tool may do so for months, and must not cost memory.
    reduction = turn.reduction
    if reduction is None:
        return
    if commit.committed and decision.state is RunState.WAITING and reduction.expects_tools:
        engine.sticky.keep(Kept(after, reduction))
    else:
        reduction.close()


def _commit(
    engine: Engine, row: RunRow, decision: Decision, plan: Plan, end: Ending, outcome: Outcome | None
) -> tuple[Settled, Commit]:
    state, output, error = end
    values: dict[str, Any] = {
        "state": str(state),
        "new_head": max(row.head, decision.head),
        "output": output,
        "error": error,
        "reason": storable(str(decision.error)) if decision.state is RunState.PAUSED else None,
        "published": decision.published if decision.has_published else None,
        "started": row.started if row.started is not None else row.now,
        "owner": plan.owner,
        "steps": plan.steps_json,
        "children": plan.children_json,
        "cancels": decision.cancels,
        "settled": decision.settled,
        "carried": decision.carried,
    }
    if outcome is None:
        failpoint("commit.before")
        commit = engine.store.commit(row, **values)
        failpoint("commit.after")
        return NOTHING_SETTLED, commit
    name = token(row.id, outcome.claim.key, outcome.claim.attempt)
    failpoint("advance.before")
    settled, commit = insist(engine, name, lambda: engine.store.advance(row, outcome, **values))
    failpoint("advance.after")
    settled = unless_lost(engine, outcome, settled)
    told(engine, outcome, settled)
    return settled, commit


def _publish(engine: Engine, row: RunRow, decision: Decision, plan: Plan, commit: Commit) -> None:
    publish(engine, [
        agent_message(c.id, c.agent, c.queue, c.priority, row.root, 0) for c in plan.children if not c.held
    ])  # fmt: skip
    wake_up = agent_message(row.id, row.agent, row.queue, row.priority, row.root, row.wake + 1)
    dispatch(engine, plan.loose)
    for group in plan.gathered:
        dispatch(engine, group, chord_for=wake_up)
    if decision.state is RunState.READY:
        publish(engine, [wake_up])
    for due in (r.due for r in decision.requests if r.due is not None):
        engine.nudge(due - row.now)
    for key in plan.event_waits:
        for woken in engine.store.look_back(row.id, key):
            publish_run(engine, woken)
    cancel_orphans(engine, commit.orphans)
    if commit.parent is not None:
        publish_released(engine, commit.parent, commit.released)
        if commit.parent_woken:
            publish_run(engine, commit.parent)


def _entries(row: RunRow, decision: Decision, log: Log, end: Ending) -> list[dict[str, Any]]:
    state, _, error = end
    entries = [
        step_entry(s.key, s.name, str(s.state), **_errors.brief(s.error))
        for s in log.steps
        if s.kind is not StepKind.TOOL and s.seq is not None and s.seq > row.head
    ]
    entries += [step_entry(r.key, r.name, "requested", type=str(r.kind)) for r in decision.requests]
    entries += [step_entry(key, key.rpartition("#")[0], str(StepState.CANCELLED)) for key in decision.cancels]
    entries += [step_entry(key, key.rpartition("#")[0], str(StepState.SUCCEEDED)) for key, _ in decision.settled]
    if row.started is None:
        entries.insert(0, run_entry("started"))
    if state is not RunState.WAITING:
        entries.append(run_entry(str(state), **_errors.brief(error)))
    return entries
