"""Runs that are moved by hand, one moment at a time: no worker, no message is awaited, and the database itself holds
up whoever is told to wait. What happens is what workers do; only when it happens is the test's."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy.exc import DBAPIError

from pickaxe import Pickaxe, Settings, agent, gather, wait_for_signal
from pickaxe.client import Run
from pickaxe.engine import _work
from pickaxe.store import Database, RunRow, Store
from tests.faults.app import add, ask_in_time
from tests.faults.audit import Barrier
from tests.faults.fleet import Fleet

ROUNDS = 50
"""Signals that one run of `hears` takes: its log stays short, and so does the time to replay it."""


@agent
async def hears(count: int) -> list[int]:
    """Parks for one signal after the other."""
    return [await wait_for_signal("answer", int) for _ in range(count)]


@agent
async def hears_two() -> list[Any]:
    """Two child runs, each of which ends when it is told to; a cancelled one counts."""
    found = await gather(hears(1), hears(1), return_exceptions=True)
    return [type(one).__name__ if isinstance(one, Exception) else one for one in found]


@agent
async def adds_two() -> int:
    """Two calls at once."""
    return sum(await gather(add(1, 2), add(3, 4)))


class InterruptedDatabase(Database):
    """Has something else happen just before one of its statements is sent."""

    before: tuple[str, Callable[[], object]] | None = None
    deadlocks = 0

    def rows(self, name: str, /, **parameters: Any) -> Any:
        if self.before is not None and self.before[0] == name:
            (_, happen), self.before = self.before, None
            happen()
        return super().rows(name, **parameters)

    def _may_try_again(self, error: DBAPIError, deadline: float) -> None:
        self.deadlocks += isinstance(error.orig, psycopg.errors.DeadlockDetected)
        super()._may_try_again(error, deadline)


class Moments:
    """The fleet's database, and an engine in this process."""

    def __init__(self, fleet: Fleet) -> None:
        settings = Settings(_env_file=None, database_url=fleet.database_url, redis_url=fleet.redis_url)  # type: ignore[arg-type]
        self.fleet = fleet
        self.app = Pickaxe("moments", agents=[hears, hears_two, ask_in_time, adds_two], tools=[add], settings=settings)
        self.database = InterruptedDatabase(fleet.database_url)
        self.store = Store(self.database, redispatch=settings.redispatch_after)
        for client in (self.app.client, fleet.client):
            client.__dict__["store"] = self.store
        self.engine = self.app.engine
        self.threads = ThreadPoolExecutor(4)

    def close(self) -> None:
        self.threads.shutdown()
        self.engine.close()

    def reduce(self, run: Run[Any]) -> None:
        """What the message of a run asks a worker for."""
        _work.reduce(self.engine, uuid.UUID(run.id))

    def row(self, run: Run[Any]) -> RunRow:
        found = self.store.load(uuid.UUID(run.id))
        assert found is not None
        return found.row

    def fire(self) -> int:
        """What the sweeper does about timers that are due. Returns how many runs it woke."""
        return len(self.store.due_timers())

    def due(self, run: Run[Any]) -> None:
        """The run's timer is due from now on."""
        timer = "run_id = %s AND kind = 'timer' AND state = 'waiting'"
        assert self.fleet.query(f"UPDATE pickaxe.step SET due = clock_timestamp() WHERE {timer} RETURNING 1", run.id)

    def children(self, run: Run[Any]) -> list[Run[Any]]:
        return [self.fleet.client.run(kid.id) for kid in self.store.children(uuid.UUID(run.id))]

    def messages(self, run: Run[Any]) -> int:
        """How many messages about this run have been sent since they were last counted."""
        redis = self.fleet.client.redis
        sent = [item for key in redis.scan_iter("agents*", _type="list") for item in redis.lrange(key, 0, -1)]
        redis.flushdb()
        return sum(f'"id": "{run.id}' in item for item in sent)

    @contextmanager
    def barrier(self, table: str, words: str, when: str = "true") -> Iterator[Barrier]:
        """One that is open, for `in_order` to close."""
        with Barrier(self.fleet.plain_url, table, words, when) as barrier:
            barrier.open()
            yield barrier

    def in_order(self, barrier: Barrier, first: Callable[[], Any], *then: Callable[[], Any]) -> list[Any]:
        """`first` holds its row at the barrier; each of `then` has come, and waits for that row, before it goes on.

        None of them may need Postgres to find that they block each other.
        """
        barrier.close()
        running = [self.threads.submit(first)]
        barrier.await_waiting()
        for number, act in enumerate(then, start=1):
            running.append(self.threads.submit(act))
            barrier.await_blocked(number)
        barrier.open()
        found = [one.result(30) for one in running]
        assert self.database.deadlocks == 0, "they blocked each other until Postgres noticed"
        return found

    def at_once(self, barrier: Barrier, *acts: Callable[[], Any]) -> list[Any]:
        """All have come to the barrier before any goes on."""
        barrier.close()
        running = [self.threads.submit(act) for act in acts]
        barrier.await_waiting(len(acts))
        barrier.open()
        return [one.result(30) for one in running]
