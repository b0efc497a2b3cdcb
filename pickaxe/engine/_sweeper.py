"""The sweeper: whatever the log says is due, happens, though every message and every process may be lost.

One of the fleet's worker processes does it, whichever holds the advisory lock. Every statement checks its
own predicate again, so a second sweeper, or one that was frozen, does no harm.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import redis
from sqlalchemy import Connection, Row
from sqlalchemy.exc import DBAPIError

from pickaxe import _values
from pickaxe._durations import humanise
from pickaxe._effects import Effect
from pickaxe._failpoints import FailpointError, failpoint
from pickaxe._retry import Retry
from pickaxe._states import StepState
from pickaxe.engine import _errors, _history
from pickaxe.engine._cancellation import cancel
from pickaxe.engine._claims import token
from pickaxe.engine._dispatch import publish_run
from pickaxe.engine._doubt import is_once, overdue
from pickaxe.engine._effects import transaction_name
from pickaxe.engine._engine import NUDGE, Engine, new_owner
from pickaxe.engine._late import resend, send
from pickaxe.engine._purge import Purge
from pickaxe.engine._quarantine import reclaim
from pickaxe.engine._released import publish_released
from pickaxe.engine._transitions import step_entry
from pickaxe.errors import PickaxeError, ServiceUnavailableError
from pickaxe.store import FOUND_AGAIN

logger = logging.getLogger("pickaxe.sweeper")

INCARNATION = "pickaxe:incarnation"
"""The Redis key whose loss tells that Redis has come back empty."""

LEADER = 0
"""The slot of the sweeper's lock; worker processes have slots from 1."""

JUMP = 1.0
"""Seconds by which the database's clock may differ from what it should be between two rounds, or a pause be late."""

SHORTEST = 0.01
"""Seconds between two rounds when something is always due."""


class Sweeper:
    """Runs in a thread of a worker's main process, from `start` to `stop`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._leading: Connection | None = None
        self._swept = 0.0
        self._steadiness = Steadiness()
        self._purge = Purge(engine)

    def start(self) -> None:
        """Stand for election from now on."""
        self._thread = threading.Thread(target=self._run, name="pickaxe-sweeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Step down."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._step_down()

    def _run(self) -> None:
        pause = 0.0
        nudges = Nudges(self._engine.redis)
        while not self._stop.is_set():
            began = time.monotonic()
            if self._leading is not None:
                nudges.wait(pause, self._stop)
            else:
                self._stop.wait(pause)
            self._steadiness.waited(pause, began)
            try:
                pause = self._round() if self._leads() else self._engine.settings.sweep_every
            except Exception as error:
                expected = isinstance(error, PickaxeError | DBAPIError | redis.RedisError)
                self._steadiness.disturbed()
                logger.warning("a sweep was cut short: %s", error, exc_info=not expected)
                self._step_down()
                pause = self._engine.settings.sweep_every

    def _round(self) -> float:
        if time.monotonic() - self._swept >= self._engine.settings.sweep_every / 2:
            self._swept = time.monotonic()
            sweep(self._engine, bury=self._steadiness.steady)
            self._purge()
        else:
            release_due(self._engine)
        return max(SHORTEST, self._engine.store.next_due(self._engine.settings.sweep_every))

    def _leads(self) -> bool:
        if self._leading is None:
            self._leading = self._engine.store.lock(LEADER)
            if self._leading is None:
                self._depose()
                return False
            logger.info("this process sweeps from now on")
        # Notices when the lock is gone; and shows the others that this process is awake.
        asked = time.monotonic()
        self._steadiness.saw(self._engine.store.holds(self._leading), asked)
        return True

    def _depose(self) -> None:
        # A frozen process, or one on a host that has vanished, keeps its lock for as long as its socket lives.
        for backend in self._engine.store.depose(LEADER, vanished=self._engine.settings.vanished_after):
            logger.warning("the sweeping process (Postgres backend %d) does not answer: it is deposed", backend)

    def _step_down(self) -> None:
        leading, self._leading = self._leading, None
        if leading is not None:
            try:
                leading.close()
            except DBAPIError as error:
                logger.debug("closing a lost connection: %s", error)


class Steadiness:
    """Whether the database can be asked who is dead.

    After a time in which nobody could write (a fail-over, a read-only spell), or when its clock has jumped, every
    beat looks old, and all that lives needs a moment to beat again. So it is when this process was frozen, for others
    may have been with it: a host, or all containers, that were paused.
    """

    def __init__(self) -> None:
        self._offset: float | None = None
        self._disturbed = -math.inf

    def saw(self, clock: float, asked: float) -> None:
        """The database's time was `clock` at some moment since it was `asked`, on the monotonic clock."""
        least, most = clock - time.monotonic(), clock - asked
        if self._offset is not None and not least - JUMP <= self._offset <= most + JUMP:
            self.disturbed()
        self._offset = most

    def waited(self, seconds: float, began: float) -> None:
        """A pause of so many seconds that `began` then, on the monotonic clock, is over."""
        if time.monotonic() - began > seconds + JUMP:
            self.disturbed()

    def disturbed(self) -> None:
        """Something went wrong just now."""
        self._disturbed = time.monotonic()

    @property
    def steady(self) -> bool:
        """Whether nothing has gone wrong for long enough."""
        return time.monotonic() - self._disturbed >= FOUND_AGAIN


class Nudges:
    """Waits for the next round, or for a nudge. Without Redis it just waits."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._channel: redis.client.PubSub | None = None

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """At most `seconds`, less when nudged or stopped."""
        deadline = time.monotonic() + seconds
        try:
            if self._channel is None:
                self._channel = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
                self._channel.subscribe(NUDGE)
            stop.wait(min(seconds, SHORTEST))  # however many nudges there are
            while (left := deadline - time.monotonic()) > 0 and not stop.is_set():
                if self._channel.get_message(timeout=min(left, 0.25)) is not None:
                    return
        except (redis.RedisError, OSError) as error:
            logger.debug("no nudges: %s", error)
            self._channel = None
            stop.wait(max(0.0, deadline - time.monotonic()))


def sweep(engine: Engine, *, bury: bool = True) -> None:
    """One round: everything that is due now. With `bury`, who gives no sign of life is declared dead."""
    failpoint("sweep.before")
    _look_for_lost_broker(engine)
    reclaim(engine, bury=bury)
    _time_out(engine)
    for run, key in engine.store.due_lookbacks():
        with _apart(run):
            publish_runs(engine, engine.store.look_back(run, key))
    for run in engine.store.due_cancellations(engine.settings.redispatch_cap):
        with _apart(run):
            cancel(engine, run, reason="its parent run no longer waits for it")
    resend(engine)
    release_due(engine)


@contextlib.contextmanager
def _apart(run: uuid.UUID) -> Iterator[None]:
    """One run that cannot be helped must not hold up all others."""
    try:
        yield
    except (ServiceUnavailableError, FailpointError):
        raise
    except Exception:
        logger.exception("the sweeper could not do what run %s needs, and goes on with the others", run)


def release_due(engine: Engine) -> None:
    """The part of a round that timers and rate limits need on time: it may run every few milliseconds."""
    publish_runs(engine, engine.store.due_timers())
    cap = engine.settings.redispatch_cap
    send(engine, engine.store.due_runs(cap), engine.store.due_steps(cap))


def publish_runs(engine: Engine, runs: Iterable[uuid.UUID]) -> None:
    """Publish runs that were woken."""
    for run in runs:
        publish_run(engine, run)


def _look_for_lost_broker(engine: Engine) -> None:
    """A random key marks the broker's incarnation; when it is gone, so is everything else that was there."""
    try:
        if engine.redis.get(INCARNATION) is not None:
            return
        if engine.store.broker_seen(new_owner()) is not None:
            engine.limiter.mark_lost()
            due = engine.store.expedite()
            logger.warning("Redis came back empty: %d run(s) and %d call(s) are published again", due.runs, due.steps)
        # Last of all: a sweeper that dies on the way leaves the loss to be found by the next one.
        engine.redis.set(INCARNATION, new_owner(), nx=True)
    except redis.RedisError as error:
        logger.debug("Redis is away: %s", error)


def _time_out(engine: Engine) -> None:
    for step in engine.store.overdue_steps():
        with _apart(step.run_id):
            _overdue(engine, step)
    for step in engine.store.expired_steps():
        what = "did not start within its schedule timeout" if step.unstarted else "did not end within its total timeout"
        with _apart(step.run_id):
            if step.state == StepState.RUNNING and is_once(options := _values.load(step.options)):
                overdue(engine, step, what, options)
                continue
            # As it was seen: a call that was claimed or given back meanwhile has another state or attempt.
            _fail(engine, step, what, [StepState(step.state)], {"attempt": step.attempt})
    for run in engine.store.overdue_runs():
        with _apart(run):
            cancel(engine, run, reason="the run did not end within its agent's timeout", timed_out=True)


def _overdue(engine: Engine, step: Row[Any]) -> None:
    """An attempt has run past its timeout and did not stop by itself: it counts as failed."""
    spec = engine.tools.get(step.name)
    options = _values.load(step.options)
    # A fleet may be mixed: this process need not know the tool, but its number of attempts is in the options.
    retry = spec.retry if spec is not None else Retry()
    attempts = int(options.get("attempts", retry.attempts))
    tried = step.attempt - step.deaths
    # Not before it has lost the call: its process would take that for a lost connection, which costs no try.
    transaction = _transaction(step, options)
    what = f"did not end within {humanise(options.get('timeout') or step.now - step.started)}"
    if is_once(options):
        overdue(engine, step, what, options)
        return
    if tried >= attempts or not retry.allows(TimeoutError()):
        _fail(engine, step, what, [StepState.RUNNING], {"attempt": step.attempt, "owner": step.owner})
        return
    ended = _history.entry(step.attempt, step.owner, "timed out")
    engine.store.database.rows(
        "retry_step", run=step.run_id, key=step.key, attempt=step.attempt, owner=step.owner, spared=0,
        overdue=True, wait=retry.wait(tried), error=_errors.timed_out(what), reason=f"attempt {step.attempt} {what}",
        history=_history.dump([*_history.load(step.history), ended]), transaction=transaction,
    )  # fmt: skip


def _fail(engine: Engine, step: Row[Any], what: str, origin: Sequence[StepState], guard: dict[str, Any]) -> None:
    error = _errors.timed_out(what)
    settled = engine.store.settle(step.run_id, step.key, StepState.FAILED, origin=origin, error=error, **guard)
    if settled.accepted:
        engine.transitions.tell(step.run_id, step_entry(step.key, step.name, "failed", **_errors.brief(error)))
        publish_released(engine, step.run_id, settled.released)
        if settled.woken:
            publish_run(engine, step.run_id)
        if (transaction := _transaction(step, _values.load(step.options))) is not None:
            engine.store.end_transactions([transaction])


def _transaction(step: Row[Any], options: dict[str, Any]) -> str | None:
    """The name of the transaction that a running attempt works in, if it does."""
    if options.get("effect") != Effect.TRANSACTIONAL or step.owner is None:
        return None
    return transaction_name(step.owner, token(step.run_id, step.key, step.attempt))
