"""The heart: a run's agent task. Load, reduce, commit, publish; nothing here holds a lock.

```
execute(run)
    load     the run's row and log                       (nothing is claimed)
    reduce   the agent's coroutine over the log          (pure: a lost race costs CPU, no more)
    commit   everything it decided, if nothing has moved (one statement)
    publish  what the commit says should be in the broker (may fail: the sweeper repeats it)
    inline   run the steps that asked for no queue, and go round again
```
"""

from __future__ import annotations

import logging
import uuid
from contextlib import closing
from dataclasses import replace
from typing import Any

from pickaxe._failpoints import failpoint
from pickaxe._specs import AgentSpec
from pickaxe._states import RunState, StepKind, StepState
from pickaxe._texts import storable
from pickaxe.core._records import Decision
from pickaxe.core._reduction import Reduction
from pickaxe.engine import _errors, _inline
from pickaxe.engine._cancellation import cancel_orphans
from pickaxe.engine._dispatch import agent_message, dispatch, publish, publish_run
from pickaxe.engine._engine import Engine
from pickaxe.engine._plan import Plan, plan_steps
from pickaxe.engine._quarantine import watched
from pickaxe.engine._released import publish_released
from pickaxe.engine._transitions import run_entry, step_entry
from pickaxe.errors import ImpureAgentError, InputError, MismatchError, PickaxeError, ServiceUnavailableError
from pickaxe.store import Commit, Log, RunRow

logger = logging.getLogger("pickaxe.agent")

ROUNDS = 100
"""Reductions in a row after which a run makes way for others, and queues up again."""


def execute(engine: Engine, run: uuid.UUID) -> None:
    """Bring a run as far as it can go now. A duplicate or late message finds nothing to do."""
    for _ in range(ROUNDS):
        row = engine.store.load_run(run)
        if row is None or row.state is not RunState.READY:
            return
        try:
            with watched(engine, row) as may_go:
                if not may_go or not _advance(engine, row, engine.store.load_log(row)):
                    return
        except ServiceUnavailableError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            # Not the agent's doing, or it would have been recorded. The sweeper tries again, and everybody can see why.
            reason = f"its reduction broke down, and is tried again later: {type(error).__name__}: {error}"
            engine.store.defer_run(run, reason[: _errors.MESSAGE_CAP], engine.settings.redispatch_cap)
            raise
    publish_run(engine, run)


def _advance(engine: Engine, row: RunRow, log: Log) -> bool:
    """One reduction. True when the run should be loaded and reduced again at once."""
    decision = _reduce(engine, row, log)
    plan = plan_steps(row, decision, log, owner=engine.owner, redispatch=engine.settings.redispatch_after)
    with engine.running.expected(_inline.tokens(row, plan)):
        ending = _ending(engine, engine.agents[row.agent], decision)
        commit = _commit(engine, row, decision, plan, ending)
        if not commit.committed:
            return True
        engine.transitions.tell(row.id, *_entries(row, decision, log, ending[0]))
        _publish(engine, row, decision, plan, commit)
        return _inline.run_all(engine, row, plan) or commit.moved


def _reduce(engine: Engine, row: RunRow, log: Log) -> Decision:
    try:
        with closing(reduction_of(engine, row)) as reduction:
            decision = reduction.resume(log.steps, [*log.signals, *([row.cancel] if row.cancel else [])])
            return _with_both_sides(engine, row, decision)
    except InputError as error:
        if row.started is not None:
            # It fitted when the run began: the code has changed since, and may be changed back.
            return Decision(RunState.PAUSED, row.head, error=error)
        return _failed(row, log, error)
    except ImpureAgentError as error:
        return _failed(row, log, error)
    except SystemExit as error:
        if not _errors.is_own_exit(error):
            raise
        return _failed(row, log, RuntimeError(f"the agent raised {error!r}"))


def _with_both_sides(engine: Engine, row: RunRow, decision: Decision) -> Decision:
    """A mismatch with the recorded arguments spelled out: a reduction only knows their digest."""
    if (found := decision.mismatch) is None:
        return decision
    recorded = engine.store.recorded_input(row.id, found.key)
    told = MismatchError(found.key, f"{found.recorded} {recorded[:200]}", found.asked)
    return replace(decision, mismatch=told, error=told)


def _failed(row: RunRow, log: Log, error: Exception) -> Decision:
    """The end of a run that cannot be reduced, now or ever."""
    still_open = tuple(step.key for step in log.steps if not step.state.terminal)
    return Decision(RunState.FAILED, row.head, cancels=still_open, error=error)


def reduction_of(engine: Engine, row: RunRow) -> Reduction:
    """The run's coroutine, not yet started."""
    spec = engine.agents[row.agent]
    arguments = spec.signature.decode_input(row.input)
    return Reduction(
        lambda: spec.function(**arguments),
        seed=f"{row.id}/{row.chapter}",
        started_at=row.started if row.started is not None else row.now,
        chapter=row.chapter,
        encode_input=lambda args, kwargs: spec.signature.encode_input(args, kwargs, cap=engine.settings.max_payload),
    )


def _commit(
    engine: Engine, row: RunRow, decision: Decision, plan: Plan, ending: tuple[RunState, str | None, str | None]
) -> Commit:
    state, output, error = ending
    failpoint("commit.before")
    commit = engine.store.commit(
        row,
        state=str(state),
        new_head=max(row.head, decision.head),
        output=output,
        error=error,
        reason=storable(str(decision.error)) if decision.state is RunState.PAUSED else None,
        published=_published(decision),
        started=row.started if row.started is not None else row.now,
        owner=plan.owner,
        steps=plan.steps_json,
        children=plan.children_json,
        cancels=list(decision.cancels),
        settled_keys=[key for key, _ in decision.settled],
        settled_seqs=[seq for _, seq in decision.settled],
        carried=list(decision.carried),
    )
    failpoint("commit.after")
    return commit


def _ending(engine: Engine, spec: AgentSpec, decision: Decision) -> tuple[RunState, str | None, str | None]:
    match decision.state:
        case RunState.SUCCEEDED:
            try:
                return (
                    decision.state,
                    spec.signature.encode_output(decision.output, cap=engine.settings.max_payload),
                    None,
                )
            except PickaxeError as error:
                return RunState.FAILED, None, _errors.encode(error)
        case RunState.READY:
            return decision.state, decision.output, None
        case RunState.FAILED | RunState.CANCELLED | RunState.PAUSED if decision.error is not None:
            return decision.state, None, _errors.encode(decision.error)
        case _:
            return decision.state, None, None


def _published(decision: Decision) -> str | None:
    return decision.published if decision.has_published else None


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


def _entries(row: RunRow, decision: Decision, log: Log, state: RunState) -> list[dict[str, Any]]:
    entries = [
        step_entry(s.key, s.name, str(s.state))
        for s in log.steps
        if s.kind is not StepKind.TOOL and s.seq is not None and s.seq > row.head
    ]
    entries += [step_entry(r.key, r.name, "requested", type=str(r.kind)) for r in decision.requests]
    entries += [step_entry(key, key.rpartition("#")[0], str(StepState.CANCELLED)) for key in decision.cancels]
    entries += [step_entry(key, key.rpartition("#")[0], str(StepState.SUCCEEDED)) for key, _ in decision.settled]
    if row.started is None:
        entries.insert(0, run_entry("started"))
    if state is not RunState.WAITING:
        entries.append(run_entry(str(state)))
    return entries
