"""When a worker, and each of its processes, starts and stops.

*Process* means one that runs tasks: every prefork child, or the worker's only process with any other pool.
*Worker* means the main process, once it takes messages. With prefork these are different processes.

Callbacks are called once per process, in the order they were given. One that raises is logged by Celery, and
the worker goes on: what must not fail has to try again by itself.
"""

from __future__ import annotations

import atexit
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from celery import current_app, signals
from celery.concurrency.prefork import TaskPool as PreforkPool

Callback = Callable[[], object]
ExitCallback = Callable[[int, int], object]

_POOL_NAMES = {"thread": "threads", "_pool": "coroutines"}


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """The worker that this process is, or belongs to."""

    hostname: str
    pool: str
    queues: tuple[str, ...]
    concurrency: int


def on_worker_boot(app: Any, callback: Callback) -> None:
    """Call back in the main process before the worker connects to anything. `SystemExit` stops it there."""
    _of(app).add("worker_boot", callback)


def on_worker_start(app: Any, callback: Callback) -> None:
    """Call back in the main process once the worker takes messages."""
    _of(app).add("worker_start", callback)


def on_worker_stop(app: Any, callback: Callback) -> None:
    """Call back in the main process when the worker ends, warm or cold, but not when it is killed."""
    _of(app).add("worker_stop", callback)


def on_process_start(app: Any, callback: Callback) -> None:
    """Call back in each process that runs tasks, before the first one."""
    _of(app).add("process_start", callback)


def on_process_stop(app: Any, callback: Callback) -> None:
    """Call back in each process that runs tasks when it ends, but not when it is killed."""
    _of(app).add("process_stop", callback)


def on_child_exit(app: Any, callback: ExitCallback) -> None:
    """Call back in the main process of a prefork worker when a child has ended: its pid, and its exit status.

    A negative status is the number of the signal that ended it. Called on Celery's event loop: be quick.
    """
    _of(app).child_exit.append(callback)


def running_worker(app: Any) -> WorkerInfo | None:
    """The worker running in this process or its parent; `None` outside of workers."""
    worker = _of(app).worker
    if worker is None:
        return None
    return WorkerInfo(
        hostname=str(worker.hostname),
        pool=_pool_name(worker.pool_cls),
        queues=tuple(app.amqp.queues.consume_from),
        concurrency=int(worker.concurrency),
    )


def is_stopping(app: Any) -> bool:
    """Whether this worker was told to stop: known in its main process and in all that were forked from it."""
    return _of(app).stopping[0] != 0


def _pool_name(pool: Any) -> str:
    module = pool.__module__ if isinstance(pool, type) else str(pool)
    last = module.rsplit(".", 1)[-1]
    return _POOL_NAMES.get(last, last)


def _of(app: Any) -> _Lifecycle:
    lifecycle: _Lifecycle | None = getattr(app, "_pickaxe_lifecycle", None)
    if lifecycle is None:
        lifecycle = app._pickaxe_lifecycle = _Lifecycle(app)
    return lifecycle


class _Lifecycle:
    """One app's callbacks. The app keeps it alive: Celery's signals hold it only weakly."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._callbacks: dict[str, list[Callback]] = {}
        self._called: set[tuple[str, int]] = set()
        self._reaped: WeakSet[Any] = WeakSet()
        self.child_exit: list[ExitCallback] = []
        self._main_pid: int | None = None
        self.worker: Any = None
        #: Shared with forked children, which are told nothing: a warm shutdown waits for them to finish.
        self.stopping = mmap.mmap(-1, 1)
        signals.celeryd_init.connect(self._on_init)
        signals.worker_ready.connect(self._on_ready)
        signals.worker_shutting_down.connect(self._on_shutting_down)
        signals.worker_shutdown.connect(self._on_shutdown)
        signals.worker_process_init.connect(self._on_child_start)
        signals.worker_process_shutdown.connect(self._on_child_stop)

    def add(self, moment: str, callback: Callback) -> None:
        self._callbacks.setdefault(moment, []).append(callback)

    def _on_init(self, instance: Any = None, **_: Any) -> None:
        if instance is not None and instance.app is self._app:
            self.worker, self._main_pid = instance, os.getpid()
            self._call("worker_boot")

    def _on_ready(self, sender: Any = None, **_: Any) -> None:
        if self.worker is None or getattr(sender, "app", None) is not self._app:
            return
        # Celery tells of a cold shutdown by no signal at all.
        atexit.register(self._on_main_stop)
        if not self._is_prefork():
            self._call("process_start")
        elif self.child_exit:
            self._watch_children()
        self._call("worker_start")

    def _on_shutting_down(self, sender: Any = None, **_: Any) -> None:
        if self.worker is not None and sender == self.worker.hostname:
            self.stopping[0] = 1

    def _watch_children(self) -> None:
        """Celery tells nobody that a child has ended. Whatever sees to it empties the child's queues first."""
        pool = self.worker.pool._pool
        flush = pool.process_flush_queues

        def flush_and_tell(process: Any) -> None:
            flush(process)
            # It is also called for processes that live on, when the broker was away, and twice for those that do not.
            if process.exitcode is not None and process not in self._reaped:
                self._reaped.add(process)
                for callback in self.child_exit:
                    callback(process.pid, process.exitcode)

        pool.process_flush_queues = flush_and_tell

    def _on_shutdown(self, sender: Any = None, **_: Any) -> None:
        if sender is self.worker:
            self._on_main_stop()

    def _on_main_stop(self) -> None:
        if os.getpid() != self._main_pid:
            return
        if not self._is_prefork():
            self._call("process_stop")
        self._call("worker_stop")

    def _on_child_start(self, **_: Any) -> None:
        if self._is_child():
            self._call("process_start")

    def _on_child_stop(self, **_: Any) -> None:
        if self._is_child():
            self._call("process_stop")

    def _is_prefork(self) -> bool:
        pool = self.worker.pool_cls
        return isinstance(pool, type) and issubclass(pool, PreforkPool)

    def _is_child(self) -> bool:
        # The solo pool sends the child's signal too, from the main process, before anything is set up.
        return os.getpid() != self._main_pid and current_app._get_current_object() is self._app

    def _call(self, moment: str) -> None:
        key = (moment, os.getpid())
        if key in self._called:
            return
        self._called.add(key)
        for callback in self._callbacks.get(moment, ()):
            callback()
