"""The deterministic loop behaves as asyncio does, the same in every replay."""

# ruff: noqa: RUF006 - the loop keeps its tasks alive, unlike asyncio's

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import math
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from pickaxe import agent, tool
from pickaxe.core import _loop
from pickaxe.core._loop import Loop
from pickaxe.core._reduction import Reduction
from pickaxe.errors import ImpureAgentError, RunFailedError, ToolError
from pickaxe.testing import simulate, takes
from tests.unit.core_log import Log


@tool
def echo(value: Any) -> Any:
    return value


@tool
def broken(value: Any) -> Any:
    raise ValueError(f"no {value}")


def run(main: Callable[[], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    return simulate(agent(main), crash="everywhere", **options).result()


@tool
def after(seconds: float) -> float:
    return seconds


def test_gather_keeps_the_order_of_its_arguments() -> None:
    async def main() -> list[int]:
        return await asyncio.gather(echo(1), echo(2), echo(3))

    for seed in range(5):
        assert run(main, shuffle=seed) == [1, 2, 3]


def test_gather_raises_the_first_failure_and_lets_the_rest_go_on() -> None:
    seen = []

    async def late() -> None:
        await asyncio.sleep(10)
        seen.append("late")

    async def main() -> str:
        with pytest.raises(ToolError, match="no 1"):
            await asyncio.gather(broken(1), late())
        await asyncio.sleep(20)
        return "ok"

    assert simulate(agent(main)).result() == "ok"
    assert seen == ["late"]


def test_gather_returns_exceptions_when_asked() -> None:
    async def main() -> list[str]:
        return [type(r).__name__ for r in await asyncio.gather(echo(1), broken(2), return_exceptions=True)]

    assert run(main) == ["int", "ToolError"]


def test_a_task_group_cancels_its_tasks_when_one_fails() -> None:
    async def main() -> list[str]:
        ended = []

        async def waiting(name: str) -> None:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                ended.append(name)
                raise

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(waiting("a"))
                group.create_task(waiting("b"))
                group.create_task(broken(1))
        except* ToolError as errors:
            ended.append(str(len(errors.exceptions)))
        return ended

    assert run(main) == ["a", "b", "1"]


def test_nested_task_groups_raise_nested_groups() -> None:
    async def main() -> str:
        async def inner() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(broken("inner"))

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(inner())
        except BaseExceptionGroup as error:
            return f"{type(error.exceptions[0]).__name__}/{type(error.exceptions[0].exceptions[0]).__name__}"
        return ""

    assert run(main) == "ExceptionGroup/ToolError"


def test_a_timeout_of_days_ends_what_is_inside() -> None:
    async def main() -> str:
        try:
            async with asyncio.timeout(3 * 86400):
                await asyncio.sleep(30 * 86400)
        except TimeoutError:
            return "timed out"
        return "slept"

    assert run(main) == "timed out"


def test_a_timeout_that_is_not_reached_changes_nothing_and_takes_its_timer_back() -> None:
    async def main() -> int:
        async with asyncio.timeout(10):
            return await echo(1)

    ran = simulate(agent(main), crash="everywhere")
    assert ran.result() == 1
    assert ran.step("timer#1").state == "cancelled"


def test_a_timeout_of_nothing_is_over_at_once_without_a_timer() -> None:
    async def main() -> str:
        try:
            async with asyncio.timeout(0):
                await echo(1)
        except TimeoutError:
            return "timed out"
        return "in time"

    ran = simulate(agent(main), crash="everywhere")
    assert ran.result() == "timed out"
    assert [s.key for s in ran.steps if s.kind == "timer"] == []


def test_wait_for_raises_when_the_tool_takes_longer() -> None:
    async def main() -> str:
        try:
            return await asyncio.wait_for(echo("late"), 5)
        except TimeoutError:
            return "timed out"

    assert run(main, tools={echo: takes("10s")}) == "timed out"
    assert run(main, tools={echo: takes("3s")}) == "late"


def test_sleep_zero_lets_the_others_run_and_is_no_step() -> None:
    async def main() -> list[str]:
        order = []

        async def one(name: str) -> None:
            for i in range(2):
                order.append(f"{name}{i}")
                await asyncio.sleep(0)

        await asyncio.gather(one("a"), one("b"))
        return order

    ran = simulate(agent(main))
    assert ran.result() == ["a0", "b0", "a1", "b1"]
    assert ran.steps == []


def test_sleeping_for_ever_is_no_step_either() -> None:
    async def main() -> str:
        sleeper = asyncio.create_task(asyncio.sleep(math.inf))
        await echo(1)
        sleeper.cancel()
        return "ok"

    ran = simulate(agent(main), crash="everywhere")
    assert ran.result() == "ok"
    assert [s.key for s in ran.steps] == ["echo#1"]


def test_time_stands_still_between_arrivals_and_never_runs_back() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        times = [loop.time(), loop.time()]
        await asyncio.sleep(2.5)
        return [*times, loop.time()]

    first, second, third = run(main)
    assert first == second
    assert third == first + 2.5


def test_a_clock_that_steps_back_is_not_seen() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        await echo(1)
        before = loop.time()
        await echo(2)
        return [before, loop.time()]

    log = Log(main)
    log.reduce()
    log.start = 2_000.0
    log.ends("echo#1", 1)
    log.start = 1_000.0
    log.reduce()
    log.ends("echo#2", 2)
    assert log.reduce().output == [2001.0, 2001.0]


def test_wait_for_the_first_iterates_in_the_same_order_every_time() -> None:
    async def main() -> list[str]:
        tasks = [asyncio.create_task(echo(i), name=str(i)) for i in range(20)]
        await asyncio.sleep(1)
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return [t.get_name() for t in done] + [t.get_name() for t in pending]

    orders = {tuple(simulate(agent(main)).result()) for _ in range(10)}
    assert len(orders) == 1


def test_queues_locks_events_and_conditions_work() -> None:
    async def main() -> list[Any]:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
        lock, event, condition, log = asyncio.Lock(), asyncio.Event(), asyncio.Condition(), []

        async def producer() -> None:
            for i in range(3):
                await queue.put(await echo(i))
            async with condition:
                condition.notify_all()

        async def consumer() -> None:
            for _ in range(3):
                async with lock:
                    log.append(await queue.get())
            event.set()

        async def watcher() -> None:
            async with condition:
                await condition.wait()
                log.append("notified")

        async with asyncio.TaskGroup() as group:
            group.create_task(watcher())
            group.create_task(producer())
            group.create_task(consumer())
            await event.wait()
        return log

    assert sorted(map(str, run(main))) == ["0", "1", "2", "notified"]


def test_a_semaphore_bounds_what_runs_at_a_time() -> None:
    async def main() -> int:
        gate, running, most = asyncio.Semaphore(2), 0, 0

        async def one(i: int) -> None:
            nonlocal running, most
            async with gate:
                running += 1
                most = max(most, running)
                await echo(i)
                running -= 1

        await asyncio.gather(*(one(i) for i in range(7)))
        return most

    assert run(main) == 2


def test_shield_keeps_its_call_when_the_waiter_is_cancelled() -> None:
    async def main() -> int:
        inner = asyncio.ensure_future(echo(5))
        try:
            async with asyncio.timeout(1):
                await asyncio.shield(inner)
        except TimeoutError:
            return await inner
        return -1

    assert run(main, tools={echo: takes("5s")}) == 5


def test_as_completed_over_calls_gives_results_as_they_come() -> None:
    async def main() -> list[int]:
        return [await each for each in asyncio.as_completed([after(3), after(1), after(2)])]

    for seed in range(5):
        assert sorted(run(main, shuffle=seed)) == [1, 2, 3]
    assert len({tuple(run(main, shuffle=seed)) for seed in range(20)}) > 1


def test_as_completed_over_tasks_works_and_has_a_timeout() -> None:
    async def main() -> list[Any]:
        got: list[Any] = []
        tasks = [asyncio.create_task(asyncio.sleep(i, i)) for i in (1, 2, 9)]
        try:
            for each in asyncio.as_completed(tasks, timeout=5):
                got.append(await each)
        except TimeoutError:
            got.append("timeout")
        return got

    assert run(main) == [1, 2, "timeout"]


def test_as_completed_over_coroutines_is_refused_because_their_order_is_chance() -> None:
    async def main() -> None:
        async def own() -> None: ...

        for each in asyncio.as_completed([own()]):
            await each

    with pytest.raises(
        RunFailedError, match=r"as_completed at .*test_core_loop.py:\d+ starts coroutines in no fixed order"
    ):
        simulate(agent(main)).result()


def test_cancelling_a_task_raises_in_it_and_takes_its_call_back() -> None:
    async def main() -> str:
        task = asyncio.create_task(echo(1))
        await asyncio.sleep(0)
        task.cancel("not needed")
        try:
            await task
        except asyncio.CancelledError as error:
            return str(error.args[0])
        return ""

    ran = simulate(agent(main))
    assert ran.result() == "not needed"
    assert ran.steps == []


def test_a_finally_block_may_await_steps() -> None:
    async def main() -> str:
        try:
            await asyncio.sleep(100)
        finally:
            await echo("cleaned")
        return "never"

    ran = simulate(agent(main), cancel=5, crash="everywhere")
    assert ran.state == "cancelled"
    assert ran.step("echo#1").output == "cleaned"


def test_what_an_agent_leaves_running_is_cancelled_once_and_may_clean_up_with_several_steps() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            for i in range(3):
                await echo(i)

    async def main() -> str:
        asyncio.create_task(stubborn())
        asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        return "done"

    ran = simulate(agent(main), crash="everywhere")
    assert ran.result() == "done"
    assert [s.output for s in ran.steps if s.name == "echo"] == [0, 0, 1, 1, 2, 2]
    assert all(s.state == "succeeded" for s in ran.steps if s.name == "echo")


def test_a_leftover_that_swallows_its_cancellation_and_ends_lets_the_run_end() -> None:
    async def deaf() -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(50)

    async def main() -> str:
        asyncio.create_task(deaf())
        await asyncio.sleep(1)
        return "done"

    ran = simulate(agent(main), crash="everywhere")
    assert ran.result() == "done"
    assert (ran.now - ran.steps[0].at).total_seconds() >= 50


def test_a_clean_up_that_starts_tasks_is_waited_for() -> None:
    async def cleaner() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            async with asyncio.TaskGroup() as group:
                for i in range(3):
                    group.create_task(echo(i))

    async def main() -> None:
        asyncio.create_task(cleaner())
        await asyncio.sleep(0)

    ran = simulate(agent(main), crash="everywhere")
    assert [s.output for s in ran.steps if s.name == "echo"] == [0, 1, 2]


def test_leftovers_that_breed_for_ever_are_stopped() -> None:
    async def hydra() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            asyncio.create_task(hydra())

    async def main() -> None:
        asyncio.create_task(hydra())
        await asyncio.sleep(0)

    with pytest.raises(RunFailedError, match="starts something new for ever"):
        simulate(agent(main)).result()


def test_an_agent_that_spins_fails_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loop, "SPIN_LIMIT", 1_000)

    async def main() -> None:
        await echo(1)
        asyncio.create_task(echo(2))
        while True:
            await asyncio.sleep(0)

    ran = simulate(agent(main))
    with pytest.raises(RunFailedError, match="it spins"):
        ran.result()
    assert {s.key: s.state for s in ran.steps} == {"echo#1": "succeeded"}


def test_an_agent_that_spins_after_it_took_back_a_child_run_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loop, "SPIN_LIMIT", 1_000)

    async def echoing(value: int) -> int:
        return value

    async def main() -> None:
        task = asyncio.create_task(agent(echoing).using(on_cancel="wait")(1))
        await asyncio.sleep(0)
        task.cancel()
        while True:
            await asyncio.sleep(0)

    with pytest.raises(RunFailedError, match="it spins"):
        simulate(agent(main)).result()


def test_async_generators_can_be_iterated_and_dropped() -> None:
    cleaned = []

    async def pages() -> AsyncIterator[int]:
        try:
            for i in range(10):
                yield await echo(i)
        finally:
            cleaned.append(await echo("closed"))

    async def main() -> list[int]:
        seen = []
        async for page in pages():
            seen.append(page)
            if page == 2:
                break
        await asyncio.sleep(1)
        return seen

    ran = simulate(agent(main), crash="everywhere")
    assert ran.result() == [0, 1, 2]
    assert "closed" in cleaned


def test_an_async_generator_that_outlives_its_agent_is_harmless() -> None:
    kept = []

    async def pages() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await echo("never asked for")

    async def main() -> int:
        generator = pages()
        kept.append(generator)
        return await anext(generator)

    assert simulate(agent(main)).result() == 1
    kept.clear()
    gc.collect()


def test_async_generators_close_in_order_with_aclosing() -> None:
    async def pages() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await echo("closed")

    async def main() -> int:
        async with aclosing(pages()) as generator:
            return await anext(generator)

    ran = simulate(agent(main), crash="everywhere")
    assert ran.result() == 1
    assert ran.step("echo#1").output == "closed"


def test_context_variables_are_per_task() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outer")

    async def main() -> list[str]:
        async def one(name: str) -> str:
            variable.set(name)
            await echo(1)
            return variable.get()

        return [*await asyncio.gather(one("a"), one("b")), variable.get()]

    assert run(main) == ["a", "b", "outer"]


def test_tasks_have_the_names_they_were_given_and_keys_do_not_depend_on_them() -> None:
    async def main() -> list[str]:
        async def worker() -> str:
            await echo(1)
            return asyncio.current_task().get_name()

        return list(await asyncio.gather(asyncio.create_task(worker(), name="mine"), worker()))

    ran = simulate(agent(main))
    assert ran.result() == ["mine", "worker#2"]
    assert [s.key for s in ran.steps] == ["worker#1/echo#1", "worker#2/echo#1"]


def test_a_task_around_a_call_does_not_use_up_a_call_number() -> None:
    async def main() -> None:
        await asyncio.create_task(echo(1))
        await asyncio.gather(echo(2), echo(3))
        await echo(4)

    assert [s.key for s in simulate(agent(main)).steps] == ["echo#1", "echo#2", "echo#3", "echo#4"]


def test_an_exception_nobody_retrieves_is_logged_while_the_agent_runs(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def fails() -> None:
            raise ValueError("lost")

        asyncio.create_task(fails())
        await asyncio.sleep(1)
        gc.collect()
        await asyncio.sleep(1)

    with caplog.at_level(logging.WARNING, "pickaxe.agent"):
        simulate(agent(main)).result()
    assert "never retrieved" in caplog.text


def test_a_call_that_is_never_awaited_warns() -> None:
    async def main() -> None:
        echo(1)
        await asyncio.sleep(1)

    with pytest.warns(RuntimeWarning, match="the call 'echo#1' was never awaited"):
        simulate(agent(main))


def test_a_call_awaited_twice_is_refused() -> None:
    async def main() -> None:
        call = echo(1)
        await call
        await call

    with pytest.raises(RunFailedError, match="'echo#1' was already awaited"):
        simulate(agent(main)).result()


def test_the_loop_of_the_surrounding_code_is_put_back() -> None:
    async def main() -> int:
        return await echo(1)

    async def outside() -> int:
        before = asyncio.get_running_loop()
        result = simulate(agent(main)).result()
        assert asyncio.get_running_loop() is before
        await asyncio.sleep(0)
        return result

    assert asyncio.run(outside()) == 1


class TestDroppedReductions:
    """Closing a reduction has no effects: what its `finally` blocks ask for is never done."""

    effects: list[Any]

    @pytest.fixture(autouse=True)
    def fresh(self) -> None:
        self.effects = []

    def drop(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        reduction = Reduction(main, seed="s", started_at=0.0)
        reduction.resume([])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reduction.close()
            del reduction
            gc.collect()
        assert self.effects == []

    def release(self) -> Any:
        @tool
        def release(value: int) -> None:
            self.effects.append(value)

        return release

    def test_a_tool_in_finally_is_not_called(self) -> None:
        release = self.release()

        async def main() -> None:
            try:
                await echo(1)
            finally:
                await release(1)
                await release(2)

        self.drop(main)

    def test_nested_finally_blocks_are_not_run_as_plain_functions(self) -> None:
        release = self.release()

        async def inner() -> None:
            try:
                await asyncio.sleep(10)
            finally:
                try:
                    await release(1)
                finally:
                    await asyncio.gather(release(2), release(3))

        async def main() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(inner())
                    group.create_task(inner())
            finally:
                await asyncio.wait_for(release(4), 5)

        self.drop(main)

    def test_a_task_made_in_finally_is_dropped_too(self) -> None:
        release = self.release()

        async def helper() -> None:
            await release(1)

        async def main() -> None:
            try:
                await echo(1)
            finally:
                task = asyncio.create_task(helper())
                await task

        self.drop(main)

    def test_a_coroutine_that_ignores_being_closed_is_kept_for_ever_instead(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        release = self.release()

        async def main() -> None:
            while True:
                try:
                    await release(1)
                except BaseException:
                    continue

        kept = len(_loop._undying)
        self.drop(main)
        assert len(_loop._undying) == kept + 1
        assert "cannot be closed" in caplog.text

    def test_suspended_async_generators_are_not_run_by_the_garbage_collector(self) -> None:
        release = self.release()

        async def pages() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await release(1)

        async def main() -> None:
            async for _ in pages():
                await echo(1)

        self.drop(main)

    def test_an_error_in_finally_stays_inside(self) -> None:
        async def main() -> None:
            try:
                await echo(1)
            finally:
                raise KeyError("in finally")

        self.drop(main)

    def test_unawaited_calls_are_silent(self) -> None:
        async def main() -> None:
            calls = [echo(i) for i in range(3)]
            for call in calls:
                await call

        self.drop(main)

    def test_a_gather_in_finally_asks_for_nothing(self) -> None:
        from pickaxe import gather, wait_for_signal

        release = self.release()

        async def main() -> None:
            try:
                await wait_for_signal("go")
            finally:
                await gather(release(1), release(2))

        self.drop(main)


def test_a_callback_cancelled_before_its_turn_is_not_run() -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_soon(seen.append, "soon").cancel()
        loop.call_later(5, seen.append, "later").cancel()
        loop.call_later(1, seen.append, "kept")
        await asyncio.sleep(10)
        return seen

    assert run(main) == ["kept"]


def test_a_closed_loop_queues_nothing() -> None:
    class Nobody:
        def start(self, timer: Any) -> None: ...
        def stop(self, timer: Any) -> None: ...

    loop = Loop(0.0, Nobody())
    loop.close()
    loop.call_soon(lambda: None)
    assert not loop._queue
    assert loop.is_closed()


@pytest.mark.parametrize("name", ["add_reader", "run_in_executor", "call_soon_threadsafe", "create_server"])
def test_what_would_be_io_is_refused_by_name(name: str) -> None:
    async def main() -> None:
        getattr(asyncio.get_running_loop(), name)()

    with pytest.raises(RunFailedError, match=f"`{name}` at .*test_core_loop.py"):
        simulate(agent(main)).result()


def test_the_error_is_the_documented_one() -> None:
    async def main() -> str:
        try:
            await asyncio.to_thread(print)
        except ImpureAgentError:
            return "refused"
        return ""

    assert simulate(agent(main)).result() == "refused"
