"""The fleet that the fault tests run: agents whose results can be computed without them, and tools that keep a
ledger, see `ledger.py`, which is independent of everything Pickaxe records.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from pickaxe import (
    Context,
    Pickaxe,
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
from pickaxe.broker import Message, Publisher
from pickaxe.store._fleet import FleetStore
from tests.faults import effects_app
from tests.faults.ledger import EPOCH, body, failures_before, write
from tests.faults.random_programs import TOOLS, play


@tool
def add(a: int, b: int, ctx: Context = inject()) -> int:
    with body(ctx):
        return a + b


@tool
def slow(n: int, seconds: float = 0.3, ctx: Context = inject()) -> int:
    """Blocks its thread."""
    with body(ctx):
        time.sleep(seconds)
        return n * n


@tool
async def slow_async(n: int, seconds: float = 0.3, ctx: Context = inject()) -> int:
    with body(ctx):
        await asyncio.sleep(seconds)
        return n * n


@tool(retries=Retry(attempts=3, backoff=0.05))
def flaky(until: int, ctx: Context = inject()) -> int:
    """Fails in the first `until - 1` attempts of its own; an attempt that a worker died in is not one."""
    with body(ctx):
        if failures_before(ctx.idempotency_key) < until - 1:
            write("failed", ctx.idempotency_key, ctx.attempt)
            raise ValueError("not yet")
        return until


@tool(inline=True)
def increment(n: int, ctx: Context = inject()) -> int:
    with body(ctx):
        return n + 1


@tool(inline=True, retries=Retry(attempts=3, backoff=0.05))
def flaky_inline(until: int, ctx: Context = inject()) -> int:
    with body(ctx):
        if failures_before(ctx.idempotency_key) < until - 1:
            write("failed", ctx.idempotency_key, ctx.attempt)
            raise ValueError("not yet")
        return until


@tool(rate_limit="20/s")
def limited(n: int, ctx: Context = inject()) -> int:
    with body(ctx):
        return n


@tool(rate_limit="2/s")
def scarce(n: int, ctx: Context = inject()) -> int:
    with body(ctx):
        return n


@tool(retries=0)
def exits(code: int = 1, ctx: Context = inject()) -> None:
    with body(ctx):
        raise SystemExit(code)


@tool(retries=0)
async def exits_async(code: int = 1, ctx: Context = inject()) -> None:
    with body(ctx):
        raise SystemExit(code)


@agent
async def kid(n: int) -> int:
    return await add(n, 1) * 2


@agent
async def patient(n: int) -> int:
    """Waits for ever, and tidies up when it is told to stop."""
    try:
        await wait_for_signal("never")
    finally:
        await add(n, n)
    return n


@agent
async def endless() -> None:
    await wait_for_signal("never")


@agent
async def program(n: int) -> dict[str, Any]:
    """A bit of everything, so that every place in the engine is passed. See `expected`."""
    one = await add(n, 1)
    inline = [await increment(n), await flaky_inline(2)]
    squares = await gather(*(slow(i, 0.05) for i in range(4)))
    capped = await gather(*(slow_async(i, 0.02) for i in range(5)), limit=2)
    tries = await flaky(2)
    throttled = await limited.map(range(n, n + 30))
    kids = await gather(kid(n), kid(n + 1))
    winner = await first(patient(n), add(n, 100))
    try:
        async with asyncio.timeout(0.2):
            await wait_for_signal("never")
    except TimeoutError:
        timed_out = True
    both = await asyncio.gather(add(n, 2), slow(n, 0.05))
    effects = [await effects_app.hesitant(n), await effects_app.noted(n)]
    answer = await wait_for_signal("answer", int)
    return {
        "one": one, "inline": inline, "squares": squares, "capped": capped, "tries": tries, "throttled": sum(throttled),
        "kids": kids, "winner": winner, "timed_out": timed_out, "both": both, "effects": effects, "answer": answer,
    }  # fmt: skip


def expected(n: int, answer: int) -> dict[str, Any]:
    """What `program` comes to, computed by hand."""
    return {
        "one": n + 1, "inline": [n + 1, 2], "squares": [0, 1, 4, 9], "capped": [0, 1, 4, 9, 16], "tries": 2,
        "throttled": sum(range(n, n + 30)), "kids": [(n + 1) * 2, (n + 2) * 2], "winner": n + 100, "timed_out": True,
        "both": [n + 2, n * n], "effects": [n, n], "answer": answer,
    }  # fmt: skip


@agent
async def clockwork(n: int) -> list[Any]:
    """As little as passes every place in the engine. See `expected_clockwork`."""
    plain = await add(n, 1)
    inline = await increment(n)
    tries = await flaky(2)
    capped = await gather(*(add(n, i) for i in range(3)), limit=2)
    throttled = await scarce.map(range(3))
    kids = await gather(kid(n), kid(n + 1))
    winner = await first(patient(n), add(n, 100))
    try:
        async with asyncio.timeout(0.02):
            await wait_for_signal("never")
    except TimeoutError:
        both = await asyncio.gather(add(n, 2), increment(n))
    answer = await wait_for_signal("answer", int)
    return [plain, inline, tries, capped, throttled, kids, winner, both, answer]


def expected_clockwork(n: int, answer: int) -> list[Any]:
    """What `clockwork` comes to, computed by hand."""
    kids = [(n + 1) * 2, (n + 2) * 2]
    return [n + 1, n + 1, 2, [n, n + 1, n + 2], [0, 1, 2], kids, n + 100, [n + 2, n + 1], answer]


@agent
async def told(n: int) -> list[Any]:
    """Needs everything that a client can send."""
    return [await wait_for_signal("answer", int), await wait_for_event("news", within=3600), await add(n, 1)]


@agent
async def changed(n: int) -> int:
    """Asks for other arguments wherever PICKAXE_TEST_CHANGED is set, as if its code had been changed under way."""
    value = await add(n, int(os.environ.get("PICKAXE_TEST_CHANGED", "0")))
    await wait_for_signal("answer")
    return value


@agent
async def load(n: int, seconds: float = 0.1) -> int:
    """Three rounds of work, with joins of both kinds and a child."""
    total = sum(await gather(*(slow_async(n + i, seconds) for i in range(3))))
    total += sum(await asyncio.gather(add(n, 1), kid(n)))
    total += await slow_async(n, seconds)
    await asyncio.sleep(0.05)
    return total + await add(n, 5)


def expected_load(n: int) -> int:
    return sum((n + i) ** 2 for i in range(3)) + (n + 1) + (n + 1) * 2 + n * n + n + 5


@agent
async def one_slow(seconds: float) -> int:
    return await slow(7, seconds)


@agent
async def single_file(seconds: float) -> int:
    """Two calls on a queue of their own."""
    alone = slow.using(queue="single")
    return await alone(7, seconds) + await alone(8, seconds)


@agent
async def parks_between(seconds: float) -> int:
    """A call, a wait, and the same call again."""
    first_time = await slow(7, seconds)
    set_state("parked")
    await wait_for_signal("go on")
    return first_time + await slow(7, seconds)


@agent
async def one_slow_async(seconds: float) -> int:
    return await slow_async(7, seconds)


@agent
async def steps(count: int) -> int:
    """Tool steps, one after the other."""
    total = 0
    for i in range(count):
        total = await add(total, i)
    return total


@agent
async def ask_in_time(seconds: float) -> list[Any]:
    """A wait that may time out, and one that then takes what came too late."""
    set_state("asking")
    try:
        async with asyncio.timeout(seconds):
            return ["in time", await wait_for_signal("answer")]
    except TimeoutError:
        set_state("timed out")
        return ["late", await wait_for_signal("answer")]


@agent
async def ask_after(rounds: int) -> list[int]:
    """Parks for one signal after the other, with a step in between: each comes at some moment of that."""
    return [await wait_for_signal("answer", int) + await increment(-1) for _ in range(rounds)]


@agent
async def hear_event(key: str, within: float) -> Any:
    return await wait_for_event(key, within=within)


@agent
async def family(depth: int) -> list[Any]:
    """A tree of runs, all of which wait for ever."""
    if depth == 0:
        return [await wait_for_signal("never")]
    return list(await asyncio.gather(family(depth - 1), family(depth - 1)))


@agent
async def capped_kids(count: int, limit: int) -> list[str]:
    ended = await gather(*(endless() for _ in range(count)), limit=limit, return_exceptions=True)
    return [type(error).__name__ for error in ended]


@agent
async def detached_kids() -> str:
    detached = endless.using(on_cancel="detach")
    try:
        async with asyncio.timeout(0.3):
            await gather(*(detached() for _ in range(3)), limit=1)
    except TimeoutError:
        return "timed out"
    return "not reached"


@agent
async def tells_and_waits(n: int) -> int:
    """Cancels a child run that tidies up, and waits for that."""
    try:
        async with asyncio.timeout(0.2):
            await patient.using(on_cancel="wait")(n)
    except TimeoutError:
        return n
    return -1


@agent
async def chapters(n: int, total: int = 0) -> int:
    total += await add(n, 0) + await increment(0)
    if n == 0:
        return total
    continue_as(n - 1, total)


@agent
async def exiting() -> None:
    raise SystemExit(1)


@agent
async def spinning() -> None:
    while True:
        await asyncio.sleep(0)


@agent
async def tool_that_exits(name: str) -> str:
    try:
        await (exits() if name == "exits" else exits_async())
    except Exception as error:
        return type(error).__name__
    return "nothing was raised"


@agent
async def fails_early() -> str:
    """A gather that fails at once though one of its calls is still running."""
    try:
        await gather(exits(), slow(1, 30))
    except Exception as error:
        return type(error).__name__
    return "nothing was raised"


@agent
async def sized(n: int) -> int:
    return await add(n, 1)


@agent
async def hears(n: int) -> int:
    return int(await wait_for_event("all of you", within=3600))


@agent
async def kids_at_once(count: int) -> int:
    return sum(await gather(*(hears(n) for n in range(count))))


@agent
async def naps(count: int) -> int:
    """Timers, all due at the same time: in an hour, unless the test makes it sooner."""
    await asyncio.gather(*(asyncio.sleep(3600) for _ in range(count)))
    return count


@tool(inline=True)
def step_up(n: int) -> int:
    """Writes no ledger: there are too many."""
    return n + 1


@agent
async def steps_inline(count: int) -> int:
    n = 0
    while n < count:
        # A hundred in one reduction: what is measured is how a long log is read.
        n += len(await asyncio.gather(*(step_up(n + i) for i in range(100))))
    set_state("asleep")
    await wait_for_signal("go on")
    return await add(n, 1)


VERSION = os.environ.get("PICKAXE_TEST_VERSION", "1")
"""Which code is deployed: another version of `deployed`."""


@tool
def version_of(n: int, ctx: Context = inject()) -> str:
    with body(ctx):
        return VERSION


@agent
async def deployed(n: int) -> list[Any]:
    """Version 2 adds calls of its own; `argument` and `reorder` change calls that were made before."""
    seen, total = [], 0
    for i in range(4):
        if VERSION == "2":
            await increment(i)
        if VERSION == "reorder" and i < 2:
            total += await slow(n, 0.05) - n * n + i + n
        else:
            total += await add(i, n + (VERSION == "argument"))
        if i == 1:
            set_state("half")
        seen.append(await version_of(i))
        await asyncio.sleep(0.1)
    return [n, total, seen]


_agents: list[Any] = [
    *[
        kid,
        patient,
        endless,
        program,
        load,
        one_slow,
        one_slow_async,
        single_file,
        parks_between,
        steps,
        ask_in_time,
        ask_after,
    ],
    *[hear_event, family, capped_kids, detached_kids, tells_and_waits, chapters, exiting, spinning, tool_that_exits],
    *[fails_early, sized, play, clockwork, told, changed, deployed, hears, kids_at_once, naps, steps_inline],
    *effects_app.AGENTS,
]


def _transport_options() -> dict[str, Any]:
    seconds = os.environ.get("PICKAXE_TEST_VISIBILITY")
    if seconds is None:
        return {}
    return {"broker_transport_options": {"visibility_timeout": int(seconds), "unacked_restore_interval": 1}}


app = Pickaxe(
    "faults",
    agents=_agents,
    tools=[
        *[add, slow, slow_async, flaky, increment, flaky_inline, limited, scarce, exits, exits_async],
        *[version_of, step_up, *TOOLS, *effects_app.TOOLS],
    ],
    conf={
        "worker_soft_shutdown_timeout": float(os.environ.get("PICKAXE_TEST_SOFT_SHUTDOWN", "15")),
        "worker_prefetch_multiplier": int(os.environ.get("PICKAXE_TEST_PREFETCH", "1")),
        **_transport_options(),
    },
)


if EPOCH is not None:
    # So that a test can prove that this process's clock is wrong.
    write("clock", f"{time.time() - time.monotonic() - EPOCH:+.0f}")


# A fleet without a leader, for worker processes that ask for it by PICKAXE_TEST_SWEEPERS=all: each of them sweeps.


def _unlocked(store: FleetStore, slot: int) -> Connection:
    connection = store.database.engine.connect()
    connection.detach()
    return connection


if os.environ.get("PICKAXE_TEST_SWEEPERS") == "all":
    FleetStore.lock = _unlocked  # type: ignore[assignment]


# Faults of the broker, for worker processes that ask for them by PICKAXE_TEST_BROKER.

_publish, _publish_chord = Publisher.publish, Publisher.publish_chord


def _drop(self: Publisher, messages: Sequence[Message], *, along: Sequence[Any] = ()) -> None:
    if threading.current_thread().name == "pickaxe-sweeper":
        _publish(self, messages, along=along)
        return
    for message in messages:
        write("dropped", message.id.replace(" ", "_"))


def _drop_chord(self: Publisher, header: Sequence[Message], body: Message) -> None:
    _drop(self, [*header, body])


def _triple(self: Publisher, messages: Sequence[Message], *, along: Sequence[Any] = ()) -> None:
    """Now, a little later, and much later; in any order."""
    for message in messages:
        write("tripled", message.id.replace(" ", "_"))
    copies = [*messages, *messages]
    random.shuffle(copies)
    _publish(self, copies, along=along)
    late = threading.Timer(random.uniform(0.01, 0.8), lambda: _publish(self, random.sample(messages, len(messages))))
    late.daemon = True
    late.start()


def _triple_chord(self: Publisher, header: Sequence[Message], body: Message) -> None:
    _publish_chord(self, random.sample(header, len(header)), body)
    _triple(self, [*header, body])


def _capture() -> None:
    """Keep a copy of every message that is delivered, as it was on the wire."""
    from pickaxe.broker import _transport

    opened = _transport.Channel._open

    def keep(self: Any, item: bytes, queue: str) -> Any:
        app.client.redis.rpush(f"captured:{queue}", item)
        return opened(self, item, queue)

    _transport.Channel._open = keep  # type: ignore[method-assign]


def _note() -> None:
    """Have Redis note every message that is not acknowledged, as if no log knew any."""
    from pickaxe.broker import _transport

    _transport._is_in_log = lambda _: False


match os.environ.get("PICKAXE_TEST_BROKER"):
    case "capture":
        _capture()
    case "noted":
        _note()
    case "drop":
        Publisher.publish, Publisher.publish_chord = _drop, _drop_chord  # type: ignore[method-assign]
    case "triple":
        random.seed(os.environ.get("PICKAXE_TEST_SEED"))
        Publisher.publish, Publisher.publish_chord = _triple, _triple_chord  # type: ignore[method-assign]
