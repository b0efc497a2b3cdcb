"""Other code, other schema: rolled out while runs live."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from pickaxe.errors import RunPausedError, SchemaError
from pickaxe.store import Database, check_schema, migrate
from tests.faults.app import deployed
from tests.faults.fleet import Fleet, eventually
from tests.faults.nursery import ROOT
from tests.faults.report import Report
from tests.services import isolated_database

ORDERS = ["forward and back", "random"]


@pytest.mark.timeout(110)
@pytest.mark.scenario(34)
@pytest.mark.parametrize("order", ["mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in ORDERS)])
def test_runs_outlive_code_that_is_rolled_out_and_back_as_long_as_it_only_adds_calls_elsewhere(
    fleet: Fleet, seed: int, report: Report, order: str
) -> None:
    chance = random.Random(seed)
    versions = {"forward and back": ["1", "2", "1"], "random": chance.choices("12", k=4), "mixed": ["1", "2"]}[order]
    runs = fleet.enqueue_many(deployed, [(n,) for n in range(10)])
    running = [fleet.start("v1", pool="threads", concurrency=4, environment={"PICKAXE_TEST_VERSION": "1"})]
    for number, version in enumerate(versions):
        new = fleet.start(
            f"deploy{number}", pool="threads", concurrency=4, environment={"PICKAXE_TEST_VERSION": version}
        )
        # So many that all are under way, and none has ended, when the old code is gone.
        runs += fleet.enqueue_many(deployed, [(len(runs) + n,) for n in range(20)])
        fleet.await_more("end", 25)
        if order != "mixed":
            for old in running:
                old.kill()
            running.clear()
        running.append(new)
    results = fleet.results(runs, 80)
    assert {tuple(result[:2]) for result in results} == {(n, 4 * n + 6) for n in range(len(runs))}
    seen = {version for result in results for version in result[2]}
    report(hits=len(versions), verdict=fleet.check(), versions=sorted(seen))
    assert seen == {"1", *versions}


@pytest.mark.timeout(60)
@pytest.mark.scenario(36)
@pytest.mark.parametrize("change", ["argument", "reorder"])
def test_code_that_no_longer_fits_pauses_the_run_shows_both_sides_and_goes_on_when_it_is_mended(
    fleet: Fleet, report: Report, change: str
) -> None:
    run = fleet.enqueue(deployed, 3)
    old = fleet.start("old", environment={"PICKAXE_TEST_VERSION": "1"})
    eventually(lambda: run.state() == "half", "it is half way")
    old.kill()
    wrong = fleet.start("wrong", environment={"PICKAXE_TEST_VERSION": change})
    with pytest.raises(RunPausedError) as caught:
        fleet.results([run])
    assert "slow#" in str(caught.value) or "add#" in str(caught.value), caught.value
    before = len(fleet.entries("start"))
    wrong.kill()
    fleet.start("mended", environment={"PICKAXE_TEST_VERSION": "1"})
    assert run.retry()
    assert fleet.results([run])[0][:2] == [3, 4 * 3 + 6]
    assert len({e.key for e in fleet.entries("start")}) >= before - 1
    report(hits=1, verdict=fleet.check(), told=str(caught.value)[:200])


MIGRATE = """
import sys
from pickaxe.store import Database, migrate
print(migrate(Database(sys.argv[1])))
"""
HOLD = """
CREATE FUNCTION hold() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_advisory_lock_shared(9, 9); PERFORM pg_advisory_unlock_shared(9, 9);
END $$;
CREATE EVENT TRIGGER hold ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION hold();
"""


@pytest.mark.timeout(60)
@pytest.mark.scenario(35)
def test_a_migration_that_is_killed_midway_leaves_nothing_and_the_next_is_complete(report: Report) -> None:
    with isolated_database() as url, psycopg.connect(url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(9, 9)")
        holder.execute(HOLD)
        victim = subprocess.Popen([sys.executable, "-c", MIGRATE, url], cwd=ROOT)
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 9 AND NOT granted"
        eventually(lambda: holder.execute(waiting).fetchone()[0] == 1, "the migration is midway")  # type: ignore[index]
        victim.kill()
        victim.wait()
        holder.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE classid = 9 AND NOT granted")
        holder.execute("DROP EVENT TRIGGER hold")
        database = Database(url)
        with pytest.raises(SchemaError, match="has no Pickaxe tables"):
            check_schema(database)
        before, after = migrate(database)
        assert before == 0
        assert check_schema(database) == after
        invalid = holder.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid").fetchone()
        database.close()
    assert invalid == (0,)
    report(hits=1)


@pytest.mark.timeout(60)
@pytest.mark.scenario(35)
def test_several_migrators_at_once_migrate_once(report: Report) -> None:
    with isolated_database() as url:
        barrier = threading.Barrier(4)

        def work(_: int) -> tuple[int, int]:
            database = Database(url)
            barrier.wait()
            try:
                return migrate(database)
            finally:
                database.close()

        with ThreadPoolExecutor(4) as pool:
            done = sorted(pool.map(work, range(4)))
    [newest] = {after for _, after in done}
    assert [before for before, _ in done] == [0, newest, newest, newest]
    report(hits=4)


@pytest.mark.timeout(60)
@pytest.mark.scenario(35)
def test_a_worker_refuses_a_schema_that_is_newer_than_it_is(fleet: Fleet, tmp_path: Path, report: Report) -> None:
    fleet.query("UPDATE pickaxe.alembic_version SET version_num = '9999' RETURNING 1")
    worker = fleet.start("old", wait=False)
    eventually(worker.has_died, "the worker does not start")
    assert worker.process.returncode != 0
    assert "9999" in worker.text(), worker.text()[-2000:]
    report(hits=1)
