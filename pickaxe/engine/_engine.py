"""One process's engine: its connections, its handles, and its name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import redis

from pickaxe._rates import Rate
from pickaxe._settings import Settings
from pickaxe._specs import AgentSpec, ToolSpec
from pickaxe.broker import Publisher, WorkerInfo, current_message
from pickaxe.engine._limiter import RateLimiter
from pickaxe.engine._sticky import Sticky
from pickaxe.engine._transitions import Transitions
from pickaxe.store import Store

logger = logging.getLogger("pickaxe")

NUDGE = "pickaxe:nudge"
"""The Redis channel on which the sweeper is told that something falls due soon."""


class Running:
    """The calls this process is running now, so that it can be told when one is no longer wanted.

    Those `expected` are not running yet, but are about to be claimed, or were claimed and wait for their turn.
    """

    def __init__(self) -> None:
        self._calls: dict[str, Any] = {}
        self._expected: Counter[str] = Counter()
        self._begun: dict[str, Any] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def expected(self, tokens: Iterable[str]) -> Iterator[None]:
        """While this is entered, these calls may belong to this process without being run by it."""
        tokens = list(tokens)
        with self._lock:
            self._expected.update(tokens)
        try:
            yield
        finally:
            with self._lock:
                self._expected -= Counter(tokens)

    def add(self, token: str, attempt: Any) -> None:
        with self._lock:
            self._calls[token] = attempt

    def remove(self, token: str) -> None:
        with self._lock:
            self._calls.pop(token, None)

    def get(self, token: str) -> Any:
        """The attempt, if this process runs it. Else None."""
        with self._lock:
            return self._calls.get(token)

    def snapshot(self) -> dict[str, Any]:
        with self._lock:
            return dict(self._calls)

    def begin(self, token: str, attempt: Any) -> None:
        """From now on only this process knows what has become of a call that may not be run twice."""
        with self._lock:
            self._begun[token] = attempt

    def end(self, token: str) -> None:
        """The log knows."""
        with self._lock:
            self._begun.pop(token, None)

    def begun(self, token: str) -> Any:
        """The attempt, if it may have had its effect, and the log does not know of it yet. Else None."""
        with self._lock:
            return self._begun.get(token)

    def strays(self, owned: Iterable[str]) -> set[str]:
        """Those of `owned` that this process knows nothing of."""
        with self._lock:
            return {token for token in owned if token not in self._calls and token not in self._expected}


class Engine:
    """What every part of the engine works with.

    `owner` is this process's incarnation: random per process start, and new again if the process was
    declared dead and came back. `family` is its worker's: a prefork worker's processes share it. `stopping` tells
    whether that worker was told to stop, `worker` which one it is (None outside of workers). `resumable` are the agents
    whose runs go on here after a call.
    """

    def __init__(
        self,
        *,
        name: str,
        store: Store,
        publisher: Publisher,
        redis_client: redis.Redis,
        settings: Settings,
        agents: Mapping[str, AgentSpec],
        tools: Mapping[str, ToolSpec],
        queue_limits: Mapping[str, tuple[Rate, ...]],
        stopping: Callable[[], bool] = lambda: False,
        worker: Callable[[], WorkerInfo | None] = lambda: None,
    ) -> None:
        self.name = name
        self.store = store
        self.publisher = publisher
        self.redis = redis_client
        self.settings = settings
        self.agents = agents
        self.resumable = () if settings.continuation == "plain" else tuple(agents)
        self.tools = tools
        self.queue_limits = queue_limits
        self.stopping = stopping
        self.worker = worker
        self.running = Running()
        self.sticky = Sticky(settings.sticky)
        self.owner = new_owner()
        self.family = new_owner()
        self.worker_name = ""
        self.limiter = RateLimiter(redis_client, lead=5.0)
        self.transitions = Transitions(redis_client, ttl=settings.stream_ttl)

    def nudge(self, wait: float) -> None:
        """Something falls due in `wait` seconds: if that is before the sweeper would look, let it look sooner."""
        if wait < self.settings.sweep_every:
            try:
                self.redis.publish(NUDGE, "")
            except redis.RedisError as error:
                logger.debug("the sweeper was not nudged: %s", error)

    def current_root(self) -> str:
        """The root run of the running task's message, "" outside of tasks."""
        message = current_message()
        return message.root if message else ""

    def current_queue(self) -> str:
        """The queue that the running task's message came from, "" outside of tasks."""
        message = current_message()
        return message.queue if message else ""

    def is_redelivered(self) -> bool:
        """Whether the running task's message has been handed out before, to a process that did not finish it."""
        message = current_message()
        return message is not None and message.redelivered

    @property
    def host(self) -> str:
        """The name of this process's worker, or of its machine."""
        return self.worker_name or os.uname().nodename

    @property
    def process(self) -> str:
        """This process for people."""
        return f"{self.host} {os.getpid()}"

    @cached_property
    def background(self) -> Background:
        """The event loop that async tools run on when their worker's pool is not an asyncio one."""
        return Background()

    def close(self) -> None:
        """Let go of everything."""
        if "background" in self.__dict__:
            self.background.stop()
        self.transitions.flush()
        self.sticky.clear()
        self.store.database.close()
        self.redis.close()


class Background:
    """An asyncio loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="pickaxe-async", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there, and wait for it here."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=5)


def new_owner() -> str:
    """A name no other process has, or will have."""
    return secrets.token_hex(8)  # short, for every step has it twice
