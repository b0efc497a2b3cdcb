"""Transitions as they happen: a Redis stream per run, short-lived, never the truth.

Whatever is missing here (Redis was flushed, a process died between its commit and this) a reader fills in
from the log. See `pickaxe/client.py`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import redis

from pickaxe import _values

logger = logging.getLogger("pickaxe.stream")

MAX_LENGTH = 10_000
"""Entries kept per run while it is live."""


def stream_key(run: uuid.UUID | str) -> str:
    """The Redis key of a run's stream."""
    return f"pickaxe:stream:{run}"


class Transitions:
    """Writes transitions. Failing to is logged and otherwise ignored: the log has them."""

    def __init__(self, client: redis.Redis, *, ttl: float) -> None:
        self._client = client
        self._ttl = int(ttl * 1000)

    def tell(self, run: uuid.UUID, *entries: Mapping[str, Any]) -> None:
        """Append transitions of a run."""
        self.tell_all((run, entry) for entry in entries)

    def tell_all(self, entries: Iterable[tuple[uuid.UUID, Mapping[str, Any]]]) -> None:
        """Append transitions of several runs in one round trip."""
        entries = list(entries)
        if not entries:
            return
        pipe = self._client.pipeline(transaction=False)
        keys = set()
        for run, entry in entries:
            key = stream_key(run)
            keys.add(key)
            pipe.xadd(key, {"t": _values.dump(dict(entry))}, maxlen=MAX_LENGTH, approximate=True)
        for key in keys:
            pipe.pexpire(key, self._ttl)
        try:
            pipe.execute()
        except redis.RedisError as error:
            logger.debug("a transition was not streamed: %s", error)


def run_entry(state: str, **more: Any) -> dict[str, Any]:
    """A transition of a run."""
    return {"kind": "run", "state": state, **more}


def step_entry(key: str, name: str, state: str, attempt: int = 0, **more: Any) -> dict[str, Any]:
    """A transition of a step."""
    return {"kind": "step", "step": key, "name": name, "state": state, "attempt": attempt, **more}
