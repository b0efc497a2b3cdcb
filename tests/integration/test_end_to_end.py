"""Agents on a real fleet: Postgres, Redis, and a Celery worker in a process of its own."""

from __future__ import annotations

import importlib
import os
import sys

import pytest

from pickaxe import errors
from tests.transitions import check, watch
from tests.workers import eventually, running_worker


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """The test app in this process, bound to services of this module's own, and a worker running it."""
    from pickaxe.store import Database, migrate
    from tests.services import isolated_database, isolated_redis, template_database

    folder = tmp_path_factory.mktemp("fleet")

    def build(url: str) -> None:
        database = Database(url)
        migrate(database)
        database.close()

    with isolated_database(template_database("pickaxe_template", build)) as database_url:
        environment = {
            "PICKAXE_DATABASE_URL": database_url,
            "PICKAXE_REDIS_URL": isolated_redis(),
            "PICKAXE_TEST_LEDGER": str(folder / "ledger"),
        }
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            sys.modules.pop("tests.fleet_app", None)
            module = importlib.import_module("tests.fleet_app")
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        watch(database_url)
        module.ledger = folder / "ledger"  # type: ignore[attr-defined]
        module.worker_environment = environment  # type: ignore[attr-defined]
        with running_worker(environment, folder / "worker.log") as worker:
            module.worker = worker  # type: ignore[attr-defined]
            yield module
            assert worker.process.poll() is None, worker.text()
        assert len(check(database_url)) > 10
        module.app.client.close()


def ledger(fleet, word):
    lines = fleet.ledger.read_text().splitlines() if fleet.ledger.exists() else []
    return [line.split()[1:] for line in lines if line.split()[0] == word]


def test_an_agent_calls_tools_children_and_gathers_and_takes_a_signal(fleet):
    run = fleet.everything.enqueue(fleet.Question(text="coal"))
    eventually(run.state, what="the published state")
    assert run.state() == {"found": "coal"}
    run.signal("verdict", 7)
    result = run.result(timeout=30)
    assert result["parts"] == ["coal-0", "coal-1", "coal-2"]
    assert result["both"] == [2, 11]
    assert (result["inline"], result["tries"], result["verdict"]) == (42, 3, 7)
    assert [q for q, _ in ledger(fleet, "search")].count("coal") == 1


def test_results_come_back_as_the_types_they_were_promised(fleet):
    run = fleet.call.enqueue("search", "typed")
    assert run.result(timeout=30) == [{"title": "typed", "score": 5.0}]


def test_a_child_that_fails_raises_in_its_parent(fleet):
    told = fleet.failing_child.enqueue().result(timeout=30)
    assert told.startswith("ChildRunError")
    assert "ValueError: negative" in told


def test_a_tool_that_says_never_is_not_tried_again_and_raises_where_it_was_awaited(fleet):
    told = fleet.caught_tool_error.enqueue().result(timeout=30)
    assert told["type"] == "NonRetryableError"
    assert told["step"] == "hopeless#1"
    assert len(ledger(fleet, "hopeless")) == 1


def test_every_attempt_of_a_call_has_the_same_idempotency_key(fleet):
    run = fleet.call.enqueue("flaky", 3)
    assert run.result(timeout=30) == 3
    keys = {key for _, key in ledger(fleet, "flaky") if key.startswith(run.id)}
    assert keys == {f"{run.id}/flaky#1"}


def test_a_tool_can_say_when_it_wants_to_be_tried_again(fleet):
    assert fleet.call.enqueue("busy").result(timeout=30) == 2
    first, second = (float(at) for (at,) in ledger(fleet, "busy"))
    assert second - first >= 0.6


@pytest.mark.parametrize("tool", ["sleepy", "sleepy_async"])
def test_an_attempt_ends_at_its_timeout(fleet, tool):
    with pytest.raises(errors.RunFailedError, match="StepTimeoutError"):
        fleet.call.enqueue(tool, 30).result(timeout=30)


def test_a_call_that_nobody_starts_fails_at_its_schedule_timeout(fleet):
    with pytest.raises(errors.RunFailedError, match="did not start within its schedule timeout"):
        fleet.call.enqueue("never_started").result(timeout=30)


def test_a_result_of_the_wrong_type_fails_the_step_and_names_both_types(fleet):
    with pytest.raises(errors.RunFailedError, match=r"result of tool 'wrong_type' \(a str; it promises int\)"):
        fleet.call.enqueue("wrong_type").result(timeout=30)


def test_an_oversized_result_fails_the_step_and_names_size_and_cap(fleet):
    with pytest.raises(errors.RunFailedError, match="2,000,002 bytes of JSON; the cap is 1,048,576"):
        fleet.call.enqueue("big", 2_000_000).result(timeout=30)


@pytest.mark.parametrize("value", ["nul \x00 inside", "lone \ud800 surrogate", {"\x00": ["\udfff"]}, "𝄞", 10**30])
def test_awkward_values_survive_the_round_trip(fleet, value):
    assert fleet.call.enqueue("echo", value).result(timeout=30) == value


def test_a_run_past_its_agents_timeout_fails(fleet):
    with pytest.raises(errors.RunFailedError, match="RunTimeoutError"):
        fleet.out_of_time.enqueue().result(timeout=30)


def test_a_wait_ends_at_its_timeout_and_says_so_once(fleet):
    assert fleet.waiting.enqueue("go", 0.3).result(timeout=30) == "timed out"


def test_a_signal_sent_before_the_wait_is_kept_for_it(fleet):
    run = fleet.waiting.using(queue="agents").enqueue("go", delay=1)
    run.signal("go", "early")
    assert run.result(timeout=30) == "early"


def test_the_same_signal_key_counts_once(fleet):
    run = fleet.waiting.enqueue("other")
    assert run.signal("go", 1, idempotency_key="k")
    assert run.signal("go", 2, idempotency_key="k")
    run.signal("other", 3)
    assert run.result(timeout=30) == 3


def test_an_agent_may_clean_up_when_it_is_cancelled(fleet):
    run = fleet.tidy.enqueue()
    eventually(run.state, what="the wait")
    assert run.cancel("enough")
    with pytest.raises(errors.RunCancelledError, match="enough"):
        run.result(timeout=30)
    assert [step.key for step in run.steps()] == ["never#1", "increment#1"]
    assert not run.cancel()


def test_cancelling_a_parent_cancels_its_child(fleet):
    run = fleet.parent_of_waiting.enqueue()
    (child,) = eventually(lambda: fleet.app.client.store.children(run._uuid), what="the child run")
    eventually(lambda: fleet.app.run(child.id).state(), what="the child's wait")
    run.cancel()
    with pytest.raises(errors.RunCancelledError):
        run.result(timeout=30)
    with pytest.raises(errors.RunCancelledError):
        fleet.app.run(child.id).result(timeout=30)


@pytest.mark.parametrize("tool", ["long_sync", "long_async"])
def test_cancelling_reaches_a_running_tool(fleet, tool):
    run = fleet.call.enqueue(tool)
    eventually(lambda: ["started"] in ledger(fleet, tool), what="the tool's start")
    run.cancel()
    with pytest.raises(errors.RunCancelledError):
        run.result(timeout=30)
    eventually(lambda: ["cancelled"] in ledger(fleet, tool), what="the tool's end")


def test_a_forced_cancel_ends_the_run_at_once(fleet):
    run = fleet.tidy.enqueue()
    eventually(run.state, what="the wait")
    assert run.cancel(force=True)
    assert run.status == "cancelled"
    assert all(step.state.terminal for step in run.steps())


def test_a_run_goes_on_in_chapters_under_one_id(fleet):
    run = fleet.chapters.enqueue(4)
    assert run.result(timeout=30) == 2 * (4 + 3 + 2 + 1)
    assert run.view().chapter == 4


@pytest.mark.parametrize("limit", [None, 3])
def test_a_wide_gather_joins_once(fleet, limit):
    run = fleet.wide.enqueue(40, limit)
    assert run.result(timeout=60) == sum(range(40)) * 2
    (join,) = [step for step in run.steps() if step.kind == "gather"]
    assert join.seq == 1


def test_the_first_success_is_enough(fleet):
    assert fleet.racing.enqueue().result(timeout=30) in (2, 4)


def test_events_reach_every_run_that_waits_for_them_and_no_other_scope(fleet):
    paid = [fleet.waiting_for_event.enqueue("paid", {"order": 7}, scope="a") for _ in range(2)]
    other_order = fleet.waiting_for_event.enqueue("paid", {"order": 8}, scope="a")
    other_scope = fleet.waiting_for_event.enqueue("paid", {"order": 7}, scope="b")
    for run in (*paid, other_order, other_scope):
        eventually(lambda run=run: run.status == "waiting" and run.steps(), what="the wait")
    assert fleet.app.client.publish_event("paid", {"order": 7, "by": "card"}, scope="a") == 2
    assert [run.result(timeout=30) for run in paid] == [{"order": 7, "by": "card"}] * 2
    assert {other_order.status, other_scope.status} == {"waiting"}
    for run in (other_order, other_scope):
        run.cancel(force=True)


def test_an_event_from_before_the_wait_is_found_when_it_looks_back(fleet):
    fleet.app.client.publish_event("shipped", {"order": 9})
    assert fleet.waiting_for_event.enqueue("shipped", {"order": 9}, within=60).result(timeout=30) == {"order": 9}


def test_a_stream_tells_everything_once_and_resumes_after_any_cursor(fleet):
    run = fleet.call.enqueue("flaky", 2)
    told = list(run.stream())
    assert [t.state for t in told if t.step == "flaky#1"] == [
        *["requested", "running", "retrying", "running", "succeeded"],
    ]
    assert (told[0].kind, told[-1].state) == ("run", "succeeded")
    for place, transition in enumerate(told):
        rest = list(run.stream(transition.cursor))
        assert [t.id for t in rest] == [t.id for t in told[place + 1 :]]


def test_a_rate_limit_spreads_calls_over_time(fleet):
    assert fleet.many_limited.enqueue(40).result(timeout=60) == 40
    starts = sorted(float(at) for (at,) in ledger(fleet, "limited"))
    assert len(starts) == 40
    assert all(starts[i + 20] - starts[i] >= 1.0 for i in range(20))


def test_a_tool_knows_its_call_and_is_given_what_its_process_made_once(fleet):
    run = fleet.call.enqueue("given")
    told = run.result(timeout=30)
    assert (told["run"], told["step"], told["attempt"]) == (run.id, "given#1", 1)
    assert told["key"] == f"{run.id}/given#1"
    assert 0 < told["seconds"] <= 5
    assert told["wanted"] is True
    assert run.steps()[0].progress == {"half": "way"}
    more = [fleet.call.enqueue("given").result(timeout=30) for _ in range(4)]
    made = [pid for (pid,) in ledger(fleet, "connected")]
    assert len(made) == len(set(made))
    assert max(answer["uses"] for answer in more) > 1


def test_parked_runs_hold_no_message_and_no_redis_key(fleet):
    """Streams outlive their last entry by a minute, and are made to go at once here."""
    runs = fleet.waiting.enqueue_many([(f"go-{i}",) for i in range(20)])
    for run in runs:
        eventually(lambda run=run: run.status == "waiting", what="the wait")
    redis = fleet.app.client.redis
    redis.delete(*(f"pickaxe:stream:{run.id}" for run in runs))
    left = eventually(lambda: not [k for k in redis.scan_iter("*") if any(run.id in k for run in runs)], what="no keys")
    assert left
    queues = [k for k in redis.scan_iter("*") if k.startswith(("agents", "tools", "web", "unacked"))]
    assert sum(redis.llen(k) for k in queues if redis.type(k) == "list") == 0
    for number, run in enumerate(runs):
        run.signal(f"go-{number}", number)
    assert [run.result(timeout=30) for run in runs] == list(range(20))
