"""Real Celery workers in subprocesses, for as long as a test needs them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class WorkerProcess:
    """One `celery worker`, in a process group of its own."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def kill(self) -> None:
        """kill -9, children included."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM, and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the worker did not stop:\n{self.text()}") from None

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")[-5000:]


def start_worker(
    environment: Mapping[str, str],
    log: Path,
    *,
    app: str = "tests.fleet_app",
    queues: str = "agents,tools,web",
    pool: str = "prefork",
    concurrency: int = 2,
    name: str = "worker",
) -> WorkerProcess:
    """Start a worker. `environment` is what it needs besides the test's own."""
    argv = [
        *[sys.executable, "-m", "celery", "-A", app, "worker", "-Q", queues, "-P", pool, "-c", str(concurrency)],
        *["-n", f"{name}@%h", "-l", "INFO", "--without-gossip", "--without-mingle"],
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with log.open("ab") as out:
        process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True)
    return WorkerProcess(process, log)


@contextlib.contextmanager
def running_worker(environment: Mapping[str, str], log: Path, **options: Any) -> Iterator[WorkerProcess]:
    """A worker for the length of a `with`."""
    worker = start_worker(environment, log, **options)
    try:
        yield worker
    finally:
        worker.kill()


def eventually(check: Callable[[], Any], *, within: float = 30, every: float = 0.02, what: str = "it") -> Any:
    """Wait until `check` returns something true, and return that."""
    deadline = time.monotonic() + within
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {within:g} s")
        time.sleep(every)
    return found
