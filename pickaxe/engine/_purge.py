"""What nobody will look at any more is deleted, a little at a time."""

from __future__ import annotations

import logging
import time

from pickaxe._failpoints import failpoint
from pickaxe.engine._engine import Engine
from pickaxe.store import BATCH

logger = logging.getLogger("pickaxe.sweeper")

EVERY = 60.0
"""Seconds between two looks."""

BATCHES = 20
"""How many statements' worth of each kind are deleted at a look."""

SUSPICION = 86_400.0
"""Seconds for which a reduction that was noted, and came to an end all the same, is kept."""


class Purge:
    """Deletes what is older than the settings say. Called by the sweeper, acts once a minute."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._next = 0.0

    def __call__(self) -> None:
        """Delete, if it is time."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        settings = self._engine.settings
        for what, keep in (
            ("workers", settings.keep_workers),
            ("events", settings.keep_events),
            ("dead_letters", settings.keep_dead_letters),
            ("suspects", SUSPICION),
        ):
            count = self._delete(what, keep) if keep else 0
            if count:
                logger.info("deleted %d old %s", count, what.replace("_", " "))

    def _delete(self, what: str, keep: float) -> int:
        """In small transactions, and not for long: what is due has to wait for this."""
        total = 0
        for _ in range(BATCHES):
            failpoint("purge.before")
            total += (count := self._engine.store.purge(what, keep))
            failpoint("purge.after")
            if count < BATCH:
                break
        return total
