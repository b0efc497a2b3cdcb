"""From the log into the broker. Publishing comes after the commit and may fail: the sweeper publishes what is due."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import redis

from pickaxe._failpoints import failpoint
from pickaxe._rates import Rate
from pickaxe.broker import Message, PublishError
from pickaxe.engine._engine import Engine
from pickaxe.engine._limiter import Claim, Grant, Reservation
from pickaxe.store import StepDue

logger = logging.getLogger("pickaxe.dispatch")

NOW = 0.005
"""A slot this close, in seconds, is now."""


def agent_message(run: uuid.UUID, agent: str, queue: str, priority: int, root: uuid.UUID, wake: int) -> Message:
    """The message that has a run reduced."""
    return Message(
        task=agent, id=f"{run}:{agent}:{wake}", kwargs={"run": str(run)}, queue=queue, priority=priority,
        argsrepr=f"run={run}", root=str(root),
    )  # fmt: skip


def tool_message(step: StepDue) -> Message:
    """The message that has a step's next attempt run."""
    attempt = step.attempt + 1
    return Message(
        task=step.name, id=f"{step.run}:{step.key}:{attempt}",
        kwargs={
            "run": str(step.run),
            "step": step.key,
            "attempt": attempt,
            "priority": step.priority,
            "limits": step.options.get("limits", []),
            **({"suspect": True} if step.strikes >= 1 else {}),
        },
        queue=step.queue, priority=step.priority, argsrepr=step.input[:200], root=str(step.root),
    )  # fmt: skip


def publish_run(engine: Engine, run: uuid.UUID) -> None:
    """Publish a run that was woken."""
    row = engine.store.route(run)
    if row is not None:
        publish(engine, [agent_message(row.id, row.agent, row.queue, row.priority, row.root, row.wake)])


def publish(engine: Engine, messages: Sequence[Message]) -> bool:
    """Hand messages to the broker. False, and a line in the log, when it does not take them."""
    if not messages:
        return True
    # What led to a message is told before what follows from it: along with it, if possible.
    if engine.publisher.takes_along(messages):
        along = engine.transitions.take()
    else:
        along = []
        engine.transitions.flush()
    failpoint("publish.before")
    try:
        engine.publisher.publish(messages, along=along)
    except PublishError as error:
        logger.warning("%d message(s) wait for the sweeper: %s", len(messages), error)
        return False
    failpoint("publish.after")
    return True


def dispatch(engine: Engine, steps: Sequence[StepDue], *, chord_for: Message | None = None) -> None:
    """Publish calls whose limits let them start now, and give the others their time.

    With `chord_for`, those that start now go out as a chord that ends in that message.
    """
    ready = _within_limits(engine, steps)
    messages = [tool_message(step) for step in ready]
    if chord_for is None or len(messages) < 2:
        publish(engine, messages)
        return
    engine.transitions.flush()
    failpoint("publish.before")
    try:
        engine.publisher.publish_chord(messages, chord_for)
    except PublishError as error:
        logger.warning("%d message(s) wait for the sweeper: %s", len(messages), error)
    failpoint("publish.after")


def claims_of(engine: Engine, queue: str, limits: Iterable[Sequence[Any]]) -> tuple[Claim, ...]:
    """What a call uses of its own limits and of its queue's."""
    own = [Claim(f"call:{key}", Rate.parse(rate), int(units)) for key, rate, units in limits]
    return (*own, *(Claim(f"queue:{queue}", rate) for rate in engine.queue_limits.get(queue, ())))


def _within_limits(engine: Engine, steps: Sequence[StepDue]) -> list[StepDue]:
    wanted = [(step, claims_of(engine, step.queue, step.options.get("limits", ()))) for step in steps]
    limited = [(step, claims) for step, claims in wanted if claims and not step.granted]
    free = [step for step, claims in wanted if not claims or step.granted]
    if not limited:
        return free
    try:
        grants = engine.limiter.reserve([Reservation(claims) for _, claims in limited])
    except redis.RedisError as error:
        # Without Redis nobody can say whether the limit holds, so nothing starts: the sweeper asks again.
        logger.warning("%d limited call(s) wait, the limiter is away: %s", len(limited), error)
        return free
    return free + _split(engine, [(step, grant) for (step, _), grant in zip(limited, grants, strict=True)])


def _split(engine: Engine, granted: Sequence[tuple[StepDue, Grant]]) -> list[StepDue]:
    later = [(step, grant) for step, grant in granted if grant.wait > NOW or grant.remaining]
    if later:
        failpoint("defer.before")
        engine.store.defer_steps([_deferral(step, grant) for step, grant in later])
        failpoint("defer.after")
        engine.nudge(min(grant.wait for _, grant in later))
    return [step for step, grant in granted if grant.wait <= NOW and not grant.remaining]


def _deferral(step: StepDue, grant: Grant) -> dict[str, Any]:
    return {
        "run": str(step.run),
        "key": step.key,
        "attempt": step.attempt,
        "wait": grant.wait,
        "granted": not grant.remaining,
        "reason": "waits for its rate limit",
    }
