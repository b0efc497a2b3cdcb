"""What a decision's requests become in the log: rows, child runs, and messages."""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from pickaxe import _values
from pickaxe._states import StepKind, StepState
from pickaxe.core._records import Decision, Request
from pickaxe.store import Log, RunRow, StepDue

GRACE = 2.0
"""Seconds past its timeout that a call may take to stop by itself, before the sweeper takes it away."""

_OWN_COLUMNS = ("queue", "priority", "schedule_timeout", "total_timeout")


@dataclass(frozen=True, slots=True)
class Child:
    """A child run to be created. `held` back by its gather's cap until a sibling ends."""

    id: uuid.UUID
    agent: str
    queue: str
    priority: int
    held: bool


@dataclass(slots=True)
class Plan:
    """See the module. `inline` are the calls to be run here, one after the other, with the attempts they have had.

    `gathered` are the calls of gathers that end with the last of them; others are `loose`. `ahead`: the seconds within
    which the inline calls that are new must have ended (None: whenever they like).
    """

    owner: str
    redispatch: float
    steps_json: str | None = None
    children_json: str | None = None
    states: dict[str, str] = field(default_factory=dict)
    loose: list[StepDue] = field(default_factory=list)
    gathered: list[list[StepDue]] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    event_waits: list[str] = field(default_factory=list)
    inline: list[tuple[Request, int]] = field(default_factory=list)
    ahead: float | None = 0.0


def child_id(run: uuid.UUID, key: str) -> uuid.UUID:
    """The id of the child run of a step: the same whenever and wherever it is computed."""
    return uuid.uuid5(run, key)


def plan_steps(
    row: RunRow, decision: Decision, log: Log, *, owner: str, redispatch: float, here: Request | None = None
) -> Plan:
    """Turn requests into rows. Nothing is written yet.

    `owner` is the process that commits them; `redispatch` the pause before the sweeper sends a message again;
    `here` the call that the process runs itself, besides those that are always run inline.
    """
    plan = Plan(owner, redispatch)
    if here is not None:
        plan.inline.append((here, 0))
    limits = {r.key: r.options.get("limit") for r in decision.requests if r.kind is StepKind.GATHER}
    steps, children = [], []
    for request in decision.requests:
        held = _held(request, limits)
        steps.append(_step(plan, request, held=held))
        if request.kind is StepKind.CHILD:
            children.append(_child(plan, row, request, held=held))
    plan.steps_json = _values.dump(steps) if steps else None
    plan.children_json = _values.dump(children) if children else None
    _sort_calls(plan, row, decision.requests)
    plan.event_waits = [r.key for r in decision.requests if r.kind is StepKind.EVENT]
    new = {request.key for request in decision.requests}
    plan.inline += [(r, 0) for r in decision.inline if r.key in new]
    plan.inline += [(r, log.ready_inline[r.key]) for r in decision.inline if r.key in log.ready_inline]
    return plan


def _held(request: Request, limits: dict[str, Any]) -> bool:
    limit = limits.get(request.group or "")
    return limit is not None and request.index >= limit


def _state(plan: Plan, request: Request, *, held: bool) -> StepState:
    if request.kind is StepKind.TOOL:
        if request.body is not None or any(request is chosen for chosen, _ in plan.inline):
            return StepState.RUNNING
        return StepState.BLOCKED if held else StepState.READY
    return StepState.BLOCKED if held else StepState.WAITING


def _step(plan: Plan, request: Request, *, held: bool) -> dict[str, Any]:
    state = _state(plan, request, held=held)
    plan.states[request.key] = str(state)
    options = request.options
    times = [options.get("total_timeout"), None if state is StepState.RUNNING else options.get("schedule_timeout")]
    stored = {k: v for k, v in options.items() if k not in _OWN_COLUMNS and v is not None}
    if request.kind is StepKind.CHILD:
        stored["policy"] = str(request.policy)
    return {
        "key": request.key,
        "kind": str(request.kind),
        "name": request.name,
        "digest": request.digest,
        "state": str(state),
        "queue": options.get("queue"),
        "priority": options.get("priority"),
        "due": request.due,
        "due_in": _due_in(plan, request, state),
        "sent": state is StepState.READY and not options.get("inline"),
        "expires_in": min((t for t in times if t is not None), default=None),
        "total_timeout": options.get("total_timeout"),
        "group_key": request.group,
        "index": request.index,
        "input": request.input,
        "options": _values.dump(stored),
    }


def _due_in(plan: Plan, request: Request, state: StepState) -> float | None:
    if state is StepState.READY:
        return plan.redispatch
    if request.kind is StepKind.EVENT:
        return plan.redispatch  # the sweeper looks back if this process does not live to do it
    if state is StepState.RUNNING:
        plan.ahead = turn_ends(plan.ahead, request)
        return plan.ahead
    return None


def turn_ends(ahead: float | None, request: Request) -> float | None:
    """Within how many seconds a call must have ended whose turn comes in at most `ahead`. None: whenever it likes."""
    timeout = request.options.get("timeout")
    return None if ahead is None or timeout is None else ahead + float(timeout) + GRACE


def _child(plan: Plan, row: RunRow, request: Request, *, held: bool) -> dict[str, Any]:
    options = request.options
    child = Child(
        child_id(row.id, request.key),
        request.name,
        options["queue"],
        row.priority if options.get("priority") is None else options["priority"],
        held,
    )
    plan.children.append(child)
    return {
        "id": str(child.id),
        "agent": request.name,
        "version": options.get("version", "1"),
        "held": held,
        "queue": child.queue,
        "priority": options.get("priority"),
        "timeout": options.get("timeout"),
        "input": request.input,
        "step": request.key,
    }


def _sort_calls(plan: Plan, row: RunRow, requests: tuple[Request, ...]) -> None:
    groups: dict[str | None, list[StepDue]] = defaultdict(list)
    # A quorum is reached before the chord's body would say so: its calls wake the agent themselves.
    early = {r.key for r in requests if r.kind is StepKind.GATHER and r.options.get("quorum") is not None}
    for request in requests:
        if request.kind is StepKind.TOOL and plan.states[request.key] == StepState.READY:
            groups[None if request.group in early else request.group].append(_due(row, request))
    plan.loose = groups.pop(None, [])
    plan.gathered = list(groups.values())


def _due(row: RunRow, request: Request) -> StepDue:
    priority = request.options.get("priority")
    return StepDue(
        row.id, request.key, request.name, request.options["queue"],
        row.priority if priority is None else priority, 0, dict(request.options), request.input, row.root,
    )  # fmt: skip
