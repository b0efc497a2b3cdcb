"""Redis emptied, full and restarted; Postgres crashed, full, read-only and used up: under load, with calls running."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from sqlalchemy import make_url

from pickaxe.embedded import Services
from pickaxe.errors import ServiceUnavailableError
from pickaxe.store import Database, migrate
from tests.faults.app import expected, expected_load, load, one_slow, program
from tests.faults.audit import Barrier
from tests.faults.disk import small_disk
from tests.faults.fleet import FAST, Fleet, Moment, eventually, patiently
from tests.faults.report import Report, Verdict

LOAD = 16


def under_load(fleet: Fleet) -> list[Any]:
    """Two workers and more runs than they finish soon; returns once bodies are running."""
    runs = fleet.enqueue_many(load, [(n, 0.3) for n in range(LOAD)])
    fleet.start("one", pool="threads", concurrency=4, wait=False)
    fleet.start("two", pool="threads", concurrency=4)
    eventually(lambda: len(fleet.running()) >= 3 and len(fleet.entries("end")) >= 6, "calls are running")
    return runs


def finish(fleet: Fleet, runs: list[Any], more: Any, within: float = 40) -> Verdict:
    """All results are right, and everything comes to rest."""
    assert patiently(more, time.monotonic() + within) == expected(2, 9)
    assert fleet.results(runs, within) == [expected_load(n) for n in range(LOAD)]
    verdict = fleet.check()
    assert all(not worker.has_died() for worker in fleet.workers)
    return verdict


def buried(fleet: Fleet) -> int:
    """How many processes were declared dead."""
    return int(fleet.query("SELECT count(*) FROM pickaxe.worker WHERE ended = 'died'")[0][0])


# Redis.


@pytest.mark.timeout(60)
@pytest.mark.scenario(14)
def test_an_emptied_redis_costs_seconds_and_no_run(own_fleet: Fleet, report: Report) -> None:
    fleet, redis = own_fleet, own_fleet.client.redis
    more = fleet.enqueue(program, 2, answer=9)
    runs = under_load(fleet)
    lost, moments = [], []
    for _ in range(3):
        moments.append(fleet.moment())
        lost.append(redis.dbsize())
        redis.flushall()
        fleet.await_more("start")
    assert all(lost)
    verdict = finish(fleet, runs, more)
    report(hits=len(lost), verdict=verdict, recovery=fleet.recovery(*moments), keys_lost=lost)


@pytest.mark.timeout(150)
@pytest.mark.scenario(15)
@pytest.mark.parametrize("outage", [1.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_a_redis_that_comes_back_empty_costs_seconds_and_no_run(
    own_fleet: Fleet, own_services: Services, report: Report, outage: float
) -> None:
    fleet = own_fleet
    more = fleet.enqueue(program, 2, answer=9)
    runs = under_load(fleet)
    before, moment = own_services.redis.pid, fleet.moment()
    own_services.redis.stop()
    time.sleep(outage)  # the length of the outage, not a wait for something
    own_services.redis.start()
    back = Moment(time.time(), moment.keys)
    assert own_services.redis.pid != before
    assert moment.keys
    verdict = finish(fleet, runs, more)
    recovery = fleet.recovery(back)
    report(hits=1, verdict=verdict, recovery=recovery, outage=outage)


@pytest.mark.timeout(90)
@pytest.mark.scenario(15)
def test_a_redis_that_takes_no_more_writes_holds_up_and_loses_nothing(own_fleet: Fleet, report: Report) -> None:
    fleet, redis = own_fleet, own_fleet.client.redis
    more = fleet.enqueue(program, 2, answer=9)
    runs = under_load(fleet)
    redis.config_set("maxmemory", 1)
    moment, refused = fleet.moment(), refused_writes(redis)
    eventually(lambda: refused_writes(redis) >= refused + 20, "writes are refused")
    time.sleep(3)  # the length of the fault
    hits = refused_writes(redis) - refused
    redis.config_set("maxmemory", 0)
    back = Moment(time.time(), moment.keys)
    verdict = finish(fleet, runs, more)
    report(hits=hits, verdict=verdict, recovery=fleet.recovery(back))


def refused_writes(redis: Any) -> int:
    """How many commands Redis has answered with OOM."""
    return int(redis.info("errorstats").get("errorstat_OOM", {}).get("count", 0))


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.scenario(15)
def test_a_redis_that_evicts_whatever_it_likes_costs_seconds_and_no_run(
    own_fleet: Fleet, seed: int, report: Report
) -> None:
    fleet, redis, chance = own_fleet, own_fleet.client.redis, random.Random(seed)
    more = fleet.enqueue(program, 2, answer=9)
    redis.config_set("maxmemory-policy", "allkeys-random")
    runs = under_load(fleet)
    moments = []
    for _ in range(3):
        moments.append(fleet.moment())
        redis.config_set("maxmemory", redis.info("memory")["used_memory"] + 200_000)
        for number in range(40):
            redis.set(f"somebody else's {number}", chance.randbytes(20_000).hex())
        redis.config_set("maxmemory", 0)
        fleet.await_more("start")
    evicted = redis.info("stats")["evicted_keys"]
    verdict = finish(fleet, runs, more)
    report(hits=evicted, verdict=verdict, recovery=fleet.recovery(*moments))


# Postgres.


@pytest.mark.timeout(90)
@pytest.mark.scenario(10)
def test_a_postgres_that_crashes_under_load_costs_seconds_and_no_run(
    own_fleet: Fleet, own_services: Services, report: Report
) -> None:
    fleet = own_fleet
    more = fleet.enqueue(program, 2, answer=9)
    runs = under_load(fleet)
    moments = []
    for _ in range(2):
        moments.append(fleet.moment())
        own_services.postgres.restart(mode="immediate")
        fleet.await_more("end")
    verdict = finish(fleet, runs, more)
    report(hits=2, verdict=verdict, recovery=fleet.recovery(*moments), buried=buried(fleet))
    assert buried(fleet) == 0, "living processes were declared dead because Postgres was away"


@pytest.mark.timeout(480)
@pytest.mark.scenario(10)
@pytest.mark.parametrize(
    ("length", "pause"), [(6, (1, 3)), pytest.param(300, (5, 40), marks=pytest.mark.slow)], ids=["6s", "5min"]
)
def test_a_postgres_that_crashes_again_and_again_buries_no_living_process(
    own_services: Services, tmp_path: Any, seed: int, report: Report, length: float, pause: tuple[float, float]
) -> None:
    chance, runs, moments, sent = random.Random(seed), [], [], 0
    with Fleet(own_services.database_url, own_services.redis_url, tmp_path, settings={}) as fleet:
        for name in ("one", "two"):
            fleet.start(name, pool="threads", concurrency=4)
        until = time.monotonic() + length
        while time.monotonic() < until:
            next_crash = time.monotonic() + chance.uniform(*pause)
            while time.monotonic() < next_crash:
                runs += fleet.enqueue_many(load, [(sent + n, 0.2) for n in range(3)])
                sent += 3
                fleet.await_more("end", 10)
            moments.append(fleet.moment())
            own_services.postgres.restart(mode="immediate")
        assert fleet.results(runs) == [expected_load(n) for n in range(sent)]
        verdict = fleet.check()
        died = buried(fleet)
        report(hits=len(moments), verdict=verdict, recovery=fleet.recovery(*moments), buried=died, runs=len(runs))
        assert died == 0
        assert all(not worker.has_died() for worker in fleet.workers)


@pytest.mark.timeout(120)
@pytest.mark.scenario(10)
@pytest.mark.parametrize("seconds", [0.5, 4.0])
def test_a_call_whose_claim_was_undone_by_a_crash_of_postgres_is_still_run_once(
    own_services: Services, tmp_path: Any, report: Report, seconds: float
) -> None:
    undone, runs = 0, []
    patient = FAST | {"PICKAXE_REDISPATCH_AFTER": "10", "PICKAXE_BEAT_EVERY": "1", "PICKAXE_DEAD_AFTER": "3"}
    with Fleet(own_services.database_url, own_services.redis_url, tmp_path, settings=patient) as fleet:
        worker = fleet.start("one", environment={"PICKAXE_CONTINUATION": "resume"})
        while not undone and len(runs) < 10:
            runs.append(fleet.enqueue(one_slow, seconds))
            eventually(lambda: len(fleet.entries("start")) == len(runs), "the body runs")
            worker.send(signal.SIGSTOP)
            own_services.postgres.restart(mode="immediate")
            [step] = fleet.query("SELECT state, attempt FROM pickaxe.step WHERE run_id = %s", runs[-1].id)
            undone += step == ("ready", 0)
            worker.send(signal.SIGCONT)
            assert fleet.results(runs) == [49] * len(runs)
        assert len(fleet.entries("start")) == len(runs)
        report(hits=undone, verdict=fleet.check())


@pytest.mark.timeout(60)
@pytest.mark.scenario(10)
def test_a_result_waits_for_a_postgres_that_is_away_for_long(
    own_fleet: Fleet, own_services: Services, report: Report
) -> None:
    run = own_fleet.enqueue(one_slow, 1.0)
    own_fleet.start("one")
    eventually(own_fleet.running, "the body runs")
    own_services.postgres.stop(mode="immediate")
    eventually(lambda: own_fleet.entries("end"), "the body ends while Postgres is away")
    time.sleep(7)  # longer than a statement is tried again
    own_services.postgres.start()
    assert own_fleet.results([run]) == [49]
    report(hits=1, verdict=own_fleet.check())
    assert len(own_fleet.entries("start")) == 1


@pytest.mark.timeout(90)
@pytest.mark.scenario(9)
def test_a_postgres_that_crashes_while_the_dead_are_recovered_only_delays_that(
    own_fleet: Fleet, own_services: Services, report: Report
) -> None:
    fleet = own_fleet
    runs = fleet.enqueue_many(load, [(n, 0.3) for n in range(LOAD)])
    victim = fleet.start("victim", pool="threads", concurrency=4)
    eventually(lambda: len(fleet.running()) >= 3, "calls are running")
    fleet.start("heir", pool="threads", concurrency=4)
    with Barrier(fleet.plain_url, "step", "pickaxe.reclaim(") as barrier:
        moment = fleet.moment(pid=victim.pid)
        victim.kill()
        barrier.await_waiting()
        own_services.postgres.stop(mode="immediate")
    time.sleep(2)  # the length of the outage
    own_services.postgres.start()
    assert fleet.results(runs) == [expected_load(n) for n in range(LOAD)]
    verdict = fleet.check()
    report(hits=1, verdict=verdict, recovery=fleet.recovery(moment))
    assert buried(fleet) == 1, "only the one that was killed is declared dead"


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.scenario(11)
def test_backends_that_are_terminated_twenty_times_a_second_cost_no_run_and_bury_nobody(
    own_services: Services, tmp_path: Any, seed: int, report: Report
) -> None:
    chance, killed = random.Random(seed), 0
    with Fleet(own_services.database_url, own_services.redis_url, tmp_path, settings={}) as fleet:
        runs, more = [], fleet.enqueue(program, 2, answer=9)
        runs = under_load(fleet)
        moment, until = fleet.moment(), time.monotonic() + 5
        while time.monotonic() < until:
            mine = fleet.query("SELECT pid FROM pg_stat_activity WHERE application_name = 'pickaxe'")
            if mine:
                (pid,) = chance.choice(mine)
                killed += bool(fleet.query("SELECT pg_terminate_backend(%s)", pid)[0][0])
            time.sleep(0.05)  # the rate of the fault
        verdict = finish(fleet, runs, more)
        report(hits=killed, verdict=verdict, recovery=fleet.recovery(moment), buried=buried(fleet))
        assert buried(fleet) == 0


@pytest.mark.timeout(120)
@pytest.mark.scenario(20)
@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.slow), False], ids=["server", "backends"])
def test_a_postgres_that_is_frozen_and_still_acknowledges_is_given_up_until_it_answers(
    own_services: Services, tmp_path: Path, report: Report, request: pytest.FixtureRequest, whole: bool
) -> None:
    """Its machine's network goes on without it: all of it, or only the sessions that workers have."""
    with Fleet(
        own_services.database_url, own_services.redis_url, tmp_path, settings={"PICKAXE_ANSWER_WITHIN": "2"}
    ) as fleet:
        request.node.fleet = fleet
        more = fleet.enqueue(program, 2, answer=9)
        runs = under_load(fleet)
        moment = fleet.moment()
        with frozen(own_services, fleet, whole=whole) as processes:
            said = "Postgres did not answer within 2 s"
            eventually(lambda: all(w.has_said(said) for w in fleet.workers), "each worker gives its connections up")
        verdict = finish(fleet, runs, more)
        report(hits=len(processes), verdict=verdict, recovery=fleet.recovery(moment), buried=buried(fleet))


@contextlib.contextmanager
def frozen(services: Services, fleet: Fleet, *, whole: bool) -> Iterator[list[psutil.Process]]:
    """The processes of Postgres, all of them, or those that serve the fleet's workers, stand still."""
    mine = fleet.query("SELECT pid FROM pg_stat_activity WHERE application_name = 'pickaxe'")
    processes = [psutil.Process(services.postgres.pid)]
    processes[0].suspend()  # first, so that there are no new ones
    processes += [child for child in processes[0].children() if whole or (child.pid,) in mine]
    try:
        if not whole:
            processes.pop(0).resume()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it was just about to end
                process.suspend()
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


@contextlib.contextmanager
def used_up(url: str) -> Iterator[list[psycopg.Connection]]:
    """Idle connections until Postgres has no more."""
    held: list[psycopg.Connection] = []
    try:
        for _ in range(300):
            try:
                held.append(psycopg.connect(url))
            except psycopg.OperationalError:
                break
        else:
            raise AssertionError("Postgres took 300 connections")
        yield held
    finally:
        for connection in held:
            connection.close()


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.scenario(11)
def test_connections_used_up_by_others_hold_up_and_lose_nothing(
    own_fleet: Fleet, own_services: Services, report: Report
) -> None:
    fleet = own_fleet
    more = fleet.enqueue(program, 2, answer=9)
    runs = under_load(fleet)
    moment = fleet.moment()
    with used_up(fleet.plain_url) as held:
        mine = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pickaxe'"
        held[0].execute(mine)
        with used_up(fleet.plain_url) as also_held:
            hits = len(held) + len(also_held)
            time.sleep(4)  # the length of the fault
    verdict = finish(fleet, runs, more)
    report(hits=hits, verdict=verdict, recovery=fleet.recovery(moment))


@pytest.mark.timeout(90)
@pytest.mark.scenario(40)
@pytest.mark.parametrize("spared", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "nobody buried"])
def test_a_postgres_that_is_read_only_for_a_while_holds_up_and_loses_nothing(
    own_fleet: Fleet, own_services: Services, report: Report, spared: bool
) -> None:
    fleet = own_fleet
    more = fleet.enqueue(program, 2, answer=9)
    runs = under_load(fleet)
    moment = fleet.moment()
    with psycopg.connect(fleet.plain_url, autocommit=True, options="-c default_transaction_read_only=off") as admin:
        try:
            admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            admin.execute("SELECT pg_reload_conf()")
            shown = "SHOW default_transaction_read_only"
            eventually(lambda: fleet.query(shown) == [("on",)], "Postgres is read-only")
            with pytest.raises(ServiceUnavailableError, match="read-only"):
                fleet.enqueue(one_slow, 0.1)
        finally:
            admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
            admin.execute("SELECT pg_reload_conf()")
    verdict = finish(fleet, runs, more)
    refused = sum(w.text().count("read-only transaction") for w in fleet.workers)
    report(hits=refused, verdict=verdict, recovery=fleet.recovery(moment), buried=buried(fleet))
    if spared:
        assert buried(fleet) == 0, "living processes were declared dead because Postgres took no writes"


FULL = """
CREATE SEQUENCE audit.refusals;
CREATE FUNCTION audit.is_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM nextval('audit.refusals');
    RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100';
END $$;
CREATE TRIGGER a_full BEFORE INSERT OR UPDATE ON pickaxe.step FOR EACH ROW EXECUTE FUNCTION audit.is_full();
CREATE TRIGGER a_full BEFORE INSERT OR UPDATE ON pickaxe.run FOR EACH ROW EXECUTE FUNCTION audit.is_full();
"""


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.scenario(40)
def test_a_postgres_that_refuses_writes_as_if_its_disk_were_full_holds_up_and_loses_nothing(
    fleet: Fleet, report: Report
) -> None:
    """For those who may not mount a disk: whatever needs room fails with the error that Postgres has for that."""
    more = fleet.enqueue(program, 2, answer=9)
    runs = under_load(fleet)
    moment = fleet.moment()
    with psycopg.connect(fleet.plain_url, autocommit=True) as admin:
        admin.execute(FULL)
        with pytest.raises(ServiceUnavailableError, match="No space left on device"):
            fleet.enqueue(one_slow, 0.1)
        eventually(lambda: fleet.query("SELECT last_value FROM audit.refusals")[0][0] > 20, "many writes fail")
        admin.execute("DROP TRIGGER a_full ON pickaxe.step; DROP TRIGGER a_full ON pickaxe.run")
    verdict = finish(fleet, runs, more)
    hits = fleet.query("SELECT last_value FROM audit.refusals")[0][0]
    report(hits=hits, verdict=verdict, recovery=fleet.recovery(moment))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.scenario(40)
def test_a_postgres_whose_tables_are_on_a_full_disk_holds_up_and_loses_nothing(
    own_services: Services, tmp_path: Path, report: Report, request: pytest.FixtureRequest
) -> None:
    """Postgres itself goes on: whatever needs room fails."""
    with small_disk(32) as disk:
        url = on_disk(own_services, disk.place("tables", own_services.directory / "postgres"))
        with Fleet(url, own_services.redis_url, tmp_path) as fleet:
            request.node.fleet = fleet
            more = fleet.enqueue(program, 2, answer=9)
            runs = under_load(fleet)
            fillers: list[Any] = []
            with disk.full():
                moment = fleet.moment()
                with pytest.raises(ServiceUnavailableError, match="No space left on device"):
                    enqueue_for_ever(fleet, fillers)
                eventually(lambda: refused(own_services, "could not extend file") > 10, "many writes fail")
            hits = refused(own_services, "could not extend file")
            assert fleet.results(fillers) == [49] * len(fillers)
            verdict = finish(fleet, runs, more)
            report(hits=hits, verdict=verdict, recovery=fleet.recovery(moment), buried=buried(fleet))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.scenario(40)
def test_a_postgres_that_ends_because_the_disk_of_its_journal_is_full_is_started_again_and_has_lost_nothing(
    own_fleet: Fleet, own_services: Services, report: Report
) -> None:
    fleet, data = own_fleet, own_services.directory / "postgres"
    with small_disk(160) as disk:
        own_services.postgres.stop()
        shutil.copytree(data / "pg_wal", journal := disk.place("journal", data), dirs_exist_ok=True)
        for path in journal.rglob("*"):
            os.chown(path, journal.stat().st_uid, journal.stat().st_gid)
        shutil.rmtree(data / "pg_wal")
        (data / "pg_wal").symlink_to(journal)
        own_services.postgres.start()
        more = fleet.enqueue(program, 2, answer=9)
        runs = under_load(fleet)
        with disk.full():
            moment = fleet.moment()
            eventually(lambda: is_out_of_journal(fleet, own_services), "the next piece of the journal has no room")
        own_services.postgres.start()  # unless it has managed to do so by itself
        verdict = finish(fleet, runs, more)
        hits = refused(own_services, "No space left on device")
        report(hits=hits, verdict=verdict, recovery=fleet.recovery(moment), buried=buried(fleet))
        own_services.postgres.stop()


def enqueue_for_ever(fleet: Fleet, taken: list[Any]) -> None:
    """There is some room within the tables: until that is used up."""
    while True:
        taken += fleet.enqueue_many(one_slow, [(0.0,)] * 20)


def on_disk(services: Services, place: Path) -> str:
    """The URL of a database with Pickaxe's tables, all of them in this folder."""
    with psycopg.connect(services.database_url, autocommit=True) as admin:
        admin.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        admin.execute("CREATE DATABASE small TABLESPACE small")
    url = make_url(services.database_url).set(database="small").render_as_string(hide_password=False)
    database = Database(url)
    migrate(database)
    database.close()
    return url


def refused(services: Services, words: str) -> int:
    """How often Postgres has said this."""
    return (services.directory / "postgres.log").read_text("utf-8", "replace").count(words)


def is_out_of_journal(fleet: Fleet, services: Services) -> bool:
    """Go on to the next piece of the journal; whether that has ended Postgres."""
    with contextlib.suppress(psycopg.OperationalError):
        fleet.query("SELECT pg_switch_wal()")
    return refused(services, "PANIC") > 0
