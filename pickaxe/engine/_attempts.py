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
from pickaxe.engine import _errors
from pickaxe.engine._claims import Attempt
from pickaxe.engine._dispatch import agent_message, publish
from pickaxe.engine._doubt import answered, doubt
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
from pickaxe.store import Settled

logger = logging.getLogger("pickaxe.tool")

PERSISTENCE = 600.0
"""Seconds for which an outcome is offered to a Postgres that is away, before the call is given up to run again."""

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
    if not attempt.is_async:
        return await asyncio.to_thread(run_sync, attempt)
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


def finish(attempt: Attempt, value: Any, *, chord: bool = False) -> Settled | None:
    """Record a result."""
    try:
        output = attempt.spec.signature.encode_output(value, cap=attempt.engine.settings.max_payload)
    except Exception as error:  # noqa: BLE001 - a model's own validators and serializers raise what they like
        return fail(attempt, error, chord=chord)
    return _settle(attempt, StepState.SUCCEEDED, output=output, chord=chord)


def fail(attempt: Attempt, error: BaseException, *, chord: bool = False) -> Settled | None:
    """Record a failure: another attempt if the tool's rules allow it, else the end of the step."""
    if isinstance(error, Unwanted):
        logger.info("%s: nobody wants this call any more", attempt.token)
        attempt.engine.running.remove(attempt.token)
        return None
    if isinstance(error, Throttled):
        give_back(attempt, "waits for its rate limit", wait=error.wait)
        return None
    if attempt.claim.reconciling:
        failed = answered(attempt, error)
        return None if failed is None else _settle(attempt, StepState.FAILED, error=failed, chord=chord)
    if attempt.in_doubt and attempt.interrupted and isinstance(error, TimeoutError):
        what = f"did not end within {humanise(attempt.timeout or 0.0)}"
        doubt(attempt, f"attempt {attempt.claim.attempt} {what}", spared=0, error=_errors.timed_out(what))
        return None
    wait = _wait_before_retry(attempt, error)
    if wait is not None:
        _retry(attempt, error, wait)
        return None
    if isinstance(error, TimeoutError) and attempt.timeout is not None and not error.args:
        text = _errors.timed_out(f"did not end within {humanise(attempt.timeout)}")
    else:
        text = _errors.encode(error)
    return _settle(attempt, StepState.FAILED, error=text, chord=chord)


def perform(attempt: Attempt, *, chord: bool = False) -> Settled | None:
    """Run and record, in this thread."""
    try:
        try:
            value = run_sync(attempt)
        except BaseException as error:  # noqa: BLE001 - whatever a tool raises is its outcome, and is recorded
            return failed_or_leaving(attempt, error, chord=chord)
        return finish(attempt, value, chord=chord)
    finally:
        # If nothing was recorded, the next beats find that this process owns a call that it does not run.
        attempt.engine.running.remove(attempt.token)


async def perform_async(attempt: Attempt, *, chord: bool = False) -> None:
    """Run and record on an event loop; recording happens in a thread."""
    try:
        value = await run_async(attempt)
    except asyncio.CancelledError:
        give_back(attempt, "its worker is going down")
        raise
    except BaseException as error:  # noqa: BLE001 - as above
        await asyncio.to_thread(_recorded, attempt, failed_or_leaving, error, chord=chord)
    else:
        await asyncio.to_thread(_recorded, attempt, finish, value, chord=chord)


def _recorded(attempt: Attempt, record: Callable[..., Settled | None], outcome: Any, *, chord: bool) -> None:
    try:
        record(attempt, outcome, chord=chord)
    finally:
        attempt.engine.running.remove(attempt.token)


def failed_or_leaving(attempt: Attempt, error: BaseException, *, chord: bool) -> Settled | None:
    """Record what a body raised, unless that is its process being told to stop."""
    if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit) and not _errors.is_own_exit(error):
        # Once it is its worker that goes down. A body that itself raises this must not be run again and again at once.
        give_back(attempt, "its worker is going down", wait=min(60.0, attempt.claim.deaths**2))
        raise error
    return fail(attempt, error, chord=chord)


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


def insist(attempt: Attempt, write: Callable[[], T]) -> T:
    """Record an outcome, however long Postgres is away: it is known here and nowhere else."""
    deadline = time.monotonic() + PERSISTENCE
    while True:
        try:
            return write()
        except ServiceUnavailableError as error:
            if time.monotonic() >= deadline:
                raise
            logger.warning("%s: its outcome cannot be recorded yet: %s", attempt.token, error)
            time.sleep(1.0)


def _settle(
    attempt: Attempt, state: StepState, *, output: str | None = None, error: str | None = None, chord: bool
) -> Settled:
    engine, claim = attempt.engine, attempt.claim
    failpoint("settle.before")
    settled = insist(attempt, lambda: engine.store.settle(
        claim.run, claim.key, state, origin=[StepState.RUNNING], attempt=claim.attempt, owner=attempt.owner,
        output=output, error=error,
    ))  # fmt: skip
    failpoint("settle.after")
    return announce(attempt, state, settled, chord=chord)


def announce(attempt: Attempt, state: StepState, settled: Settled, *, chord: bool) -> Settled:
    """Tell whom a recorded outcome concerns; one that was refused concerns nobody."""
    engine, claim = attempt.engine, attempt.claim
    attempt.ended()
    if not settled.accepted:
        logger.warning(
            "%s: the result came too late and was refused: the call is somebody else's now, or over", attempt.token
        )
        return settled
    engine.transitions.tell(claim.run, step_entry(claim.key, claim.name, str(state), claim.attempt))
    publish_released(engine, claim.run, settled.released)
    # A chord ends in the agent's message, but only after all of its calls: a failure wakes the agent at once.
    # An inline call's caller goes on by itself.
    if settled.woken and not claim.options.get("inline") and (not chord or state is not StepState.SUCCEEDED):
        wake = settled.seq or 0
        publish(engine, [agent_message(claim.run, claim.agent, claim.queue, claim.priority, claim.root, wake)])
    return settled


def _retry(attempt: Attempt, error: BaseException, wait: float) -> None:
    engine, claim = attempt.engine, attempt.claim
    failed = _errors.describe(error)
    past = _values.load(claim.history) if claim.history else []
    past.append({
        "attempt": claim.attempt, "owner": engine.process, "ended": "failed", "at": time.time(),
        "type": failed["type"], "message": failed["message"][:500],
    })  # fmt: skip
    failpoint("retry.before")
    given_back = insist(attempt, lambda: engine.store.retry_step(
        claim, attempt.owner, wait=wait, spared=0, error=_values.dump(failed), history=_values.dump(past),
        reason=f"attempt {claim.attempt} failed ({failed['type']}), next in {humanise(wait)}",
    ))  # fmt: skip
    failpoint("retry.after")
    attempt.ended()
    engine.nudge(wait)
    if given_back:
        engine.transitions.tell(
            claim.run,
            step_entry(claim.key, claim.name, "retrying", claim.attempt, wait=wait, error=failed["type"]),
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
