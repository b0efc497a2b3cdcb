"""What a gather's concurrency cap lets go when one of its calls has ended."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from pickaxe.engine._dispatch import agent_message, dispatch, publish
from pickaxe.engine._engine import Engine
from pickaxe.store import StepDue


def publish_released(engine: Engine, run: uuid.UUID, keys: Sequence[str]) -> None:
    """Publish the calls and child runs of `run` that may now start."""
    if not keys:
        return
    rows = engine.store.released(run, keys)
    publish(engine, [
        agent_message(row.child, row.agent, row.child_queue, row.child_priority, row.root, 0)
        for row in rows
        if row.child is not None
    ])  # fmt: skip
    dispatch(engine, [StepDue.of(row) for row in rows if row.child is None])
