"""Workers that die in a simulated tool, and what becomes of the step: as `pickaxe/store` and the engine have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pickaxe import _values
from pickaxe._retry import Retry
from pickaxe._specs import ToolSpec
from pickaxe._states import StepState
from pickaxe.authoring._handles import MAX_PAYLOAD
from pickaxe.engine import _errors
from pickaxe.engine._doubt import UNKNOWN, is_once
from pickaxe.engine._resolution import NOTHING, Verdict
from pickaxe.errors import ConfigurationError, DidNotHappen, NonRetryableError, StillUnknown
from pickaxe.testing._rows import SimulatedRun, Step
from pickaxe.testing._tools import Takes

if TYPE_CHECKING:
    from pickaxe.testing._world import World

LIMIT = 2
"""Deaths in a row after which a step is quarantined: the default of `Settings.quarantine_after`."""

_ASKING = Retry(jitter=0.0)


def dies(body: Callable[..., Any] | None = None, *, times: int = 1, reconcile: Callable[..., Any] | None = None) -> Any:
    """A replacement for a tool whose worker process dies, after its effect, in the first `times` attempts.

    `simulate(agent, tools={charge: dies(lambda order: "r-17")})`. Without `body` it is the tool itself. What follows
    is what its effect policy says: it runs again, or it is unknown and `reconcile` is asked (the tool's own, unless
    another is given here), or a person (see `simulate(resolve=...)`).
    """
    if times < 1:
        raise ConfigurationError(f"dies(times={times}) must be at least 1")
    return Takes(0.0, body, deaths=times, reconcile=reconcile)


@dataclass(frozen=True, slots=True)
class Person:
    """Decides about steps that were set aside, once it is time; at once, if they are set aside later than that."""

    world: World
    verdicts: dict[str, list[Verdict]]

    def tell(self, run: SimulatedRun, key: str, verdict: Verdict) -> None:
        """It is time to decide about this step."""
        self.verdicts.setdefault(key, []).append(verdict)
        step = run.steps.get(key)
        if step is not None and step.state.aside:
            self.decide(run, step)

    def decide(self, run: SimulatedRun, step: Step) -> None:
        """This step is set aside: carry out what was decided, if it was."""
        waiting = self.verdicts.get(step.key)
        if not waiting or run.parent is not None:
            return
        verdict = waiting.pop(0)
        world, origin = self.world, {StepState.UNKNOWN, StepState.QUARANTINED}
        if verdict.again:
            step.strikes, step.deaths = 0, step.attempt
            reissue(world, run, step)
        elif verdict.failed is not None:
            error = _values.dump({"type": "FailedByPerson", "message": verdict.failed})
            world.settle(run, step, origin, StepState.FAILED, None, error)
        else:
            output = step.spec.signature.encode_output(verdict.result, cap=MAX_PAYLOAD)
            world.settle(run, step, origin, StepState.SUCCEEDED, output)


def verdict_of(given: Any) -> Verdict:
    """What `simulate(resolve=...)` says of a step: the keywords of `Run.resolve`. Raises `InputError`."""
    if not isinstance(given, Mapping) or given.keys() - {"result", "failed", "again"}:
        raise ConfigurationError(f"resolve= takes (when, step, {{'result' | 'failed' | 'again': …}}), not {given!r}")
    verdict = Verdict(given.get("result", NOTHING), given.get("failed"), bool(given.get("again", False)))
    verdict.check()
    return verdict


def died(world: World, run: SimulatedRun, step: Step) -> None:
    """The worker process that ran a step has died."""
    step.strikes += 1
    step.reason = f"the worker process that ran attempt {step.attempt} died"
    if is_once(step.options):
        doubt(world, run, step, spared=1)
    elif step.strikes >= LIMIT:
        step.reason = f"it kills the worker processes that run it: attempt {step.attempt} was the last of them"
        _aside(world, run, step, StepState.QUARANTINED)
    else:
        step.deaths += 1
        step.state = StepState.READY
        world.issue(run, step)


def doubt(world: World, run: SimulatedRun, step: Step, *, spared: int, wait: float = 0.0) -> None:
    """Nobody knows whether a step's effect happened: its `reconcile` is asked, if there is one, or a person."""
    step.deaths += spared
    step.reason = f"{step.reason}: {UNKNOWN}"
    _aside(world, run, step, StepState.UNKNOWN)
    attempt = step.attempt
    if step.options.get("reconcile") and step.state is StepState.UNKNOWN:
        world.at(world.now + wait, lambda: _ask(world, run, step, attempt))


def reissue(world: World, run: SimulatedRun, step: Step) -> None:
    """A step that was set aside may run again: at once, or when its gather has a place for it."""
    gather = run.steps.get(step.group or "")
    step.reason, step.passed = None, False
    limit = None if gather is None else gather.options.get("limit")
    busy = (StepState.READY, StepState.RUNNING, StepState.WAITING)
    taken = sum(other.group == step.group and other.state in busy for other in run.steps.values() if other is not step)
    if gather is not None and limit is not None and taken >= limit:
        step.state = StepState.BLOCKED
        gather.held.appendleft(step)
        return
    step.state = StepState.READY
    world.issue(run, step)


def _aside(world: World, run: SimulatedRun, step: Step, state: StepState) -> None:
    step.state = state
    gather = run.steps.get(step.group or "")
    if gather is not None and gather.options.get("limit") is not None and not step.passed:
        step.passed = True
        world.release(run, gather)
    world.person.decide(run, step)


def _ask(world: World, run: SimulatedRun, step: Step, attempt: int) -> None:
    if step.state is not StepState.UNKNOWN or step.attempt != attempt:
        return
    step.state, step.attempt, step.deaths = StepState.RUNNING, attempt + 1, step.deaths + 1
    running = {StepState.RUNNING}
    try:
        output = world.bodies.reconcile(run, step)
    except DidNotHappen as error:
        _did_not_happen(world, run, step, error)
    except NonRetryableError as error:
        world.settle(run, step, running, StepState.FAILED, None, _errors.encode(error))
    except Exception as error:  # noqa: BLE001 - whatever it raises, it is asked again
        step.questions += 1
        told = error.after if isinstance(error, StillUnknown) else None
        step.reason = f"its reconcile could not tell ({type(error).__name__}: {error})"
        doubt(world, run, step, spared=0, wait=_ASKING.wait(step.questions) if told is None else told)
    else:
        world.settle(run, step, running, StepState.SUCCEEDED, output)


def _did_not_happen(world: World, run: SimulatedRun, step: Step, error: DidNotHappen) -> None:
    spec: ToolSpec = step.spec
    if step.attempt - step.deaths >= int(step.options.get("attempts", spec.retry.attempts)):
        text = _errors.timed_out(f"ran out of time, and its effect did not happen: {error}")
        world.settle(run, step, {StepState.RUNNING}, StepState.FAILED, None, text)
    elif step.strikes >= LIMIT:
        step.reason = f"it kills the worker processes that run it: {error}"
        _aside(world, run, step, StepState.QUARANTINED)
    else:
        reissue(world, run, step)
