"""Figures of our own that need no harness: what a step asks of its services, and what extras cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import redis

from benchmarks import meter
from pickaxe import Client, Settings
from pickaxe.embedded import Services
from pickaxe.store import migrate

ROOT = Path(__file__).parents[1]
MODES = ("plain", "resume", "inline", "step")
SWITCHES = {"both": {}, "no Flower": {"BENCH_FLOWER": "0"}, "no stream": {"BENCH_STREAM": "0"}}
"""Task events and live streams, on unless said otherwise."""


class Own:
    """The own figures, on one embedded Postgres and Redis. Each method yields lines like the harness' own."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._databases = 0

    def counts(self) -> Iterator[dict[str, Any]]:
        """Per step of 100 runs of 10: statements, transactions, round trips, messages, WAL, by mode."""
        for mode in MODES:
            with self._fleet({"BENCH_MODE": mode}, counted=True) as fleet:
                fleet.run(4, 3)
                before = fleet.counters()
                fleet.run(100, 10)
                after = fleet.counters()
            figures = {name: round((after[name] - before[name]) / 1000, 2) for name in after}
            yield _line("counts", mode, **figures)

    def costs(self) -> Iterator[dict[str, Any]]:
        """Steps a second and CPU with and without what watches: task events, live streams; and peak memory."""
        for mode in ("plain", "inline"):
            for name, switch in SWITCHES.items():
                with self._fleet({"BENCH_MODE": mode, **switch}) as fleet:
                    fleet.run(4, 3)
                    cpu = fleet.cpu()
                    took = fleet.run(200, 10)
                    cpu = fleet.cpu() - cpu
                    figures = {"steps_per_s": round(2000 / took, 1), "cpu_s_per_1000_steps": round(cpu / 2, 2)}
                    figures["peak_mb"] = fleet.peak_memory()
                    if not switch:
                        fleet.run(1, 2000)
                        figures["peak_mb_2000"] = fleet.peak_memory()
                yield _line(f"costs, {name}", mode, **figures)

    def enqueue(self) -> Iterator[dict[str, Any]]:
        """Runs enqueued a second by one process: one by one, and 10,000 at once."""
        from benchmarks.fleet import seq

        with closing(_client(self._fresh())) as client:
            seq.bind(client)
            seq.enqueue("first", 1)
            start = time.perf_counter()
            for i in range(1000):
                seq.enqueue(f"single-{i}", 1)
            single = time.perf_counter() - start
            start = time.perf_counter()
            seq.enqueue_many([(f"bulk-{i}", 1) for i in range(10_000)])
            bulk = time.perf_counter() - start
        yield _line("enqueue", "any", single_per_s=round(1000 / single), bulk_per_s=round(10_000 / bulk))

    def _fresh(self) -> dict[str, str]:
        """A fresh database and an empty Redis: their URLs, Postgres' first, as a process is told them."""
        self._databases += 1
        name = f"bench_{self._databases}"
        with psycopg.connect(self._services.database_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        redis.Redis.from_url(self._services.redis_url).flushall()
        url = urlunsplit(urlsplit(self._services.database_url)._replace(path=f"/{name}"))
        urls = {"PICKAXE_DATABASE_URL": url, "PICKAXE_REDIS_URL": self._services.redis_url}
        with closing(_client(urls)) as client:
            migrate(client.store.database)
        return urls

    @contextmanager
    def _fleet(self, switches: Mapping[str, str], *, counted: bool = False) -> Iterator[Fleet]:
        through = urls = self._fresh()
        proxies: tuple[meter.Proxy, ...] = ()
        if counted:
            watches = (meter.postgres, meter.redis)
            proxies = tuple(_proxy(url, watch) for url, watch in zip(urls.values(), watches, strict=True))
            pairs = zip(urls.items(), proxies, strict=True)
            through = {name: _by_way_of(url, proxy) for (name, url), proxy in pairs}
        workers = [_worker(f"w{i}", through | dict(switches)) for i in range(2)]
        servers = [self._services.postgres.pid, self._services.redis.pid]
        fleet = Fleet(urls, workers, [pid for pid in servers if pid is not None], proxies)
        try:
            yield fleet
        finally:
            fleet.stop()


@dataclass
class Fleet:
    """Two workers on their own database. `proxies` count what the workers send."""

    urls: Mapping[str, str]
    workers: list[subprocess.Popen[bytes]]
    servers: list[int]
    proxies: tuple[meter.Proxy, ...]

    def __post_init__(self) -> None:
        self.client = _client(self.urls)

    def run(self, runs: int, steps: int) -> float:
        """Run so many runs of so many steps to their end. Returns the seconds it took."""
        from benchmarks.fleet import seq

        seq.bind(self.client)
        start = time.perf_counter()
        for run in seq.enqueue_many([(f"run-{i}", steps) for i in range(runs)]):
            run.result(timeout=300)
        return time.perf_counter() - start

    def counters(self) -> dict[str, float]:
        """Everything counted so far. A transaction that wrote took a number, which Postgres counts exactly."""
        database, broker = (proxy.counts for proxy in self.proxies)
        with psycopg.connect(self.urls["PICKAXE_DATABASE_URL"], autocommit=True) as connection:
            row = connection.execute(
                "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, "
                "pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
            ).fetchone()
        assert row is not None
        with redis.Redis.from_url(self.urls["PICKAXE_REDIS_URL"]) as connection:
            commands = connection.info("commandstats")
            total = connection.info("stats")["total_commands_processed"]
        return {
            "statements": database["statements"], "round_trips": database["round_trips"],
            "transactions": database["transactions"], "writes": row[0], "wal_bytes": row[1],
            "redis_commands": total, "redis_round_trips": broker["round_trips"],
            "messages": commands.get("cmdstat_lpush", {"calls": 0})["calls"],
        }  # fmt: skip

    def cpu(self) -> float:
        """CPU seconds spent so far by the workers, Postgres, Redis and this process."""
        return sum(_cpu(pid) for pid in (*(worker.pid for worker in self.workers), *self.servers, os.getpid()))

    def peak_memory(self) -> float:
        """The most resident memory that a worker process has had, in MB."""
        return round(max(_peak_memory(worker.pid) for worker in self.workers) / 2**20, 1)

    def stop(self) -> None:
        """End the workers."""
        self.client.close()
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            worker.wait(30)
        for proxy in self.proxies:
            proxy.close()


def _client(urls: Mapping[str, str]) -> Client:
    return Client(Settings(database_url=urls["PICKAXE_DATABASE_URL"], redis_url=urls["PICKAXE_REDIS_URL"]))


def _worker(name: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "celery", "-A", "benchmarks.fleet", "--quiet", "worker", "-Q", "agents,tools"]
    argv += ["-P", "solo", "-c", "1", "-l", "ERROR", "-n", f"{name}@bench", "--without-gossip", "--without-mingle"]
    mode = environment["BENCH_MODE"]
    more = {"PICKAXE_CONTINUATION": "inline" if mode == "step" else mode, "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(argv, cwd=ROOT, env={**os.environ, **more, **environment}, stdout=subprocess.DEVNULL)


def _proxy(url: str, watch: meter.Watched) -> meter.Proxy:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return meter.Proxy(parts.hostname, parts.port, watch)


def _by_way_of(url: str, proxy: meter.Proxy) -> str:
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    plain = "sslmode=disable&gssencmode=disable" if parts.scheme.startswith("postgres") else parts.query
    return urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{proxy.port}", query=plain))


def _cpu(pid: int) -> float:
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():  # not Linux: what it has now
        return int(psutil.Process(pid).memory_info().rss)
    [line] = [line for line in status.read_text("ascii").splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _line(what: str, mode: str, **figures: float) -> dict[str, Any]:
    return {
        "ok": True,
        "group": f"own {what}",
        "peer": "pickaxe",
        "mode": mode,
        "tag": f"pickaxe {mode} own {what}",
    } | figures
