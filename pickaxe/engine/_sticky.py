"""Suspended agents, kept in memory for their next arrival. A saving, never a matter of correctness.

A process that has reduced a run keeps its coroutine. When it reduces the run again it needs only what is new in the
log since: its own last commit if nobody else had the run meanwhile, otherwise the part it has not seen. The idea is
that of Temporal's sticky execution, without the queue per worker: any process may go on with any run.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass

from pickaxe.core._reduction import Reduction
from pickaxe.store import RunRow


@dataclass(frozen=True, slots=True)
class Kept:
    """A coroutine, and the run's row after the commit that it has seen last."""

    row: RunRow
    reduction: Reduction


class Sticky:
    """The `most` runs that were reduced last. Who takes one has it alone, and keeps it again or closes it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[uuid.UUID, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def seen(self, run: uuid.UUID) -> RunRow | None:
        """The row of a run as this process has seen it last, if it keeps its coroutine."""
        with self._lock:
            kept = self._kept.get(run)
        return None if kept is None else kept.row

    def take(self, run: uuid.UUID) -> Kept | None:
        """What is kept of a run; it is not kept any more."""
        with self._lock:
            return self._kept.pop(run, None)

    def keep(self, kept: Kept) -> None:
        """Keep this one, and let go of those that were not needed for longest."""
        dropped = []
        with self._lock:
            if (before := self._kept.pop(kept.row.id, None)) is not None:
                dropped.append(before)
            self._kept[kept.row.id] = kept
            while len(self._kept) > self._most:
                dropped.append(self._kept.popitem(last=False)[1])
        for old in dropped:
            old.reduction.close()

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            dropped, self._kept = list(self._kept.values()), OrderedDict()
        for old in dropped:
            old.reduction.close()
