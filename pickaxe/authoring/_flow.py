"""What agents can await besides tools, and what they may know: time, chance, signals, each other."""

from __future__ import annotations

import asyncio
import random as _random
import time as _time
import uuid
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, NoReturn, TypeVar, overload

from pickaxe import _values
from pickaxe._durations import Duration, seconds
from pickaxe._states import StepKind
from pickaxe.authoring._handles import MAX_PAYLOAD
from pickaxe.core import _calls
from pickaxe.core._calls import Asked, Call, Join
from pickaxe.core._reduction import Reduction, current
from pickaxe.engine._errors import reraise
from pickaxe.errors import ConfigurationError, InputError, QuorumError, ValidationError

T = TypeVar("T")


async def gather(
    *calls: Coroutine[Any, Any, T],
    limit: int | None = None,
    quorum: int | None = None,
    return_exceptions: bool = False,
) -> list[T]:
    """Run calls of tools and agents side by side, as one step: one command, one wake-up, one Celery chord.

    Returns their results in the order of the calls. The first failure is raised at once and the calls still
    open are cancelled; with `return_exceptions` failures are results like any other. With `quorum` the
    first so many successes are enough: they are returned in the order of the calls, the rest is cancelled,
    and `QuorumError` is raised when it is out of reach. `limit` caps how many run at a time. Takes 10,000
    calls. For coroutines of your own, use `asyncio.gather`.
    """
    reduction = current()
    join = Join(quorum, return_exceptions, limit)
    if reduction is not None:
        return await _calls.gather(reduction, calls, join)  # type: ignore[arg-type]
    return await _gather_locally(calls, join)


async def first(*calls: Coroutine[Any, Any, T]) -> T:
    """The result of the first call to succeed; the others are cancelled."""
    return (await gather(*calls, quorum=1))[0]


@overload
async def wait_for_signal(name: str) -> Any: ...
@overload
async def wait_for_signal(name: str, type: type[T]) -> T: ...
async def wait_for_signal(name: str, type: Any = Any) -> Any:  # noqa: A002
    """Park until a signal of this name comes, and return its payload as a `type`.

    Signals are buffered: one sent before this call is taken at once, and several are taken in the order they
    came. A payload that does not fit `type` raises `ValidationError` here. Put `asyncio.timeout` around it
    for a deadline; days are fine.
    """
    reduction = _required("wait_for_signal")
    decode = _decoder(type, f"the signal {name!r}")
    return await Call(reduction, Asked(StepKind.SIGNAL, name, decode, reraise))


@overload
async def wait_for_event(
    key: str, *, where: Mapping[str, Any] | None = None, within: Duration = 0, scope: str = ""
) -> Any: ...
@overload
async def wait_for_event(
    key: str,
    type: type[T],
    *,
    where: Mapping[str, Any] | None = None,
    within: Duration = 0,
    scope: str = "",
) -> T: ...
async def wait_for_event(
    key: str,
    type: Any = Any,  # noqa: A002
    *,
    where: Mapping[str, Any] | None = None,
    within: Duration = 0,
    scope: str = "",
) -> Any:
    """Park until an event with this key is published, and return its payload as a `type`.

    `where` must be contained in the payload: equal values, nested mappings as subsets. `within` also accepts
    an event published up to so long before this call (the oldest such). `scope` keeps tenants apart: only
    events published with the same scope are seen.
    """
    reduction = _required("wait_for_event")
    wanted = {"where": dict(where or {}), "within": seconds(within), "scope": scope}
    try:
        text = _values.dump(wanted)
    except (TypeError, ValueError) as error:
        raise InputError(f"wait_for_event({key!r}): `where` must be plain JSON: {error}") from error
    decode = _decoder(type, f"the event {key!r}")
    asked = Asked(StepKind.EVENT, key, decode, reraise, text, _values.digest(text))
    return await Call(reduction, asked)


def now() -> datetime:
    """The time, as the log tells it: the same in every replay. It stands still between two awaits."""
    reduction = current()
    return datetime.fromtimestamp(_time.time() if reduction is None else reduction.loop.now, UTC)


def uuid4() -> uuid.UUID:
    """A random UUID, the same in every replay."""
    reduction = current()
    return uuid.uuid4() if reduction is None else reduction.uuid4()


def random() -> _random.Random:
    """A random generator, seeded by the run: the same numbers in every replay."""
    reduction = current()
    return _random.Random() if reduction is None else reduction.random


def set_state(value: Any) -> None:
    """Publish `value` (anything JSON can hold) as the run's state, for `run.state()` to read meanwhile."""
    reduction = current()
    text = _values.encode(_values.adapter(Any), value, what="the published state", cap=MAX_PAYLOAD)
    if reduction is not None:
        reduction.publish(text)


def continue_as(*args: Any, **kwargs: Any) -> NoReturn:
    """Go on as a new chapter of the same run, with a fresh log and these arguments.

    For agents that run for ever: what they carry over, they pass on. The run keeps its id, its handle, and
    the signals it has not taken yet; calls still open are cancelled. It leaves the agent as an exception,
    so that `finally` blocks run; an `except` that swallows it does not keep the chapter from ending.
    """
    _required("continue_as").continue_as(args, kwargs)


def _required(what: str) -> Reduction:
    reduction = current()
    if reduction is None:
        raise ConfigurationError(
            f"{what} only means something inside an agent on the fleet. In a test, run the agent with "
            f"pickaxe.testing.simulate, which can send it signals and events."
        )
    return reduction


@cache
def _adapter(annotation: Any) -> Any:
    return _values.adapter(annotation)


def _decoder(annotation: Any, what: str) -> Any:
    return lambda text: _values.decode(_adapter(annotation), text, what=what, error=ValidationError)


async def _gather_locally(calls: tuple[Coroutine[Any, Any, T], ...], join: Join) -> list[T]:
    """`gather` outside of the fleet: the same results, in this process."""
    _calls.check_bounds(len(calls), join)
    gate = asyncio.Semaphore(join.limit or max(1, len(calls)))

    async def one(call: Coroutine[Any, Any, T]) -> T:
        async with gate:
            return await call

    if join.quorum is None:
        return await asyncio.gather(*map(one, calls), return_exceptions=join.return_exceptions)  # type: ignore[return-value]
    tasks = [asyncio.ensure_future(one(call)) for call in calls]
    done: list[asyncio.Future[T]] = []
    failures: list[BaseException] = []
    pending: set[asyncio.Future[T]] = set(tasks)
    while pending and len(done) < join.quorum:
        ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        done += [task for task in ended if task.exception() is None]
        failures += [error for task in ended if (error := task.exception()) is not None]
    for task in pending:
        task.cancel()
    if len(done) < join.quorum:
        raise QuorumError(f"{len(failures)} of {len(calls)} calls failed") from failures[0]
    return [task.result() for task in tasks if task in done][: join.quorum]
