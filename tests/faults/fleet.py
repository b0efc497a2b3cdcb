"""A fleet of real worker processes, the faults that befall it, and the invariants that must hold after them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
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
from tests.faults import audit
from tests.faults.nursery import Forked, Nursery
from tests.faults.report import Verdict

T = TypeVar("T")

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

_nurseries: list[Nursery] = []


def eventually(check: Callable[[], T], what: str, within: float = 30) -> T:
    """Wait until `check` returns something true, and return that."""
    deadline = time.monotonic() + within
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: this did not happen within {within:g} s")
        time.sleep(0.02)
    return found


def warm_up() -> Nursery:
    """Have a process ready that workers are forked from."""
    if not _nurseries:
        _nurseries.append(Nursery())
    return _nurseries[0]


def cool_down() -> None:
    """End it."""
    while _nurseries:
        _nurseries.pop().close()


class WorkerProcess:
    """One `celery worker`."""

    def __init__(self, process: Forked, name: str, log: Path) -> None:
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


@dataclass(frozen=True)
class Moment:
    """When a fault hit (`time.time()`), and the calls that then were ready or running."""

    at: float
    keys: frozenset[str]


@dataclass
class Fleet:
    """Workers over one database and one Redis, with a ledger."""

    database_url: str
    redis_url: str
    folder: Path
    settings: Mapping[str, str] = field(default_factory=lambda: FAST)
    workers: list[WorkerProcess] = field(default_factory=list)
    runs: list[Run[Any]] = field(default_factory=list)
    nurseries: list[Nursery] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = self.folder / "ledger"
        self.ledger.touch()
        audit.install(self.plain_url)
        self._postgres = self._postgres_start()
        own = {name.removeprefix("PICKAXE_").lower(): value for name, value in self.settings.items()}
        self.client = Client(
            Settings(_env_file=None, database_url=self.database_url, redis_url=self.redis_url, **own)  # type: ignore[arg-type]
        )

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
        for nursery in self.nurseries:
            nursery.close()
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
        preload: Mapping[str, str] | None = None,
    ) -> WorkerProcess:
        """Start a worker. `environment` are further variables of its own; `preload` those its interpreter needs."""
        options = [
            *["-Q", queues, "-P", pool, "-c", str(concurrency), "-n", f"{name}@%h", "-l", "INFO"],
            *["--without-gossip", "--without-mingle"],
        ]
        nursery = warm_up() if preload is None else self._nursery(preload)
        worker = self._fork(nursery, name, environment, program="worker", options=options)
        if wait:
            eventually(lambda: self.is_registered(worker) or worker.has_died(), f"{name} comes up")
        return worker

    def start_client(self, environment: Mapping[str, str]) -> WorkerProcess:
        """Start a process that runs nothing, and says to the fleet what `one_client.py` says."""
        return self._fork(warm_up(), "client", environment, program="client")

    def _nursery(self, preload: Mapping[str, str]) -> Nursery:
        """One of this fleet's own: what an interpreter needs when it starts cannot be told to it after a fork."""
        self.nurseries.append(Nursery(preload))
        return self.nurseries[-1]

    def _fork(self, nursery: Nursery, name: str, environment: Mapping[str, str] | None, **told: Any) -> WorkerProcess:
        log = self.folder / f"{name}.{len(self.workers)}.log"
        told["log"] = str(log)
        told["environment"] = {
            "PICKAXE_DATABASE_URL": self.database_url,
            "PICKAXE_REDIS_URL": self.redis_url,
            "PICKAXE_TEST_LEDGER": str(self.ledger),
            "PICKAXE_TEST_EPOCH": repr(time.time() - time.monotonic()),
            **self.settings,
            **(environment or {}),
        }
        worker = WorkerProcess(nursery.fork(told), name, log)
        self.workers.append(worker)
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

    @property
    def plain_url(self) -> str:
        """The database, for psycopg."""
        return self.database_url.replace("postgresql+psycopg", "postgresql")

    def query(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.plain_url, autocommit=True) as connection:
            return connection.execute(text, parameters).fetchall()

    @property
    def crashed(self) -> bool:
        """Whether Postgres has been started again since this fleet was made."""
        return bool(self._postgres_start() != self._postgres)

    def _postgres_start(self) -> Any:
        return self.query("SELECT pg_postmaster_start_time()")[0][0]

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

    def moment(self, *, pid: int | None = None) -> Moment:
        """Now, with the calls that a fault would hit now: those of one process, or all."""
        if pid is not None:
            return Moment(time.time(), frozenset(e.key for e in self.running(pid)))
        rows = self.query("SELECT run_id, key FROM pickaxe.step WHERE kind = 'tool' AND state IN ('ready', 'running')")
        return Moment(time.time(), frozenset(f"{run}/{key}" for run, key in rows))

    def recovery(self, *moments: Moment) -> list[float]:
        """I9, when all is over: seconds from a fault until each call it hit was begun, or begun again."""
        found = []
        for moment in moments:
            first: dict[str, float] = {}
            for entry in self.entries("start"):
                if entry.at > moment.at and entry.key in moment.keys:
                    first.setdefault(entry.key, entry.at - moment.at)
            found += first.values()
        return found

    def check(self, *, within: float = 20, same_clock: bool = True) -> Verdict:
        """The invariants I1 to I8; raises `AssertionError`. I9, and I7 for a limit of its own, are for the test.

        Without the `same_clock` here and in Postgres, that no body began after its result is left to the audit.
        """
        self.check_at_rest(within=within)
        self._one_result_each(same_clock)
        self._at_most_once()
        self._exactly_once()
        with psycopg.connect(self.plain_url, autocommit=True) as connection:
            stale = audit.check(connection)  # I5
        self._one_seq_each()
        self.check_rate("limited", 20, 1.0)
        refused = sum(worker.text().count("came too late and was refused") for worker in self.workers)
        again = sum(entry.attempt != "1" for entry in self.entries("start"))
        return Verdict(refused=stale + refused, again=again)

    def check_at_rest(self, *, within: float = 20) -> None:
        """I1, I8: all runs are over, and nothing is left running or ready, nor does it come back."""
        eventually(lambda: not self.leftovers(), "everything comes to rest", within)

    def _at_most_once(self) -> None:
        """I3: whatever a tool that may only start once has written as `once` is there once."""
        keys = [entry.key for entry in self.entries("once")]
        assert len(keys) == len(set(keys)), f"started twice: {sorted(k for k in set(keys) if keys.count(k) > 1)}"

    def _exactly_once(self) -> None:
        """I4: whatever a transactional tool has done, and has told of as `done`, was done once."""
        keys = [entry.key for entry in self.entries("done")]
        assert len(keys) == len(set(keys)), f"done twice: {sorted(k for k in set(keys) if keys.count(k) > 1)}"

    def check_rate(self, tool: str, count: int, per: float, *, slack: float = 0.15) -> int:
        """I7: no window of `per` seconds has more than `count` starts of this tool. Returns the most there were.

        The ledger is written after the limit said yes, and not always equally long after: `slack` seconds less are
        looked at.
        """
        starts = sorted(
            e.at for e in self.entries("start") if e.key.partition("/")[2].rpartition("/")[2].startswith(f"{tool}#")
        )
        most = max((sum(at <= other < at + per - slack for other in starts) for at in starts), default=0)
        assert most <= count, (
            f"{tool} started {most} times within {per - slack:g} s, and may {count} times in {per:g} s"
        )
        return most

    def _one_result_each(self, same_clock: bool) -> None:
        """I2: no body began after its result was recorded, and the recorded attempt's body did end, once.

        A crash of Postgres can undo a claim; if its process dies before it makes it again, another makes the same one.
        """
        crashed = self.crashed
        ends: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries("end", "failed"):
            ends[entry.key].append(entry)
        recorded = {
            f"{run}/{key}": (state, attempt, at.timestamp())
            for run, key, state, attempt, at in self.query(
                # What a reconcile found, or a person said, is no result of a body.
                "SELECT run_id, key, CASE WHEN reconciling OR strpos(coalesce(history, ''), %s) > 0 "
                "THEN 'resolved' ELSE state END, attempt, finished_at FROM pickaxe.step "
                "WHERE kind = 'tool' AND name <> 'step_up'",  # which keeps no ledger
                '"how":"result"',
            )
        }
        # What a process claimed before it was taken for dead, it may still begin when it wakes up.
        buried = {pid for (pid,) in self.query("SELECT pid FROM pickaxe.worker WHERE ended = 'died'")}
        for entry in self.entries("start") if same_clock else ():
            state, attempt, at = recorded[entry.key]
            # A call may be cancelled between its claim and its body.
            if state != "cancelled" and not (entry.pid in buried and int(entry.attempt) < attempt):
                assert entry.at <= at, f"{entry} began after its result was recorded at {at}"
        for key, (state, attempt, _) in recorded.items():
            if state == "succeeded":
                of_it = [e.pid for e in ends[key] if e.word == "end" and e.attempt == str(attempt)]
                once = len(of_it) == 1 or (crashed and len(of_it) == len(set(of_it)) > 1)
                assert once, f"{key} succeeded in attempt {attempt}, whose body ended {len(of_it)} times"
        attempts = [(e.key, e.attempt, e.pid if crashed else None) for e in self.entries("start")]
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


__all__ = ["FAST", "Fleet", "Moment", "PickaxeError", "WorkerProcess", "cool_down", "eventually", "programs", "warm_up"]
