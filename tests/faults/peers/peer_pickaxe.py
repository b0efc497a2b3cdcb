"""Pickaxe, told the same as its peers: agents, each step a tool. All settings are the defaults."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from notes import body, main, note, serve

from pickaxe import Pickaxe, Settings, agent, tool, wait_for_signal
from pickaxe.store import Database, migrate

URL, REDIS = os.environ["FAULTS_DATABASE"], os.environ["FAULTS_REDIS"]


@tool
def step(run: str, i: int, seconds: float) -> int:
    return body(run, i, seconds)


@agent
async def work(run: str, steps: int, seconds: float) -> None:
    for i in range(steps):
        await step(run, i, seconds)
    note("done", run)


@agent
async def wait(run: str, steps: int, seconds: float) -> None:
    note("asks", run)
    try:
        async with asyncio.timeout(seconds):
            await wait_for_signal("go")
            when = "in"
    except TimeoutError:
        await wait_for_signal("go")
        when = "late"
    note(when, run)
    note("done", run)


app = Pickaxe(
    "faults", agents=[work, wait], tools=[step],
    settings=Settings(_env_file=None, database_url=URL, redis_url=REDIS),  # type: ignore[call-arg,arg-type]
)  # fmt: skip


def setup() -> None:
    database = Database(URL)
    migrate(database)
    database.close()


def worker() -> None:
    name = os.environ["FAULTS_WORKER"]
    app.worker_main(["worker", "-Q", "agents,tools", "-P", "threads", "-c", "8", "-n", f"{name}@%h", "-l", "WARNING"])
    sys.exit()


def client() -> None:
    runs: dict[str, Any] = {}

    def start(kind: str, run: str, steps: int, seconds: float) -> None:
        runs[run] = (work if kind == "work" else wait).enqueue(run, steps, seconds)

    serve(start, lambda run: runs[run].signal("go"))


if __name__ == "__main__":
    main(setup=setup, worker=worker, client=client)
