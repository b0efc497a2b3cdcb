"""A tool's call, attempt by attempt: claim, run, record. The log decides who may."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pickaxe import _values
from pickaxe._durations import humanise
from pickaxe._failpoints import failpoint
from pickaxe._inject import Context
from pickaxe._specs import ToolSpec
from pickaxe._states import StepState
from pickaxe.engine import _errors
from pickaxe.engine import _limiter as limiter
from pickaxe.engine._dispatch import claims_of
from pickaxe.engine._engine import Engine
from pickaxe.engine._gate import Throttled, enter, may_start
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
)
from pickaxe.store import Claim, Outcome, Settled

logger = logging.getLogger("pickaxe.tool")

GRACE = 2.0
"""Seconds past its timeout that a call may take to stop by itself, before the sweeper takes it away."""

PERSISTENCE = 600.0
"""Seconds for which an outcome is offered to a Postgres that is away, before the call is given up to run again."""

LAST_TRY = 3.0
"""How many of them are left once the worker was told to stop."""

T = TypeVar("T")

_FINAL = (NonRetryableError, InputError, OutputError, PayloadError)


class Unwanted(BaseException):
    """Raised in a running async tool's place when its call was cancelled."""


@dataclass(slots=True)
class Attempt:
    """One claimed attempt of one call."""

    engine: Engine
    spec: ToolSpec
    claim: Claim
    owner: str
    context: Context
    gate: tuple[limiter.Claim, ...] = ()
    task: asyncio.Task[Any] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    _misses: int = 0

    @property
    def token(self) -> str:
        """How `Store.beat` names this attempt."""
        return token(self.claim.run, self.claim.key, self.claim.attempt)

    @property
    def timeout(self) -> float | None:
        """Seconds this attempt may take: its own timeout, or what the total leaves."""
        own = self.claim.options.get("timeout")
        if self.claim.expires is None:
            return float(own) if own is not None else None
        left = max(0.001, self.claim.expires - self.claim.now)
        return min(float(own), left) if own is not None else left

    def arguments(self) -> dict[str, Any]:
        """What the body is called with."""
        signature = self.spec.signature
        return signature.decode_input(self.claim.input) | signature.inject(self.context)

    def missed(self) -> bool:
        """Another beat did not find this call. True from the second time on."""
        self._misses += 1
        return self._misses > 1

    def unwanted(self) -> None:
        """The log says this call is over: tell the body."""
        self.context._cancelled.set()
        if self.loop is not None and self.task is not None:
            self.loop.call_soon_threadsafe(self.task.cancel)


def token(run: uuid.UUID, key: str, attempt: int) -> str:
    """How `Store.beat` names an attempt."""
    return f"{run} {attempt} {key}"


def claim(engine: Engine, spec: ToolSpec, message: dict[str, Any]) -> Attempt | None:
    """Own a call's next attempt, if its limits let it start now; else nothing is taken."""
    queue = engine.current_queue() or spec.queue
    if not may_start(engine, message, spec.name, queue):
        return None
    run, key, attempt = uuid.UUID(message["run"]), str(message["step"]), int(message["attempt"])
    owner = engine.owner
    with engine.running.expected([token(run, key, attempt)]):
        failpoint("claim.before")
        claimed = engine.store.claim(run, key, attempt, owner, grace=GRACE, seen=engine.sticky.seen(run))
        failpoint("claim.after")
        if claimed is None:
            return None
        gate = claims_of(engine, queue, claimed.options.get("limits") or [])
        return own(engine, spec, claimed, owner, gate)


def own(engine: Engine, spec: ToolSpec, claimed: Claim, owner: str, gate: tuple[limiter.Claim, ...] = ()) -> Attempt:
    """The attempt of a call that is already claimed. `gate` are the limits to pass right before the body."""
    context = Context(
        run=str(claimed.run), step=claimed.key, tool=spec.name, attempt=claimed.attempt,
        idempotency_key=f"{claimed.run}/{claimed.key}", root=str(claimed.root),
    )  # fmt: skip
    attempt = Attempt(engine, spec, claimed, owner, context, gate)
    if attempt.timeout is not None:
        context.deadline = datetime.fromtimestamp(claimed.now, UTC) + timedelta(seconds=attempt.timeout)
    context._beat = lambda value: _beat(attempt, value)
    engine.running.add(attempt.token, attempt)
    engine.transitions.tell(
        claimed.run, step_entry(claimed.key, claimed.name, "running", claimed.attempt, worker=engine.process)
    )
    return attempt


def run_sync(attempt: Attempt) -> Any:
    """Run the body in this thread. Async bodies run on the process's background loop."""
    if attempt.spec.is_async:
        return attempt.engine.background.run(run_async(attempt))
    arguments = attempt.arguments()
    enter(attempt.engine, attempt.gate)
    with _alarm(attempt.timeout):
        return attempt.spec.function(**arguments)


async def run_async(attempt: Attempt) -> Any:
    """Run an async body in this loop."""
    arguments = attempt.arguments()
    if attempt.gate:
        await asyncio.to_thread(enter, attempt.engine, attempt.gate)
    attempt.loop = asyncio.get_running_loop()
    attempt.task = asyncio.ensure_future(_contained(attempt.spec.function(**arguments)))
    try:
        async with asyncio.timeout(attempt.timeout):
            return await attempt.task
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
    wait = _wait_before_retry(attempt, error)
    if wait is not None:
        _retry(attempt, error, wait)
        return None
    if isinstance(error, TimeoutError) and attempt.timeout is not None and not error.args:
        text = _errors.timed_out(f"did not end within {humanise(attempt.timeout)}")
    else:
        text = _errors.encode(error)
    return _outcome(attempt, StepState.FAILED, error=text)


def _outcome(attempt: Attempt, state: StepState, *, output: str | None = None, error: str | None = None) -> Outcome:
    return Outcome(attempt.claim, attempt.owner, state, output, error, attempt.claim.clock())


def give_back(attempt: Attempt, reason: str, *, wait: float = 0.0) -> None:
    """Return an unfinished call, to be run elsewhere, in `wait` seconds. It costs none of its tries."""
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
    claim = outcome.claim
    failpoint("settle.before")
    settled = insist(engine, _name(claim), lambda: engine.store.settle(
        claim.run, claim.key, outcome.state, origin=[StepState.RUNNING], attempt=claim.attempt, owner=outcome.owner,
        output=outcome.output, error=outcome.error,
    ))  # fmt: skip
    failpoint("settle.after")
    told(engine, outcome, settled)
    return settled


def told(engine: Engine, outcome: Outcome, settled: Settled) -> None:
    """What follows from an outcome that was recorded, or refused."""
    claim = outcome.claim
    if not settled.accepted:
        logger.warning(
            "%s: the result came too late and was refused: the call is somebody else's now, or over", _name(claim)
        )
        return
    engine.transitions.tell(claim.run, step_entry(claim.key, claim.name, str(outcome.state), claim.attempt))
    publish_released(engine, claim.run, settled.released)


def _name(claim: Claim) -> str:
    return token(claim.run, claim.key, claim.attempt)


def _retry(attempt: Attempt, error: BaseException, wait: float) -> None:
    engine, claim = attempt.engine, attempt.claim
    failed = _errors.describe(error)
    past = _values.load(claim.history) if claim.history else []
    past.append({
        "attempt": claim.attempt, "owner": engine.process, "ended": "failed", "at": time.time(),
        "type": failed["type"], "message": failed["message"][:500],
    })  # fmt: skip
    failpoint("retry.before")
    given_back = insist(engine, attempt.token, lambda: engine.store.retry_step(
        claim, attempt.owner, wait=wait, spared=0, error=_values.dump(failed), history=_values.dump(past),
        reason=f"attempt {claim.attempt} failed ({failed['type']}), next in {humanise(wait)}",
    ))  # fmt: skip
    failpoint("retry.after")
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


def _beat(attempt: Attempt, value: Any) -> bool:
    text = None if value is None else _values.dump(value)
    wanted = attempt.engine.store.progress(attempt.claim, attempt.owner, progress=text, grace=GRACE)
    if wanted and value is not None:
        claim = attempt.claim
        attempt.engine.transitions.tell(
            claim.run, step_entry(claim.key, claim.name, "progress", claim.attempt, value=value)
        )
    return wanted


@contextlib.contextmanager
def _alarm(timeout: float | None) -> Iterator[None]:
    """Interrupts the main thread after `timeout` seconds. Elsewhere the sweeper takes the call away."""
    if timeout is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
