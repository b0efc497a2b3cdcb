"""What a tool is given besides its input: its context, and things a process makes once."""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

T = TypeVar("T")


class Injected:
    """The default of a parameter that Pickaxe fills in."""

    def __init__(self, factory: Callable[[], Any] | None) -> None:
        self.factory = factory


def inject(factory: Callable[[], Any] | None = None) -> Any:
    """Marks a tool's parameter as filled in by Pickaxe, not by the caller.

    `ctx: Context = inject()` is the call's context. `connection: Connection = inject()` is the connection of a
    transactional tool: one of SQLAlchemy's `Connection` and `Session` or psycopg's `Connection`, as annotated.
    `client: Client = inject(make_client)` is what `make_client()` returns, made once per process; if that is a
    generator function, what it yields, and what comes after the `yield` runs when the process ends.
    """
    return Injected(factory)


@dataclass(slots=True)
class Context:
    """What a running tool knows about its call, and what it can tell about it.

    `idempotency_key` is the same for every attempt of this call: give it to the service you call.
    `deadline` is when this attempt runs out of time, None for never. `attempt` counts from 1.
    """

    run: str = ""
    step: str = ""
    tool: str = ""
    attempt: int = 1
    idempotency_key: str = field(default_factory=lambda: str(uuid.uuid4()))
    deadline: datetime | None = None
    root: str = ""
    _beat: Callable[[Any], bool] | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants this call any more. Long sync tools should look, and return."""
        return self._cancelled.is_set()

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that adds `run`, `step` and `attempt` to every record."""
        extra = {"run": self.run, "step": self.step, "attempt": self.attempt}
        return logging.LoggerAdapter(logging.getLogger(f"pickaxe.tool.{self.tool or 'local'}"), extra)

    def heartbeat(self) -> bool:
        """This call is alive: the time for this attempt starts again. False if it is no longer wanted."""
        return self._tell(None)

    def progress(self, value: Any) -> bool:
        """Publish how far this call has got (anything JSON can hold); also a heartbeat."""
        return self._tell(value)

    def _tell(self, value: Any) -> bool:
        if self._beat is not None and not self._beat(value):
            self._cancelled.set()
        return not self.cancelled


class Resources:
    """What factories made in this process, each once."""

    def __init__(self) -> None:
        self._made: dict[Callable[[], Any], Any] = {}
        self._replaced: dict[Callable[[], Any], Callable[[], Any]] = {}
        self._open = contextlib.ExitStack()
        self._lock = threading.RLock()

    def get(self, factory: Callable[[], Any]) -> Any:
        """What `factory` makes, made now if it was not yet."""
        factory = self._replaced.get(factory, factory)
        with self._lock:
            if factory not in self._made:
                self._made[factory] = self._make(factory)
            return self._made[factory]

    def _make(self, factory: Callable[[], Any]) -> Any:
        if inspect.isgeneratorfunction(factory):
            return self._open.enter_context(contextlib.contextmanager(factory)())
        return factory()

    @contextlib.contextmanager
    def replaced(self, factory: Callable[[], Any], by: Callable[[], Any]) -> Iterator[None]:
        """While this is entered, `by` is used instead of `factory`."""
        self._replaced[factory] = by
        try:
            yield
        finally:
            del self._replaced[factory]

    def close(self) -> None:
        """Finish what generator factories began, newest first."""
        with self._lock:
            self._made.clear()
            self._open.close()


resources = Resources()
"""This process's resources."""
