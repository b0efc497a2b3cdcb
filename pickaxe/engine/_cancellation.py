"""Telling runs to stop, and their children with them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from pickaxe import _values
from pickaxe._failpoints import failpoint
from pickaxe.engine import _errors
from pickaxe.engine._dispatch import publish_run
from pickaxe.engine._engine import Engine
from pickaxe.engine._released import publish_released
from pickaxe.engine._transitions import run_entry


def cancel(engine: Engine, run: uuid.UUID, *, reason: str, timed_out: bool = False, force: bool = False) -> bool | None:
    """Tell a run to stop. None: no such run; False: it is over, or was told before."""
    kind = "RunTimeoutError" if timed_out else "cancelled"
    error = _values.dump({"type": kind, "message": reason})
    failpoint("cancel.before")
    done = engine.store.cancel_run(run, reason=reason, error=error, timed_out=timed_out, force=force)
    failpoint("cancel.after")
    if not done.known:
        return None
    if done.woken:
        publish_run(engine, run)
    if done.ended:
        engine.transitions.tell(run, run_entry("failed" if timed_out else "cancelled", **_errors.brief(error)))
        cancel_orphans(engine, done.orphans)
        if done.parent is not None:
            publish_released(engine, done.parent, done.released)
            if done.parent_woken:
                publish_run(engine, done.parent)
    return bool(done.told or done.ended)


def cancel_orphans(engine: Engine, runs: Iterable[uuid.UUID]) -> None:
    """Tell child runs that their parent no longer waits for them."""
    for run in runs:
        cancel(engine, run, reason="its parent run no longer waits for it")
