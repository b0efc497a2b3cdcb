"""A worker pool that runs coroutines: many awaits in one process, each of them cancellable.

Celery has no asyncio pool. This one runs a loop on a thread of its own. Tasks with `pickaxe_coroutine = True`
are awaited on it natively, by their `async def run_async(self, *args, **kwargs)`; all others run on a few
threads, through Celery's own tracer.

For a coroutine task the tracer is not used, so Celery's `task_prerun`, `task_postrun`, `task_success` and
`task_failure` signals are not sent for it, and `self.request` is not set: `current_message()` is. Results,
chords, links, errbacks and time limits work. A thread cannot be interrupted: for the other tasks there are no
time limits, and neither a revoke nor a cold shutdown can stop one that has begun.

Chosen by `celery worker -P custom` with the environment variable `CELERY_CUSTOM_WORKER_POOL` set to
`pickaxe.broker:CoroutinePool`: Celery looks `custom` up before it loads the app, so the app cannot set it. Or
by the setting `worker_pool` and no `-P`. `use_coroutine_pool()` is for programs that start workers.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import celery.concurrency
from celery.concurrency.base import BasePool, apply_target
from celery.worker import state as worker_state

from pickaxe.broker._context import _current, context_of
from pickaxe.broker._native import run_native

logger = logging.getLogger(__name__)

#: Threads for tasks that are not coroutines. Blocking work in earnest belongs on a prefork worker.
SYNC_THREADS = 32

_PATH = "pickaxe.broker:CoroutinePool"


def use_coroutine_pool() -> None:
    """Let `-P custom` mean this pool, here and in processes started from here.

    To be called before Celery parses its command line.
    """
    os.environ["CELERY_CUSTOM_WORKER_POOL"] = _PATH
    celery.concurrency.ALIASES["custom"] = _PATH  # Celery reads the variable only once, at import


class _Job:
    """One request in the pool. `run` is what the loop awaits."""

    __slots__ = ("cancelled", "interruptible", "pid", "run", "task")

    def __init__(self, pid: int, run: Callable[[_Job], Any], *, interruptible: bool) -> None:
        self.pid = pid
        self.run = run
        self.interruptible = interruptible
        self.cancelled = False
        self.task: asyncio.Task[None] | None = None


class TaskPool(BasePool):  # type: ignore[misc]
    """Up to `limit` tasks at a time on one asyncio loop; the rest waits in order.

    Celery calls from its main thread; all state but `_jobs` belongs to the loop's thread.
    """

    limit: int

    signal_safe = False
    body_can_be_buffer = True
    task_join_will_block = True

    def on_start(self) -> None:
        self._pids = itertools.count(1)
        self._jobs: dict[int, _Job] = {}  # all that were accepted and have not ended
        self._waiting: deque[_Job] = deque()
        self._running = 0
        self._executor = ThreadPoolExecutor(min(self.limit, SYNC_THREADS), thread_name_prefix="pickaxe-sync")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pickaxe-loop", daemon=True)
        self._thread.start()

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        **options: Any,
    ) -> None:
        """Take one request. Celery only keeps a weak reference to what this returns, so: nothing."""
        task = self.app.tasks.get(args[0]) if args else None
        if getattr(task, "pickaxe_coroutine", False):
            job = _Job(next(self._pids), lambda job: run_native(job, task, args, options), interruptible=True)
        else:
            job = _Job(
                next(self._pids),
                lambda job: self._run_sync(job, target, args, kwargs, options),
                interruptible=False,
            )
        self._jobs[job.pid] = job
        self._loop.call_soon_threadsafe(self._enqueue, job)

    def terminate_job(self, pid: int, signal: Any = None) -> None:  # noqa: ARG002 - Celery's signature
        """Cancel one task, by the number that was handed out as its process id."""
        job = self._jobs.get(pid)
        if job is not None:
            self._loop.call_soon_threadsafe(self._cancel, job)

    def on_stop(self) -> None:
        """Wait for what runs. On a cold shutdown, only for what is being cancelled to clean up."""
        if not self._loop.is_running():
            return  # a cold shutdown stops the pool twice
        self._loop.call_soon_threadsafe(self._drop_waiting)
        # Sleeping, not waiting on a lock: a signal handler may call this again on top of itself.
        while self._jobs and not self._is_cold():
            time.sleep(0.02)
        if self._jobs:
            self.on_terminate()
        else:
            self._close_loop()

    def on_terminate(self) -> None:
        """Cancel everything, and give the coroutines a moment for their `finally`."""
        if not self._loop.is_running():
            return
        self._loop.call_soon_threadsafe(self._drop_waiting)
        for job in list(self._jobs.values()):
            self._loop.call_soon_threadsafe(self._cancel, job)
        deadline = time.monotonic() + 5
        while any(job.interruptible for job in list(self._jobs.values())) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._close_loop()

    def grow(self, n: int = 1) -> None:
        """Allow `n` more tasks at a time."""
        self.limit += n
        self._loop.call_soon_threadsafe(self._fill)

    def shrink(self, n: int = 1) -> None:
        """Allow `n` fewer tasks at a time; those running go on."""
        self.limit = max(1, self.limit - n)

    @staticmethod
    def _is_cold() -> bool:
        return worker_state.should_terminate not in (None, False)

    def _close_loop(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _enqueue(self, job: _Job) -> None:
        self._waiting.append(job)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and self._running < self.limit:
            job = self._waiting.popleft()
            self._running += 1
            job.task = self._loop.create_task(self._run(job))

    async def _run(self, job: _Job) -> None:
        try:
            await job.run(job)
        except asyncio.CancelledError:
            # No callback: the message stays unacknowledged and goes back to the broker.
            logger.info("task number %d was cancelled", job.pid)
        except BaseException:
            # Reporting failed, not the task. Nothing may reach the loop: it would end the thread.
            logger.exception("could not report the outcome of task number %d", job.pid)
        finally:
            self._running -= 1
            self._jobs.pop(job.pid, None)
            self._fill()

    def _cancel(self, job: _Job) -> None:
        if job.task is None:
            self._drop(job)
        elif job.interruptible:
            job.cancelled = True
            job.task.cancel()
        else:
            logger.warning("task number %d runs in a thread and cannot be stopped", job.pid)

    def _drop_waiting(self) -> None:
        for job in list(self._waiting):
            self._drop(job)

    def _drop(self, job: _Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        self._jobs.pop(job.pid, None)

    async def _run_sync(
        self,
        job: _Job,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        def call() -> None:
            _current.set(context_of(args[2]) if len(args) > 2 else None)
            apply_target(target, args, kwargs, options["callback"], options["accept_callback"], pid=job.pid)

        context = contextvars.copy_context()
        await self._loop.run_in_executor(self._executor, context.run, call)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        return {**info, "running": self._running, "waiting": len(self._waiting)}
