"""What breaks whoever touches it, agents, tools, rows, messages: each ends or waits, visibly, and the rest goes on."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pickaxe.errors import RunFailedError, RunPausedError
from tests.faults.app import (
    chapters,
    endless,
    exiting,
    expected_load,
    fails_early,
    load,
    sized,
    spinning,
    steps,
    tool_that_exits,
)
from tests.faults.fleet import Fleet, WorkerProcess, eventually
from tests.faults.report import Report


def test_an_input_that_no_longer_fits_fails_a_run_that_has_not_begun(fleet: Fleet) -> None:
    run = fleet.enqueue(sized, 1)
    fleet.query("UPDATE pickaxe.run SET input = %s WHERE id = %s RETURNING 1", json.dumps({"n": "no number"}), run.id)
    fleet.start("one")
    with pytest.raises(RunFailedError, match=r"the input of agent 'sized' does not fit: n: .*'no number'"):
        fleet.results([run])
    fleet.check()


def test_an_input_that_no_longer_fits_pauses_a_run_that_has_begun_and_retry_resumes_it(fleet: Fleet) -> None:
    run = fleet.enqueue(endless)
    fleet.start("one")
    eventually(lambda: run.status == "waiting", "it waits")
    set_input = "UPDATE pickaxe.run SET input = %s WHERE id = %s RETURNING 1"
    fleet.query(set_input, json.dumps({"unknown": 1}), run.id)
    run.signal("never")
    with pytest.raises(RunPausedError, match="the input of agent 'endless' does not fit"):
        fleet.results([run])
    fleet.query(set_input, "{}", run.id)
    assert run.retry()
    assert fleet.results([run]) == [None]
    fleet.check()


@pytest.mark.parametrize("agent", [exiting, spinning])
def test_an_agent_that_exits_or_spins_fails_and_leaves_its_worker_alone(fleet: Fleet, agent: object) -> None:
    run = fleet.enqueue(agent)
    worker = fleet.start("one")
    with pytest.raises(RunFailedError, match=r"SystemExit|spins"):
        fleet.results([run])
    assert fleet.results([fleet.enqueue(sized, 1)]) == [2]
    assert not worker.has_died()
    fleet.check()


@pytest.mark.parametrize("pool", ["solo", "prefork", "custom"])
@pytest.mark.parametrize("name", ["exits", "exits_async"])
def test_a_tool_that_exits_fails_and_leaves_its_worker_alone(fleet: Fleet, name: str, pool: str) -> None:
    run = fleet.enqueue(tool_that_exits, name)
    worker = fleet.start("one", pool=pool)
    assert fleet.results([run]) == ["ToolError"]
    assert fleet.results([fleet.enqueue(sized, 1)]) == [2]
    assert not worker.has_died()
    assert [e.attempt for e in fleet.entries("start") if "exits" in e.key] == ["1"]


def test_a_failure_in_a_gather_wakes_the_agent_though_its_chord_is_not_over(fleet: Fleet) -> None:
    """A chord's body comes after all of its calls, and the sweeper would take an hour here."""
    run = fleet.enqueue(fails_early)
    fleet.start("one", pool="threads", concurrency=3, environment={"PICKAXE_REDISPATCH_AFTER": "3600"})
    assert fleet.results([run]) == ["ToolError"]
    assert [str(step.state) for step in run.steps() if step.name == "slow"] == ["cancelled"]


def test_a_reduction_that_breaks_down_says_so_and_is_tried_again_with_a_growing_delay(
    fleet: Fleet, evidence: Callable[..., None]
) -> None:
    run = fleet.enqueue(endless)
    fleet.start("one")
    eventually(lambda: run.status == "waiting", "it waits")
    # Nothing that Pickaxe would write: its own code breaks down over it.
    fleet.query("UPDATE pickaxe.step SET kind = 'unheard of' WHERE run_id = %s RETURNING 1", run.id)
    run.signal("never")
    eventually(lambda: "broke down" in (run.view().reason or ""), "the run says why it does not go on")
    assert "'unheard of' is not a valid StepKind" in (run.view().reason or "")
    dispatches = "SELECT dispatches FROM pickaxe.run WHERE id = %s"
    eventually(lambda: fleet.query(dispatches, run.id)[0][0] >= 4, "it is tried again")
    assert fleet.results([fleet.enqueue(sized, 1)]) == [2]
    fleet.query("UPDATE pickaxe.step SET kind = 'signal' WHERE run_id = %s RETURNING 1", run.id)
    assert fleet.results([run]) == [None]
    assert run.view().reason is None
    fleet.check()
    evidence("the run went on by itself once the row was mended")


def test_chapters_have_steps_and_idempotency_keys_of_their_own(fleet: Fleet) -> None:
    run = fleet.enqueue(chapters, 3)
    fleet.start("one")
    assert fleet.results([run]) == [3 + 2 + 1 + 0 + 4]
    fleet.check()
    assert len({entry.key for entry in fleet.entries("start")}) == 8


def test_a_hundred_steps_in_a_row_never_wait_for_the_sweeper(fleet: Fleet, evidence: Callable[..., None]) -> None:
    fleet.start("one", environment={"PICKAXE_REDISPATCH_AFTER": "3600"})
    fleet.results([fleet.enqueue(steps, 5)])
    run = fleet.enqueue(steps, 100)
    assert fleet.results([run]) == [sum(range(100))]
    [(spent,)] = fleet.query(
        "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM pickaxe.run WHERE id = %s", run.id
    )
    evidence(f"{spent / 100 * 1000:.1f} ms per step")


# Messages.


LARGE = 50 * 1024 * 1024
"""Bytes of a message that is too large."""


def envelope(headers: dict[str, Any], body: Any, encoding: str = "utf-8") -> bytes:
    """A message as it is on the wire, whatever it says."""
    info = {"exchange": "", "routing_key": "tools"}
    return json.dumps({
        "body": base64.b64encode(json.dumps(body).encode()).decode(), "headers": headers,
        "content-type": "application/json", "content-encoding": encoding,
        "properties": {"body_encoding": "base64", "delivery_tag": "poison", "delivery_info": info},
    }).encode()  # fmt: skip


POISON: dict[str, Callable[[], bytes]] = {
    "50 MB of nothing": lambda: b"x" * LARGE,
    "50 MB of arguments": lambda: envelope({"task": "add", "id": "x"}, [[], {"run": "x" * (LARGE * 3 // 4)}, None]),
    "no text": lambda: b"\xff\x00{{",
    "a body in no known encoding": lambda: envelope({"task": "add", "id": "x"}, [], "klingon"),
    "a task nobody knows": lambda: envelope({"task": "nobody", "id": "x"}, [[], {}, None]),
    "a message of Celery's version 1": lambda: envelope({}, {"task": "add", "id": "x", "args": [1, 2], "kwargs": {}}),
    "arguments that no message of ours has": lambda: envelope({"task": "add", "id": "x"}, [[1], {"b": 2}, None]),
}


@pytest.mark.scenario(25)
@pytest.mark.timeout(90)
@pytest.mark.parametrize("pool", ["solo", pytest.param("prefork", marks=pytest.mark.slow)])
def test_poison_ahead_of_everything_is_kept_aside_once_each_and_neither_the_queue_nor_its_worker_suffers(
    fleet: Fleet, report: Report, pool: str
) -> None:
    worker = fleet.start("one", pool=pool, concurrency=2)
    assert fleet.results(fleet.enqueue_many(load, [(n, 0.0) for n in range(4)])) == [expected_load(n) for n in range(4)]
    before = peak_memory(worker)
    runs = fleet.enqueue_many(load, [(n, 0.05) for n in range(6)])
    for poison in POISON.values():
        fleet.client.redis.rpush("tools", poison())  # where messages are taken from
    assert fleet.results(runs) == [expected_load(n) for n in range(6)]
    eventually(lambda: len(letters(fleet)) == len(POISON), "all are kept aside")
    grown = (peak_memory(worker) - before) / LARGE
    eventually(lambda: not fleet.client.redis.zcard("unacked_index"), "all are acknowledged")
    assert sum("only its first 65536 are kept" in reason for reason in letters(fleet)) == 2
    assert not worker.has_died()
    report(hits=len(POISON), verdict=fleet.check(), grown=grown)
    assert grown < 3, f"its memory grew by {grown:.1f} times the largest message"


@pytest.mark.scenario(25)
@pytest.mark.timeout(90)
def test_poison_whose_worker_dies_before_it_is_kept_aside_comes_back_and_is_kept_by_another(
    fleet: Fleet, report: Report
) -> None:
    patience = {"PICKAXE_TEST_VISIBILITY": "2"}
    victim = fleet.start("victim", environment=patience)
    with psycopg.connect(fleet.plain_url) as holder:
        holder.execute("LOCK TABLE pickaxe.dead_letter IN EXCLUSIVE MODE")
        fleet.client.redis.rpush("tools", POISON["50 MB of nothing"]())
        writing = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
        eventually(lambda: fleet.query(writing, "INSERT INTO pickaxe.dead\\_letter%")[0][0], "it is about to be kept")
        assert fleet.client.redis.zcard("unacked_index") == 1
        victim.kill()
        run = fleet.enqueue(sized, 1)
        fleet.start("heir", environment=patience)
        assert fleet.results([run]) == [2], "the queue goes on meanwhile"
    eventually(lambda: letters(fleet), "it comes back, and is kept aside")
    eventually(lambda: not fleet.client.redis.zcard("unacked_index"), "it is acknowledged")
    report(hits=1, verdict=fleet.check(), kept=len(letters(fleet)))


def letters(fleet: Fleet) -> list[str]:
    """Why messages were kept aside."""
    return [reason for (reason,) in fleet.query("SELECT reason FROM pickaxe.dead_letter ORDER BY id")]


def peak_memory(worker: WorkerProcess) -> int:
    """The most memory that the worker's main process has had so far, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
