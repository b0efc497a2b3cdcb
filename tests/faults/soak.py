"""Random programs under a nemesis, seed after seed: `python -m tests.faults.soak --seeds 200 --jobs 2`.

A line for each seed, a table at the end; a seed that fails leaves its story in a file, and is replayed by
`PICKAXE_TEST_SEED=… pytest tests/faults/test_random_programs.py` or by `--first … --seeds 1`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from pickaxe.embedded import Services
from pickaxe.store import Database, migrate
from tests.faults.fleet import FAST, Fleet, cool_down, warm_up
from tests.faults.nemesis import Nemesis
from tests.faults.random_runs import Programs

PROGRAMS = 12
ACTIONS = 6

TEMPLATE = "migrated"

SETTINGS = {**FAST, "PICKAXE_REDISPATCH_CAP": "10"}
"""A longer pause than FAST's, or what waits in a long queue is published over and over, and makes it longer."""


@dataclass
class Report:
    """How one seed went."""

    seed: int
    seconds: float = 0.0
    recovery: float = 0.0
    hits: Counter[str] = field(default_factory=Counter)
    counts: dict[str, int] = field(default_factory=dict)
    error: str = ""

    def __str__(self) -> str:
        hits = ", ".join(f"{name} {times}" for name, times in sorted(self.hits.items()))
        outcome = f"FAILED: {self.error.splitlines()[0]}" if self.error else str(self.counts)
        return f"seed {self.seed}: {self.seconds:.0f} s, at rest {self.recovery:.1f} s after [{hits}] {outcome}"


class Arena:
    """Servers to be broken, with a database for each seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = count()

    def __enter__(self) -> Arena:
        self._open = ExitStack()
        self.services = self._open.enter_context(Services.start(durable=False))
        self._administer("CREATE DATABASE {}", TEMPLATE)
        database = Database(self._url(TEMPLATE))
        migrate(database)
        database.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def fight(self, seed: int, *, programs: int = PROGRAMS, actions: int = ACTIONS) -> Report:
        """One seed, to its end. Raises AssertionError with everything one needs to know."""
        report = Report(seed)
        name, began = f"arena_{next(self._names)}", time.monotonic()
        self._administer("CREATE DATABASE {} TEMPLATE {}", name, TEMPLATE)
        folder = self.folder / name
        folder.mkdir()
        with Fleet(self._url(name), self.services.redis_url, folder, SETTINGS) as fleet:
            fleet.client.redis.flushall()
            try:
                self._storm(fleet, report, programs, actions)
            finally:
                report.seconds = time.monotonic() - began
        self._administer("DROP DATABASE {} WITH (FORCE)", name)
        return report

    def _storm(self, fleet: Fleet, report: Report, count: int, actions: int) -> None:
        nemesis = Nemesis(fleet, self.services, report.seed)
        with Programs(fleet, report.seed, count, span=actions * 1.0) as programs, nemesis:
            try:
                waiting = list(programs.plans)
                for label in waiting[: count // 2]:
                    programs.start(label)
                waiting = waiting[count // 2 :]
                nemesis.rage(actions, lambda: programs.start(waiting.pop()) if waiting else None)
                for label in waiting:
                    programs.start(label)
                nemesis.relent()
                report.hits, ended = Counter(nemesis.hits), time.monotonic()
                programs.finish()
                report.recovery = time.monotonic() - ended
                report.counts = programs.judge()
            except BaseException as error:
                story = ["the nemesis:", *nemesis.log, programs.story(), fleet.story()]
                raise AssertionError(f"{error}\n" + "\n".join(story)) from error

    def _url(self, name: str) -> str:
        return make_url(self.services.database_url).set(database=name).render_as_string(hide_password=False)

    def _administer(self, statement: str, *names: str) -> None:
        url = make_url(self.services.database_url).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))  # type: ignore[arg-type]


def _job(seeds: multiprocessing.Queue[int | None], reports: multiprocessing.Queue[Report], folder: Path) -> None:
    """Fights seeds until there are no more. A seed that failed gets new servers for its successor."""
    for number in count():
        warm_up()
        own = folder / f"{os.getpid()}-{number}"
        own.mkdir(parents=True)
        with Arena(own) as arena:
            if not _fought(arena, seeds, reports, folder):
                return cool_down()


def _fought(
    arena: Arena, seeds: multiprocessing.Queue[int | None], reports: multiprocessing.Queue[Report], folder: Path
) -> bool:
    """True when a seed has failed, False when there are no more."""
    while (seed := seeds.get()) is not None:
        began = time.monotonic()
        try:
            reports.put(arena.fight(seed))
        except BaseException:
            story = traceback.format_exc()
            (folder / f"seed-{seed}.txt").write_text(story)
            error = story.rpartition("AssertionError: ")[2] or story.strip().splitlines()[-1]
            reports.put(Report(seed, time.monotonic() - began, error=error))
            return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="where the stories of failed seeds are kept")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the jobs end with it
    folder = given.folder or Path(tempfile.mkdtemp(prefix="pickaxe-soak-"))
    context = multiprocessing.get_context("spawn")
    seeds: multiprocessing.Queue[int | None] = context.Queue()
    results: multiprocessing.Queue[Report] = context.Queue()
    for seed in range(given.first, given.first + given.seeds):
        seeds.put(seed)
    jobs = [context.Process(target=_job, args=(seeds, results, folder), daemon=True) for _ in range(given.jobs)]
    for job in jobs:
        seeds.put(None)
        job.start()
    reports = []
    for _ in range(given.seeds):
        reports.append(results.get())
        print(reports[-1], flush=True)
    for job in jobs:
        job.join()
    _print_table(reports, folder)
    return 1 if any(report.error for report in reports) else 0


def _print_table(reports: list[Report], folder: Path) -> None:
    good = [report for report in reports if not report.error]
    hits = sum((report.hits for report in reports), Counter())
    recovery = sorted(report.recovery for report in good) or [0.0]
    print(f"\n{'fault':<18}{'hits':>6}")
    for name, times in hits.most_common():
        print(f"{name:<18}{times:>6}")
    runs = sum(report.counts["runs"] for report in good)
    effects = sum(report.counts["effects"] for report in good)
    print(f"\n{len(good)} of {len(reports)} seeds held: {runs} runs, {effects} effects")
    print(f"at rest after the last fault: p50 {recovery[len(recovery) // 2]:.1f} s, max {recovery[-1]:.1f} s")
    for report in reports:
        if report.error:
            print(f"failed: PICKAXE_TEST_SEED={report.seed}, see {folder / f'seed-{report.seed}.txt'}")


if __name__ == "__main__":
    sys.exit(main())
