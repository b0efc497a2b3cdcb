"""Recovery itself, disturbed at its worst moment; and how long it takes."""

from __future__ import annotations

import random
import re
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.faults.app import expected_load, load, one_slow, one_slow_async, parks_between, single_file
from tests.faults.audit import Barrier
from tests.faults.fleet import Entry, Fleet, Moment, WorkerProcess, eventually
from tests.faults.report import Report

RECLAIM = "pickaxe.reclaim("
"""Words of the statement that takes steps away from the dead."""


@pytest.mark.timeout(60)
@pytest.mark.scenario(5)
def test_a_zombie_that_wakes_in_the_run_it_has_since_parked_and_resumed_changes_nothing(
    fleet: Fleet, report: Report
) -> None:
    """The call it holds ended elsewhere, the run parked, was resumed, and makes the same call under another number."""
    run = fleet.enqueue(parks_between, 0.6)
    zombie = fleet.start("zombie")
    [frozen] = eventually(fleet.running, "the body runs")
    zombie.send(signal.SIGSTOP)
    moment = Moment(time.time(), frozenset({frozen.key}))
    fleet.start("heir")
    eventually(lambda: run.status == "waiting" and run.state() == "parked", "the run is parked")
    run.signal("go on")
    eventually(lambda: [e for e in fleet.running() if e.key != frozen.key], "the second call runs")
    zombie.send(signal.SIGCONT)
    eventually(lambda: zombie.has_said("came too late and was refused"), "the zombie's result is refused")
    assert fleet.results([run]) == [49 + 49]
    verdict = fleet.check()
    report(hits=verdict.refused, verdict=verdict, recovery=fleet.recovery(moment))


@pytest.mark.timeout(60)
@pytest.mark.scenario(5)
@pytest.mark.parametrize(
    ("mode", "frozen_at"), [("plain", "commit.before=stop@2"), ("inline", "advance.before=stop@1")]
)
def test_a_reduction_that_was_frozen_before_its_commit_is_refused_when_the_run_has_gone_on(
    fleet: Fleet, report: Report, mode: str, frozen_at: str
) -> None:
    run = fleet.enqueue(parks_between, 0.1)
    environment = {"PICKAXE_CONTINUATION": mode, "PICKAXE_FAILPOINTS": frozen_at}
    zombie = fleet.start("zombie", environment=environment)
    eventually(lambda: is_stopped(zombie.pid), "the zombie stops before it commits")
    since = time.time()
    fleet.start("heir")
    eventually(lambda: run.status == "waiting" and run.state() == "parked", "the run is parked elsewhere")
    parked = time.time() - since
    zombie.send(signal.SIGCONT)
    if mode == "plain":
        eventually(lambda: fleet.query("SELECT 1 FROM audit.refused"), "its commit is refused")
    else:
        # It would have recorded the call's result too, which is asked for first.
        eventually(lambda: zombie.has_said("came too late and was refused"), "its result is refused")
    run.signal("go on")
    assert fleet.results([run]) == [49 + 49]
    verdict = fleet.check()
    report(hits=verdict.refused, verdict=verdict, recovery=[parked])


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


@pytest.mark.timeout(60)
@pytest.mark.scenario(6)
def test_a_zombies_result_that_comes_while_the_sweep_takes_its_call_away_is_refused(
    fleet: Fleet, report: Report
) -> None:
    run = fleet.enqueue(one_slow, 0.6)
    zombie = fleet.start("zombie")
    [frozen] = eventually(fleet.running, "the body runs")
    with Barrier(fleet.plain_url, "step", RECLAIM) as barrier:
        zombie.send(signal.SIGSTOP)
        moment = Moment(time.time(), frozenset({frozen.key}))
        fleet.start("heir")
        barrier.await_waiting()
        # The sweep's transaction is open, and holds the row. Now the result comes, and waits for the same row.
        zombie.send(signal.SIGCONT)
        blocked = "SELECT count(*) FROM pg_locks WHERE locktype IN ('transactionid', 'tuple') AND NOT granted"
        eventually(lambda: fleet.query(blocked)[0][0], "the zombie's result waits for the sweep")
    assert fleet.results([run]) == [49]
    eventually(lambda: zombie.has_said("came too late and was refused"), "the zombie's result is refused")
    report(hits=1, verdict=fleet.check(), recovery=fleet.recovery(moment))


@pytest.mark.timeout(60)
@pytest.mark.scenario(7)
@pytest.mark.parametrize(("mode", "statement"), [("plain", "settle"), ("inline", "advance")])
def test_a_call_that_ends_between_the_sweepers_look_and_its_write_is_not_taken_away(
    fleet: Fleet, report: Report, mode: str, statement: str
) -> None:
    """The worker was declared dead by mistake; its call ends before the sweep gets to it."""
    run = fleet.enqueue(one_slow, 1.0)
    worker = fleet.start("worker", environment={"PICKAXE_SWEEP_EVERY": "0.1", "PICKAXE_CONTINUATION": mode})
    eventually(fleet.running, "the body runs")
    # The settling transaction is held open: it has the row. The sweep looks meanwhile, and skips or waits.
    with Barrier(fleet.plain_url, "step", statement) as barrier:
        barrier.await_waiting()
        fleet.query("UPDATE pickaxe.worker SET ended_at = clock_timestamp(), ended = 'died' RETURNING 1")
        before = sweeps(fleet)
        eventually(lambda: sweeps(fleet) >= before + 3, "the sweeper has looked")
    assert fleet.results([run]) == [49]
    verdict = fleet.check()
    assert [e.attempt for e in fleet.entries("start") if "slow" in e.key] == ["1"]
    assert not worker.has_died()
    report(hits=1, verdict=verdict)


def sweeps(fleet: Fleet) -> int:
    """How many transactions there have been: each sweep is some."""
    query = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    return int(fleet.query(query)[0][0]) // 10


@pytest.mark.timeout(60)
@pytest.mark.scenario(8)
def test_two_sweepers_that_take_the_same_calls_from_the_dead_issue_each_once(fleet: Fleet, report: Report) -> None:
    environment = {"PICKAXE_TEST_SWEEPERS": "all"}
    heirs = [fleet.start(f"heir{n}", pool="threads", concurrency=3, environment=environment) for n in range(2)]
    victim = fleet.start("victim", pool="threads", concurrency=6)
    runs = fleet.enqueue_many(one_slow_async, [(2.0,) for _ in range(12)])
    hers = eventually(lambda: fleet.running(victim.pid), "the victim runs something")
    moment = fleet.moment(pid=victim.pid)
    with Barrier(fleet.plain_url, "worker", "'died'") as barrier:
        victim.kill()
        # Both have read that the process is gone, and are about to say so.
        barrier.await_waiting(1)
        blocked = "SELECT count(*) FROM pg_locks WHERE locktype IN ('transactionid', 'tuple') AND NOT granted"
        eventually(lambda: barrier.waiting() + fleet.query(blocked)[0][0] >= 2, "two sweepers bury it at once")
    assert fleet.results(runs) == [49] * 12
    verdict = fleet.check()
    assert verdict.again >= len(hers)
    said = sum(heir.text().count("is gone") for heir in heirs)
    assert said == 1, f"it was buried {said} times"
    report(hits=2, verdict=verdict, recovery=fleet.recovery(moment))


@pytest.mark.timeout(60)
@pytest.mark.scenario(13)
@pytest.mark.parametrize("agents", ["agents", "single"], ids=["calls", "agents and calls"])
def test_a_queue_whose_only_consumer_is_killed_again_and_again_is_finished_in_single_file_by_those_who_come_after(
    fleet: Fleet, report: Report, agents: str
) -> None:
    """One process with one slot consumes it; whatever else there is, does not."""
    if agents != "single":
        fleet.start("elsewhere", queues=agents)
    runs = fleet.enqueue_many(single_file.using(queue=agents), [(0.3,) for _ in range(5)])
    moments, queued = [], []
    for number in range(2):
        owner = fleet.start(f"owner{number}", queues="single")
        eventually(lambda pid=owner.pid: fleet.running(pid), "a body runs")  # type: ignore[misc]
        queued.append(eventually(lambda: waiting_in(fleet, "single"), "others are queued"))
        moments.append(fleet.moment(pid=owner.pid))
        assert len(moments[-1].keys) == 1
        owner.kill()
    fleet.start("last", queues="single")
    assert fleet.results(runs) == [49 + 64] * 5
    verdict = fleet.check()
    assert verdict.again == 2, "only what ran when its process was killed ran again"
    bodies = sorted((e.at, e.word) for e in fleet.entries("start", "end") if not is_cut_short(fleet, e))
    assert [word for _, word in bodies] == ["start", "end"] * 10, "one at a time"
    report(hits=len(moments), verdict=verdict, recovery=fleet.recovery(*moments), queued=queued)


def waiting_in(fleet: Fleet, queue: str) -> int:
    """How many messages are in a queue, of whatever priority."""
    redis = fleet.client.redis
    return sum(redis.llen(key) for key in redis.scan_iter(f"{queue}*", _type="list"))


def is_cut_short(fleet: Fleet, entry: Entry) -> bool:
    """Whether this body never ended."""
    return not any((e.key, e.attempt) == (entry.key, entry.attempt) for e in fleet.entries("end"))


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.scenario(19)
def test_messages_that_a_killed_worker_had_taken_and_not_begun_are_sent_again(fleet: Fleet, report: Report) -> None:
    runs = fleet.enqueue_many(one_slow, [(0.3,) for _ in range(12)])
    # Each call is a message of its own, and is taken before it is begun.
    environment = {"PICKAXE_TEST_PREFETCH": "4", "PICKAXE_CONTINUATION": "plain"}
    victim = fleet.start("victim", pool="prefork", concurrency=2, environment=environment)
    eventually(lambda: len(fleet.running(victim.pid) or fleet.running()) >= 2, "bodies run")
    eventually(lambda: len(received(victim) - begun(fleet)) >= 2, "more is taken than begun")
    moment = fleet.moment()
    victim.kill()
    taken = len(received(victim) - begun(fleet))
    fleet.start("heir", pool="prefork", concurrency=2)
    assert fleet.results(runs) == [49] * 12
    report(hits=taken, verdict=fleet.check(), recovery=fleet.recovery(moment))


def received(worker: WorkerProcess) -> set[str]:
    """The calls whose messages a worker has taken, whether begun or not."""
    return {
        f"{run}/{key}" for run, key in re.findall(r"Task slow\[([0-9a-f-]+):(slow#\d+):\d+\] received", worker.text())
    }


def begun(fleet: Fleet) -> set[str]:
    return {entry.key for entry in fleet.entries("start")}


@pytest.mark.timeout(400)
@pytest.mark.scenario(44)
@pytest.mark.slow
@pytest.mark.parametrize("rounds", [20])
def test_the_calls_of_a_killed_worker_run_elsewhere_within_three_seconds_at_default_settings(
    services: Any, tmp_path: Path, seed: int, report: Report, request: pytest.FixtureRequest, rounds: int
) -> None:
    chance, moments, runs = random.Random(seed), [], []
    with Fleet(services.database_url, services.redis_url, tmp_path, settings={}) as fleet:
        request.node.fleet = fleet
        workers = [fleet.start(f"worker{n}", pool="threads", concurrency=4) for n in range(2)]
        for number in range(rounds):
            runs = fleet.enqueue_many(one_slow, [(3.0,) for _ in range(6)])
            victim = workers.pop(chance.randrange(2))
            eventually(lambda pid=victim.pid: fleet.running(pid), "the victim runs something")  # type: ignore[misc]
            time.sleep(chance.uniform(0, 1.2))  # the phase between two beats
            moments.append(fleet.moment(pid=victim.pid))
            victim.kill()
            workers.append(fleet.start(f"heir{number}", pool="threads", concurrency=4))
            wanted = moments[-1]
            eventually(lambda m=wanted: len(fleet.recovery(m)) == len(m.keys), "its calls run again")  # type: ignore[misc]
            assert fleet.results(runs) == [49] * 6
        recovery = fleet.recovery(*moments)
        report(hits=rounds, verdict=fleet.check(), recovery=recovery)
        assert statistics.median(recovery) < 3, recovery
        assert max(recovery) < 4, recovery


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.scenario(29)
def test_calls_are_claimed_beside_an_idle_transaction_and_readers_of_old_snapshots(
    fleet: Fleet, report: Report
) -> None:
    fleet.start("one", pool="threads", concurrency=4)
    fleet.results(fleet.enqueue_many(load, [(n, 0.0) for n in range(10)]))
    before = claim_times(fleet)
    holders = [psycopg.connect(fleet.plain_url) for _ in range(5)]
    try:
        holders[0].execute("SELECT count(*) FROM pickaxe.step")  # and it stays open
        holders[0].execute("SELECT * FROM pickaxe.run LIMIT 1 FOR SHARE SKIP LOCKED")
        for reader in holders[1:]:
            reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            reader.execute("SELECT count(*) FROM pickaxe.step")
        runs = fleet.enqueue_many(load, [(n, 0.0) for n in range(40)])
        for _ in range(20):
            for reader in holders[1:]:
                reader.execute("SELECT count(*), max(output) FROM pickaxe.step")
        assert fleet.results(runs) == [expected_load(n) for n in range(40)]
        during = claim_times(fleet)[len(before) :]
        dead = fleet.query("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'step'")[0][0]
    finally:
        for holder in holders:
            holder.close()
    verdict = fleet.check()
    p99 = sorted(during)[int(len(during) * 0.99)]
    report(hits=len(holders), verdict=verdict, claim_p99=p99, claim_p50=statistics.median(during), dead_rows=dead)
    assert len(during) == 4 * len(before)


def claim_times(fleet: Fleet) -> list[float]:
    """Seconds from a step's commit to its claim, in the order of the claims."""
    rows = fleet.query(
        "SELECT extract(epoch FROM started_at - created_at)::float8 FROM pickaxe.step "
        "WHERE kind = 'tool' AND started_at IS NOT NULL ORDER BY started_at"
    )
    return [seconds for (seconds,) in rows]
