"""Agents that make three calls one after the other, each in a way of its own."""

from __future__ import annotations

from pickaxe import Pickaxe, Queue, agent, gather, tool


@tool
def add(a: int, b: int) -> int:
    return a + b


@tool
async def add_async(a: int, b: int) -> int:
    return a + b


@tool(rate_limit="1000/s")
def add_limited(a: int, b: int) -> int:
    return a + b


@tool(queue="busy")
def add_busy(a: int, b: int) -> int:
    return a + b


@agent
async def adds(n: int) -> int:
    for _ in range(3):
        n = await add(n, 1)
    return n


@agent
async def adds_async(n: int) -> int:
    for _ in range(3):
        n = await add_async(n, 1)
    return n


@agent
async def adds_both_ways(n: int) -> int:
    return await add(await add(await add_async(n, 1), 1), 1)


@agent
async def adds_limited(n: int) -> int:
    for _ in range(3):
        n = await add_limited(n, 1)
    return n


@agent
async def adds_busy(n: int) -> int:
    for _ in range(3):
        n = await add_busy(n, 1)
    return n


@agent
async def adds_at_once(n: int) -> int:
    return n + len(await gather(*(add(n, 1) for _ in range(3))))


app = Pickaxe(
    "continuation",
    agents=[adds, adds_async, adds_both_ways, adds_limited, adds_busy, adds_at_once],
    tools=[add, add_async, add_limited, add_busy],
    queues=[Queue("busy", rate_limit="1000/s")],
)
