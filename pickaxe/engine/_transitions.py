"""Transitions as they happen: a Redis stream per run, short-lived, never the truth.

Whatever is missing here (Redis was flushed, a process died between its commit and this) a reader fills in
from the log. See `pickaxe/streams.py`.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import redis

from pickaxe import _values
from pickaxe.broker import Command

logger = logging.getLogger("pickaxe.stream")

MAX_LENGTH = 10_000
"""Entries kept per run while it is live."""

LINGER = 0.01
"""Seconds for which more transitions are waited for, to be sent together."""


def stream_key(run: uuid.UUID | str) -> str:
    """The Redis key of a run's stream."""
    return f"pickaxe:stream:{run}"


class Transitions:
    """Writes transitions, soon and several at a time. Failing to is logged and otherwise ignored: the log has them.

    They are told before the next message is published and at the end of a task, and otherwise within `LINGER`
    by a thread, so that steps which follow each other quickly cost one round trip and not one each.
    """

    def __init__(self, client: redis.Redis, *, ttl: float) -> None:
        self._client = client
        self._ttl = int(ttl * 1000)
        self._waiting: list[tuple[uuid.UUID, Mapping[str, Any]]] = []
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._some = threading.Event()
        self._thread: threading.Thread | None = None

    def tell(self, run: uuid.UUID, *entries: Mapping[str, Any]) -> None:
        """Append transitions of a run."""
        self.tell_all((run, entry) for entry in entries)

    def tell_all(self, entries: Iterable[tuple[uuid.UUID, Mapping[str, Any]]]) -> None:
        """Append transitions of several runs."""
        now = time.time()
        with self._lock:
            self._waiting += ((run, {**entry, "at": now}) for run, entry in entries)
            if self._waiting and self._thread is None:
                self._thread = threading.Thread(target=self._flush_for_ever, name="pickaxe-stream", daemon=True)
                self._thread.start()
        if not self._some.is_set():
            self._some.set()

    def flush(self) -> None:
        """Send what is waiting, now."""
        # In the order in which they were told, whoever sends them.
        with self._sending:
            commands = self._commands_of(self._taken())
            if commands:
                self._send(commands)

    def take(self) -> list[Command]:
        """The commands that tell what is waiting, for the caller to send: they are not waiting any more."""
        with self._sending:  # what others have taken before is told before
            return self._commands_of(self._taken())

    def _taken(self) -> list[tuple[uuid.UUID, Mapping[str, Any]]]:
        with self._lock:
            entries, self._waiting = self._waiting, []
        return entries

    def _flush_for_ever(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            time.sleep(LINGER)
            self.flush()

    def _commands_of(self, entries: list[tuple[uuid.UUID, Mapping[str, Any]]]) -> list[Command]:
        told = [(stream_key(run), _values.dump(entry)) for run, entry in entries]
        return [
            *(("XADD", key, "MAXLEN", "~", MAX_LENGTH, "*", "t", entry) for key, entry in told),
            *(("PEXPIRE", key, self._ttl) for key in dict.fromkeys(key for key, _ in told)),
        ]

    def _send(self, commands: list[Command]) -> None:
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        try:
            pipe.execute()
        except redis.RedisError as error:
            logger.debug("transitions were not streamed: %s", error)


def run_entry(state: str, **more: Any) -> dict[str, Any]:
    """A transition of a run."""
    return {"kind": "run", "state": state, **more}


def step_entry(key: str, name: str, state: str, attempt: int = 0, **more: Any) -> dict[str, Any]:
    """A transition of a step."""
    return {"kind": "step", "step": key, "name": name, "state": state, "attempt": attempt, **more}
