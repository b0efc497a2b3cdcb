"""Messages that are late: lost, or only waiting their turn. Sending those again would make a long queue longer.

Queues are first in, first out, so the message that has waited longest tells how far its queue has come: what was sent
before it and is still not taken was lost, what was sent after it waits behind it. When each was sent is in the log, so
no clock but the database's is asked.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row

from pickaxe.broker import PublishError
from pickaxe.engine._dispatch import agent_message, dispatch, publish, publish_run
from pickaxe.engine._engine import Engine
from pickaxe.store import BATCH, StepDue

logger = logging.getLogger("pickaxe.sweeper")

BATCHES = 20
"""How many statements' worth of late messages are looked at in one round."""


def resend(engine: Engine) -> None:
    """Send again what was sent, is not taken in time, and is not in its queue any more."""
    late = engine.store.late()
    if not late:
        return
    waiting = _waiting(engine, late)
    cap = engine.settings.redispatch_cap
    for _ in range(BATCHES):
        runs, steps = engine.store.late_runs(waiting, cap), engine.store.late_steps(waiting, cap)
        send(engine, [run for run in runs if not run.waits], [StepDue.of(step) for step in steps if not step.waits])
        if max(len(runs), len(steps)) < BATCH:
            return


def send(engine: Engine, runs: Iterable[Row[Any]], steps: Sequence[StepDue]) -> None:
    """Hand to the broker what is due. Inline steps have no message of their own: their run is woken."""
    publish(engine, [agent_message(r.id, r.agent, r.queue, r.priority, r.root, r.wake) for r in runs])
    inline = [step for step in steps if step.options.get("inline")]
    for run in {step.run for step in inline}:
        if engine.store.wake(run):
            publish_run(engine, run)
    dispatch(engine, [step for step in steps if not step.options.get("inline")])


def _waiting(engine: Engine, late: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Some of what waits in these queues, the longest among it, as far as the broker can tell."""
    try:
        found = engine.publisher.waiting(late)
    except PublishError as error:
        logger.debug("the broker cannot be asked what waits: %s", error)
        return []
    return [
        {"queue": queue, "priority": priority, **named}
        for (queue, priority), messages in found.items()
        for named in map(_named, messages)
        if named
    ]


def _named(message: str) -> dict[str, str]:
    """What a message is about, from its id: a run, and the agent's name or a step's key. Others' ids have no such."""
    run, _, rest = message.partition(":")
    key, _, number = rest.rpartition(":")
    try:
        return {"run": str(uuid.UUID(run)), "key": key} if key and number.isdigit() else {}
    except ValueError:
        return {}
