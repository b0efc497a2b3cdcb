"""What nobody will look at any more is deleted, a little at a time."""

from __future__ import annotations

import logging
import time

from pickaxe.engine._engine import Engine

logger = logging.getLogger("pickaxe.sweeper")

EVERY = 60.0
"""Seconds between two looks."""

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
            if keep and (count := self._engine.store.purge(what, keep)):
                logger.info("deleted %d old %s", count, what.replace("_", " "))
