"""Outcomes that nobody knows: how an `at_most_once` call gets to be *unknown*, and what its `reconcile` comes to.

A call that may only run once is in doubt from the moment its body begins to the moment its outcome is recorded.
Whatever happens in between, it is never simply run again: it is set aside, and its `reconcile` is asked, as a durable
attempt of its own, or a person is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row

from pickaxe._durations import humanise
from pickaxe._effects import Effect
from pickaxe._failpoints import failpoint
from pickaxe._retry import Retry
from pickaxe._states import StepState
from pickaxe._texts import storable
from pickaxe.engine import _errors, _history
from pickaxe.engine._engine import Engine
from pickaxe.engine._released import publish_released
from pickaxe.engine._transitions import step_entry
from pickaxe.errors import DidNotHappen, NonRetryableError, PickaxeError, StillUnknown

if TYPE_CHECKING:
    from pickaxe.engine._claims import Attempt

logger = logging.getLogger("pickaxe.effects")

UNKNOWN = "whether its effect happened is not known"

NOT_HAPPENED = "found that its effect had not happened"
"""What became of an attempt that was a `reconcile`."""

_ASKING = Retry()
"""How soon, and how much later every time, a `reconcile` that found no answer is asked again. It never gives up."""


def is_once(options: dict[str, Any]) -> bool:
    """Whether a call with these recorded options may only be run once."""
    return options.get("effect") == Effect.AT_MOST_ONCE


def doubt(attempt: Attempt, reason: str, *, wait: float = 0.0, spared: int = 1, error: str | None = None) -> None:
    """An attempt has lost sight of its outcome, or a `reconcile` was cut short. The next question is due in `wait`."""
    engine, claim = attempt.engine, attempt.claim
    engine.running.remove(attempt.token)
    if claim.reconciling:
        reason, spared, history = f"its reconcile was cut short: {reason}", 0, claim.history
    else:
        ended = _history.entry(claim.attempt, engine.process, "unknown", message=reason)
        reason, history = f"{reason}: {UNKNOWN}", _with(claim.history, ended)
    try:
        _set_aside(attempt, reason, wait=wait, spared=spared, error=error, history=history)
    except PickaxeError as failure:
        logger.warning("%s: could not be set aside, and is tried again at a beat: %s", attempt.token, failure)


def answered(attempt: Attempt, error: BaseException) -> str | None:
    """A `reconcile` has raised. What the call has failed with, or None: it runs again, or is asked again."""
    if isinstance(error, NonRetryableError):
        return _errors.encode(error)
    if isinstance(error, DidNotHappen):
        return _again(attempt, error)
    claim, told = attempt.claim, _errors.describe(error)
    tries = _tries(claim.history)
    wait = error.after if isinstance(error, StillUnknown) and error.after is not None else _ASKING.wait(tries)
    ended = _history.entry(
        claim.attempt, attempt.engine.process, "not reconciled", tries=tries, **_history.of_error(told)
    )
    what = told["message"][:200] if isinstance(error, StillUnknown) else f"{told['type']}: {told['message'][:200]}"
    reason = f"{UNKNOWN}; its reconcile could not tell ({what}), and is asked again in {humanise(wait)}"
    _set_aside(attempt, reason, wait=wait, spared=0, history=_with(claim.history, ended))
    return None


def overdue(engine: Engine, step: Row[Any], what: str, options: dict[str, Any]) -> None:
    """The sweeper takes a call that may only run once, or its `reconcile`, from a process that does not end it."""
    wait = _ASKING.wait(_tries(step.history)) if options.get("reconcile") else None
    ended = _history.entry(step.attempt, step.owner, "unknown", message=what)
    failpoint("doubt.before")
    set_aside = engine.store.set_step_aside(
        step.run_id, step.key, StepState.UNKNOWN, attempt=step.attempt, owner=step.owner, due_in=wait, overdue=True,
        reason=f"attempt {step.attempt} {what}: {UNKNOWN}", error=_errors.timed_out(what),
        history=_with(step.history, ended),
    )  # fmt: skip
    failpoint("doubt.after")
    if set_aside.accepted:
        engine.transitions.tell(step.run_id, step_entry(step.key, step.name, "unknown", step.attempt, reason=what))
        publish_released(engine, step.run_id, set_aside.released)


def _again(attempt: Attempt, error: DidNotHappen) -> str | None:
    """Nothing has happened, so the call may run again: unless it has run out of time as often as it may."""
    engine, claim = attempt.engine, attempt.claim
    tried = claim.attempt - claim.deaths
    if tried >= int(claim.options.get("attempts", attempt.spec.retry.attempts)):
        return _errors.timed_out(f"ran out of time, and its effect did not happen: {error}")
    ended = _history.entry(
        claim.attempt, engine.process, "did not happen", message=str(error)[: _history.LONGEST_MESSAGE]
    )
    failpoint("reissue.before")
    state = engine.store.reissue(
        claim.run, claim.key, attempt=claim.attempt, owner=attempt.owner, history=_with(claim.history, ended),
        limit=engine.settings.quarantine_after, reason=f"its reconcile {NOT_HAPPENED}",
    )  # fmt: skip
    failpoint("reissue.after")
    attempt.ended()
    if state is None:
        logger.warning("%s: the answer came too late: a person has given another", attempt.token)
        return None
    told = "retrying" if state is StepState.READY else str(state)
    engine.transitions.tell(claim.run, step_entry(claim.key, claim.name, told, claim.attempt, reason=NOT_HAPPENED))
    engine.nudge(0)
    return None


def _set_aside(
    attempt: Attempt, reason: str, *, wait: float, spared: int, history: str | None, error: str | None = None
) -> None:
    engine, claim, reason = attempt.engine, attempt.claim, storable(reason)
    asks = bool(claim.options.get("reconcile"))
    failpoint("doubt.before")
    set_aside = engine.store.set_step_aside(
        claim.run, claim.key, StepState.UNKNOWN, attempt=claim.attempt, owner=attempt.owner, reason=reason,
        due_in=wait if asks else None, spared=spared, error=error, history=history,
    )  # fmt: skip
    failpoint("doubt.after")
    attempt.ended()
    if not set_aside.accepted:
        logger.warning("%s: is somebody else's now, or over", attempt.token)
        return
    logger.warning("%s: %s", attempt.token, reason)
    engine.transitions.tell(claim.run, step_entry(claim.key, claim.name, "unknown", claim.attempt, reason=reason))
    publish_released(engine, claim.run, set_aside.released)
    if asks:
        engine.nudge(wait)


def _with(history: str | None, ended: dict[str, Any]) -> str:
    """A history with one more entry. Of several questions without an answer only the last is kept, and counted."""
    past = _history.load(history)
    if past and past[-1]["ended"] == "not reconciled" == ended["ended"]:
        past.pop()
    return _history.dump([*past, ended])


def _tries(history: str | None) -> int:
    past = _history.load(history)
    return int(past[-1].get("tries", 0)) + 1 if past else 1
