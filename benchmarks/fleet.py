"""The fleet that `own.py` measures: the harness' workloads again, without its marks."""

from __future__ import annotations

import os
from typing import Any

from pickaxe import Pickaxe, agent, tool
from pickaxe.engine._transitions import Transitions

MODE = os.environ.get("BENCH_MODE", "inline")


@tool(queue="tools", inline=MODE == "step")
def step(run: str, i: int) -> dict[str, Any]:
    """A step that costs nothing."""
    return {"step": i, "run": run, "ok": True, "text": "a small result"}


@agent(queue="agents")
async def seq(run: str, n: int) -> int:
    """One step after the other."""
    for i in range(n):
        await step(run, i)
    return n


app = Pickaxe(
    "bench",
    agents=[seq],
    tools=[step],
    conf={"worker_send_task_events": os.environ.get("BENCH_FLOWER", "1") == "1"},
)


def _silent(*_: Any) -> None:
    """Instead of writing a live stream: what that costs. There is no setting for it, for no fleet should be without."""


if os.environ.get("BENCH_STREAM") == "0":
    Transitions.tell_all = _silent  # type: ignore[method-assign, assignment]
