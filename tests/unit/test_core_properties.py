"""Random agents come to the same end, however often they crash and however their log arrives.

`PICKAXE_TEST_EXAMPLES=5000` tries more of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pickaxe import Context, agent, gather, inject, now, random, set_state, tool, wait_for_event, wait_for_signal
from pickaxe._states import StepKind
from pickaxe.core._records import Arrival, Decision, StepRecord
from pickaxe.core._reduction import Reduction
from pickaxe.errors import PickaxeError
from pickaxe.testing import Simulation, simulate, takes
from pickaxe.testing import _simulation as simulation

EXAMPLES = int(os.environ.get("PICKAXE_TEST_EXAMPLES", "150"))
some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
Op = list[Any]


@tool
def work(value: int) -> int:
    return value


@tool
def slow(value: int) -> int:
    return value


@tool
def broken(value: int) -> int:
    raise ValueError(f"no {value}")


@tool(retries=2)
def flaky(value: int, ctx: Context = inject()) -> int:
    if ctx.attempt <= value % 4:
        raise OSError(f"attempt {ctx.attempt}")
    return value


@tool(inline=True)
def quick(value: int) -> int:
    return value


TOOLS = {"work": work, "slow": slow, "broken": broken, "flaky": flaky, "quick": quick}


@agent
async def program(tree: Any) -> list[str]:
    trace: list[str] = []
    await perform(tree, trace)
    trace.append(f"{now().timestamp():.0f} {random().random():.3f}")
    return trace


async def perform(op: Op, trace: list[str]) -> Any:
    """Interpret one operation, telling in `trace` what was seen."""
    name, *arguments = op
    try:
        value = await OPERATIONS[name](trace, *arguments)
    except asyncio.CancelledError:
        trace.append(f"{name} cancelled")
        raise
    except BaseException as error:
        trace.append(f"{name} raised {type(error).__name__}")
        raise
    trace.append(f"{name} gave {value!r}")
    set_state(len(trace))
    return value


async def call(trace: list[str], which: str, value: int) -> Any:
    return await TOOLS[which](value)


async def sleep(trace: list[str], seconds: float) -> None:
    await asyncio.sleep(seconds)


async def signal(trace: list[str], name: str, limit: float) -> Any:
    async with asyncio.timeout(limit):
        return await wait_for_signal(name)


async def event(trace: list[str], key: str, limit: float, within: float) -> Any:
    async with asyncio.timeout(limit):
        return await wait_for_event(key, where={"yes": True}, within=within)


async def sequence(trace: list[str], *ops: Op) -> None:
    for op in ops:
        await perform(op, trace)


async def attempt(trace: list[str], op: Op) -> str:
    try:
        await perform(op, trace)
    except Exception as error:
        return type(error).__name__
    return "fine"


async def one_command(trace: list[str], calls: list[Any], quorum: int, tolerant: bool, limit: int) -> Any:
    found = await gather(
        *(TOOLS[which](value) for which, value in calls),
        quorum=min(quorum, len(calls)) or None, return_exceptions=tolerant, limit=limit or None,
    )  # fmt: skip
    return [repr(item) for item in found]


async def side_by_side(trace: list[str], tolerant: bool, *ops: Op) -> int:
    return len(await asyncio.gather(*(perform(op, trace) for op in ops), return_exceptions=tolerant))


async def group(trace: list[str], *ops: Op) -> None:
    async with asyncio.TaskGroup() as tasks:
        for op in ops:
            tasks.create_task(perform(op, trace))


async def limited(trace: list[str], seconds: float, op: Op) -> Any:
    async with asyncio.timeout(seconds):
        return await perform(op, trace)


async def fastest(trace: list[str], *ops: Op) -> list[str]:
    tasks = [asyncio.create_task(perform(op, trace), name=str(i)) for i, op in enumerate(ops)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    order = [task.get_name() for task in (*done, *pending)]
    for task in pending:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return order


async def as_they_come(trace: list[str], *calls: Any) -> list[str]:
    found = []
    for each in asyncio.as_completed([TOOLS[which](value) for which, value in calls]):
        try:
            found.append(str(await each))
        except PickaxeError as error:
            found.append(type(error).__name__)
    return found


async def cleaned(trace: list[str], op: Op, cleanup: Op) -> Any:
    try:
        return await perform(op, trace)
    finally:
        await perform(cleanup, trace)


async def left_running(trace: list[str], op: Op) -> None:
    task = asyncio.create_task(perform(op, trace))
    task.add_done_callback(lambda t: t.cancelled() or t.exception())
    await asyncio.sleep(0)


async def taken_back(trace: list[str], op: Op, meanwhile: Op) -> str:
    task = asyncio.create_task(perform(op, trace))
    try:
        await perform(meanwhile, trace)
    finally:
        task.cancel()
        await asyncio.wait([task])
    return "cancelled" if task.cancelled() else repr(task.exception() and type(task.exception()))


async def shielded(trace: list[str], seconds: float, op: Op) -> Any:
    task = asyncio.ensure_future(perform(op, trace))
    task.add_done_callback(lambda t: t.cancelled() or t.exception())
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(task)
    except TimeoutError:
        return await task


async def child_run(trace: list[str], policy: str, op: Op) -> Any:
    return await program.using(on_cancel=policy)(op)


async def through_a_queue(trace: list[str], *ops: Op) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    lock, ready = asyncio.Lock(), asyncio.Event()

    async def produce(number: int, op: Op) -> None:
        try:
            async with lock:
                await perform(op, trace)
        finally:
            queue.put_nowait(number)
            ready.set()

    async with asyncio.TaskGroup() as tasks:
        for number, op in enumerate(ops):
            tasks.create_task(produce(number, op))
        await ready.wait()
        for _ in ops:
            trace.append(f"took {await queue.get()}")


OPERATIONS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    function.__name__: function
    for function in (
        call, sleep, signal, event, sequence, attempt, one_command, side_by_side, group, limited, fastest,
        as_they_come, cleaned, left_running, taken_back, shielded, child_run, through_a_queue,
    )
}  # fmt: skip

seconds = st.sampled_from([0, 1, 2, 3, 5, 8])
calls = st.tuples(st.sampled_from(sorted(TOOLS)), st.integers(0, 3)).map(list)
leaves = st.one_of(
    calls.map(lambda c: ["call", *c]),
    seconds.map(lambda s: ["sleep", s]),
    st.tuples(st.just("signal"), st.sampled_from(["a", "b"]), seconds).map(list),
    st.tuples(st.just("event"), st.sampled_from(["x", "y"]), seconds, seconds).map(list),
    st.tuples(
        st.just("one_command"), st.lists(calls, max_size=4), st.integers(0, 3), st.booleans(), st.integers(0, 2)
    ).map(list),
    st.lists(calls, max_size=3).map(lambda c: ["as_they_come", *c]),
)


def larger(ops: st.SearchStrategy[Op]) -> st.SearchStrategy[Op]:
    several = st.lists(ops, min_size=1, max_size=3)
    return st.one_of(
        several.map(lambda o: ["sequence", *o]),
        several.map(lambda o: ["group", *o]),
        several.map(lambda o: ["fastest", *o]),
        several.map(lambda o: ["through_a_queue", *o]),
        st.tuples(st.booleans(), several).map(lambda p: ["side_by_side", p[0], *p[1]]),
        ops.map(lambda o: ["attempt", o]),
        ops.map(lambda o: ["left_running", o]),
        st.tuples(st.just("limited"), seconds, ops).map(list),
        st.tuples(st.just("shielded"), seconds, ops).map(list),
        st.tuples(st.just("cleaned"), ops, ops).map(list),
        st.tuples(st.just("taken_back"), ops, ops).map(list),
        st.tuples(st.just("child_run"), st.sampled_from(["cancel", "wait", "detach"]), ops).map(list),
    )


programs = st.lists(st.recursive(leaves, larger, max_leaves=8), min_size=1, max_size=4).map(
    lambda ops: ["sequence", *(["attempt", op] for op in ops)]
)
outside = st.fixed_dictionaries({
    "signals": st.lists(st.tuples(seconds, st.sampled_from(["a", "b"]), st.integers(0, 9)), max_size=4),
    "events": st.lists(
        st.tuples(seconds, st.sampled_from(["x", "y"]), st.booleans().map(lambda yes: {"yes": yes})), max_size=3
    ),
    "cancel": st.none() | seconds,
    "shuffle": st.none() | st.integers(0, 99),
})  # fmt: skip


def run(tree: Op, **options: Any) -> Simulation[list[str]]:
    return simulate(program, tree, tools={slow: takes("3s")}, **options)


def told(ran: Simulation[Any]) -> Any:
    """Everything a person could see of a run."""
    error = ran._run.error
    return (
        ran.state, ran._run.output, error and error[:60], ran.published, ran.now,
        [(s.key, s.state, s.seq, s.attempt, s.output_json, s.at) for s in ran.steps],
        {key: told(child) for key, child in ran.children.items()},
    )  # fmt: skip


@some
@given(programs, outside)
def test_a_crash_at_every_point_changes_nothing(tree: Op, world: dict[str, Any]) -> None:
    assert told(run(tree, crash="everywhere", **world)) == told(run(tree, **world))


@some
@given(programs, outside)
def test_a_run_that_has_ended_leaves_nothing_open(tree: Op, world: dict[str, Any]) -> None:
    ran = run(tree, **world)
    assert ran.state.terminal
    assert [s for s in ran.steps if s.is_open] == []


@some
@given(programs, outside, st.randoms(use_true_random=False))
def test_arrivals_may_come_in_batches(tree: Op, world: dict[str, Any], chance: Any) -> None:
    ran = run(tree, **world)
    if ran._run.started is None or not ran._run.head:
        return
    with closing(reduction(ran)) as fresh:
        batches = Batches(fresh, ran, chance)
        batches.feed_all()
    state, output, _ = simulation._turns.ending(simulation._engine(ran._run), program.spec, batches.decision)
    assert (state, output) == (ran.state, ran._run.output)
    # The same log, except for what was asked for and taken back before it was dispatched.
    assert batches.known - batches.cancelled <= {step.key for step in ran.steps}


def reduction(ran: Simulation[Any]) -> Reduction:
    run = ran._run
    run.now = run.started or 0.0
    return simulation._turns.reduction_of(simulation._engine(run), run)  # type: ignore[arg-type]


class Batches:
    """Feeds a run's whole log to a reduction, each time as much as could have been there."""

    def __init__(self, fresh: Reduction, ran: Simulation[Any], chance: Any) -> None:
        self.fresh, self.ran, self.chance = fresh, ran, chance
        self.known: set[str] = set()
        self.cancelled: set[str] = set()
        self.decision = self.resume([])

    def feed_all(self) -> None:
        batch: list[Arrival] = []
        for arrival in arrivals(self.ran):
            if batch and (self.unknown(arrival) or self.chance.random() < 0.4):
                self.resume(batch)
                batch = []
            if not self.unknown(arrival):  # else: asked for and taken back within one batch
                batch.append(arrival)
        self.resume(batch)

    def unknown(self, arrival: Arrival) -> bool:
        return isinstance(arrival, StepRecord) and arrival.key not in self.known

    def resume(self, batch: list[Arrival]) -> Decision:
        steps = [a for a in batch if isinstance(a, StepRecord)]
        gathers = {step.key for step in steps}
        members = [s.record() for s in self.ran.steps if s.group in gathers]
        self.decision = self.fresh.resume([*members, *steps], [a for a in batch if not isinstance(a, StepRecord)])
        self.known |= {request.key for request in self.decision.requests}
        self.cancelled |= set(self.decision.cancels)
        return self.decision


def arrivals(ran: Simulation[Any]) -> Iterator[Arrival]:
    run = ran._run
    all_of_them: list[Arrival] = [s.record() for s in ran.steps if s.seq is not None and s.kind is not StepKind.SIGNAL]
    all_of_them += run.signals.values()
    all_of_them += [run.cancel] if run.cancel else []
    return iter(sorted(all_of_them, key=lambda a: a.seq or 0))


@pytest.mark.parametrize("seed", range(3))
def test_results_may_arrive_in_any_order(seed: int) -> None:
    tree = ["side_by_side", True, *(["call", name, i] for i in range(4) for name in sorted(TOOLS))]
    ran = run(tree, shuffle=seed, crash="everywhere")
    assert ran.result()[-2] == "side_by_side gave 20"
