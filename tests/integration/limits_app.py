"""One rate-limited queue, and unrelated traffic beside it. Every body notes when it ran."""

from __future__ import annotations

import os
import time

from pickaxe import Pickaxe, Queue, agent, gather, tool


@tool(queue="limited")
def limited(i: int) -> None:
    note("limited", i)


@tool(queue="free")
def free(sent: float) -> None:
    note("free", time.time() - sent)


@tool(inline=True)
def clock() -> float:
    return time.time()


@agent
async def spend(calls: int) -> int:
    return len(await gather(*(limited(i) for i in range(calls))))


@agent
async def unrelated(rounds: int) -> None:
    for _ in range(rounds):
        await free(await clock())


def note(word: str, value: float) -> None:
    line = f"{word} {time.time():.6f} {value}\n".encode()
    ledger = os.open(os.environ["PICKAXE_TEST_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(ledger, line)
    os.close(ledger)


app = Pickaxe("limits", agents=[spend, unrelated], tools=[limited, free, clock], queues=[Queue("limited", "50/s")])
