"""Outside facts, and the waits they satisfy."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Connection, text

from pickaxe import _values
from pickaxe.store._database import Database, statement


def matches(where: Any, payload: Any) -> bool:
    """Whether `payload` holds everything `where` asks for: equal scalars, nested mappings as subsets."""
    if isinstance(where, dict):
        return isinstance(payload, dict) and all(k in payload and matches(v, payload[k]) for k, v in where.items())
    return bool(where == payload)


def wants(wanted: dict[str, Any], payload: Any) -> bool:
    """Whether a wait takes this payload. One that asks for nothing takes any, also if it is no mapping."""
    return not wanted["where"] or matches(wanted["where"], payload)


class EventStore:
    """Publishing an event and looking back for one exclude each other per key, so neither misses the other."""

    database: Database
    redispatch: float

    def publish_event(self, key: str, scope: str, payload: str) -> list[uuid.UUID]:
        """Record an event and let it arrive at every run that waits for it. Returns the runs to be published."""
        value = _values.load(payload)
        event = {"id": uuid.uuid4(), "key": key, "scope": scope, "payload": payload}

        def work(connection: Connection) -> list[uuid.UUID]:
            self._exclude(connection, key, scope)
            if connection.execute(statement("insert_event"), event).first() is None:
                return []
            waits = connection.execute(statement("event_waits"), {"key": key}).all()
            woken = []
            # In the order of their runs, so that two events with common waiters lock them alike.
            for wait in sorted(waits, key=lambda w: (w.run_id, w.key)):
                wanted = _values.load(wait.input)
                if wanted["scope"] == scope and wants(wanted, value):
                    # One that came before this, and that the wait is about to find, comes first.
                    earlier = self._first(connection, wait, wanted) if wait.looks_back else None
                    woken += self._arrive(connection, wait.run_id, wait.key, earlier or payload)
            return woken

        result: list[uuid.UUID] = self.database.transaction(work)
        return result

    def look_back(self, run: uuid.UUID, key: str) -> list[uuid.UUID]:
        """Let an event that came before the wait, within its look-back, arrive. Returns runs to be published."""

        def work(connection: Connection) -> list[uuid.UUID]:
            wait = connection.execute(statement("event_wait"), {"run": run, "key": key}).first()
            if wait is None:
                return []
            wanted = _values.load(wait.input)
            self._exclude(connection, wait.name, wanted["scope"])
            found = self._first(connection, wait, wanted)
            if found is not None:
                return self._arrive(connection, run, key, found)
            connection.execute(statement("looked_back"), {"run": run, "key": key})
            return []

        result: list[uuid.UUID] = self.database.transaction(work)
        return result

    @staticmethod
    def _first(connection: Connection, wait: Any, wanted: Any) -> str | None:
        """The payload of the first event that a wait takes, of those since its look-back begins."""
        recent = connection.execute(
            statement("recent_events"),
            {
                "key": wait.name,
                "scope": wanted["scope"],
                "since": wait.created_at,
                "within": wanted["within"],
            },
        )
        return next((event.payload for event in recent.all() if wants(wanted, _values.load(event.payload))), None)

    @staticmethod
    def _exclude(connection: Connection, key: str, scope: str) -> None:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
            {"name": f"pickaxe {scope} {key}"},
        )

    def _arrive(self, connection: Connection, run: uuid.UUID, key: str, payload: str) -> list[uuid.UUID]:
        row = connection.execute(
            statement("settle"),
            {
                "run": run, "key": key, "origin": ["waiting"], "attempt": None, "owner": None,
                "state": "succeeded", "output": payload, "error": None, "redispatch": self.redispatch,
            },
        ).one()  # fmt: skip
        return [run] if row.woken else []

    def due_lookbacks(self) -> list[tuple[uuid.UUID, str]]:
        """Event waits that have not looked back yet."""
        return [(row.run_id, row.key) for row in self.database.rows("due_lookbacks", batch=500)]
