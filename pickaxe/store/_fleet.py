"""The statements of the fleet: workers, what is due, and what could not be read."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from pickaxe import _values
from pickaxe._texts import storable
from pickaxe.store._database import Database
from pickaxe.store._runs import StepDue

LOCK_CLASS = 0x5049434B
"""The first half of every advisory lock of Pickaxe; the second is a worker's slot, or 0 for the sweeper."""

FOUND_AGAIN = 4.0
"""Seconds after its start in which every living process has found the database again: statements that fail are
tried again after 1.5 s at most, and a beat that was given up follows the next."""

BATCH = 500
"""Rows a sweep takes at a time."""

LATELY = 600.0
"""Seconds for which a death makes the fleet look closer at what was begun and not ended."""


class FleetStore:
    """See the module."""

    database: Database
    redispatch: float
    losses: bool = True
    """Whether a process of the fleet has died lately, as far as this one's last beat could tell."""

    def register_worker(self, worker: str, *, name: str, pid: int, handles: Sequence[str], family: str = "") -> int:
        """Make a process known. Returns the slot whose session lock it must hold.

        `family` is what all processes of one worker share.
        """
        row = self.database.one(
            "register_worker", id=worker, name=name, pid=pid, handles=_values.dump(sorted(handles)), family=family
        )
        return int(row.slot)

    def lock(self, slot: int) -> Connection | None:
        """A connection that holds a slot's session lock for as long as it lives, or None if another does."""
        connection = self.database.engine.connect()
        try:
            # Never waiting: the other may be this process's own last connection, which Postgres still believes in.
            query = text("SELECT pg_try_advisory_lock(:c, :s)")
            if connection.execute(query, {"c": LOCK_CLASS, "s": slot}).scalar():
                # Out of the pool for good: the lock belongs to this very connection.
                connection.detach()
                return connection
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        connection.close()
        return None

    def depose(self, slot: int, *, vanished: float) -> list[int]:
        """End the session that holds a slot's lock if it has said nothing for `vanished` seconds."""
        rows = self.database.rows(
            "depose", slot=slot, vanished=vanished, lock_class=LOCK_CLASS, found_again=FOUND_AGAIN
        )
        return [int(row.pid) for row in rows]

    @staticmethod
    def holds(connection: Connection) -> float:
        """The database's time, in epoch seconds. Raises `DBAPIError` when a connection, and so its lock, is gone."""
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())::float8")).scalar_one())

    def beat(self, worker: str, *, silent: float = 2.0) -> list[str] | None:
        """A sign of life: the steps the process owns, as `"run attempt key"`, or None if it was buried.

        Others that have not beaten for `silent` seconds count as `losses`.
        """
        row = self.database.row("beat", id=worker, lately=LATELY, silent=silent)
        if row is None:
            return None
        self.losses = row.losses
        return list(row.owned)

    def end_worker(self, worker: str, how: str) -> None:
        """A process leaves in good order."""
        self.database.rows("end_worker", id=worker, ended=how)

    def bury_workers(self, *, dead: float, vanished: float) -> Sequence[Row[Any]]:
        """Declare dead what is dead."""
        return self.database.rows_now(
            "bury_workers", dead=dead, vanished=vanished, lock_class=LOCK_CLASS, found_again=FOUND_AGAIN
        )

    def living_workers(self, *, vanished: float) -> Sequence[Row[Any]]:
        """The workers that live, oldest first: `name`, `family`, and the `pids` of their processes."""
        return self.database.rows("living_workers", vanished=vanished, lock_class=LOCK_CLASS)

    def open_work(self) -> Sequence[Row[Any]]:
        """What workers have yet to take, by `kind` (agent or tool), `name` and `queue`."""
        return self.database.rows("open_work")

    def due_runs(self, cap: float) -> Sequence[Row[Any]]:
        """Runs to be published now."""
        return self.database.rows("due_runs", batch=BATCH, base=self.redispatch, cap=cap)

    def due_steps(self, cap: float) -> list[StepDue]:
        """Calls to be published now."""
        return [StepDue.of(r) for r in self.database.rows("due_steps", batch=BATCH, base=self.redispatch, cap=cap)]

    def late(self) -> list[tuple[str, int]]:
        """The queues, and the priorities there, in which messages were sent and should have been taken by now."""
        return [(row.queue, row.priority) for row in self.database.rows("late")]

    def late_runs(self, waiting: Sequence[dict[str, Any]], cap: float) -> Sequence[Row[Any]]:
        """Runs whose message was sent and not taken: to be published again, unless it `waits`.

        `waiting` are some messages in their queues, the oldest among them: mappings of queue, priority, run and key.
        """
        return self.database.rows(
            "late_runs", waiting=_values.dump(list(waiting)), batch=BATCH, base=self.redispatch, cap=cap
        )

    def late_steps(self, waiting: Sequence[dict[str, Any]], cap: float) -> Sequence[Row[Any]]:
        """As `late_runs`, for calls."""
        return self.database.rows(
            "late_steps", waiting=_values.dump(list(waiting)), batch=BATCH, base=self.redispatch, cap=cap
        )

    def due_timers(self) -> list[uuid.UUID]:
        """Fire the timers that are due. Returns the runs to be published."""
        rows = self.database.rows("due_timers", batch=BATCH, redispatch=self.redispatch)
        return [row.run_id for row in rows if row.woken]

    def next_due(self, most: float) -> float:
        """Seconds until something is due, at most `most`, at least 0."""
        return max(0.0, float(self.database.one("next_due", most=most).wait))

    def overdue_steps(self) -> Sequence[Row[Any]]:
        """Running calls past their timeout."""
        return self.database.rows("overdue_steps", batch=BATCH)

    def expired_steps(self) -> Sequence[Row[Any]]:
        """Calls past their schedule or total timeout."""
        return self.database.rows("expired_steps", batch=BATCH)

    def overdue_runs(self) -> list[uuid.UUID]:
        """Runs past their timeout."""
        return [row.id for row in self.database.rows("overdue_runs", batch=BATCH)]

    def due_cancellations(self, cap: float) -> list[uuid.UUID]:
        """Child runs to be told that nobody waits for them."""
        rows = self.database.rows("due_cancellations", batch=BATCH, base=self.redispatch, cap=cap)
        return [row.id for row in rows if row.id is not None]

    def defer_steps(self, steps: Sequence[dict[str, Any]]) -> None:
        """Move calls to a later time: mappings of run, key, attempt, wait (seconds), granted and reason."""
        self.database.rows("defer_steps", steps=_values.dump(list(steps)))

    def defer_run(self, run: uuid.UUID, reason: str, cap: float) -> None:
        """Try a run later, with a growing delay."""
        self.database.rows("defer_run", run=run, reason=storable(reason), base=self.redispatch, cap=cap)

    def defer_unknown_step(self, run: uuid.UUID, key: str, reason: str, cap: float) -> None:
        """Try a call later, with a growing delay."""
        self.database.rows(
            "defer_unknown_step", run=run, key=key, reason=storable(reason), base=self.redispatch, cap=cap
        )

    def expedite(self) -> Row[Any]:
        """Make everything that should be in the broker due now."""
        return self.database.one("expedite", base=self.redispatch)

    def broker_seen(self, incarnation: str) -> str | None:
        """Remember the broker's incarnation. Returns the one before, None for a fresh deployment."""
        before: str | None = self.database.one("broker_seen", incarnation=incarnation).before
        return before

    def set_aside(self, *, reason: str, body: str, headers: str, queue: str = "", message: str | None = None) -> int:
        """Keep a message that could not be read; `message` is what it takes to send it again. Returns its number."""
        row = self.database.one(
            "set_aside", reason=storable(reason), body=storable(body), headers=headers, queue=storable(queue),
            message=message,
        )  # fmt: skip
        return int(row.id)

    def drop_dead_letter(self, number: int) -> bool:
        """Forget a dead letter. False if there is none of that number."""
        return self.database.row("drop_dead_letter", id=number) is not None

    def purge(self, what: str, keep: float) -> int:
        """Delete `workers`, `events`, `dead_letters` or `suspects` older than `keep` seconds. Returns how many."""
        return len(self.database.rows(f"purge_{what}", keep=keep, batch=BATCH))
