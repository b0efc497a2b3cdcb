"""The demo's surroundings: services, tables, workers, all of them gone at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pickaxe.cli._processes import Child, Children
from pickaxe.cli._project import DEFAULT_APP, load_app, template
from pickaxe.cli._worker import queues_of
from pickaxe.demo._ledger import VARIABLE
from pickaxe.embedded import Services
from pickaxe.errors import ServiceUnavailableError
from pickaxe.store import migrate

START_TIMEOUT = 60.0
"""Seconds for all workers to register."""


@dataclass
class Surroundings:
    """What the demo runs in."""

    services: Services
    children: Children
    app: Any
    scratch: Path

    @property
    def ledger(self) -> Path:
        return self.scratch / "ledger"

    def start_workers(self, count: int) -> None:
        """Start Celery workers, the way anybody would."""
        for number in range(1, count + 1):
            self._start_worker(f"worker-{number}")

    def _start_worker(self, name: str) -> Child:
        arguments = [
            "-m", "celery", "-A", "workers.app", "worker", "-Q", ",".join(queues_of(self.app)), "-c", "2",
            "-n", f"{name}@%h", "-l", "INFO", "--without-gossip", "--without-mingle",
            "-I", "pickaxe.demo.ledger_of_worker",
        ]  # fmt: skip
        return self.children.start(name, arguments, log=self.scratch / f"{name}.log")

    def wait_for_workers(self, processes: int) -> None:
        """Return when so many worker processes have registered."""
        deadline = time.monotonic() + START_TIMEOUT
        while len(self.app.client.store.list_workers()) < processes:
            for child in self.children.running:
                if not child.running or time.monotonic() > deadline:
                    tail = (self.scratch / f"{child.name}.log").read_text("utf-8", "replace").splitlines()[-15:]
                    what = f"ended with code {child.process.poll()}" if not child.running else "did not start"
                    raise ServiceUnavailableError("\n".join([f"{child.name} {what}. Its log ends:", *tail]))
            time.sleep(0.05)

    def owner_of(self, pid: int) -> Child | None:
        """The worker that a process belongs to."""
        return next((child for child in self.children.running if child.owns(pid)), None)


@contextmanager
def surroundings() -> Iterator[Surroundings]:
    """Services with tables, an app, and no workers yet."""
    folder = template()
    with Services.start() as services:
        scratch = services.directory / "demo"  # removed with the services, even if this process is killed
        scratch.mkdir()
        environment = {
            "PICKAXE_DATABASE_URL": services.database_url,
            "PICKAXE_REDIS_URL": services.redis_url,
            VARIABLE: str(scratch / "ledger"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        os.environ.update({name: value for name, value in environment.items() if name != VARIABLE})
        sys.dont_write_bytecode = True
        app = load_app(DEFAULT_APP, folder)
        migrate(app.client.store.database)
        children = Children(folder, environment)
        try:
            yield Surroundings(services, children, app, scratch)
        finally:
            children.stop(patience=4.0)
            app.client.close()
