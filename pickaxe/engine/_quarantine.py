"""Whatever kills the processes that run it is set aside: a step as `quarantined`, a run by pausing it.

A step is charged with the death of the process that ran it, and set aside when it has been charged with
`Settings.quarantine_after` of them in a row. A death that it shared with other steps counts a half, and makes it a
suspect at most; a worker runs one suspect at a time, so that the next death tells who it was.

A reduction is not claimed, so nobody knows which one a dead process was in. Only when there is reason to believe that
one killed its worker (its message was handed out again, or has come to nothing and processes have died lately) it is
noted who reduces before it begins.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import uuid
from collections.abc import Iterator

from pickaxe._failpoints import failpoint
from pickaxe.engine._engine import Engine
from pickaxe.engine._released import publish_released
from pickaxe.engine._transitions import run_entry, step_entry
from pickaxe.errors import PickaxeError
from pickaxe.store import RunRow

logger = logging.getLogger("pickaxe.quarantine")

DEADLY = "its agent's code kills the worker processes that reduce it: mend it, then `pickaxe retry` the run"


def reclaim(engine: Engine, *, bury: bool = True) -> None:
    """Take their steps away from dead processes. With `bury`, first find those that give no sign of life."""
    settings = engine.settings
    if bury:
        for worker in engine.store.bury_workers(dead=settings.dead_after, vanished=settings.vanished_after):
            logger.warning("worker process %s %s is gone", worker.name, worker.pid)
    failpoint("reclaim.before")
    # Processes that died together had beaten together, give or take one beat.
    steps = engine.store.reclaim_steps(limit=settings.quarantine_after, together=1.5 * settings.beat_every)
    failpoint("reclaim.after")
    for step in steps:
        what = "it is issued again" if step.state == "ready" else f"it is {step.state}: {step.reason}"
        logger.warning("step %s of run %s was in %s, which died: %s", step.key, step.run_id, step.owner, what)
        told = [step_entry(step.key, step.name, "lost", step.attempt, worker=step.owner, exit=step.exit)]
        if step.state != "ready":
            told.append(step_entry(step.key, step.name, step.state, step.attempt, reason=step.reason))
        engine.transitions.tell(step.run_id, *told)
        publish_released(engine, step.run_id, step.released)


def report_exit(engine: Engine, pid: int, status: int) -> None:
    """A child of this worker's main process has ended: sooner known than by its silence, and with the reason."""
    try:
        failpoint("exit.before")
        recorded = engine.store.process_exited(engine.family, pid, exit_name(status))
        failpoint("exit.after")
        if recorded:
            logger.warning("child process %d was ended by %s", pid, exit_name(status))
            engine.nudge(0)
    except PickaxeError as error:
        logger.warning("the end of child process %d could not be recorded, its silence will tell: %s", pid, error)


def exit_name(status: int) -> str:
    """An exit status for people; a negative one is a signal's."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


@contextlib.contextmanager
def watched(engine: Engine, row: RunRow, *, wary: bool = False) -> Iterator[bool]:
    """Around a reduction: whether it may begin. Costs nothing unless there is a suspicion, or the caller is `wary`."""
    suspected = row.dispatches > 1 or (row.dispatches > 0 and engine.store.losses)
    if not (wary or suspected or engine.is_redelivered()):
        yield True
        return
    owner, patience = engine.owner, engine.settings.dead_after + engine.settings.sweep_every
    failpoint("suspect.before")
    found = engine.store.suspect_reduction(
        row.id, row.epoch, owner, limit=engine.settings.quarantine_after, patience=patience, reason=DEADLY
    )
    failpoint("suspect.after")
    if found.verdict != "go":
        if found.verdict == "paused":
            logger.error("run %s is paused: %s; it was %s", row.id, DEADLY, found.deaths)
            engine.transitions.tell(row.id, run_entry("paused"))
        yield False
        return
    try:
        yield True
    finally:
        failpoint("clear.before")
        engine.store.clear_reduction(row.id, owner)
        failpoint("clear.after")


def apart(engine: Engine, run: uuid.UUID, key: str, attempt: int) -> None:
    """A call that is charged with deaths and could not be claimed waits, if that is why, for those that run now."""
    failpoint("apart.before")
    engine.store.defer_suspect(run, key, attempt)
    failpoint("apart.after")
