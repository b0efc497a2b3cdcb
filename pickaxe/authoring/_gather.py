"""Scatter and gather: many calls as one step."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from pickaxe.core import _calls
from pickaxe.core._calls import Join
from pickaxe.core._reduction import current
from pickaxe.errors import QuorumError

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
