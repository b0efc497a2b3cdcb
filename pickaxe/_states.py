"""The states of a run and of a step, and the one table of legal transitions.

Every guarded statement in `pickaxe/store/queries` moves a row along an edge of these tables;
`tests/transitions.py` watches a whole fleet's updates and compares. The diagram is in CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class RunState(StrEnum):
    """Where a run is. `READY` means: its agent task belongs in the broker, at or after `due`."""

    READY = "ready"
    WAITING = "waiting"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return not RUN_TRANSITIONS[self]


class StepState(StrEnum):
    """Where a step is.

    `READY`: its tool task belongs in the broker, at or after `due` (a retry and a throttled call wait
    here). `BLOCKED`: held back by its gather's concurrency cap. `RUNNING`: owned by a worker process.
    `WAITING`: a timer, signal, event, child run or gather that has not come yet. `UNKNOWN`: an `at_most_once`
    call whose end nobody saw; its tool's `reconcile` or a person resolves it. `QUARANTINED`: it killed its worker
    process again and again; a person decides. `CANCELLING`: a child run was told to stop and its parent waits for
    it.
    """

    BLOCKED = "blocked"
    READY = "ready"
    RUNNING = "running"
    WAITING = "waiting"
    UNKNOWN = "unknown"
    QUARANTINED = "quarantined"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return not STEP_TRANSITIONS[self]

    @property
    def aside(self) -> bool:
        """Whether it was set aside, and goes on only when somebody says how."""
        return self in (StepState.UNKNOWN, StepState.QUARANTINED)


class StepKind(StrEnum):
    """What a step is. `TOOL` is the only kind a worker claims; an inline step is a tool claimed as it is born."""

    TOOL = "tool"
    CHILD = "child"
    TIMER = "timer"
    SIGNAL = "signal"
    EVENT = "event"
    GATHER = "gather"


class ChildPolicy(StrEnum):
    """What becomes of a child run when its parent stops wanting it."""

    CANCEL = "cancel"
    DETACH = "detach"
    WAIT = "wait"


RUN_TRANSITIONS: Mapping[RunState, frozenset[RunState]] = {
    # READY→READY is a re-publish, a wake-up while already awake, or `continue_as`.
    RunState.READY: frozenset(RunState),
    # WAITING is woken, or goes on to anything in the commit of the outcome that it waited for.
    RunState.WAITING: frozenset(RunState),
    # A paused run also runs out of time.
    RunState.PAUSED: frozenset({RunState.PAUSED, RunState.READY, RunState.FAILED, RunState.CANCELLED}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}

STEP_TRANSITIONS: Mapping[StepState, frozenset[StepState]] = {
    StepState.BLOCKED: frozenset(
        {StepState.READY, StepState.WAITING, StepState.FAILED, StepState.CANCELLED, StepState.CANCELLING}
    ),
    StepState.READY: frozenset({StepState.READY, StepState.RUNNING, StepState.FAILED, StepState.CANCELLED}),
    StepState.RUNNING: frozenset(
        {
            *(StepState.RUNNING, StepState.READY, StepState.BLOCKED, StepState.UNKNOWN, StepState.QUARANTINED),
            *(StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED),
        }
    ),
    # From UNKNOWN to RUNNING it is the tool's `reconcile` that runs, not its body. A call that is let run again
    # is BLOCKED when its gather has given its place to another.
    StepState.UNKNOWN: frozenset(
        {
            *(StepState.UNKNOWN, StepState.RUNNING, StepState.READY, StepState.BLOCKED),
            *(StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED),
        }
    ),
    StepState.QUARANTINED: frozenset(
        {
            *(StepState.QUARANTINED, StepState.READY, StepState.BLOCKED),
            *(StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED),
        }
    ),
    StepState.WAITING: frozenset(
        {StepState.WAITING, StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED, StepState.CANCELLING}
    ),
    StepState.CANCELLING: frozenset({StepState.CANCELLING, StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED}),
    StepState.SUCCEEDED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.CANCELLED: frozenset(),
}
