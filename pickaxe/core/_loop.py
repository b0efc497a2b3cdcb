"""A deterministic asyncio loop: no selector, no threads, no clock of its own.

Callbacks run strictly in the order they were scheduled, time stands still between arrivals, and tasks and
futures hash by the order of their birth, so that even the sets `asyncio.wait` returns iterate the same way
in every replay. Timers are handed to whoever keeps them (the log, in production). The idea of running
orchestration code on an event loop of its own comes from Temporal's Python SDK.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import events
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from pickaxe.errors import ImpureAgentError

logger = logging.getLogger("pickaxe.agent")

SPIN_LIMIT = 1_000_000
"""Callbacks run for one arrival before an agent counts as spinning (`while True: await sleep(0)`)."""


class Timers(Protocol):
    """Who keeps the loop's timers."""

    def start(self, timer: Timer) -> None: ...
    def stop(self, timer: Timer) -> None: ...


class Timer(asyncio.TimerHandle):
    """A callback that waits for its time. `key` is its step in the log."""

    key: str


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
            f"an agent called the event loop's `{method}`: agents are replayed, so they may not do I/O or use "
            f"threads. Move this line into a tool and await the tool."
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
    _NoIO = asyncio.AbstractEventLoop
else:
    _NoIO = type("_NoIO", (asyncio.AbstractEventLoop,), {name: _impure(name) for name in _IMPURE.split()})


class Loop(_NoIO):
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
        self._counts: Counter[str] = Counter()
        self._stopped = False
        self._closed = False

    def run_until_idle(self) -> None:
        """Run all that is queued, and all that this queues in turn."""
        with running(self):
            for _ in range(SPIN_LIMIT):
                if not self._queue or self._stopped:
                    return
                handle = self._queue.popleft()
                if not handle.cancelled():
                    handle._run()
        raise ImpureAgentError(
            f"the agent ran {SPIN_LIMIT:,} callbacks without waiting for anything: it spins, probably in a "
            f"loop around `asyncio.sleep(0)` or a queue nobody fills. Await a step, a signal or a timer there."
        )

    def next_key(self, name: str) -> str:
        """The key of the next call named `name` in the current task: `"search#2"`, `"worker#1/search#1"`."""
        task = asyncio.current_task(self)
        path = getattr(task, "path", "")
        return self._numbered(f"{path}/{name}" if path else name)

    def _numbered(self, stem: str) -> str:
        self._counts[stem] += 1
        return f"{stem}#{self._counts[stem]}"

    def _born(self) -> int:
        self._serial += 1
        return self._serial

    # What asyncio asks of a loop.

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        handle = asyncio.Handle(callback, args, self, context)
        self._queue.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        if when <= self.now:
            return self.call_soon(callback, *args, context=context)
        timer = Timer(when, callback, args, self, context)
        timer.key = self.prefix + self.next_key("timer")
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
        future.serial = self._born()
        return future

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None
    ) -> Task:
        path = self.next_key(name or _name_of(coro))
        task = _new_task(coro, self, path, self._born(), context)
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

    def close(self) -> None:
        """Drop every suspended task. Their `finally` blocks run, but can no longer ask for anything."""
        self._closed = True
        self._queue.clear()
        with running(self):
            for task in list(self.tasks):
                _discard(task.get_coro())
        self.tasks.clear()


class running:  # noqa: N801 - reads as a phrase: with running(loop)
    """Makes a loop the running one of this thread, and puts back what was there."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        self._before = events._get_running_loop()
        events._set_running_loop(self._loop)

    def __exit__(self, *_: object) -> None:
        events._set_running_loop(self._before)


class Discarded(BaseException):
    """Raised at an agent's next call after its reduction was dropped."""


def _discard(coro: Any) -> None:
    try:
        coro.close()
    except (Discarded, RuntimeError, StopIteration):
        # An agent that awaits in `finally` cannot be closed in an orderly way, and does not need to be:
        # whatever it asks for now is refused, and its next replay starts from the log.
        logger.debug("a dropped agent did not close in an orderly way", exc_info=True)


def _new_task(coro: Any, loop: Loop, path: str, serial: int, context: Any) -> Task:
    # The serial must be there before __init__ runs, which already puts the task into asyncio's sets.
    task = Task.__new__(Task)
    task.serial, task.path = serial, path
    Task.__init__(task, coro, loop=loop, name=path, context=context)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return task


def _name_of(coro: object) -> str:
    name = getattr(coro, "step_name", None) or getattr(coro, "__qualname__", None) or type(coro).__name__
    return str(name).rpartition(".")[2]
