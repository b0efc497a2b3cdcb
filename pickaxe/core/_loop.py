"""A deterministic asyncio loop: no selector, no threads, no clock of its own.

Callbacks run strictly in the order they were scheduled, time stands still between arrivals, and tasks and
futures hash by the order of their birth, so that even the sets `asyncio.wait` returns iterate the same way
in every replay. Timers are handed to whoever keeps them (the log, in production). The idea of running
orchestration code on an event loop of its own comes from Temporal's Python SDK.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
from asyncio import events
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from pickaxe.core._purity import place
from pickaxe.errors import ImpureAgentError

logger = logging.getLogger("pickaxe.agent")

SPIN_LIMIT = 1_000_000
"""Callbacks run for one arrival before an agent counts as spinning (`while True: await sleep(0)`)."""

LAST_MOMENT = 253_402_300_800.0
"""The year 10000, in epoch seconds: timers from there on never fire."""

LONGEST_PATH = 200
"""Characters of a task's path; a longer one is replaced by its digest."""

PATIENCE = 100
"""How many awaits of its `finally` blocks a dropped coroutine may make before it is left alone."""


class Timers(Protocol):
    """Who keeps the loop's timers."""

    def start(self, timer: Timer) -> None: ...
    def stop(self, timer: Timer) -> None: ...


class Timer(asyncio.TimerHandle):
    """A callback that waits for its time. `key` is its step in the log, given by whoever keeps it."""

    key: str

    @property
    def never(self) -> bool:
        """Whether its time lies beyond what a database can hold, such as that of `sleep(math.inf)`."""
        return not self.when() < LAST_MOMENT


class Future(asyncio.Future[Any]):
    """A future that hashes by the order of its birth."""

    serial: int

    def __hash__(self) -> int:
        return self.serial


class Task(asyncio.Task[Any]):
    """A task that hashes by the order of its birth and knows its path: the tasks it was started from."""

    serial: int
    path: str

    def __hash__(self) -> int:
        return self.serial


def _impure(method: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise ImpureAgentError(
            f"an agent called the event loop's `{method}` at {place()}: agents are replayed, so they may not "
            f"do I/O or use threads. Move this line into a tool and await the tool."
        )

    return refuse


_IMPURE = (
    "run_in_executor set_default_executor create_connection create_server create_unix_connection "
    "create_unix_server create_datagram_endpoint connect_accepted_socket connect_read_pipe connect_write_pipe "
    "subprocess_exec subprocess_shell add_reader remove_reader add_writer remove_writer add_signal_handler "
    "remove_signal_handler getaddrinfo getnameinfo sendfile start_tls sock_accept sock_connect sock_recv "
    "sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall sock_sendfile sock_sendto "
    "call_soon_threadsafe run_forever run_until_complete shutdown_default_executor shutdown_asyncgens "
    "set_exception_handler get_exception_handler set_task_factory get_task_factory"
)
if TYPE_CHECKING:
    _NoIO: Any = object
else:
    _NoIO = type("_NoIO", (asyncio.AbstractEventLoop,), {name: _impure(name) for name in _IMPURE.split()})


class Loop(_NoIO):  # type: ignore[misc] # made at run time
    """See the module. `now` is the time in epoch seconds, `prefix` begins every key.

    `tasks` are those not yet done, oldest first.
    """

    def __init__(self, now: float, timers: Timers, prefix: str = "") -> None:
        self.now = now
        self.prefix = prefix
        self.timers = timers
        self.tasks: dict[Task, None] = {}
        self._queue: deque[asyncio.Handle] = deque()
        self._serial = 0
        self._calls: Counter[str] = Counter()
        self._paths: Counter[str] = Counter()
        self._stopped = False
        self._closed = False

    def run_until_idle(self) -> None:
        """Run all that is queued, and all that this queues in turn. To be called inside `running(loop)`."""
        queue = self._queue
        for _ in range(SPIN_LIMIT):
            if not queue or self._stopped:
                return
            handle = queue.popleft()
            if not handle.cancelled():
                handle._run()
        raise ImpureAgentError(
            f"the agent ran {SPIN_LIMIT:,} callbacks without waiting for anything: it spins, probably in a "
            f"loop around `asyncio.sleep(0)` or a queue nobody fills. Await a step, a signal or a timer there."
        )

    def next_key(self, name: str) -> str:
        """The key of the next call named `name` in the current task: `"search#2"`, `"worker#1/search#1"`."""
        return _numbered(self._calls, self.path_of(name))

    def path_of(self, name: str) -> str:
        """`name` as seen from the current task: `"worker#1/search"`."""
        path = getattr(asyncio.current_task(self), "path", "")
        return f"{path}/{name}" if path else name

    def born(self) -> int:
        """The next number of birth."""
        self._serial += 1
        return self._serial

    # What asyncio asks of a loop.

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._closed:
            self._queue.append(handle)
        return handle

    def fire(self, timer: Timer) -> None:
        """The time of this timer has come."""
        self._queue.append(timer)

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:
        if when <= self.now:
            return self.call_soon(callback, *args, context=context)
        timer = Timer(when, callback, args, self, context)
        self.timers.start(timer)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        # asyncio's own hook, called by TimerHandle.cancel.
        if isinstance(handle, Timer):
            self.timers.stop(handle)

    def time(self) -> float:
        return self.now

    def create_future(self) -> Future:
        future = Future(loop=self)
        future.serial = self.born()
        return future

    def create_task(self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None) -> Task:
        if not hasattr(coro, "step_name"):
            _refuse_disorder(coro)
        # By the code's name, never the task's: some Pythons tell the loop a task's name, some do not.
        path = _shortened(_numbered(self._paths, self.path_of(_name_of(coro))))
        task = _new_task(coro, self, path, name, self.born(), context)
        self.tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: Any) -> None:
        self.tasks.pop(task, None)

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Accepted and without effect: asyncio's debug mode watches wall time, and there is none here."""

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._closed

    def stop(self) -> None:
        """Leave everything that is still queued where it is, for ever."""
        self._stopped = True

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            logger.warning("in an agent: %s", context.get("message"), exc_info=context.get("exception"))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.default_exception_handler(context)

    def drop(self, generator: Any) -> None:
        """Python's hook for an asynchronous generator nobody iterates any more: its clean-up is a task."""
        if not self._closed and self.is_running():
            self.create_task(generator.aclose())

    def close(self) -> None:
        """Drop every suspended task. Their `finally` blocks run, but nothing they await ever comes."""
        self._closed = True
        self._queue.clear()
        with running(self):
            while self.tasks:
                task, _ = self.tasks.popitem()
                _discard(task.get_coro())


class running:  # noqa: N801 - reads as a phrase: with running(loop)
    """Makes a loop the running one of this thread, and puts back what was there."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        self._before = events._get_running_loop()
        self._hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(self._loop)
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._loop.drop)

    def __exit__(self, *_: object) -> None:
        events._set_running_loop(self._before)
        sys.set_asyncgen_hooks(*self._hooks)


_undying: list[Any] = []


def _discard(coro: Any) -> None:
    # Closed to the end and now: what is left suspended would be closed by the garbage collector, at any time
    # and outside of its loop, where its `finally` blocks would call tools as plain functions.
    for _ in range(PATIENCE):
        try:
            coro.close()
        except RuntimeError as error:
            # An await in a `finally` block ("coroutine ignored GeneratorExit"): on to the next one.
            logger.debug("a dropped agent did not close at once: %s", error)
        except BaseException as error:  # noqa: BLE001 - it has ended; how is of no interest any more
            logger.debug("a dropped agent raised as it was closed: %r", error)
            return
        else:
            return
    _undying.append(coro)
    logger.warning("%r cannot be closed: it goes on after every GeneratorExit. It is kept in memory instead.", coro)


def _new_task(coro: Any, loop: Loop, path: str, name: str | None, serial: int, context: Any) -> Task:
    # The serial must be there before __init__ runs, which already puts the task into asyncio's sets.
    task = Task.__new__(Task)
    task.serial, task.path = serial, path
    Task.__init__(task, coro, loop=loop, name=name or path, context=context)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return task


def _numbered(counts: Counter[str], stem: str) -> str:
    counts[stem] += 1
    return f"{stem}#{counts[stem]}"


def _shortened(path: str) -> str:
    # A task that starts the next, which starts the next, would otherwise have keys that grow for ever.
    if len(path) <= LONGEST_PATH:
        return path
    return f"~{hashlib.blake2b(path.encode('utf-8', 'backslashreplace'), digest_size=12).hexdigest()}"


def _refuse_disorder(coro: Any) -> None:
    # as_completed puts coroutines into a set, which orders them by their addresses: another way each time.
    frame = sys._getframe(2)
    for _ in range(6):
        if frame.f_code is asyncio.as_completed.__code__:
            coro.close()
            raise ImpureAgentError(
                f"asyncio.as_completed at {place()} starts coroutines in no fixed order, so a replay could not follow. "
                f"Give it tasks: `as_completed([asyncio.create_task(c) for c in ...])`, or calls of tools."
            )
        if frame.f_back is None:
            return
        frame = frame.f_back


def _name_of(coro: object) -> str:
    name = getattr(coro, "step_name", None) or getattr(coro, "__qualname__", None) or type(coro).__name__
    return str(name).rpartition(".")[2]
