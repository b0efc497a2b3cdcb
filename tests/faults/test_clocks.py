"""Clocks that are wrong, and clocks that jump: libfaketime, under one worker or under Postgres and Redis."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pickaxe.embedded import Services
from pickaxe.errors import ServiceUnavailableError
from pickaxe.store import Database, check_schema
from tests.faults.app import expected, expected_load, load, one_slow, program
from tests.faults.fleet import Fleet, eventually
from tests.faults.report import Report

libfaketime = pytest.importorskip("libfaketime", reason="pip install libfaketime")
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.scenario(21),
    pytest.mark.skipif(sys.platform != "linux", reason="libfaketime is preloaded"),
]


def library() -> str:
    return str(next(Path(libfaketime.__file__).parent.rglob("libfaketime.so*")))


@pytest.mark.parametrize("hours", ["+1h", pytest.param("-1h", marks=pytest.mark.slow)])
def test_a_worker_whose_clock_is_an_hour_wrong_does_its_work_like_the_others(
    fleet: Fleet, report: Report, hours: str
) -> None:
    wrong = {"LD_PRELOAD": library(), "FAKETIME": hours, "DONT_FAKE_MONOTONIC": "1"}
    runs = [fleet.enqueue(program, n, answer=n) for n in range(3)]
    far = fleet.start("far", pool="threads", concurrency=3, preload=wrong)
    more = fleet.enqueue_many(load, [(n, 0.1) for n in range(6)])
    near = fleet.start("near", pool="threads", concurrency=3)
    assert fleet.results(runs) == [expected(n, n) for n in range(3)]
    assert fleet.results(more) == [expected_load(n) for n in range(6)]
    verdict = fleet.check()
    offsets = {e.pid: float(e.key) for e in fleet.entries("clock")}
    assert abs(offsets[far.pid]) > 3500
    assert abs(offsets[near.pid]) < 5
    did = len([e for e in fleet.entries("start") if e.pid == far.pid])
    report(hits=did, verdict=verdict, offset=offsets[far.pid])
    assert fleet.query("SELECT count(*) FROM pickaxe.worker WHERE ended = 'died'") == [(0,)]


@pytest.fixture
def clock(own_services: Services) -> Iterator[Path]:
    """Postgres, started again as it was, under a clock that jumps by what is written here, such as `-10m`."""
    pid = own_services.postgres.pid
    assert pid is not None
    process = psutil.Process(pid)
    command, folder, user = process.cmdline(), process.cwd(), process.uids().real
    own_services.postgres.stop()
    file = Path(folder) / "clock"
    file.write_text("+0s")
    file.chmod(0o644)
    shutil.copy(library(), Path(folder) / "faketime.so")
    here = "/proc/self/cwd"  # the server's user may be unable to walk there by its path
    faked = {
        "LD_PRELOAD": f"{here}/faketime.so", "FAKETIME_TIMESTAMP_FILE": f"{here}/clock", "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1", "LC_ALL": "C", "TZ": "UTC",
    }  # fmt: skip
    server = subprocess.Popen(command, cwd=folder, env=faked, user=user, stderr=subprocess.DEVNULL)
    yield file
    server.send_signal(signal.SIGQUIT)
    server.wait(20)


@pytest.mark.slow
@pytest.mark.parametrize("jump", ["+1h", "-10m"])
def test_a_clock_of_postgres_that_jumps_loses_and_doubles_nothing(
    own_services: Services, clock: Path, tmp_path: Path, request: pytest.FixtureRequest, report: Report, jump: str
) -> None:
    database = Database(own_services.database_url)
    eventually(lambda: answers(database), "Postgres is there again")
    database.close()
    with Fleet(own_services.database_url, own_services.redis_url, tmp_path, settings={}) as fleet:
        request.node.fleet = fleet
        jumps(fleet, clock, jump, report)


def answers(database: Database) -> bool:
    try:
        return bool(check_schema(database))
    except ServiceUnavailableError:
        return False


def jumps(fleet: Fleet, clock: Path, jump: str, report: Report) -> None:
    runs: list[Any] = fleet.enqueue_many(load, [(n, 0.2) for n in range(12)])
    for name in ("one", "two"):
        fleet.start(name, pool="threads", concurrency=4)
    program_run = fleet.enqueue(program, 2, answer=9)
    seen = []
    eventually(lambda: len(fleet.running()) >= 3, "calls are running")
    # Not back from an hour ahead: timers that were set in that hour rightly fire in it.
    for offset in (jump, "+0s") if jump.startswith("-") else (jump,):
        _set(clock, offset)
        seen.append(eventually(lambda: skew(fleet), "the clock has jumped") if offset == jump else skew(fleet))
        runs += fleet.enqueue_many(one_slow, [(0.1,) for _ in range(4)])
        fleet.await_more("end", 4)
    expectation = [expected_load(n) for n in range(12)] + [49] * (len(runs) - 12)
    assert fleet.results([program_run]) == [expected(2, 9)]
    assert fleet.results(runs) == expectation
    verdict = fleet.check(same_clock=False)
    died = fleet.query("SELECT count(*) FROM pickaxe.worker WHERE ended = 'died'")[0][0]
    report(hits=sum(abs(s) > 500 for s in seen), verdict=verdict, buried=died, skew=seen[0])
    assert died == 0, f"{died} living processes were declared dead because a clock had jumped"


def _set(clock: Path, offset: str) -> None:
    """At once: whoever reads it meanwhile must not find it empty."""
    new = clock.with_suffix(".new")
    new.write_text(offset)
    new.chmod(0o644)
    new.replace(clock)


def skew(fleet: Fleet) -> float:
    """By how many seconds Postgres' clock is wrong, if by many."""
    ahead = float(fleet.query("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0]) - time.time()
    return ahead if abs(ahead) > 5 else 0.0
