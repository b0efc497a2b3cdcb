"""The nemesis: kills, freezes, empties, restarts and cuts, as a seed tells it to, and proves each time that it hit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import psycopg
import redis

from pickaxe.embedded import Services
from tests.faults.fleet import Fleet, WorkerProcess, eventually
from tests.faults.proxy import Proxy

QUEUES = ("agents", "tools")

ACTIONS = {
    "kill": 5, "freeze": 2, "flush": 2, "restart_redis": 1, "crash_postgres": 1, "cut_postgres": 1, "cut_redis": 1,
    "repeat_messages": 2, "blackhole": 1, "slow_down": 1, "forget": 1, "lose_replies": 2,
}  # fmt: skip
"""What it does, and how often, one compared with another."""


@dataclass
class Nemesis:
    """Over three workers, one of which is reached by way of two proxies. It restarts what it kills."""

    fleet: Fleet
    services: Services
    seed: int
    actions: dict[str, int] = field(default_factory=lambda: dict(ACTIONS))
    log: list[str] = field(default_factory=list)
    hits: dict[str, int] = field(default_factory=dict)
    recorded: list[tuple[str, bytes]] = field(default_factory=list)

    def __enter__(self) -> Nemesis:
        self._began = time.monotonic()
        self.chance = random.Random(self.seed)
        self._open = ExitStack()
        self.postgres = self._open.enter_context(Proxy(self.fleet.database_url, seed=self.seed))
        self.redis = self._open.enter_context(Proxy(self.fleet.redis_url, seed=self.seed))
        self.living: list[WorkerProcess] = []
        for name in ("near", "second", "far"):
            self._start(name)
        eventually(lambda: any(self.fleet.is_registered(w) for w in self.living), "a worker comes up")
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def rage(self, count: int, between: Callable[[], object] = lambda: None) -> None:
        """So many actions that hit, with `between` and a pause after each. Leaves everything running."""
        plan = self.chance.choices(list(self.actions), list(self.actions.values()), k=4 * count)
        for number, action in enumerate(plan):
            # Of its own, so that the next action is the same whatever this one finds.
            self.chance = random.Random(f"{self.seed} {number}")
            left = self._at_work()
            evidence = getattr(self, f"_{action}")()
            if evidence is None:
                self._note(f"{action}: there was nothing to hit")
                continue
            self.hits[action] = self.hits.get(action, 0) + 1
            self._note(f"{action}: {evidence}; {left}")
            between()
            time.sleep(self.chance.uniform(0, 0.8))
            if sum(self.hits.values()) == count:
                break
        assert sum(self.hits.values()) == count, f"only {self.hits} hit: this run does not count"
        for worker in self.living:
            assert not worker.has_died(), f"{worker.name} has died, and nobody killed it"

    def _note(self, words: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:5.1f} s  {words}")

    def relent(self) -> None:
        """Put an end to what lasts. And what was recorded comes once more, long after its time."""
        if self.hits.get("forget"):
            # A silent connection is only given up after many minutes, by TCP: the far worker's host is restarted.
            [far] = [worker for worker in self.living if worker.name == "far"]
            self._note(f"kill: {self._replace(far)}")
        late = [item for item in self.recorded if self.chance.random() < 0.5]
        self._push(late)
        self._note(f"sent {len(late)} old messages again")

    # Processes.

    def _start(self, name: str) -> WorkerProcess:
        pool = self.chance.choice(["threads", "threads", "custom", "prefork", "solo"])
        # One of three, or what is sent again and again would be all that they have time for.
        environment = {"PICKAXE_TEST_BROKER": self.chance.choice(["", "triple"]) if name == "second" else ""}
        environment["PICKAXE_TEST_SEED"] = str(self.chance.randrange(2**31))
        if name == "far":
            environment |= {"PICKAXE_DATABASE_URL": self.postgres.url, "PICKAXE_REDIS_URL": self.redis.url}
        concurrency = {"threads": 3, "custom": 3, "prefork": 2, "solo": 1}[pool]
        worker = self.fleet.start(name, pool=pool, concurrency=concurrency, wait=False, environment=environment)
        self.living.append(worker)
        return worker

    def _kill(self) -> str:
        return self._replace(self.chance.choice(self.living))

    def _replace(self, worker: WorkerProcess) -> str:
        running = len(self.fleet.running(worker.pid))
        worker.kill()
        assert worker.process.returncode == -signal.SIGKILL
        self.living.remove(worker)
        heir = self._start(worker.name)
        return f"pid {worker.pid} ({worker.name}) with {running} bodies running; {heir.pid} takes its place"

    def _freeze(self) -> str | None:
        """Until it is declared dead, which takes another that lives."""
        worker = self.chance.choice(self.living)
        if not self.fleet.is_registered(worker) or self._registered() < 2:
            return None
        before = self._buried(worker)
        os.killpg(worker.pid, signal.SIGSTOP)
        try:
            eventually(lambda: patiently(lambda: self._buried(worker)) > before, f"{worker.name} is declared dead", 20)
        finally:
            os.killpg(worker.pid, signal.SIGCONT)
        return f"pid {worker.pid} ({worker.name}) was frozen until it was declared dead"

    def _registered(self) -> int:
        return sum(self.fleet.is_registered(worker) for worker in self.living)

    def _buried(self, worker: WorkerProcess) -> int:
        """How often one of this worker's processes was declared dead."""
        query = "SELECT count(*) FROM pickaxe.worker WHERE name LIKE %s AND ended = 'died'"
        return int(self.fleet.query(query, f"{worker.name}@%")[0][0])

    def _at_work(self) -> str:
        try:
            return f"{len(self.fleet.running())} bodies, {len(self.fleet.leftovers())} runs and steps were under way"
        except psycopg.Error:
            return "Postgres was away"

    # Servers.

    def _flush(self) -> str:
        keys = eventually(lambda: patiently(self.fleet.client.redis.dbsize), "there is something in Redis")
        self.fleet.client.redis.flushall()
        return f"emptied Redis of {keys} keys"

    def _restart_redis(self) -> str:
        before = self._redis_run()
        self.services.redis.stop()
        time.sleep(self.chance.choice([0, 0.2, 1.0]))  # the length of the outage
        self.services.redis.start()
        after = self._redis_run()
        assert before != after
        return f"Redis {before[:8]} became {after[:8]}"

    def _redis_run(self) -> str:
        return str(patiently(lambda: self.fleet.client.redis.info("server")["run_id"]))

    def _crash_postgres(self) -> str:
        before = self._postmaster()
        self.services.postgres.stop(mode="immediate")
        time.sleep(self.chance.choice([0, 0.2, 1.0]))  # the length of the outage
        self.services.postgres.start()
        after = self._postmaster()
        assert before != after
        return f"Postgres, up since {before:%X.%f}, crashed and is up since {after:%X.%f}"

    def _postmaster(self) -> Any:
        return patiently(lambda: self.fleet.query("SELECT pg_postmaster_start_time()")[0][0])

    def _cut_postgres(self) -> str:
        query = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return (
            f"{eventually(lambda: self.fleet.query(query)[0][0], 'there are connections')} connections to Postgres cut"
        )

    def _cut_redis(self) -> str:
        count = eventually(lambda: self.fleet.client.redis.client_kill_filter(_type="normal", skipme=True), "cut")
        return f"{count} connections to Redis cut"

    # Messages.

    def _repeat_messages(self) -> str | None:
        """What lies in the queues is there twice, and in another order; some of it comes again at the end."""
        if not (found := soon(lambda: patiently(self._messages))):
            return None
        again = self.chance.sample(found, min(len(found), 20))
        self.recorded += again
        self._push(again)
        return f"{len(again)} of {len(found)} messages are there twice"

    def _messages(self) -> list[tuple[str, bytes]]:
        client = redis.Redis.from_url(self.fleet.redis_url)
        with client:
            keys = [key for key in client.scan_iter(count=1000) if key.decode().partition("\x06")[0] in QUEUES]
            return [(key.decode(), raw) for key in keys for raw in client.lrange(key, 0, -1)]

    def _push(self, messages: list[tuple[str, bytes]]) -> None:
        with redis.Redis.from_url(self.fleet.redis_url) as client:
            for key, raw in messages:
                client.rpush(key, raw)

    # The network between the far worker and the servers.

    def _under(self, what: str, proxy: Proxy, seconds: float, begin: Callable[[], None]) -> bool:
        """Let the weather that `begin` brings last for so long. Whether anything of it was felt."""
        if not soon(lambda: proxy.connections):
            return False
        before = proxy.hits[what]
        begin()
        time.sleep(seconds)  # how long it lasts
        proxy.heal()  # which also counts what the kernel has dropped
        return bool(proxy.hits[what] > before)

    def _either_proxy(self) -> tuple[str, Proxy]:
        return self.chance.choice([("Postgres", self.postgres), ("Redis", self.redis)])

    def _blackhole(self) -> str | None:
        name, proxy = self._either_proxy()
        seconds, directions = self.chance.uniform(0.5, 4), self.chance.choice([(), ("up",), ("down",)])
        felt = self._under("held", proxy, seconds, lambda: proxy.blackhole(*directions))
        return f"{name} out of reach for {seconds:.1f} s ({directions or 'both ways'})" if felt else None

    def _slow_down(self) -> str | None:
        name, proxy = self._either_proxy()
        seconds = self.chance.uniform(0.5, 3)
        felt = self._under("delayed", proxy, seconds, lambda: proxy.delay(0.15, 0.1))
        return f"{name} was 0.15 s away for {seconds:.1f} s" if felt else None

    def _forget(self) -> str | None:
        name, proxy = self._either_proxy()
        count = soon(proxy.forget)
        return f"{count} connections to {name} fell silent" if count else None

    def _lose_replies(self) -> str | None:
        text = self.chance.choice(["commit_reduction", "pickaxe.settle", "state = 'running', attempt"])
        before, hits = self.postgres.hits["replies lost"], self.postgres.hits
        self.postgres.lose_reply(text, nth=self.chance.randint(1, 3), times=2)
        soon(lambda: hits["replies lost"] > before)
        self.postgres.heal()
        lost = hits["replies lost"] - before
        return f"{lost} replies to {text!r} lost" if lost else None


def soon(check: Callable[[], Any], within: float = 3) -> Any:
    """What `check` returns, once that is true; what it returns in the end, if it does not become true."""
    deadline = time.monotonic() + within
    while not (found := check()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def patiently(attempt: Callable[[], Any], within: float = 20) -> Any:
    """What `attempt` returns, tried again while a server is on its way back."""
    deadline = time.monotonic() + within
    while True:
        try:
            return attempt()
        except (psycopg.OperationalError, redis.RedisError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
