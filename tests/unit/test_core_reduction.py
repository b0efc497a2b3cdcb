"""A reduction sees one ordered stream of arrivals, and nothing else."""

from __future__ import annotations

import asyncio
import cProfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pickaxe import agent, continue_as, gather, set_state, tool, uuid4, wait_for_event, wait_for_signal
from pickaxe._states import ChildPolicy, RunState, StepKind, StepState
from pickaxe._values import digest
from pickaxe.core._records import Decision, StepRecord
from pickaxe.core._reduction import Reduction
from pickaxe.errors import ChildRunError, ConfigurationError, MismatchError, OutputError, ToolError
from tests.unit.core_log import Log, Main, keys


@tool
def search(query: str) -> str:
    return query


@tool
def other(query: str) -> str:
    return query


@tool
def number(query: str) -> int:
    return 1


@agent
async def child(value: int) -> int:
    return value


class TestSignals:
    def test_a_signal_is_taken_once_in_every_replay(self) -> None:
        async def main() -> list[Any]:
            return [await wait_for_signal("go"), await wait_for_signal("go")]

        log = Log(main)
        log.reduce()
        log.signal("go", 1)
        assert log.reduce().settled == (("go#1", 1),)
        assert log.reduce().state is RunState.WAITING
        log.signal("go", 2)
        decision = log.reduce()
        assert decision.output == [1, 2]
        assert decision.settled == (("go#2", 2),)

    def test_a_signal_sent_before_the_wait_is_buffered(self) -> None:
        async def main() -> list[Any]:
            await search("x")
            return [await wait_for_signal("go"), await wait_for_signal("go")]

        log = Log(main)
        log.reduce()
        log.signal("go", 1)
        log.signal("go", 2)
        log.reduce()
        log.ends("search#1", "y")
        decision = log.reduce()
        assert decision.output == [1, 2]
        assert decision.settled == (("go#1", 1), ("go#2", 2))
        assert keys(decision) == ["go#1", "go#2"]

    def test_a_waiter_that_was_cancelled_does_not_eat_the_signal(self) -> None:
        async def main() -> Any:
            task = asyncio.create_task(wait_for_signal("go"))
            await search("x")
            task.cancel()
            await search("y")
            return await wait_for_signal("go")

        log = Log(main)
        log.reduce()
        log.ends("search#1", "")
        log.reduce()
        log.signal("go", "kept")
        log.ends("search#2", "")
        assert log.reduce().output == "kept"

    def test_a_waiter_that_timed_out_leaves_the_signal_to_the_next(self) -> None:
        async def main() -> Any:
            try:
                async with asyncio.timeout(5):
                    await wait_for_signal("go")
            except TimeoutError:
                await search("late")
            return await wait_for_signal("go")

        log = Log(main)
        log.reduce()
        log.ends("timer#1")
        log.signal("go", "kept")
        log.reduce()
        log.ends("search#1", "")
        assert log.reduce().output == "kept"

    def test_several_waiters_are_served_in_the_order_they_asked(self) -> None:
        async def main() -> list[Any]:
            return await asyncio.gather(wait_for_signal("go"), wait_for_signal("go"))

        log = Log(main)
        log.reduce()
        log.signal("go", "first")
        log.signal("go", "second")
        assert log.reduce().output == ["first", "second"]


class TestCancelling:
    def test_the_agent_sees_a_cancelled_error_and_may_clean_up(self) -> None:
        async def main() -> None:
            try:
                await search("x")
            finally:
                await other("clean")

        log = Log(main)
        log.reduce()
        log.cancel()
        decision = log.reduce()
        assert (decision.state, decision.cancels, keys(decision)) == (RunState.WAITING, ("search#1",), ["other#1"])
        log.ends("other#1", "")
        assert log.reduce().state is RunState.CANCELLED

    def test_a_run_that_ran_out_of_time_fails(self) -> None:
        async def main() -> None:
            await search("x")

        log = Log(main)
        log.reduce()
        log.cancel(timed_out=True)
        decision = log.reduce()
        assert decision.state is RunState.FAILED
        assert isinstance(decision.error, TimeoutError)

    def test_an_agent_may_refuse_to_stop(self) -> None:
        async def main() -> str:
            try:
                await search("x")
            except asyncio.CancelledError:
                return await other("instead")
            return ""

        log = Log(main)
        log.reduce()
        log.cancel()
        log.reduce()
        log.ends("other#1", "done")
        assert log.reduce().state is RunState.SUCCEEDED

    def test_an_agent_that_cancels_itself_failed(self) -> None:
        async def main() -> None:
            raise asyncio.CancelledError

        assert Log(main).reduce().state is RunState.FAILED

    def test_the_same_cancel_does_not_reach_the_agent_twice(self) -> None:
        async def main() -> str:
            try:
                await search("x")
            except asyncio.CancelledError:
                await other("a")
                await other("b")
            return "survived"

        log = Log(main)
        log.reduce()
        log.cancel()
        log.reduce()
        log.ends("other#1", "")
        log.reduce()
        log.ends("other#2", "")
        assert log.reduce().output == "survived"

    def test_a_step_that_ends_after_it_was_cancelled_is_not_seen(self) -> None:
        async def main() -> str:
            try:
                await search("x")
            except asyncio.CancelledError:
                return await other("y")
            return ""

        log = Log(main)
        log.reduce()
        log.cancel()
        log.ends("search#1", "raced")
        decision = log.reduce()
        assert decision.cancels == ()
        log.ends("other#1", "end")
        assert log.reduce().output == "end"

    def test_a_timer_that_raced_with_what_it_guards_is_ignored(self) -> None:
        async def main() -> str:
            async with asyncio.timeout(5):
                first = await search("x")
            return first + await other("y")

        log = Log(main)
        log.reduce()
        log.ends("search#1", "a")
        log.ends("timer#1")
        log.reduce()
        log.ends("other#1", "b")
        assert log.reduce().output == "ab"

    def test_a_timer_that_won_the_race_makes_the_result_late(self) -> None:
        async def main() -> str:
            try:
                async with asyncio.timeout(5):
                    return await search("x")
            except TimeoutError:
                return "timed out"

        log = Log(main)
        log.reduce()
        log.ends("timer#1")
        log.ends("search#1", "a")
        assert log.reduce().output == "timed out"


class TestChildRuns:
    def waiting(self, policy: str) -> Log:
        async def main() -> str:
            try:
                return str(await child.using(on_cancel=policy)(1))
            except asyncio.CancelledError:
                await other("clean")
                raise

        log = Log(main)
        log.reduce()
        return log

    @pytest.mark.parametrize("policy", ["cancel", "detach"])
    def test_a_parent_that_does_not_wait_goes_on_at_once(self, policy: str) -> None:
        log = self.waiting(policy)
        log.cancel()
        decision = log.reduce()
        assert (decision.cancels, keys(decision)) == (("child#1",), ["other#1"])

    @pytest.mark.parametrize("end", [StepState.CANCELLED, StepState.SUCCEEDED, StepState.FAILED])
    def test_a_parent_that_waits_is_cancelled_once_its_child_has_ended_however_it_ended(self, end: StepState) -> None:
        log = self.waiting("wait")
        log.cancel()
        decision = log.reduce()
        assert (decision.state, decision.cancels, keys(decision)) == (RunState.WAITING, ("child#1",), [])
        assert log.reduce().cancels == ()
        log.ends("child#1", 1, state=end)
        assert keys(log.reduce()) == ["other#1"]
        log.ends("other#1", "")
        assert log.reduce().state is RunState.CANCELLED

    def test_a_child_that_was_not_committed_yet_is_waited_for_all_the_same(self) -> None:
        async def main() -> None:
            await search("x")
            await child.using(on_cancel="wait")(1)

        log = Log(main)
        log.reduce()
        log.ends("search#1", "")
        log.cancel()
        decision = log.reduce()
        assert (decision.state, keys(decision), decision.cancels) == (RunState.WAITING, ["child#1"], ("child#1",))
        log.ends("child#1", state=StepState.CANCELLED)
        assert log.reduce().state is RunState.CANCELLED

    def test_a_timeout_around_a_child_that_is_waited_for_raises_when_it_has_ended(self) -> None:
        async def main() -> str:
            try:
                async with asyncio.timeout(5):
                    await child.using(on_cancel="wait")(1)
            except TimeoutError:
                return "timed out"
            return ""

        log = Log(main)
        log.reduce()
        log.ends("timer#1")
        assert log.reduce().state is RunState.WAITING
        log.ends("child#1", 1)
        assert log.reduce().output == "timed out"

    def test_the_failure_of_a_child_is_an_error_of_its_own(self) -> None:
        async def main() -> None:
            await child(1)

        log = Log(main)
        log.reduce()
        log.ends("child#1", error="broke")
        assert isinstance(log.reduce().error, ChildRunError)


class TestGather:
    def test_its_calls_are_one_command_and_one_arrival(self) -> None:
        async def main() -> list[str]:
            return await gather(search("a"), search("b"))

        log = Log(main)
        assert keys(log.reduce()) == ["search#1", "search#2", "gather#1"]
        log.counts("search#2", 0, "B")
        log.counts("search#1", 1, "A")
        assert log.reduce().state is RunState.WAITING
        log.ends("gather#1")
        assert log.reduce().output == ["A", "B"]

    def test_a_quorum_takes_those_that_counted_and_cancels_the_rest(self) -> None:
        async def main() -> list[str]:
            return await gather(*(search(c) for c in "abcd"), quorum=2)

        log = Log(main)
        log.reduce()
        log.counts("search#4", 0, "D")
        log.counts("search#2", 1, "B")
        log.ends("gather#1")
        # Ended too, but after the quorum: it does not count.
        log.steps["search#1"] = replace(log.steps["search#1"], state=StepState.SUCCEEDED, output='"A"')
        decision = log.reduce()
        assert decision.output == ["B", "D"]
        assert decision.cancels == ("search#3",)

    def test_what_a_quorum_leaves_over_is_cancelled_while_the_agent_goes_on(self) -> None:
        async def main() -> str:
            await gather(search("a"), search("b"), quorum=1)
            return await other("next")

        log = Log(main)
        log.reduce()
        log.counts("search#2", 0, "B")
        log.ends("gather#1")
        decision = log.reduce()
        assert (decision.cancels, keys(decision)) == (("search#1",), ["other#1"])

    def test_results_that_cannot_be_read_are_results_when_exceptions_are(self) -> None:
        async def main() -> list[str]:
            return [type(r).__name__ for r in await gather(number("a"), return_exceptions=True)]

        log = Log(main)
        log.reduce()
        log.counts("number#1", 0, "not a number")
        log.ends("gather#1")
        assert log.reduce().output == ["OutputError"]

    def test_the_same_call_twice_is_refused(self) -> None:
        async def main() -> None:
            call = search("a")
            await gather(call, call)

        assert "already awaited" in str(Log(main).reduce().error)

    def test_a_call_that_was_awaited_before_is_refused(self) -> None:
        async def main() -> None:
            call = search("a")
            await call
            await gather(call)

        log = Log(main)
        log.reduce()
        log.ends("search#1", "")
        assert "already awaited" in str(log.reduce().error)

    @pytest.mark.parametrize("options", [{"quorum": 3}, {"quorum": 0}, {"limit": 0}])
    @pytest.mark.filterwarnings("ignore:the call")
    def test_what_can_never_be_is_refused(self, options: dict[str, Any]) -> None:
        async def main() -> None:
            await gather(search("a"), search("b"), **options)

        assert isinstance(Log(main).reduce().error, ConfigurationError)

    @pytest.mark.filterwarnings("ignore:coroutine")
    def test_coroutines_of_ones_own_are_sent_to_asyncio(self) -> None:
        async def own() -> None: ...

        async def main() -> None:
            await gather(own())

        assert "asyncio.gather" in str(Log(main).reduce().error)

    def test_nothing_is_gathered_at_once(self) -> None:
        async def main() -> list[Any]:
            return await gather()

        assert Log(main).reduce().output == []

    def test_a_cancelled_gather_cancels_its_calls(self) -> None:
        async def main() -> str:
            try:
                async with asyncio.timeout(5):
                    await gather(search("a"), search("b"))
            except TimeoutError:
                return "timed out"
            return ""

        log = Log(main)
        log.reduce()
        log.ends("timer#1")
        decision = log.reduce()
        assert decision.output == "timed out"
        assert sorted(decision.cancels) == ["gather#1", "search#1", "search#2"]


class TestContinuing:
    @staticmethod
    def reduce(main: Main, feed: Callable[[Log], None] = lambda log: None) -> Decision:
        log = Log(main)
        reduction = Reduction(main, seed="s", started_at=0.0, encode_input=lambda args, kwargs: repr(args))
        feed(log)
        decision = reduction.resume(log.steps.values(), log.messages)
        reduction.close()
        return decision

    def test_it_ends_the_chapter_with_the_next_input(self) -> None:
        async def main() -> None:
            continue_as(1)

        decision = self.reduce(main)
        assert (decision.state, decision.output) == (RunState.READY, "(1,)")

    def test_it_works_inside_task_groups(self) -> None:
        async def main() -> None:
            async with asyncio.TaskGroup() as outer:
                outer.create_task(asyncio.sleep(10))
                async with asyncio.TaskGroup() as inner:
                    inner.create_task(asyncio.sleep(10))
                    continue_as(1)

        decision = self.reduce(main)
        assert (decision.state, decision.output, decision.requests) == (RunState.READY, "(1,)", ())

    def test_it_works_from_a_task_of_a_group(self) -> None:
        async def leave() -> None:
            continue_as(2)

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(leave())

        assert self.reduce(main).output == "(2,)"

    def test_catching_it_does_not_take_it_back(self) -> None:
        async def main() -> str:
            try:
                continue_as(1)
            except BaseException:
                return "swallowed"

        decision = self.reduce(main)
        assert (decision.state, decision.output) == (RunState.READY, "(1,)")

    def test_a_failure_on_the_way_out_wins(self) -> None:
        async def main() -> None:
            try:
                continue_as(1)
            finally:
                raise ValueError("broken")

        assert self.reduce(main).state is RunState.FAILED

    def test_signals_nobody_took_come_along_even_those_not_yet_looked_at(self) -> None:
        async def main() -> None:
            await wait_for_signal("stop")
            continue_as(1)

        def feed(log: Log) -> None:
            log.signal("data", 1)
            log.signal("stop")
            log.signal("data", 2)

        assert self.reduce(main, feed).carried == (1, 3)

    def test_the_next_chapter_has_keys_of_its_own(self) -> None:
        async def main() -> None:
            await asyncio.gather(search("x"), asyncio.sleep(1), search.using(key="mine")("y"))

        reduction = Reduction(main, seed="s", started_at=0.0, chapter=3)
        assert sorted(keys(reduction.resume([]))) == ["3:mine", "3:search#1", "3:sleep#1/timer#1"]
        reduction.close()


class TestChangedCode:
    """P11: steps are known by name and call number; what no longer fits pauses the run and shows both sides."""

    def recorded(self, main: Main, **outcomes: Any) -> Log:
        log = Log(main)
        log.reduce()
        for name, value in outcomes.items():
            log.ends(f"{name}#1", value)
            log.reduce()
        return log

    def test_a_call_added_before_leaves_the_results_of_the_others(self) -> None:
        async def old() -> None:
            await search("a")
            await child(1)

        async def new() -> list[Any]:
            return [await other("new"), await search("a"), await child(1)]

        log = self.recorded(old, search="A")
        decision = log.reduce(new)
        assert keys(decision) == ["other#1"]
        log.ends("other#1", "N")
        log.ends("child#1", 7)
        assert log.reduce().output == ["N", "A", 7]

    def test_a_call_removed_leaves_the_results_of_the_others(self) -> None:
        async def old() -> None:
            await other("gone")
            await search("a")
            await child(1)

        async def new() -> list[Any]:
            return [await search("a"), await child(1)]

        log = self.recorded(old, other="", search="A")
        assert keys(log.reduce(new)) == []
        log.ends("child#1", 7)
        assert log.reduce().output == ["A", 7]

    def test_a_call_moved_later_takes_the_outcome_that_came_early(self) -> None:
        async def old() -> None:
            await asyncio.gather(search("a"), other("b"))

        async def new() -> list[str]:
            second = await other("b")
            return [await search("a"), second]

        log = Log(old)
        log.reduce()
        log.ends("search#1", "A")
        log.reduce()
        assert log.reduce(new).state is RunState.WAITING
        log.ends("other#1", "B")
        assert log.reduce().output == ["A", "B"]

    def test_a_timer_moved_later_fires_at_once_if_it_had(self) -> None:
        async def old() -> None:
            await asyncio.sleep(5)
            await search("a")

        async def new() -> str:
            result = await search("a")
            await asyncio.sleep(5)
            return result

        log = Log(old)
        log.reduce()
        log.ends("timer#1")
        log.reduce()
        log.ends("search#1", "A")
        assert log.reduce(new).output == "A"

    def mismatch(self, old: Main, new: Main, **outcomes: Any) -> MismatchError:
        log = self.recorded(old, **outcomes)
        before = dict(log.steps)
        decision = log.reduce(new)
        assert decision.state is RunState.PAUSED
        assert (decision.requests, decision.cancels, decision.settled) == ((), (), ())
        assert log.steps == before
        assert log.reduce(old).state is not RunState.PAUSED
        assert decision.mismatch is not None
        return decision.mismatch

    @pytest.mark.parametrize("outcome", [{}, {"search": "A"}])
    def test_other_arguments_pause_the_run_and_show_both_sides(self, outcome: dict[str, str]) -> None:
        async def old() -> None:
            await search("a")
            await other("x")

        async def new() -> None:
            await search("b")

        error = self.mismatch(old, new, **outcome)
        assert error.key == "search#1"
        assert error.recorded == f"tool 'search' with arguments of digest {digest(dump_query('a'))}"
        assert error.asked == f'tool \'search\' with {{"query":"b"}} (digest {digest(dump_query("b"))})'
        assert "'search#1' no longer matches" in str(error)

    def test_another_kind_under_the_same_key_pauses_the_run(self) -> None:
        async def old() -> None:
            await search.using(key="step")("a")

        async def new() -> None:
            await child.using(key="step")(1)

        error = self.mismatch(old, new)
        assert "tool 'search'" in error.recorded
        assert "child 'child'" in error.asked

    def test_another_where_of_an_event_pauses_the_run(self) -> None:
        async def old() -> None:
            await wait_for_event("paid", where={"order": 1})

        async def new() -> None:
            await wait_for_event("paid", where={"order": 2})

        assert self.mismatch(old, new).key == "paid#1"

    def test_another_number_of_gathered_calls_pauses_the_run(self) -> None:
        async def old() -> None:
            await gather(search("a"), search("b"))

        async def new() -> None:
            await gather(search("a"), search("b"), search("c"))

        assert self.mismatch(old, new).key == "gather#1"

    def test_a_call_that_left_its_gather_pauses_the_run(self) -> None:
        async def old() -> None:
            await gather(search("a"), search("b"))

        async def new() -> None:
            await search("a")

        error = self.mismatch(old, new)
        assert error.key == "search#1"
        assert "in 'gather#1'" in error.recorded

    def test_waiting_for_what_the_old_code_had_cancelled_pauses_the_run(self) -> None:
        async def old() -> str:
            task = asyncio.create_task(search("a"))
            await other("x")
            task.cancel()
            return await other("y")

        async def new() -> str:
            task = asyncio.create_task(search("a"))
            await other("x")
            return await task

        error = self.mismatch(old, new, other="X")
        assert error.key == "search#1"
        assert "no longer wanted" in error.recorded

    def test_only_the_first_mismatch_is_told(self) -> None:
        async def old() -> None:
            await asyncio.gather(search("a"), search("b"))

        async def new() -> None:
            await asyncio.gather(search("x"), search("y"))

        assert self.mismatch(old, new).key == "search#1"

    def test_what_the_new_code_no_longer_asks_for_is_cancelled_when_the_run_ends(self) -> None:
        async def old() -> None:
            await asyncio.gather(search("a"), wait_for_signal("never"), asyncio.sleep(9))

        async def new() -> str:
            return await search("a")

        log = Log(old)
        log.reduce()
        log.ends("search#1", "A")
        decision = log.reduce(new)
        assert decision.output == "A"
        assert sorted(decision.cancels) == ["sleep#1/timer#1", "wait_for_signal#1/never#1"]

    def test_explicit_keys_name_their_steps(self) -> None:
        async def main() -> None:
            await gather(search.using(key="left")("a"), search.using(key="right")("b"))

        assert keys(Log(main).reduce()) == ["left", "right", "gather#1"]

    def test_an_explicit_key_used_twice_is_refused(self) -> None:
        async def main() -> None:
            first = search.using(key="mine")
            await first("a")
            await first("b")

        log = Log(main)
        log.reduce()
        log.ends("mine", "")
        assert "'mine' is used twice" in str(log.reduce().error)


class TestOutcomes:
    def test_a_result_that_no_longer_fits_raises_where_it_is_awaited(self) -> None:
        async def main() -> str:
            try:
                await number("a")
            except OutputError as error:
                return str(error)
            return ""

        log = Log(main)
        log.reduce()
        log.ends("number#1", "text")
        assert "recorded result of tool 'number' does not fit" in log.reduce().output

    def test_a_failure_raises_with_all_that_was_recorded(self) -> None:
        async def main() -> tuple[str, str]:
            try:
                await search("a")
            except ToolError as error:
                return error.step, error.type
            return ("", "")

        log = Log(main)
        log.reduce()
        log.ends("search#1", error="bad")
        assert log.reduce().output == ("search#1", "ValueError")

    def test_chance_is_the_same_in_every_replay(self) -> None:
        async def main() -> str:
            first = str(uuid4())
            await search(first)
            return first

        log = Log(main)
        asked = log.reduce().requests[0].input
        log.ends("search#1", "")
        assert log.reduce().output in asked

    def test_the_last_published_state_is_what_counts(self) -> None:
        async def main() -> None:
            set_state(1)
            set_state(2)
            await search("a")

        decision = Log(main).reduce()
        assert (decision.has_published, decision.published) == (True, "2")

    def test_a_signal_taken_in_the_last_slice_is_in_the_log(self) -> None:
        async def main() -> Any:
            await search("a")
            return await wait_for_signal("go")

        log = Log(main)
        log.reduce()
        log.signal("go", 5)
        log.ends("search#1", "")
        decision = log.reduce()
        assert (decision.output, keys(decision), decision.settled) == (5, ["go#1"], (("go#1", 1),))


class TestCost:
    """P10, in calls of Python functions, which no neighbour on the machine can change."""

    @staticmethod
    def replay(main: Main, records: list[StepRecord]) -> int:
        reduction = Reduction(main, seed="s", started_at=0.0)
        profile = cProfile.Profile(builtins=False)
        decision = profile.runcall(reduction.resume, records)
        assert decision.state is RunState.SUCCEEDED
        reduction.close()
        return sum(entry.callcount for entry in profile.getstats())

    def sequential(self, count: int) -> int:
        async def main() -> None:
            for _ in range(count):
                await search("x")

        mark = digest(dump_query("x"))
        return self.replay(main, [
            StepRecord(f"search#{i}", StepKind.TOOL, "search", mark, StepState.SUCCEEDED, i, float(i), '"r"')
            for i in range(1, count + 1)
        ])  # fmt: skip

    def gathered(self, count: int) -> int:
        async def main() -> int:
            return len(await gather(*(search("x") for _ in range(count))))

        reduction = Reduction(main, seed="s", started_at=0.0)
        mark = next(r.digest for r in reduction.resume([]).requests if r.kind is StepKind.GATHER)
        reduction.close()
        own = digest(dump_query("x"))
        records = [
            StepRecord(f"search#{i + 1}", StepKind.TOOL, "search", own, StepState.SUCCEEDED, None, 0.0, '"r"', None,
                       "gather#1", i)
            for i in range(count)
        ]  # fmt: skip
        records.append(StepRecord("gather#1", StepKind.GATHER, "gather", mark, StepState.SUCCEEDED, 1, 1.0))
        return self.replay(main, records)

    def test_a_replay_costs_the_same_for_every_step(self) -> None:
        short, long = self.sequential(500), self.sequential(4_000)
        assert long / 4_000 <= short / 500 * 1.01

    def test_a_replay_of_a_gather_costs_the_same_for_every_call(self) -> None:
        short, long = self.gathered(100), self.gathered(10_000)
        assert long / 10_000 <= short / 100 * 1.01


def dump_query(query: str) -> str:
    return f'{{"query":"{query}"}}'


def test_child_policies_are_recorded_with_the_request() -> None:
    async def main() -> None:
        await child.using(on_cancel="detach")(1)

    assert Log(main).reduce().requests[0].policy is ChildPolicy.DETACH
