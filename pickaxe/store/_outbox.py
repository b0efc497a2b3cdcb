"""Enqueueing inside the caller's own transaction."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from pickaxe import _values
from pickaxe.errors import ConfigurationError
from pickaxe.store._database import native, statement
from pickaxe.store._runs import NewRun


def insert_with(
    connection: Any, runs: Sequence[NewRun], *, on_commit: Callable[[], None]
) -> dict[tuple[str, str | None], uuid.UUID]:
    """Insert runs with a connection of the caller's: they exist when, and only if, the caller commits.

    `on_commit` is called after that where the driver can tell (a SQLAlchemy session); elsewhere the sweeper
    finds the runs. Returns the runs that were there already, by agent and idempotency key.
    """
    if isinstance(connection, Session):
        event.listen(connection, "after_commit", lambda _: on_commit(), once=True)
    inserted = {row[0] for row in _execute(connection, "enqueue", runs=_values.dump([r.as_json() for r in runs]))}
    known: dict[tuple[str, str | None], uuid.UUID] = {}
    for run in runs:
        if run.id not in inserted:
            for key, found in _execute(connection, "find_by_key", agent=run.agent, keys=[run.idempotency_key]):
                known[run.agent, key] = found
    return known


def _execute(connection: Any, name: str, **parameters: Any) -> Any:
    if isinstance(connection, Session | Connection):
        return connection.execute(statement(name), parameters).all()
    if isinstance(connection, psycopg.Connection):
        return psycopg.Cursor(connection, row_factory=tuple_row).execute(native(name), parameters).fetchall()
    raise ConfigurationError(
        f"enqueue(connection=…) takes a SQLAlchemy Connection or Session, or a psycopg Connection, not "
        f"{type(connection).__name__}: for an AsyncSession use `await session.run_sync(lambda s: "
        f"agent.enqueue(…, connection=s))`"
    )
