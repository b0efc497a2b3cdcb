"""One agent that plays any plan, so that random programs need no code of their own.

A plan is JSON: `{"label": …, "ops": [op, …], "chapters": n}`; an op is `{"op": …, "label": …, …}`. Labels are unique.
`random_plans.py` draws plans, `random_model.py` tells, without this module and without Pickaxe, what they come to.

The value of an op that fails and is `caught` is `["!", the error's type]`; one that is not caught ends its branch,
its run, or its child run. The ledger has `did` for each effect of a tool and `refused` for each failure, by label.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pickaxe import (
    Context,
    Retry,
    agent,
    continue_as,
    first,
    gather,
    inject,
    set_state,
    tool,
    wait_for_event,
    wait_for_signal,
)
from pickaxe.errors import StepError
from tests.faults.ledger import body, failures_before, write

Plan = dict[str, Any]
Op = dict[str, Any]

RETRY = Retry(attempts=3, backoff=0.05, factor=1)

FAILURES = (StepError, TimeoutError, ExceptionGroup, ValueError)


def worked(ctx: Context, label: str, n: int, fails: int) -> int:
    """The effect. Fails in its first `fails` attempts, or in all of them if that is negative."""
    place = f"{label}>{ctx.idempotency_key}"
    if fails < 0 or failures_before(ctx.idempotency_key) < fails:
        write("refused", place, ctx.attempt)
        write("failed", ctx.idempotency_key, ctx.attempt)
        raise ValueError(label)
    write("did", place, ctx.attempt)
    return 3 * n + 1


@tool(retries=RETRY)
def work(label: str, n: int, fails: int = 0, seconds: float = 0, ctx: Context = inject()) -> int:
    with body(ctx):
        time.sleep(seconds)
        return worked(ctx, label, n, fails)


@tool(retries=RETRY)
async def work_async(label: str, n: int, fails: int = 0, seconds: float = 0, ctx: Context = inject()) -> int:
    with body(ctx):
        await asyncio.sleep(seconds)
        return worked(ctx, label, n, fails)


@tool(retries=RETRY, inline=True)
def work_inline(label: str, n: int, fails: int = 0, seconds: float = 0, ctx: Context = inject()) -> int:
    with body(ctx):
        time.sleep(seconds)
        return worked(ctx, label, n, fails)


@tool(retries=RETRY, rate_limit="50/s")
def work_limited(label: str, n: int, fails: int = 0, seconds: float = 0, ctx: Context = inject()) -> int:
    with body(ctx):
        time.sleep(seconds)
        return worked(ctx, label, n, fails)


TOOLS: list[Any] = [work, work_async, work_inline, work_limited]
_TOOLS = {one.name: one for one in TOOLS}


@agent
async def play(plan: Plan, chapter: int = 0, past: list[Any] | None = None) -> list[Any]:
    """Returns, for each chapter, the values of its ops."""
    played = [*(past or []), await _sequence(plan["ops"], chapter)]
    if chapter + 1 < plan["chapters"]:
        continue_as(plan, chapter + 1, played)
    return played


async def _sequence(ops: list[Op], chapter: int) -> list[Any]:
    return [await _one(op, chapter) for op in ops]


async def _one(op: Op, chapter: int) -> Any:
    try:
        return await _OPS[op["op"]](op, chapter)
    except FAILURES as error:
        if not op.get("caught"):
            raise
        return _told(error)


def _told(value: Any) -> Any:
    return ["!", type(value).__name__] if isinstance(value, BaseException) else value


def _call(op: Op, chapter: int) -> Any:
    """A call of a tool or of a child run, not yet awaited."""
    if op["op"] == "child":
        return play.using(on_cancel=op["policy"])(op["plan"])
    return _TOOLS[op["tool"]](f"{op['label']}~{chapter}", op["n"], op["fails"], op["seconds"])


async def _awaited(op: Op, chapter: int) -> Any:
    return await _call(op, chapter)


async def _gather(op: Op, chapter: int) -> list[Any]:
    calls = [_call(call, chapter) for call in op["calls"]]
    results = await gather(*calls, limit=op["limit"], quorum=op["quorum"], return_exceptions=op["tolerant"])
    return [_told(result) for result in results]


async def _together(op: Op, chapter: int) -> list[Any]:
    branches = [_sequence(ops, chapter) for ops in op["branches"]]
    if op["how"] == "group":
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(branch) for branch in branches]
        return [task.result() for task in tasks]
    results = await asyncio.gather(*branches, return_exceptions=op["how"] == "settled")
    return [_told(result) for result in results]


async def _pool(op: Op, chapter: int) -> list[Any]:
    """Which task takes which item depends on the order of the arrivals, so the steps' keys do."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    for index in range(len(op["calls"])):
        queue.put_nowait(index)
    values: dict[int, Any] = {}

    async def take() -> None:
        while not queue.empty():
            index = queue.get_nowait()
            values[index] = await _one(op["calls"][index], chapter)

    await asyncio.gather(*(take() for _ in range(op["takers"])))
    return [values[index] for index in range(len(values))]


async def _whichever(op: Op, chapter: int) -> list[Any]:
    tasks = [asyncio.create_task(_sequence(ops, chapter)) for ops in op["branches"]]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    between = await _call(op["between"], chapter)
    await asyncio.wait(tasks)
    return [between, *(task.result() for task in tasks)]


async def _timeout(op: Op, chapter: int) -> Any:
    async with asyncio.timeout(op["seconds"]):
        try:
            return await _sequence(op["body"], chapter)
        finally:
            await _sequence(op["cleanup"], chapter)


async def _race(op: Op, chapter: int) -> str:
    """A call and a timer, and nobody knows which comes first."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(op["seconds"]):
            await _call(op["call"], chapter)
    return "raced"


async def _either(op: Op, chapter: int) -> Any:
    return await first(*(_call(call, chapter) for call in op["calls"]))


async def _cut(op: Op, chapter: int) -> Any:
    async def part() -> None:
        try:
            await _sequence(op["body"], chapter)
        finally:
            await _sequence(op["cleanup"], chapter)

    task = asyncio.create_task(part())
    value = await _call(op["meanwhile"], chapter)
    task.cancel()
    await asyncio.wait([task])
    return [value, task.cancelled()]


async def _park(op: Op, chapter: int) -> None:
    """Until somebody cancels the run."""
    set_state(op["label"])
    try:
        await wait_for_signal("never")
    finally:
        await _sequence(op["cleanup"], chapter)


async def _sleep(op: Op, chapter: int) -> None:
    await asyncio.sleep(op["seconds"])


async def _signal(op: Op, chapter: int) -> list[int]:
    return [await wait_for_signal(op["label"], int) for _ in range(op["count"])]


async def _event(op: Op, chapter: int) -> Any:
    heard = await wait_for_event(op["label"], where={"to": op["label"]}, within=3600)
    return heard["n"]


async def _never(op: Op, chapter: int) -> None:
    await wait_for_signal("never")


async def _raise(op: Op, chapter: int) -> None:
    raise ValueError(op["label"])


_OPS: dict[str, Callable[[Op, int], Awaitable[Any]]] = {
    "tool": _awaited, "child": _awaited, "gather": _gather, "together": _together, "pool": _pool,
    "whichever": _whichever, "timeout": _timeout, "race": _race, "either": _either, "cut": _cut, "park": _park,
    "sleep": _sleep, "signal": _signal, "event": _event, "never": _never, "raise": _raise,
}  # fmt: skip
