"""A tool's call, attempt by attempt: run it, record what came of it. The log decides whose outcome counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from pickaxe import _values
from pickaxe._durations import humanise
from pickaxe._failpoints import failpoint
from pickaxe._states import StepState
from pickaxe.engine import _errors, _history
from pickaxe.engine._claims import Attempt, hold_on, token
from pickaxe.engine._doubt import answered, doubt
from pickaxe.engine._engine import Engine
from pickaxe.engine._gate import Throttled, enter
from pickaxe.engine._released import publish_released
from pickaxe.engine._transitions import step_entry
from pickaxe.errors import (
    InputError,
    NonRetryableError,
    OutputError,
    PayloadError,
    PickaxeError,
    RetryLater,
    ServiceUnavailableError,
    TransactionError,
)
from pickaxe.store import Claim, Outcome, Settled

logger = logging.getLogger("pickaxe.tool")

PERSISTENCE = 600.0
"""Seconds for which an outcome is offered to a Postgres that is away, before the call is given up to run again."""

LAST_TRY = 3.0
"""How many of them are left once the worker was told to stop."""

T = TypeVar("T")

_FINAL = (NonRetryableError, InputError, OutputError, PayloadError, TransactionError)


class Unwanted(BaseException):
    """Raised in a running async tool's place when its call was cancelled."""


def run_sync(attempt: Attempt) -> Any:
    """Run the body in this thread. Async bodies run on the process's background loop."""
    if attempt.is_async:
        return attempt.engine.background.run(run_async(attempt))
    arguments = attempt.arguments()
    enter(attempt.engine, attempt.gate)
    attempt.begin()
    with _alarm(attempt):
        return attempt.function(**arguments)


async def run_async(attempt: Attempt) -> Any:
    """Run an async body in this loop."""
    arguments = attempt.arguments()
    if attempt.gate:
        await asyncio.to_thread(enter, attempt.engine, attempt.gate)
    attempt.loop = asyncio.get_running_loop()
    attempt.begin()
    attempt.task = asyncio.ensure_future(_contained(attempt.function(**arguments)))
    limit = asyncio.timeout(attempt.timeout)
    try:
        async with limit:
            return await attempt.task
    except TimeoutError:
        attempt.interrupted = limit.expired()
        raise
    except asyncio.CancelledError:
        if attempt.context.cancelled:
            raise Unwanted from None
        attempt.task.cancel()
        current = asyncio.current_task()
        if current is not None and not current.cancelling():
            raise RuntimeError("the tool cancelled itself") from None
        raise


async def _contained(body: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await body
    except (SystemExit, KeyboardInterrupt) as error:
        # Out of a task, these end the loop, and with it every other call that it runs.
        raise RuntimeError(f"the tool raised {error!r}") from error


def returned(attempt: Attempt, value: Any) -> Outcome | None:
    """How an attempt ended whose body has returned."""
    try:
        output = attempt.spec.signature.encode_output(value, cap=attempt.engine.settings.max_payload)
    except Exception as error:  # noqa: BLE001 - a model's own validators and serializers raise what they like
        return raised(attempt, error)
    return _outcome(attempt, StepState.SUCCEEDED, output=output)


def raised(attempt: Attempt, error: BaseException) -> Outcome | None:
    """How an attempt ended whose body has raised. None when another attempt follows, or nobody wants it any more.

    Raises `error` itself when it is the worker that goes down.
    """
    if isinstance(error, Unwanted):
        logger.info("%s: nobody wants this call any more", attempt.token)
        return None
    if isinstance(error, Throttled):
        give_back(attempt, "waits for its rate limit", wait=error.wait)
        return None
    if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit) and not _errors.is_own_exit(error):
        # Once it is its worker that goes down. A body that itself raises this must not be run again and again at once.
        give_back(attempt, "its worker is going down", wait=min(60.0, attempt.claim.deaths**2))
        raise error
    if attempt.claim.reconciling:
        failed = answered(attempt, error)
        return None if failed is None else _outcome(attempt, StepState.FAILED, error=failed)
    if attempt.in_doubt and attempt.interrupted and isinstance(error, TimeoutError):
        what = f"did not end within {humanise(attempt.timeout or 0.0)}"
        doubt(attempt, f"attempt {attempt.claim.attempt} {what}", spared=0, error=_errors.timed_out(what, error))
        return None
    wait = _wait_before_retry(attempt, error)
    if wait is not None:
        _retry(attempt, error, wait)
        return None
    if isinstance(error, TimeoutError) and attempt.timeout is not None and not error.args:
        text = _errors.timed_out(f"did not end within {humanise(attempt.timeout)}", error)
    else:
        text = _errors.encode(error)
    return _outcome(attempt, StepState.FAILED, error=text)


def _outcome(attempt: Attempt, state: StepState, *, output: str | None = None, error: str | None = None) -> Outcome:
    return Outcome(attempt.claim, attempt.owner, state, output, error, attempt.claim.clock())


def give_back(attempt: Attempt, reason: str, *, wait: float = 0.0) -> None:
    """Return an unfinished call, to be run elsewhere, in `wait` seconds. It costs none of its tries.

    One that may only run once, and has begun, is set aside instead.
    """
    if attempt.in_doubt or attempt.claim.reconciling:
        doubt(attempt, reason, wait=wait)
        return
    attempt.engine.running.remove(attempt.token)
    try:
        attempt.engine.store.retry_step(
            attempt.claim, attempt.owner, wait=wait, spared=1, error=None, reason=reason,
            history=attempt.claim.history,
        )  # fmt: skip
    except PickaxeError as failure:
        logger.warning("%s: could not be given back, the fleet will notice: %s", attempt.token, failure)
    attempt.engine.nudge(wait)


def insist(engine: Engine, name: str, write: Callable[[], T]) -> T:
    """Record an outcome, however long Postgres is away: it is known here and nowhere else."""
    deadline = time.monotonic() + PERSISTENCE
    while True:
        try:
            return write()
        except ServiceUnavailableError as error:
            if engine.stopping():
                deadline = min(deadline, time.monotonic() + LAST_TRY)
            if time.monotonic() >= deadline:
                raise
            logger.warning("%s: its outcome cannot be recorded yet: %s", name, error)
            time.sleep(1.0)


def settle(engine: Engine, outcome: Outcome) -> Settled:
    """Record an outcome, and no more than that. Who has woken the run is to see to its reduction."""
    settled = unless_lost(engine, outcome, _settle(engine, outcome))
    told(engine, outcome, settled)
    return settled


def unless_lost(engine: Engine, outcome: Outcome, settled: Settled) -> Settled:
    """What recording an outcome did. It is recorded again if it was refused, for Postgres may have lost the claim."""
    if settled.accepted or not _may_have_lost(engine, outcome.claim, outcome.owner):
        return settled
    return _settle(engine, outcome)


def _may_have_lost(engine: Engine, claim: Claim, owner: str) -> bool:
    """Whether it may be for a claim that Postgres lost that a write was refused. The claim is made again then."""
    if claim.options.get("effect"):
        return False
    # Whether or not this takes it again: the process's beat may have done so first.
    insist(engine, _name(claim), lambda: hold_on(engine, claim, owner))
    return True


def _settle(engine: Engine, outcome: Outcome) -> Settled:
    claim = outcome.claim
    failpoint("settle.before")
    settled = insist(engine, _name(claim), lambda: engine.store.settle(
        claim.run, claim.key, outcome.state, origin=[StepState.RUNNING], attempt=claim.attempt, owner=outcome.owner,
        output=outcome.output, error=outcome.error,
    ))  # fmt: skip
    failpoint("settle.after")
    return settled


def told(engine: Engine, outcome: Outcome, settled: Settled) -> None:
    """What follows from an outcome that was recorded, or refused."""
    claim = outcome.claim
    engine.running.end(_name(claim))
    if not settled.accepted:
        logger.warning(
            "%s: the result came too late and was refused: the call is somebody else's now, or over", _name(claim)
        )
        return
    failed = _errors.brief(outcome.error)
    engine.transitions.tell(claim.run, step_entry(claim.key, claim.name, str(outcome.state), claim.attempt, **failed))
    publish_released(engine, claim.run, settled.released)


def _name(claim: Claim) -> str:
    return token(claim.run, claim.key, claim.attempt)


def _retry(attempt: Attempt, error: BaseException, wait: float) -> None:
    engine, claim = attempt.engine, attempt.claim
    failed = _errors.describe(error)
    ended = _history.entry(claim.attempt, engine.process, "failed", **_history.of_error(failed))
    history = _history.dump([*_history.load(claim.history), ended])

    def give_back() -> bool:
        failpoint("retry.before")
        given_back = insist(engine, attempt.token, lambda: engine.store.retry_step(
            claim, attempt.owner, wait=wait, spared=0, error=_values.dump(failed), history=history,
            reason=f"attempt {claim.attempt} failed ({failed['type']}), next in {humanise(wait)}",
        ))  # fmt: skip
        failpoint("retry.after")
        return given_back

    given_back = give_back() or (_may_have_lost(engine, claim, attempt.owner) and give_back())
    attempt.ended()
    engine.nudge(wait)
    if given_back:
        engine.transitions.tell(
            claim.run,
            step_entry(claim.key, claim.name, "retrying", claim.attempt, wait=wait, **_errors.brief(failed)),
        )


def _wait_before_retry(attempt: Attempt, error: BaseException) -> float | None:
    claim, retry = attempt.claim, attempt.spec.retry
    allowed = int(claim.options.get("attempts", retry.attempts))
    tried = claim.attempt - claim.deaths
    if isinstance(error, _FINAL) or tried >= allowed:
        return None
    if isinstance(error, RetryLater):
        asked = _errors.seconds_from(error.after)
        wait = asked if asked is not None else retry.wait(tried)
    elif retry.allows(error):
        asked = _errors.retry_after(error)
        wait = asked if asked is not None else retry.wait(tried)
    else:
        return None
    if claim.expires is not None and claim.now + wait >= claim.expires:
        return None
    return wait


@contextlib.contextmanager
def _alarm(attempt: Attempt) -> Iterator[None]:
    """Interrupts the main thread when the attempt's time is up. Elsewhere the sweeper takes the call away."""
    timeout = attempt.timeout
    if timeout is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        attempt.interrupted = True
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
