"""The tables, as SQLModel models. Alembic migrations make them; a test holds the two together.

Payload columns (`input`, `output`, `error`, `options`, `metadata`, …) hold JSON text, never `jsonb`: byte for
byte what was written.
"""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import REAL, BigInteger, Column, DateTime, Identity, Integer, MetaData, SmallInteger, Text
from sqlmodel import Field, SQLModel

SCHEMA = "pickaxe"
metadata = MetaData(schema=SCHEMA)


class Table(SQLModel):
    """Our tables live in a schema and metadata of their own, apart from the application's."""

    metadata = metadata


def _text(*, required: bool = True) -> Column[str]:
    return Column(Text, nullable=not required)


def _time(*, required: bool = False) -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=not required)


class Run(Table, table=True):
    """One invocation of an agent."""

    __tablename__ = "run"

    id: uuid.UUID = Field(primary_key=True)
    agent: str = Field(sa_column=_text())
    version: str = Field(sa_column=_text())
    state: str = Field(sa_column=_text())
    chapter: int
    epoch: int
    head: int
    wake: int
    queue: str = Field(sa_column=_text())
    priority: int = Field(sa_type=SmallInteger)
    due: datetime | None = Field(sa_column=_time())
    sent_at: datetime | None = Field(sa_column=_time())
    dispatches: int = Field(sa_type=SmallInteger)
    deadline: datetime | None = Field(sa_column=_time())
    input: str = Field(sa_column=_text())
    output: str | None = Field(sa_column=_text(required=False))
    error: str | None = Field(sa_column=_text(required=False))
    published: str | None = Field(sa_column=_text(required=False))
    reason: str | None = Field(sa_column=_text(required=False))
    cancel_seq: int | None
    cancel_at: datetime | None = Field(sa_column=_time())
    cancel_reason: str | None = Field(sa_column=_text(required=False))
    timed_out: bool
    parent_run: uuid.UUID | None
    parent_step: str | None = Field(sa_column=_text(required=False))
    root: uuid.UUID
    idempotency_key: str | None = Field(sa_column=_text(required=False))
    details: str | None = Field(sa_column=Column("metadata", Text))
    created_at: datetime = Field(sa_column=_time(required=True))
    started_at: datetime | None = Field(sa_column=_time())
    chapter_at: datetime | None = Field(sa_column=_time())
    finished_at: datetime | None = Field(sa_column=_time())


class Step(Table, table=True):
    """One entry of a run's log."""

    __tablename__ = "step"

    run_id: uuid.UUID = Field(primary_key=True, foreign_key="pickaxe.run.id", ondelete="CASCADE")
    key: str = Field(sa_column=Column(Text, primary_key=True))
    chapter: int
    kind: str = Field(sa_column=_text())
    name: str = Field(sa_column=_text())
    digest: str = Field(sa_column=_text())
    state: str = Field(sa_column=_text())
    queue: str | None = Field(sa_column=_text(required=False))
    priority: int = Field(sa_type=SmallInteger)
    seq: int | None
    born: int
    attempt: int
    deaths: int
    strikes: float = Field(sa_type=REAL)
    reconciling: bool
    owner: str | None = Field(sa_column=_text(required=False))
    ran_by: str | None = Field(sa_column=_text(required=False))
    due: datetime | None = Field(sa_column=_time())
    sent_at: datetime | None = Field(sa_column=_time())
    granted: bool
    expires: datetime | None = Field(sa_column=_time())
    total_timeout: float | None
    dispatches: int = Field(sa_type=SmallInteger)
    group_key: str | None = Field(sa_column=_text(required=False))
    index: int
    ordinal: int | None
    counted: int | None
    failed: int | None
    input: str = Field(sa_column=_text())
    options: str = Field(sa_column=_text())
    output: str | None = Field(sa_column=_text(required=False))
    error: str | None = Field(sa_column=_text(required=False))
    reason: str | None = Field(sa_column=_text(required=False))
    progress: str | None = Field(sa_column=_text(required=False))
    history: str | None = Field(sa_column=_text(required=False))
    created_at: datetime = Field(sa_column=_time(required=True))
    started_at: datetime | None = Field(sa_column=_time())
    finished_at: datetime | None = Field(sa_column=_time())


class Signal(Table, table=True):
    """An outside message to one run."""

    __tablename__ = "signal"

    run_id: uuid.UUID = Field(primary_key=True, foreign_key="pickaxe.run.id", ondelete="CASCADE")
    seq: int = Field(primary_key=True)
    chapter: int
    name: str = Field(sa_column=_text())
    payload: str = Field(sa_column=_text())
    idempotency_key: str | None = Field(sa_column=_text(required=False))
    created_at: datetime = Field(sa_column=_time(required=True))


class Event(Table, table=True):
    """An outside fact that any number of runs may wait for."""

    __tablename__ = "event"

    id: uuid.UUID = Field(primary_key=True)
    key: str = Field(sa_column=_text())
    scope: str = Field(sa_column=_text())
    payload: str = Field(sa_column=_text())
    created_at: datetime = Field(sa_column=_time(required=True))


class Worker(Table, table=True):
    """One process that runs tasks: its incarnation, and its signs of life."""

    __tablename__ = "worker"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    slot: int = Field(sa_column=Column(Integer, Identity(always=True), nullable=False))
    name: str = Field(sa_column=_text())
    pid: int
    handles: str = Field(sa_column=_text())
    started_at: datetime = Field(sa_column=_time(required=True))
    beat_at: datetime = Field(sa_column=_time(required=True))
    ended_at: datetime | None = Field(sa_column=_time())
    ended: str | None = Field(sa_column=_text(required=False))
    family: str = Field(sa_column=_text())
    exit: str | None = Field(sa_column=_text(required=False))
    held: int
    suspects: int


class Suspect(Table, table=True):
    """A reduction that may kill its worker, and who is at it."""

    __tablename__ = "suspect"

    run_id: uuid.UUID = Field(primary_key=True, foreign_key="pickaxe.run.id", ondelete="CASCADE")
    owner: str = Field(sa_column=Column(Text, primary_key=True))
    epoch: int
    noted_at: datetime = Field(sa_column=_time(required=True))


class DeadLetter(Table, table=True):
    """A message from the broker that could not be read."""

    __tablename__ = "dead_letter"

    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    reason: str = Field(sa_column=_text())
    body: str = Field(sa_column=_text())
    headers: str = Field(sa_column=_text())
    queue: str = Field(sa_column=_text())
    message: str | None = Field(sa_column=_text(required=False))
    created_at: datetime = Field(sa_column=_time(required=True))


class Broker(Table, table=True):
    """The broker's incarnation as it was last seen."""

    __tablename__ = "broker"

    id: int = Field(sa_column=Column(SmallInteger, primary_key=True))
    incarnation: str = Field(sa_column=_text())
    seen_at: datetime = Field(sa_column=_time(required=True))
