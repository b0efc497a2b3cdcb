"""`simulate`: an agent's test needs no service, and tells what the fleet would."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pickaxe import (
    Context,
    Retry,
    agent,
    continue_as,
    first,
    gather,
    inject,
    now,
    set_state,
    tool,
    uuid4,
    wait_for_event,
    wait_for_signal,
)
from pickaxe.errors import (
    ChildRunError,
    ConfigurationError,
    InputError,
    NonRetryableError,
    QuorumError,
    RetryLater,
    RunCancelledError,
    RunFailedError,
    StepTimeoutError,
    ToolError,
)
from pickaxe.testing import SimulationError, simulate, takes


@tool
def search(query: str) -> list[str]:
    raise AssertionError("the real one is not for tests")


@tool
def echo(value: Any) -> Any:
    return value


@agent
async def double(value: int) -> int:
    return (await echo(value)) * 2


def run(main: Any, *args: Any, **options: Any) -> Any:
    return simulate(agent(main), *args, crash="everywhere", **options)


class TestTools:
    def test_bodies_are_replaced_by_handle_or_by_name(self) -> None:
        async def main() -> list[str]:
            return await search("a")

        assert run(main, tools={search: lambda query: [query]}).result() == ["a"]
        assert run(main, tools={"search": lambda query: ["b"]}).result() == ["b"]

    def test_a_replacement_may_be_async_or_another_tool(self) -> None:
        async def fake(query: str) -> list[str]:
            await asyncio.sleep(0)
            return [query]

        async def main() -> list[str]:
            return await search("a")

        assert run(main, tools={search: fake}).result() == ["a"]
        assert run(main, tools={search: tool(fake)}).result() == ["a"]

    def test_a_replacement_keeps_the_promises_of_the_original(self) -> None:
        async def main() -> list[str]:
            return await search("a")

        with pytest.raises(RunFailedError, match=r"the result of tool 'search' \(a int; it promises"):
            run(main, tools={search: lambda query: 7}).result()

    def test_a_child_agent_can_be_replaced(self) -> None:
        async def main() -> int:
            return await double(4)

        ran = run(main, tools={double: lambda value: 100})
        assert ran.result() == 100
        assert ran.children == {}

    def test_a_replaced_child_that_raises_has_failed(self) -> None:
        def fail(value: int) -> int:
            raise ValueError("no")

        async def main() -> int:
            try:
                return await double(4)
            except ChildRunError:
                return -1

        assert run(main, tools={double: fail}).result() == -1

    @pytest.mark.parametrize("tools", [{3: len}, {"search": 3}])
    def test_other_things_are_refused(self, tools: dict[Any, Any]) -> None:
        with pytest.raises(ConfigurationError):
            run(double.fn, 1, tools=tools)

    def test_values_pass_through_json_both_ways(self) -> None:
        async def main() -> list[Any]:
            given = {"t": (1, 2)}
            back = await echo(given)
            return [back is given, back]

        assert run(main).result() == [False, {"t": [1, 2]}]

    def test_inline_tools_run_like_any_other(self) -> None:
        @tool(inline=True)
        def quick(value: int) -> int:
            return value

        async def main() -> list[int]:
            return [await quick(1), *await gather(quick(2), quick(3))]

        assert run(main).result() == [1, 2, 3]

    def test_a_context_knows_its_step(self) -> None:
        @tool(retries=1)
        def told(ctx: Context = inject()) -> tuple[str, int, str]:
            if ctx.attempt == 1:
                raise OSError
            return ctx.step, ctx.attempt, ctx.idempotency_key.rpartition("/")[2]

        async def main() -> Any:
            return await told()

        assert run(main).result() == ["told#1", 2, "told#1"]


class TestRetries:
    def attempts(self, error: Exception, **options: Any) -> Any:
        @tool(**options)
        def failing() -> None:
            raise error

        async def main() -> None:
            await failing()

        return run(main)

    def test_waits_grow_in_virtual_time(self) -> None:
        ran = self.attempts(ValueError("no"), retries=Retry(attempts=4, backoff="1h", max_backoff="1d"))
        assert ran.step("failing#1").attempt == 4
        assert ran.now - datetime(2024, 1, 1, tzinfo=UTC) == timedelta(hours=1 + 2 + 4)

    def test_what_can_never_succeed_is_tried_once(self) -> None:
        assert self.attempts(NonRetryableError("no"), retries=5).step("failing#1").attempt == 1

    def test_a_tool_may_say_when(self) -> None:
        ran = self.attempts(RetryLater(after=100), retries=2)
        assert (ran.now - datetime(2024, 1, 1, tzinfo=UTC)).total_seconds() == 200

    def test_no_retry_starts_after_the_total_timeout(self) -> None:
        ran = self.attempts(ValueError("no"), retries=Retry(attempts=10, backoff=60, factor=1), total_timeout=150)
        assert ran.step("failing#1").attempt == 3

    def test_a_call_behind_a_slow_sibling_can_run_out_of_time_to_start(self) -> None:
        @tool(schedule_timeout=10, retries=0)
        def one(value: int) -> int:
            return value

        async def main() -> list[str]:
            return [type(r).__name__ for r in await gather(one(1), one(2), limit=1, return_exceptions=True)]

        assert run(main, tools={one: takes("60s")}).result() == ["int", "StepTimeoutError"]


class TestTime:
    def test_days_pass_without_a_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for owner, name in ((time, "sleep"), (threading.Event, "wait"), (threading.Condition, "wait")):
            monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("it waited for real"))

        async def main() -> str:
            for _ in range(30):
                await asyncio.sleep(86400)
            return now().isoformat()

        assert run(main).result() == "2024-01-31T00:00:00+00:00"

    def test_a_simulation_may_start_at_any_time(self) -> None:
        async def main() -> str:
            return now().isoformat()

        start = datetime(2030, 5, 5, tzinfo=UTC)
        assert run(main, start=start).result() == start.isoformat()
        with pytest.raises(ConfigurationError, match="time zone"):
            run(main, start=datetime(2030, 5, 5))  # noqa: DTZ001

    def test_a_tool_can_take_time(self) -> None:
        async def main() -> str:
            try:
                async with asyncio.timeout(10):
                    await search("a")
            except TimeoutError:
                return "gave up"
            return "got it"

        assert run(main, tools={search: takes("11s", lambda query: [])}).result() == "gave up"
        assert run(main, tools={search: takes("9s", lambda query: [])}).result() == "got it"

    def test_a_tool_that_takes_longer_than_its_timeout_fails(self) -> None:
        @tool(timeout="5s")
        def slow() -> None: ...

        async def main() -> str:
            try:
                await slow()
            except StepTimeoutError as error:
                return str(error)
            return ""

        ran = run(main, tools={slow: takes("1h")})
        assert ran.result() == "slow#1: did not end within 5.0 s"
        assert (ran.now - datetime(2024, 1, 1, tzinfo=UTC)).total_seconds() == 5

    def test_a_run_has_a_timeout(self) -> None:
        @agent(timeout="1h")
        async def slow() -> None:
            await asyncio.sleep(7200)

        with pytest.raises(RunFailedError, match="RunTimeoutError: the run did not end within its agent's timeout"):
            simulate(slow, crash="everywhere").result()


class TestGather:
    def test_a_limit_holds_calls_back(self) -> None:

        async def main() -> list[int]:
            return await gather(*(echo(i) for i in range(9)), limit=3)

        assert run(main).result() == list(range(9))

    def test_children_are_held_back_too(self) -> None:
        async def main() -> list[int]:
            return await gather(*(double(i) for i in range(5)), limit=2)

        ran = run(main)
        assert ran.result() == [0, 2, 4, 6, 8]
        assert len(ran.children) == 5

    def test_first_takes_the_fastest_and_cancels_the_rest(self) -> None:
        async def main() -> Any:
            return await first(search("a"), echo("b"))

        ran = run(main, tools={search: takes("5s", lambda query: [])})
        assert ran.result() == "b"
        assert ran.step("search#1").state == "cancelled"

    def test_a_quorum_out_of_reach_raises(self) -> None:
        async def main() -> None:
            await gather(search("a"), search("b"), echo(1), quorum=2)

        with pytest.raises(RunFailedError, match=QuorumError.__name__):
            run(main).result()

    def test_the_first_failure_ends_it_and_the_rest_is_cancelled(self) -> None:
        async def main() -> str:
            try:
                await gather(search("a"), echo(1))
            except ToolError as error:
                return error.step
            return ""

        ran = run(main, tools={echo: takes(5)})
        assert ran.result() == "search#1"
        assert ran.step("echo#1").state == "cancelled"


class TestOutside:
    @staticmethod
    async def reviewed() -> str:
        async with asyncio.timeout(3 * 86400):
            return str(await wait_for_signal("review"))

    def test_signals_come_at_their_time(self) -> None:
        assert run(self.reviewed, signals=[("2d", "review", "yes")]).result() == "yes"
        with pytest.raises(RunFailedError, match="TimeoutError"):
            run(self.reviewed, signals=[("4d", "review", "yes")]).result()

    @pytest.mark.parametrize("when", [0, 5.5, "1h", timedelta(days=1), datetime(2024, 1, 2, tzinfo=UTC)])
    def test_times_can_be_told_in_many_ways(self, when: Any) -> None:
        assert run(self.reviewed, signals=[(when, "review", "yes")]).result() == "yes"

    def test_signals_can_follow_a_step(self) -> None:
        async def main() -> list[Any]:
            return [await echo(1), await wait_for_signal("go"), await wait_for_signal("go")]

        ran = run(main, signals=[("echo#1", "go", "a"), ("go#1", "go", "b")])
        assert ran.result() == [1, "a", "b"]

    def test_events_match_by_key_content_and_scope(self) -> None:
        async def main() -> Any:
            return await wait_for_event("paid", where={"order": {"id": 7}}, scope="t1")

        events = [
            (1, "sent", {"order": {"id": 7}}, "t1"),
            (2, "paid", {"order": {"id": 8}}, "t1"),
            (3, "paid", {"order": {"id": 7}}, "t2"),
            (4, "paid", {"order": {"id": 7, "sum": 5}}, "t1"),
        ]
        assert run(main, events=events).result() == {"order": {"id": 7, "sum": 5}}

    def test_a_look_back_finds_earlier_events_the_oldest_first(self) -> None:
        async def main() -> Any:
            await asyncio.sleep(100)
            return await wait_for_event("paid", within=60)

        events = [(10, "paid", {"n": 1}), (50, "paid", {"n": 2}), (90, "paid", {"n": 3})]
        assert run(main, events=events).result() == {"n": 2}

    def test_without_a_look_back_only_what_comes_counts(self) -> None:
        async def main() -> Any:
            await asyncio.sleep(100)
            return await wait_for_event("paid")

        assert run(main, events=[(50, "paid", {"n": 1}), (150, "paid", {"n": 2})]).result() == {"n": 2}

    def test_cancelling_lets_the_agent_clean_up(self) -> None:
        async def main() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await echo("clean")

        ran = run(main, cancel="5m")
        with pytest.raises(RunCancelledError, match="cancelled by a person"):
            ran.result()
        assert ran.step("echo#1").state == "succeeded"

    def test_cancelling_reaches_child_runs(self) -> None:
        @agent
        async def patient() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await echo("clean")

        async def main() -> None:
            await patient.using(on_cancel="wait")()

        ran = run(main, cancel=5)
        assert ran.state == "cancelled"
        assert ran.children["patient#1"].state == "cancelled"
        assert ran.children["patient#1"].step("echo#1").state == "succeeded"


class TestResults:
    def test_it_tells_state_published_steps_and_children(self) -> None:
        async def main() -> int:
            set_state({"at": 1})
            result = await double(21)
            set_state({"at": 2})
            return result

        ran = run(main)
        assert (ran.state, ran.published, ran.result()) == ("succeeded", {"at": 2}, 42)
        assert [(s.key, s.kind, s.input, s.output) for s in ran.steps] == [("double#1", "child", {"value": 21}, 42)]
        assert [s.key for s in ran.children["double#1"].steps] == ["echo#1"]
        assert "succeeded" in repr(ran)

    def test_a_failed_step_tells_its_error(self) -> None:
        async def main() -> str:
            try:
                await search("a")
            except ToolError:
                return "handled"
            return ""

        step = run(main).step("search#1")
        assert step.error is not None
        assert step.error["type"] == "AssertionError"
        assert "the real one" in step.error["traceback"]
        assert step.output is None

    def test_an_unknown_step_tells_those_there_are(self) -> None:
        with pytest.raises(KeyError, match="'nope#1' among echo#1"):
            simulate(double, 1).step("nope#1")

    def test_chapters_have_one_log(self) -> None:
        @agent
        async def counting(count: int) -> int:
            await echo(count)
            if count < 3:
                continue_as(count + 1)
            return count + await wait_for_signal("more")

        ran = simulate(counting, 1, crash="everywhere", signals=[(0, "more", 10)])
        assert ran.result() == 13
        assert [s.key for s in ran.steps] == ["echo#1", "1:echo#1", "2:echo#1", "2:more#1"]

    def test_results_are_typed(self) -> None:
        @agent
        async def when() -> datetime:
            return now()

        assert simulate(when).result() == datetime(2024, 1, 1, tzinfo=UTC)

    def test_wrong_arguments_are_refused_at_once(self) -> None:
        with pytest.raises(InputError, match="value: Input should be a valid integer"):
            simulate(double, "x")
        with pytest.raises(ConfigurationError, match="takes an agent's handle"):
            simulate(echo, 1)  # type: ignore[arg-type]


class TestAgentsThatCannotGoOn:
    def test_a_signal_nobody_sends_is_named(self) -> None:
        async def main() -> None:
            await wait_for_signal("review")

        with pytest.raises(
            SimulationError, match=r"the signal 'review' \(step 'review#1'\).* at .*test_testing.py:\d+"
        ):
            run(main)

    def test_an_event_nobody_publishes_is_named(self) -> None:
        async def main() -> None:
            await wait_for_event("paid", where={"id": 1})

        with pytest.raises(SimulationError, match=r"""the event 'paid' \(step 'paid#1', {"where":{"id":1}}\)"""):
            run(main)

    def test_a_child_that_waits_for_ever_is_named_with_its_reason(self) -> None:
        @agent
        async def waiting() -> None:
            await wait_for_signal("go")

        async def main() -> None:
            await waiting()

        with pytest.raises(SimulationError, match=r"child run 'waiting#1'.*the signal 'go'"):
            run(main)

    def test_a_future_nobody_completes_is_found(self) -> None:
        async def main() -> None:
            await asyncio.Event().wait()

        with pytest.raises(SimulationError, match=r"nothing in its log at .*test_testing.py:\d+"):
            run(main)

    def test_an_agent_that_never_ends_is_stopped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pickaxe.testing._simulation.LONGEST", 50)

        async def main() -> None:
            while True:
                await asyncio.sleep(1)

        with pytest.raises(SimulationError, match="has not ended after 50"):
            simulate(agent(main))


class TestReplays:
    def test_an_agent_that_reads_the_clock_is_found_out(self) -> None:
        ticks = itertools.count()

        async def main() -> None:
            await echo(next(ticks))
            await echo("end")

        simulate(agent(main))
        with pytest.raises(SimulationError, match="does something else when it is replayed: its requests were"):
            run(main)

    def test_an_agent_that_uses_what_is_recorded_is_not(self) -> None:
        async def main() -> None:
            await echo(str(uuid4()) + now().isoformat())

        run(main)

    def test_shuffled_results_come_in_different_orders_the_same_for_each_seed(self) -> None:
        async def main() -> list[int]:
            order = []

            async def one(i: int) -> None:
                order.append(await echo(i))

            await asyncio.gather(*(one(i) for i in range(6)))
            return order

        orders = {tuple(run(main, shuffle=seed).result()) for seed in range(8)}
        assert len(orders) > 1
        assert run(main, shuffle=3).result() == run(main, shuffle=3).result()


def test_a_simulation_waits_for_nothing() -> None:
    async def main() -> list[int]:
        await asyncio.sleep(30 * 24 * 3600)
        return await gather(*(double(i) for i in range(10)))

    assert simulate(agent(main)).result() == [2 * i for i in range(10)]


def test_it_can_be_used_inside_a_running_loop() -> None:
    @tool
    async def asynchronous(value: int) -> int:
        await asyncio.sleep(0)
        return value

    async def main() -> int:
        return await asynchronous(3)

    async def test() -> int:
        return int(simulate(agent(main)).result())

    assert asyncio.run(test()) == 3


def test_a_replacement_that_nobody_asked_for_is_refused_because_the_real_tool_ran():
    @agent
    async def main() -> int:
        return await plain_number()

    assert simulate(main, tools={"plain_number": lambda: 2}).result() == 2
    with pytest.raises(SimulationError, match=r"replaces 'plain_numbr'.*it called plain_number"):
        simulate(main, tools={"plain_numbr": lambda: 2})


@tool
def plain_number() -> int:
    return 1
