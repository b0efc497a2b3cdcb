"""What a person says about a step that was set aside."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pickaxe import _values
from pickaxe._failpoints import failpoint
from pickaxe._specs import ToolSpec
from pickaxe._states import StepState
from pickaxe._texts import storable
from pickaxe.engine import _errors, _history
from pickaxe.engine._dispatch import publish_run
from pickaxe.engine._engine import Engine
from pickaxe.engine._released import publish_released
from pickaxe.engine._transitions import step_entry
from pickaxe.errors import InputError, NotFoundError, ResolveError
from pickaxe.store import StepView

NOTHING: Any = object()
"""No result is given; None is one."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a step goes on: with a `result`, as `failed` for this reason, or `again`. `by` is who says so."""

    result: Any = NOTHING
    failed: str | None = None
    again: bool = False
    by: str = ""

    def check(self) -> None:
        """Raises `InputError` unless it says exactly one thing."""
        if (self.result is not NOTHING) + (self.failed is not None) + self.again != 1:
            raise InputError("resolve() takes exactly one of result=…, failed=… (why) and again=True")

    def entry(self, how: str) -> dict[str, Any]:
        """What the step's history keeps of it."""
        return {"ended": "resolved", "how": how, "at": time.time(), **({"by": storable(self.by)} if self.by else {})}


def resolve(
    engine: Engine, run: uuid.UUID, key: str, verdict: Verdict, handle: Callable[[str], Any] = lambda _name: None
) -> None:
    """Carry out a verdict. `handle` finds the handle of a name, which says what its result may be, or None.

    Raises `ResolveError` when the step is not set aside, `NotFoundError`, `OutputError` and `InputError`.
    """
    verdict.check()
    step = _found(engine, run, key)
    if not (step.state.aside or step.reconciling):
        raise ResolveError(
            f"step {key!r} of run {run} is {step.state}: only a step whose outcome is unknown, or that is quarantined, "
            f"is resolved by a person; `pickaxe quarantine` lists them"
        )
    if verdict.again:
        _again(engine, run, step, verdict)
    else:
        _end(engine, run, step, verdict, getattr(handle(step.name), "spec", None))


def retry(engine: Engine, run: uuid.UUID, key: str, *, by: str = "") -> None:
    """Let a quarantined step run again; what it was charged with is forgotten. Raises `ResolveError`."""
    step = _found(engine, run, key)
    if step.state is StepState.UNKNOWN or step.reconciling:
        raise ResolveError(
            f"the outcome of step {key!r} is unknown: running it again may repeat its effect. If that is all right, or "
            f"it did not happen, say so: `pickaxe resolve {str(run)[:18]} '{key}' --again`"
        )
    if step.state is not StepState.QUARANTINED:
        raise ResolveError(f"step {key!r} of run {run} is {step.state}, not quarantined: there is nothing to release")
    _again(engine, run, step, Verdict(again=True, by=by))


def _found(engine: Engine, run: uuid.UUID, key: str) -> StepView:
    step = engine.store.view_step(run, key)
    if step is None:
        raise NotFoundError(f"run {run} has no step {key!r}: `pickaxe show {str(run)[:18]}` lists its steps")
    return step


def _again(engine: Engine, run: uuid.UUID, step: StepView, verdict: Verdict) -> None:
    history = _history.dump([*step.history, verdict.entry("again")])
    failpoint("reissue.before")
    state = engine.store.reissue(
        run, step.key, attempt=step.attempt, history=history, reason="a person lets it run again"
    )
    failpoint("reissue.after")
    if state is None:
        raise _moved(run, step)
    engine.transitions.tell(run, step_entry(step.key, step.name, "released", step.attempt, by=verdict.by))
    engine.nudge(0)


def _end(engine: Engine, run: uuid.UUID, step: StepView, verdict: Verdict, spec: ToolSpec | None) -> None:
    failed = verdict.failed is not None
    state, output, error = StepState.FAILED, None, None
    if failed:
        error = _values.dump({"type": "FailedByPerson", "message": verdict.failed, "by": verdict.by})
    else:
        state, output = StepState.SUCCEEDED, _encoded(engine, step, verdict.result, spec)
    failpoint("resolve.before")
    settled = engine.store.resolve(
        run, step.key, state, origin=step.state, attempt=step.attempt, output=output, error=error,
        entry=verdict.entry("failed" if failed else "result"),
    )  # fmt: skip
    failpoint("resolve.after")
    if not settled.accepted:
        raise _moved(run, step)
    told = step_entry(step.key, step.name, str(state), step.attempt, by=verdict.by, **_errors.brief(error))
    engine.transitions.tell(run, told)
    publish_released(engine, run, settled.released)
    if settled.woken:
        publish_run(engine, run)


def _encoded(engine: Engine, step: StepView, result: Any, spec: ToolSpec | None) -> str:
    cap = engine.settings.max_payload
    if spec is not None:
        return spec.signature.encode_output(result, cap=cap)
    return _values.encode(_values.ANYTHING, result, what=f"the result of step {step.key!r}", cap=cap)


def _moved(run: uuid.UUID, step: StepView) -> ResolveError:
    return ResolveError(
        f"step {step.key!r} of run {run} has moved on since it was looked at (it was {step.state}, attempt "
        f"{step.attempt}): look again before you decide"
    )
