"""An app whose calls take long enough for a queue to grow."""

from __future__ import annotations

import time

from pickaxe import Pickaxe, agent, gather, tool


@tool(queue="agents")
def echo(n: int, seconds: float) -> int:
    time.sleep(seconds)
    return n


@agent
async def echoes(count: int, seconds: float = 0.0) -> int:
    return sum(await gather(*(echo(n, seconds) for n in range(count))))


@agent
async def at_once(n: int) -> int:
    return n


AGENTS, TOOLS = [at_once, echoes], [echo]

app = Pickaxe("late", agents=AGENTS, tools=TOOLS)
