"""The fleet that the integration tests run: small agents and tools, and a ledger of what their bodies did."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pickaxe import (
    Context,
    Pickaxe,
    Queue,
    Retry,
    agent,
    continue_as,
    first,
    gather,
    inject,
    set_state,
    tool,
    uuid4,
    wait_for_event,
    wait_for_signal,
)
from pickaxe.errors import NonRetryableError, RetryLater, ToolError


def note(*words: object) -> None:
    """One line in the ledger, which is independent of everything Pickaxe records."""
    with Path(os.environ.get("PICKAXE_TEST_LEDGER", os.devnull)).open("a") as ledger:
        ledger.write(" ".join(map(str, words)) + "\n")


class Question(BaseModel):
    text: str
    parts: int = 3


class Hit(BaseModel):
    title: str
    score: float


@tool(queue="web", retries=2, timeout=20)
def search(query: str, limit: int = 5) -> list[Hit]:
    """Find things."""
    note("search", query, os.getpid())
    return [Hit(title=query, score=limit)]


@tool
async def double(x: int) -> int:
    note("double", x)
    await asyncio.sleep(0.02)
    return x * 2


@tool(inline=True)
def increment(x: int) -> int:
    note("increment", x)
    return x + 1


@tool(retries=Retry(attempts=3, backoff=0.05))
def flaky(until: int, ctx: Context = inject()) -> int:
    note("flaky", ctx.attempt, ctx.idempotency_key)
    if ctx.attempt < until:
        raise ValueError(f"attempt {ctx.attempt} fails")
    return ctx.attempt


@tool(retries=3)
def hopeless() -> None:
    note("hopeless")
    raise NonRetryableError("this can never work")


@tool(retries=1)
def busy(ctx: Context = inject()) -> int:
    note("busy", time.time())
    if ctx.attempt == 1:
        raise RetryLater("come back", after=0.6)
    return ctx.attempt


@tool(timeout=0.3)
def sleepy(seconds: float) -> None:
    time.sleep(seconds)


@tool(timeout=0.3)
async def sleepy_async(seconds: float) -> None:
    await asyncio.sleep(seconds)


@tool(schedule_timeout=0.5, queue="nobody")
def never_started() -> None: ...


@tool
def wrong_type() -> int:
    return "not a number"  # type: ignore[return-value]


@tool
def big(size: int) -> str:
    return "x" * size


@tool
def echo(value: Any) -> Any:
    return value


@tool
def long_sync(ctx: Context = inject()) -> str:
    note("long_sync started")
    for step in range(600):
        if ctx.cancelled:
            note("long_sync cancelled")
            return "cancelled"
        if step == 0:
            ctx.progress({"step": step})
        time.sleep(0.05)
    return "done"


@tool
async def long_async() -> str:
    note("long_async started")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note("long_async cancelled")
        raise
    return "done"


@agent
async def child(n: int) -> int:
    if n < 0:
        raise ValueError("negative")
    return await double(n) + 1


@agent
async def everything(question: Question) -> dict[str, Any]:
    found = await search(question.text)
    parts = await gather(*(search(f"{question.text}-{i}") for i in range(question.parts)))
    both = await asyncio.gather(double(1), child(5))
    set_state({"found": found[0].title})
    async with asyncio.timeout(60):
        verdict = await wait_for_signal("verdict", int)
    return {
        "parts": [part[0].title for part in parts],
        "both": both,
        "inline": await increment(41),
        "tries": await flaky(3),
        "verdict": verdict,
        "id": str(uuid4()),
    }


@agent
async def call(name: str, argument: Any = None) -> Any:
    """Run one tool or agent by name."""
    handle = app.handles[name]
    return await (handle() if argument is None else handle(argument))


@agent
async def failing_child() -> str:
    try:
        await child(-1)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


@agent
async def caught_tool_error() -> dict[str, Any]:
    try:
        await hopeless()
    except ToolError as error:
        return {"type": error.type, "step": error.step, "message": str(error)}
    return {}


@agent
async def waiting(name: str = "go", seconds: float = 3600) -> Any:
    set_state("waiting")
    try:
        async with asyncio.timeout(seconds):
            return await wait_for_signal(name)
    except TimeoutError:
        return "timed out"


@agent
async def waiting_for_event(key: str, where: dict[str, Any], within: float = 0, scope: str = "") -> Any:
    set_state("waiting")
    return await wait_for_event(key, where=where, within=within, scope=scope)


@agent
async def tidy() -> str:
    """Cleans up with a tool when it is cancelled."""
    set_state("ready to be cancelled")
    try:
        await wait_for_signal("never")
    except asyncio.CancelledError:
        await increment(1)
        raise
    return "not cancelled"


@agent
async def parent_of_waiting() -> Any:
    set_state("parent")
    return await waiting()


@agent
async def chapters(n: int, total: int = 0) -> int:
    total += await double(n)
    if n == 0:
        return total
    continue_as(n - 1, total)


@agent
async def wide(width: int, limit: int | None = None) -> int:
    return sum(await gather(*(double(i) for i in range(width)), limit=limit))


@agent
async def racing() -> int:
    return await first(double(1), double(2), hopeless_number())


@tool
def hopeless_number() -> int:
    raise NonRetryableError("no number")


@agent(timeout=0.5)
async def out_of_time() -> None:
    await wait_for_signal("never")


@tool(rate_limit="20/s")
def limited(i: int) -> float:
    note("limited", time.time())
    return time.time()


@agent
async def edited() -> list[int]:
    """Its code depends on the environment, as that of a deployed agent depends on the commit."""
    version = os.environ.get("PICKAXE_TEST_VERSION", "1")
    if version == "added":
        await echo("a call that was not there before")
    first_result = await double(2 if version == "changed" else 1)
    await wait_for_signal("go")
    return [first_result, await double(3)]


class Connection:
    def __init__(self) -> None:
        self.uses = 0


def connect() -> Iterator[Connection]:
    note("connected", os.getpid())
    yield Connection()
    note("disconnected", os.getpid())


@tool(timeout=5)
def given(ctx: Context = inject(), connection: Connection = inject(connect)) -> dict[str, Any]:
    connection.uses += 1
    ctx.logger.info("a line with run and step")
    ctx.progress({"half": "way"})
    return {
        "run": ctx.run,
        "step": ctx.step,
        "attempt": ctx.attempt,
        "key": ctx.idempotency_key,
        "seconds": 0 if ctx.deadline is None else (ctx.deadline - datetime.now(UTC)).total_seconds(),
        "wanted": ctx.heartbeat(),
        "uses": connection.uses,
        "pid": os.getpid(),
    }


@agent
async def many_limited(count: int) -> int:
    return len(await gather(*(limited(i) for i in range(count))))


app = Pickaxe(
    "tests",
    agents=[
        *[everything, call, child, failing_child, caught_tool_error, waiting, waiting_for_event, tidy],
        *[parent_of_waiting, chapters, wide, racing, out_of_time, many_limited, edited],
    ],
    tools=[
        *[search, double, increment, flaky, hopeless, busy, sleepy, sleepy_async, never_started, wrong_type],
        *[big, echo, long_sync, long_async, hopeless_number, limited, given],
    ],
    queues=[Queue("web", rate_limit="200/s")],
)
