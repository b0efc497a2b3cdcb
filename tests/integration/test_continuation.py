"""How far a process goes on with a run, told by the messages that the run takes."""

from __future__ import annotations

import os
import re
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pickaxe import Context, Pickaxe, Retry, agent, gather, inject, tool
from pickaxe.engine._sweeper import release_due
from pickaxe.engine._work import reduce
from pickaxe.store import Store
from tests.integration.continuation_app import adds, adds_async, adds_at_once, adds_both_ways, adds_busy, adds_limited
from tests.workers import running_worker


@tool(inline=True, retries=Retry(attempts=2, backoff=0.01))
def double(n: int, ctx: Context = inject()) -> int:
    """Fails at first, now and then."""
    if ctx.attempt == 1 and n % 4 == 0:
        raise ValueError(n)
    return 2 * n


@agent
async def doubles(rounds: int) -> int:
    numbers = [1, 1, 1]
    for _ in range(rounds):
        numbers = await gather(*(double(n) for n in numbers))
    return sum(numbers)


@tool(inline=True, timeout=10, retries=Retry(attempts=2, backoff=0.0))
def queues(n: int, ctx: Context = inject()) -> int:
    """Fails at first, after a look at when the sweeper would take it and its neighbours away."""
    DUE[ctx.attempt, n] = due_in(ctx.run)
    if ctx.attempt == 1:
        raise ValueError(n)
    return n


@tool(inline=True)
def takes_its_time(n: int, ctx: Context = inject()) -> int:
    DUE[ctx.attempt, n] = due_in(ctx.run)
    return n


@agent
async def queued(times: bool) -> int:
    return sum(await gather(queues(0), queues(1), queues(2), *([takes_its_time(3), queues(4)] if times else [])))


DUE: dict[tuple[int, int], list[float | None]] = {}
STORES: list[Store] = []


def due_in(run: str) -> list[float | None]:
    """The seconds after which a run's running calls are taken away, in whole tens."""
    now = datetime.now(UTC)
    steps = [step for step in STORES[-1].view_steps(uuid.UUID(run)) if step.kind == "tool"]
    return [None if s.due is None else round((s.due - now).total_seconds(), -1) for s in steps if s.state == "running"]


AGENTS = (adds, adds_async, adds_both_ways, adds_limited, adds_busy, adds_at_once)

PLENTY = {"PICKAXE_INLINE_FOR": "60"}


def received(log: Path) -> Counter[str]:
    """How many messages of agents and of tools a worker has received."""
    tasks = re.findall(r"Task (\w+)\[[^]]+\] received", log.read_text("utf-8"))
    return Counter("agent" if name.startswith("adds") else "tool" for name in tasks)


def run(services, folder, agent, *, queues="agents,tools,busy", pool="solo", tools_apart=False, **environment):
    """Run an agent on a worker, or on one for agents and one for tools. Returns what they have received."""
    app = Pickaxe("continuation", agents=AGENTS, settings=services.settings())
    environment = {**services.environment, **PLENTY, **environment}
    where = {"app": "tests.integration.continuation_app", "pool": pool, "concurrency": 4}
    first, second = folder / "first.log", folder / "second.log"
    try:
        with running_worker(environment, first, queues="agents" if tools_apart else queues, name="first", **where):
            if not tools_apart:
                assert agent.enqueue(4).result(timeout=30) == 7
                return received(first)
            with running_worker(environment, second, queues="tools,busy", name="second", **where):
                assert agent.enqueue(4).result(timeout=30) == 7
                return received(first), received(second)
    finally:
        app.client.close()


def test_plainly_every_call_and_every_reduction_has_a_message(services, tmp_path):
    assert run(services, tmp_path, adds, PICKAXE_CONTINUATION="plain") == {"agent": 4, "tool": 3}


def test_an_agent_that_is_resumed_where_its_tool_ran_takes_one_message_a_call(services, tmp_path):
    assert run(services, tmp_path, adds, PICKAXE_CONTINUATION="resume") == {"agent": 1, "tool": 3}


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_calls_that_a_worker_would_take_from_their_queue_take_no_message_at_all(services, tmp_path, pool):
    assert run(services, tmp_path, adds, pool=pool) == {"agent": 1}


def test_calls_of_a_queue_that_another_worker_serves_are_left_to_that_one(services, tmp_path):
    assert run(services, tmp_path, adds, tools_apart=True) == ({"agent": 1}, {"tool": 1})


def test_calls_take_a_message_each_when_the_time_to_go_on_is_over(services, tmp_path):
    assert run(services, tmp_path, adds, PICKAXE_INLINE_FOR="0") == {"agent": 1, "tool": 3}


@pytest.mark.parametrize("agent", [adds_limited, adds_busy])
def test_calls_with_a_rate_limit_of_their_own_or_of_their_queue_take_a_message_each(services, tmp_path, agent):
    assert run(services, tmp_path, agent) == {"agent": 1, "tool": 3}


def test_calls_that_run_at_once_take_a_message_each(services, tmp_path):
    assert run(services, tmp_path, adds_at_once)["tool"] == 3


def test_a_run_of_inline_calls_is_loaded_once_and_then_caught_up_with(services):
    app = Pickaxe("inline", agents=[doubles], settings=services.settings())
    engine, loads = app.engine, []
    engine.store.register_worker(engine.owner, name="here", pid=os.getpid(), handles=["doubles", "double"], family="")
    load = engine.store.load
    engine.store.load = lambda run: loads.append(run) or load(run)
    started = doubles.enqueue(6)
    while started.status in ("ready", "waiting"):
        release_due(engine)  # calls that have failed and are to be tried again
        reduce(engine, uuid.UUID(started.id))
    assert started.result(timeout=1) == 3 * 2**6
    assert len(loads) == 1
    app.client.close()


def test_an_async_call_never_takes_up_a_thread_where_there_is_an_event_loop_for_it(services, tmp_path):
    pool = {"pool": "custom", "CELERY_CUSTOM_WORKER_POOL": "pickaxe.broker:CoroutinePool"}
    assert run(services, tmp_path, adds_async, **pool) == {"agent": 1, "tool": 1}


def test_a_call_that_blocks_never_takes_up_one_of_an_event_loops_own_threads(services, tmp_path):
    pool = {"pool": "custom", "CELERY_CUSTOM_WORKER_POOL": "pickaxe.broker:CoroutinePool"}
    assert run(services, tmp_path, adds_both_ways, **pool) == {"agent": 1, "tool": 2}


def test_a_process_that_cannot_go_on_with_a_run_is_not_told_its_log(services):
    names = ("agent", 'quo"ted\\', "doubles")
    for agents, told in (((), False), (names[:2], False), (names, True)):
        app = Pickaxe("told", agents=[adds], settings=services.settings(continuation="resume"))
        store, run = app.engine.store, adds.enqueue(1)
        store.register_worker(app.engine.owner, name="here", pid=os.getpid(), handles=[])
        reduce(app.engine, uuid.UUID(run.id))
        with store.database.engine.connect() as connection:
            connection.exec_driver_sql("UPDATE pickaxe.run SET agent = 'doubles'")
        claimed = store.claim(uuid.UUID(run.id), "add#1", 1, app.engine.owner, grace=2, agents=agents)
        assert (claimed.news is not None) == told
        app.client.close()


@pytest.mark.parametrize("times", [False, True])
def test_calls_that_are_run_here_one_after_the_other_are_not_taken_away_while_they_wait_for_their_turn(services, times):
    app = Pickaxe("queued", agents=[queued], settings=services.settings(continuation="plain"))
    engine, run = app.engine, queued.enqueue(times)
    engine.store.register_worker(engine.owner, name="here", pid=os.getpid(), handles=[])
    STORES.append(engine.store)
    while run.status in ("ready", "waiting"):
        release_due(engine)
        reduce(engine, uuid.UUID(run.id))
    assert run.result(timeout=1) == 3 + 7 * times
    # Each may take 10 s, and 2 s to stop; nobody knows when the turn of what comes after one without a timeout is.
    assert DUE[1, 0] == [10.0, 20.0, 40.0, *([None, None] if times else [])]
    assert DUE[2, 0] == [10.0, 20.0, 40.0, *([50.0] if times else [])]
    app.client.close()
