"""Pickaxe, as a peer of the bench harness: each step a tool call, each run an agent. See README.md.

Modes: plain    every reduction is a message of its own, and so is every tool
       resume   the agent is resumed by its tool's worker: one message for each step
       inline   tools go on in the agent's process while its time budget lasts (the default in production)
       step     tools declared `inline=True`: never a message

Knobs, by `--env`: BENCH_POOL solo (default), prefork, threads; BENCH_FLOWER=0 sends no task events;
BENCH_STREAM=0 writes no live streams; anything that begins with PICKAXE_ is Pickaxe's own setting.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from adapterlib import main, serve
from celery import signals
from mark import held, mark, step_body

from pickaxe import Pickaxe, Run, Settings, agent, gather, tool, wait_for_signal
from pickaxe.engine._transitions import Transitions
from pickaxe.store import migrate

MODE = os.environ.get("BENCH_MODE", "inline")
os.environ.setdefault("PICKAXE_CONTINUATION", "inline" if MODE == "step" else MODE)


@tool(queue="tools", inline=MODE == "step")
def step(run: str, i: int) -> dict[str, Any]:
    """What every peer's step does."""
    result: dict[str, Any] = step_body(run, i)
    return result


@tool(queue="tools")
def hold() -> None:
    """Keep the run at its end until the driver lets go, or kills this process."""
    while held():  # a file says so, as it does to all peers: there is nothing to wait on
        time.sleep(0.05)


@agent(queue="agents")
async def seq(run: str, n: int, kept: bool) -> int:
    """One step after the other."""
    mark("E", run)
    for i in range(n):
        await step(run, i)
    mark("R", run)
    if kept:
        await hold()
    mark("D", run)
    return n


@agent(queue="agents")
async def fan(run: str, n: int, kept: bool) -> int:
    """All steps at once, then the join. `kept` is for `seq`."""
    del kept
    mark("E", run)
    await gather(*(step(run, i) for i in range(n)))
    mark("D", run)
    return n


@agent(queue="agents")
async def park(run: str, n: int, kept: bool) -> int:
    """One step, a wait for the signal `go`, and another step. `kept` is for `seq`."""
    del kept
    mark("E", run)
    await step(run, 0)
    await wait_for_signal("go")
    await step(run, 1)
    mark("D", run)
    return n


app = Pickaxe(
    "bench",
    agents=[seq, fan, park],
    tools=[step, hold],
    settings=Settings(database_url=os.environ.get("BENCH_DSN"), redis_url=os.environ.get("BENCH_REDIS")),
    conf={"worker_send_task_events": os.environ.get("BENCH_FLOWER", "1") == "1", "worker_hijack_root_logger": False},
)


def setup() -> None:
    """An empty broker and a schema."""
    app.client.redis.flushall()
    migrate(app.client.store.database)


def worker() -> None:
    """As `pickaxe worker` starts one, but for the log level, which is the other peers'."""
    if os.environ.get("BENCH_STREAM") == "0":
        Transitions.tell_all = _silent  # type: ignore[method-assign, assignment]
    signals.worker_ready.connect(_ready)
    app.worker_main([
        "worker", "-Q", "agents,tools", "-P", os.environ.get("BENCH_POOL", "solo"), "-c", os.environ["BENCH_CONC"],
        "-l", "ERROR", "--without-gossip", "--without-mingle", "-n", f"w{os.environ['BENCH_WORKER']}@bench",
    ])  # fmt: skip


def _silent(*_: Any) -> None:
    """Instead of writing a live stream: what that costs. Written here too, for a peer is one file to its harness."""


def _ready(**_: Any) -> None:
    mark("B")


def client() -> None:
    """Enqueue and signal one by one, as the driver says."""
    agents = {"seq": seq, "fan": fan, "park": park}
    runs: dict[str, Run[int]] = {}

    def start(kind: str, ids: Sequence[str], n: int) -> None:
        for name in ids:
            runs[name] = agents[kind].enqueue(name, n, held())

    def event(ids: Sequence[str]) -> None:
        for name in ids:
            runs[name].signal("go")

    serve(start, event)


if __name__ == "__main__":
    main({"needs": ["pg", "redis"]}, setup=setup, worker=worker, client=client)
