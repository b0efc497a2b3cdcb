"""Tools of every effect policy, and tools and agents that kill the processes that run them.

What an `at_most_once` tool does to the world is a line `effect` in the ledger; what a transactional one does is a row
of the table `public.effect`. Places where a test may end them have the failpoints `effect.before` and `effect.after`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import time
from typing import Any, Literal

import psutil
import psycopg
import sqlalchemy
from sqlalchemy.orm import Session

from pickaxe import Context, Retry, agent, gather, inject, tool, wait_for_signal
from pickaxe._failpoints import failpoint
from pickaxe.errors import DidNotHappen, NonRetryableError, RetryLater, StillUnknown
from tests.faults.ledger import body, count, write

Answers = Literal["look", "fails twice", "unsure twice", "dies once", "dies", "failed", "nothing"]


def have_effect(ctx: Context, *, word: str = "effect") -> None:
    """What must not happen twice."""
    failpoint("effect.before")
    write(word, ctx.idempotency_key, ctx.attempt)
    failpoint("effect.after")


def look(key: str, answers: str) -> int:
    """What a `reconcile` does: asks the world, which is the ledger."""
    write("asked", key)
    failpoint("reconcile.before")
    asked = count("asked", key)
    if answers == "fails twice" and asked <= 2:
        raise ConnectionError("the bank does not answer")
    if answers == "unsure twice" and asked <= 2:
        raise StillUnknown("the bank is still thinking", after=0.1)
    if answers == "dies" or (answers == "dies once" and asked == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if answers == "failed":
        raise NonRetryableError("the bank has refused it")
    if answers == "nothing" or not count("effect", key):
        raise DidNotHappen("the bank knows nothing of it")
    return 1000 + asked


@tool(effect="at_most_once")
def pay(amount: int, seconds: float = 0.0, ctx: Context = inject()) -> int:
    """Nobody can be asked whether it happened."""
    with body(ctx):
        have_effect(ctx)
        time.sleep(seconds)
        return amount


def find_payment(answers: Answers, ctx: Context = inject()) -> int:
    return look(ctx.idempotency_key, answers)


@tool(effect="at_most_once", reconcile=find_payment, retries=Retry(attempts=2, on=(BlockingIOError,), backoff=0.05))
def pay_checked(amount: int, answers: Answers = "look", seconds: float = 0.0, ctx: Context = inject()) -> int:
    with body(ctx):
        have_effect(ctx)
        time.sleep(seconds)
        return amount


async def find_payment_async(answers: Answers, ctx: Context = inject()) -> int:
    await asyncio.sleep(0)
    return look(ctx.idempotency_key, answers)


@tool(effect="at_most_once", reconcile=find_payment_async)
async def pay_async(amount: int, answers: Answers = "look", seconds: float = 0.0, ctx: Context = inject()) -> int:
    with body(ctx):
        have_effect(ctx)
        await asyncio.sleep(seconds)
        return amount


@tool(effect="at_most_once", reconcile=find_payment, inline=True)
def pay_inline(amount: int, answers: Answers = "look", ctx: Context = inject()) -> int:
    with body(ctx):
        have_effect(ctx)
        return amount


@tool(effect="at_most_once", timeout=0.4, reconcile=find_payment)
def pay_in_time(amount: int, answers: Answers = "look", ctx: Context = inject()) -> int:
    """Never ends in time, after its effect."""
    with body(ctx):
        have_effect(ctx)
        time.sleep(5)
        return amount


@tool(effect="at_most_once", retries=Retry(attempts=3, on=(ConnectionRefusedError,), backoff=0.05))
def pay_raising(how: Literal["refused", "broken", "later"], ctx: Context = inject()) -> int:
    """Fails in a way that its retries know, in one they do not, or asks for another attempt."""
    write("start", ctx.idempotency_key, ctx.attempt)
    write("failed", ctx.idempotency_key, ctx.attempt)
    if how == "refused" and ctx.attempt < 3:
        raise ConnectionRefusedError("nobody is there yet")
    if how == "later" and ctx.attempt < 2:
        raise RetryLater(after=0.05)
    if how == "broken":
        raise ConnectionResetError("the line went dead in the middle")
    return ctx.attempt


INSERT = "INSERT INTO public.effect (key, attempt, pid) VALUES (%(key)s, %(attempt)s, %(pid)s)"


def row(ctx: Context) -> dict[str, Any]:
    return {"key": ctx.idempotency_key, "attempt": ctx.attempt, "pid": os.getpid()}


@tool(effect="transactional", retries=Retry(attempts=3, backoff=0.05))
def transfer(
    amount: int, seconds: float = 0.0, fail_first: int = 0, connection: psycopg.Connection = inject(),
    ctx: Context = inject(),
) -> int:  # fmt: skip
    with body(ctx):
        failpoint("effect.before")
        connection.execute("UPDATE public.balance SET amount = amount + %s", (amount,))
        connection.execute(INSERT, row(ctx))
        write("holds", ctx.idempotency_key, ctx.attempt)
        failpoint("effect.after")
        time.sleep(seconds)
        if count("failed", ctx.idempotency_key) < fail_first:
            write("failed", ctx.idempotency_key, ctx.attempt)
            raise ValueError("not yet")
        return amount


@tool(effect="transactional", inline=True)
def transfer_inline(amount: int, connection: sqlalchemy.Connection = inject(), ctx: Context = inject()) -> int:
    with body(ctx):
        connection.exec_driver_sql("UPDATE public.balance SET amount = amount + %(amount)s", {"amount": amount})
        connection.exec_driver_sql(INSERT, row(ctx))
        return amount


@tool(effect="transactional")
def transfer_orm(amount: int, session: Session = inject(), ctx: Context = inject()) -> int:
    with body(ctx):
        session.execute(sqlalchemy.text("UPDATE public.balance SET amount = amount + :amount"), {"amount": amount})
        session.connection().exec_driver_sql(INSERT, row(ctx))
        return amount


_open, _write, _close, _raise = (getattr(ctypes.CDLL(None), name) for name in ("open", "write", "close", "raise"))
"""What native code does is not seen by the guard that keeps agents from doing I/O."""


def nothing_happened() -> int:
    raise DidNotHappen("it never gets that far")


@tool(effect="at_most_once", timeout=0.2, reconcile=nothing_happened, retries=Retry(attempts=99, on=()))
async def hesitant(n: int, ctx: Context = inject()) -> int:
    """Runs out of time at first, before its effect."""
    with body(ctx):
        if count("start", ctx.idempotency_key) == 1:
            await asyncio.sleep(60)
        return n


@tool(effect="transactional")
def noted(n: int, connection: psycopg.Connection = inject(), ctx: Context = inject()) -> int:
    with body(ctx):
        connection.execute("CREATE TEMP TABLE noted (n integer) ON COMMIT DROP")
        return n


Deadly = Literal["os._exit", "exit 0", "segfault", "sigkill", "memory", "memory limit"]


def die(how: Deadly) -> None:
    """End this process without another word."""
    match how:
        case "os._exit":
            os._exit(7)
        case "exit 0":
            os._exit(0)
        case "segfault":
            ctypes.string_at(0)
        case "sigkill":
            _raise(signal.SIGKILL)
        case "memory":
            devour()
        case "memory limit":
            most = psutil.Process().memory_info().vms + 128 * 1024**2
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
            try:
                [bytearray(32 * 1024**2) for _ in range(64)]
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def devour(limit: int = 192 * 1024**2) -> None:
    """Allocates until the kernel's OOM killer would step in: played by ourselves, for a test must not need a cgroup."""
    hoard = []
    while True:
        hoard.append(b"x" * (16 * 1024**2))
        if sum(map(len, hoard)) > limit:
            _raise(signal.SIGKILL)


@tool
def poison(how: Deadly, times: int = 99, seconds: float = 0.0, ctx: Context = inject()) -> str:
    """Kills its process, the first so many times."""
    write("start", ctx.idempotency_key, ctx.attempt)
    time.sleep(seconds)
    return survived(how, times, ctx)


@tool
async def poison_async(how: Deadly, times: int = 99, seconds: float = 0.0, ctx: Context = inject()) -> str:
    write("start", ctx.idempotency_key, ctx.attempt)
    await asyncio.sleep(seconds)
    return survived(how, times, ctx)


def survived(how: Deadly, times: int, ctx: Context) -> str:
    """Not in the first so many attempts."""
    if ctx.attempt <= times:
        write("dies", ctx.idempotency_key, ctx.attempt)
        die(how)
    write("end", ctx.idempotency_key, ctx.attempt)
    return "survived"


@tool
async def neighbour(n: int, seconds: float, ctx: Context = inject()) -> int:
    with body(ctx):
        await asyncio.sleep(seconds)
        return n


@tool
def settled(n: int, ctx: Context = inject()) -> int:
    """Something before and after, in every agent here."""
    with body(ctx):
        return n


PAYMENTS = {"plain": pay, "checked": pay_checked, "async": pay_async, "inline": pay_inline, "in time": pay_in_time}


@agent
async def pays(which: str, amount: int, answers: Answers = "look", seconds: float = 0.0) -> Any:
    before = await settled(1)
    call: Any = PAYMENTS[which]
    options: dict[str, Any] = {} if which == "plain" else {"answers": answers}
    if which not in ("inline", "in time"):
        options["seconds"] = seconds
    try:
        paid = await call(amount, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return paid + before - await settled(1)


@agent
async def pays_raising(how: Literal["refused", "broken", "later"]) -> Any:
    try:
        return await pay_raising(how)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@agent
async def pays_many(amounts: list[int], limit: int | None = None) -> list[int]:
    return await gather(*(pay(amount) for amount in amounts), limit=limit)


@agent
async def transfers(amount: int, seconds: float = 0.0, fail_first: int = 0) -> int:
    before = await settled(1)
    total = await transfer(amount, seconds, fail_first) + await transfer_inline(amount) + await transfer_orm(amount)
    return total + before - await settled(1)


@agent
async def one_transfer(amount: int, seconds: float = 0.0) -> int:
    return await transfer(amount, seconds)


@agent
async def poisoned(how: Deadly, times: int = 99, seconds: float = 0.0) -> str:
    return await poison(how, times, seconds)


@agent
async def poisoned_gather(how: Deadly, neighbours: int, seconds: float, limit: int | None = None) -> list[Any]:
    """One call that kills its process, among others that do no harm."""
    calls = [poison_async(how, 99, seconds / 2), *(neighbour(n, seconds) for n in range(neighbours))]
    return await gather(*calls, limit=limit)


@agent
async def neighbours(count: int, seconds: float) -> int:
    return sum(await gather(*(neighbour(n, seconds) for n in range(count))))


@agent
async def deadly(how: Deadly) -> str:
    """Its own code kills the process, until that is mended."""
    done = await settled(1)
    go = await wait_for_signal("go", bool)
    if go and not os.environ.get("PICKAXE_TEST_MENDED"):
        write_of_agent("dies")
        die(how)
    return f"survived {done}"


def write_of_agent(word: str) -> None:
    """One line of the ledger, past the guard that keeps agents from doing I/O."""
    ledger = _open(os.environ["PICKAXE_TEST_LEDGER"].encode(), os.O_WRONLY | os.O_APPEND)
    line = f"{word} agent 0 {os.getpid()} {time.time():.6f}\n".encode()
    _write(ledger, line, len(line))
    _close(ledger)


AGENTS: list[Any] = [
    *[pays, pays_raising, pays_many, transfers, one_transfer, poisoned, poisoned_gather, neighbours, deadly],
]
TOOLS: list[Any] = [
    *[pay, pay_checked, pay_async, pay_inline, pay_in_time, pay_raising, transfer, transfer_inline, transfer_orm],
    *[poison, poison_async, neighbour, settled, hesitant, noted],
]
