"""A fleet of real worker processes, the faults that befall it, and the invariants that must hold after them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from pickaxe import Settings
from pickaxe.authoring._handles import EnqueueOptions
from pickaxe.client import Client, Run
from pickaxe.errors import PickaxeError, ServiceUnavailableError
from tests.faults import app as programs

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

FAST = {
    "PICKAXE_REDISPATCH_AFTER": "1",
    "PICKAXE_REDISPATCH_CAP": "2",
    "PICKAXE_BEAT_EVERY": "0.25",
    "PICKAXE_DEAD_AFTER": "0.75",
    "PICKAXE_VANISHED_AFTER": "2",
    "PICKAXE_SWEEP_EVERY": "0.25",
    "PICKAXE_QUARANTINE_AFTER": "0",
}
"""Everything that waits waits less, so that a test takes seconds. Nobody is to blame for deaths that a test causes."""

READY = 3
"""Worker processes kept warm."""

_warm: list[subprocess.Popen[bytes]] = []


def eventually(check: Callable[[], T], what: str, within: float = 30) -> T:
    """Wait until `check` returns something true, and return that."""
    deadline = time.monotonic() + within
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: this did not happen within {within:g} s")
        time.sleep(0.02)
    return found


def warm_up(count: int = READY) -> None:
    """Have so many processes ready to become workers."""
    while len(_warm) < count:
        argv = [sys.executable, "-m", "tests.faults.warm"]
        # A process group of its own: what a worker forks can be killed with it.
        _warm.append(subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True))


def cool_down() -> None:
    """End those that were not needed."""
    while _warm:
        process = _warm.pop()
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


class WorkerProcess:
    """One `celery worker`."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self.process = process
        self.name = name
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        """A signal to its main process."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, forked children included."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)

    def has_died(self) -> bool:
        return self.process.poll() is not None

    def has_said(self, words: str, times: int = 1) -> bool:
        """Whether its log has these words so many times."""
        return self.text().count(words) >= times

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    word: str
    key: str
    attempt: str
    pid: int
    at: float


@dataclass
class Fleet:
    """Workers over one database and one Redis, with a ledger."""

    database_url: str
    redis_url: str
    folder: Path
    settings: Mapping[str, str] = field(default_factory=lambda: FAST)
    workers: list[WorkerProcess] = field(default_factory=list)
    runs: list[Run[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = self.folder / "ledger"
        self.ledger.touch()
        own = {name.removeprefix("PICKAXE_").lower(): value for name, value in self.settings.items()}
        self.client = Client(
            Settings(_env_file=None, database_url=self.database_url, redis_url=self.redis_url, **own)  # type: ignore[arg-type]
        )

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
        self.client.close()

    def story(self) -> str:
        """For people: what is left, and the ends of the workers' logs."""
        try:
            left = "\n".join(map(str, self.leftovers()))
        except psycopg.Error as error:
            left = str(error)
        logs = [f"--- {w.name} ({w.pid})\n{w.text()[-5000:]}" for w in self.workers]
        return "\n".join(["left over:", left, *logs])

    # Workers.

    def start(
        self,
        name: str = "worker",
        *,
        pool: str = "solo",
        concurrency: int = 1,
        queues: str = "agents,tools",
        wait: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> WorkerProcess:
        """Start a worker. `environment` are further variables of its own."""
        warm_up(1)
        process = _warm.pop(0)
        worker = WorkerProcess(process, name, self.folder / f"{name}.{len(self.workers)}.log")
        told = {
            "environment": {
                "PICKAXE_DATABASE_URL": self.database_url,
                "PICKAXE_REDIS_URL": self.redis_url,
                "PICKAXE_TEST_LEDGER": str(self.ledger),
                **self.settings,
                **(environment or {}),
            },
            "log": str(worker.log),
            "options": [
                *["-Q", queues, "-P", pool, "-c", str(concurrency), "-n", f"{name}@%h", "-l", "INFO"],
                *["--without-gossip", "--without-mingle"],
            ],
        }
        assert process.stdin is not None
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.close()
        self.workers.append(worker)
        warm_up()
        if wait:
            eventually(lambda: self.is_registered(worker) or worker.has_died(), f"{name} comes up")
        return worker

    def is_registered(self, worker: WorkerProcess) -> bool:
        rows = self.query("SELECT 1 FROM pickaxe.worker WHERE name LIKE %s AND ended_at IS NULL", f"{worker.name}@%")
        return bool(rows)

    # Runs.

    def enqueue(self, agent: Any, *args: Any, answer: int | None = None) -> Run[Any]:
        """Start a run; `answer` is a signal that it is sent at once."""
        run = self.client.enqueue(agent, [(args, {})], [EnqueueOptions()])[0]
        self.runs.append(run)
        if answer is not None:
            run.signal("answer", answer)
        return run

    def enqueue_many(self, agent: Any, inputs: Sequence[tuple[Any, ...]]) -> list[Run[Any]]:
        runs = self.client.enqueue(agent, [(args, {}) for args in inputs], [EnqueueOptions()] * len(inputs))
        self.runs += runs
        return runs

    def results(self, runs: Iterable[Run[Any]], within: float = 40) -> list[Any]:
        """All results, though Postgres may go away meanwhile."""
        deadline = time.monotonic() + within
        return [patiently(run, deadline) for run in runs]

    # What is known.

    def query(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        url = self.database_url.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(url, autocommit=True) as connection:
            return connection.execute(text, parameters).fetchall()

    def execute(self, text: str, *parameters: Any) -> None:
        url = self.database_url.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(text, parameters)

    def entries(self, *words: str) -> list[Entry]:
        lines = [line.split() for line in self.ledger.read_text().splitlines()]
        found = [Entry(word, key, attempt, int(pid), float(at)) for word, key, attempt, pid, at in lines]
        return [entry for entry in found if not words or entry.word in words]

    def running(self, pid: int | None = None) -> list[Entry]:
        """Bodies that have started and not ended, of one process or of all."""
        ended = {(e.key, e.attempt) for e in self.entries("end", "failed")}
        starts = self.entries("start")
        return [e for e in starts if (e.key, e.attempt) not in ended and pid in (None, e.pid)]

    def await_more(self, word: str, count: int = 1) -> None:
        """Wait until the ledger has so many more of these entries."""
        seen = len(self.entries(word))
        eventually(lambda: len(self.entries(word)) >= seen + count, f"{count} more {word}: work goes on")

    def leftovers(self) -> list[tuple[Any, ...]]:
        """Whatever is not at rest."""
        steps = self.query(
            "SELECT run_id, key, state, attempt, owner, due, reason FROM pickaxe.step "
            "WHERE state NOT IN ('succeeded', 'failed', 'cancelled')"
        )
        runs = self.query(
            "SELECT id, agent, state, dispatches, due, reason, error FROM pickaxe.run "
            "WHERE state NOT IN ('succeeded', 'failed', 'cancelled')"
        )
        return [*runs, *steps]

    def check(self, *, within: float = 20) -> None:
        """The invariants I1, I2, I6 and I8."""
        self.check_at_rest(within=within)
        self._one_result_each()
        self._one_seq_each()

    def check_at_rest(self, *, within: float = 20) -> None:
        """I1, I8: all runs are over, and nothing is left running or ready, nor does it come back."""
        eventually(lambda: not self.leftovers(), "everything comes to rest", within)

    def _one_result_each(self) -> None:
        """I2: no body began after its result was recorded, and the recorded attempt's body did end, once."""
        ends: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries("end", "failed"):
            ends[entry.key].append(entry)
        recorded = {
            f"{run}/{key}": (state, attempt, at.timestamp())
            for run, key, state, attempt, at in self.query(
                "SELECT run_id, key, state, attempt, finished_at FROM pickaxe.step WHERE kind = 'tool'"
            )
        }
        for entry in self.entries("start"):
            _, _, at = recorded[entry.key]
            assert entry.at <= at, f"{entry} began after its result was recorded at {at}"
        for key, (state, attempt, _) in recorded.items():
            if state == "succeeded":
                of_it = [e for e in ends[key] if e.word == "end" and e.attempt == str(attempt)]
                assert len(of_it) == 1, f"{key} succeeded in attempt {attempt}, whose body ended {len(of_it)} times"
        attempts = [(entry.key, entry.attempt) for entry in self.entries("start")]
        assert len(attempts) == len(set(attempts)), "an attempt was run twice"

    def _one_seq_each(self) -> None:
        """I6: every arrival has one place, no two share one, and every gather that ended has arrived exactly once."""
        shared = self.query(
            "SELECT run_id, seq FROM (SELECT run_id, seq FROM pickaxe.step WHERE kind <> 'signal' AND seq IS NOT NULL "
            "UNION ALL SELECT run_id, seq FROM pickaxe.signal "
            "UNION ALL SELECT id, cancel_seq FROM pickaxe.run WHERE cancel_seq IS NOT NULL) a "
            "GROUP BY 1, 2 HAVING count(*) > 1"
        )
        assert not shared, shared
        lost = self.query(
            "SELECT run_id, key FROM pickaxe.step WHERE kind = 'gather' AND state = 'succeeded' AND seq IS NULL"
        )
        assert not lost, lost
        miscounted = self.query(
            "SELECT g.run_id, g.key, g.counted, count(s.ordinal) FROM pickaxe.step g "
            "JOIN pickaxe.step s ON s.run_id = g.run_id AND s.group_key = g.key WHERE g.kind = 'gather' "
            "GROUP BY 1, 2, 3 HAVING g.counted <> count(s.ordinal) OR count(s.ordinal) <> count(DISTINCT s.ordinal)"
        )
        assert not miscounted, miscounted


def patiently(run: Run[Any], deadline: float) -> Any:
    """A run's result, though Postgres may go away meanwhile."""
    while True:
        try:
            return run.result(timeout=max(0.1, deadline - time.monotonic()))
        except ServiceUnavailableError:
            if time.monotonic() > deadline:
                raise


def host() -> str:
    return socket.gethostname()


__all__ = ["FAST", "Fleet", "PickaxeError", "WorkerProcess", "cool_down", "eventually", "programs", "warm_up"]
