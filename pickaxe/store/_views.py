"""Reading runs for people and programs: never on the hot path."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Text, cast
from sqlmodel import Session, col, select

from pickaxe import _values
from pickaxe._states import RunState, StepState
from pickaxe.store._database import Database
from pickaxe.store.models import DeadLetter, Run, Signal, Step, Worker

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as it stands. Values are decoded JSON; times are aware datetimes."""

    id: uuid.UUID
    agent: str
    version: str
    state: RunState
    queue: str
    priority: int
    reason: str | None
    input: Any
    output: Any
    error: dict[str, Any] | None
    published: Any
    metadata: dict[str, Any]
    parent: uuid.UUID | None
    parent_step: str | None
    root: uuid.UUID
    idempotency_key: str | None
    chapter: int
    epoch: int
    head: int
    due: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, run: Run) -> RunView:
        return cls(
            run.id, run.agent, run.version, RunState(run.state), run.queue, run.priority, run.reason,
            _values.load(run.input), _optional(run.output), _optional(run.error), _optional(run.published),
            _optional(run.details) or {}, run.parent_run, run.parent_step, run.root, run.idempotency_key,
            run.chapter, run.epoch, run.head, run.due, run.created_at, run.started_at, run.finished_at,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StepView:
    """A step as it stands. `history` are its earlier attempts; `child` is the child run it stands for.

    `strikes` are the worker deaths in a row it is charged with; `reconciling`: what runs is its tool's `reconcile`.
    `effect` is the policy its tool declared when it was called.
    """

    key: str
    kind: str
    name: str
    state: StepState
    seq: int | None
    attempt: int
    deaths: int
    strikes: float
    reconciling: bool
    effect: str
    worker: str | None
    queue: str | None
    group: str | None
    chapter: int
    input: Any
    output: Any
    error: dict[str, Any] | None
    reason: str | None
    progress: Any
    history: list[dict[str, Any]]
    child: uuid.UUID | None
    due: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, s: Any) -> StepView:
        return cls(
            s.key, s.kind, s.name, StepState(s.state), s.seq, s.attempt, s.deaths, s.strikes,
            s.reconciling and s.state == StepState.RUNNING,
            _values.load(s.options).get("effect", "idempotent"), s.worker, s.queue, s.group_key,
            s.chapter, _values.load(s.input), _optional(s.output), _optional(s.error), s.reason,
            _optional(s.progress), _history(s), s.child, s.due, s.created_at, s.started_at,
            s.finished_at,
        )  # fmt: skip


class Views:
    """See the module."""

    database: Database

    def view_run(self, run: uuid.UUID) -> RunView | None:
        """One run, or None."""
        found = self._read(lambda session: session.get(Run, run))
        return RunView.of(found) if found else None

    def view_steps(self, run: uuid.UUID) -> list[StepView]:
        """A run's steps, in the order they were asked for."""
        return [StepView.of(row) for row in self.database.rows("view_steps", run=run, key=None)]

    def view_step(self, run: uuid.UUID, key: str) -> StepView | None:
        """One step, or None."""
        row = self.database.row("view_steps", run=run, key=key)
        return None if row is None else StepView.of(row)

    def recorded_input(self, run: uuid.UUID, key: str) -> str:
        """The arguments a step was recorded with, as JSON text."""
        return "".join(self._all(select(Step.input).where(Step.run_id == run, Step.key == key)))

    def find_runs(self, prefix: str) -> list[uuid.UUID]:
        """Up to three runs whose id begins like this."""
        query = select(Run.id).where(cast(col(Run.id), Text).startswith(prefix, autoescape=True))
        return self._all(query.order_by(col(Run.created_at).desc()).limit(3))

    def list_runs(
        self,
        *,
        agent: str | None = None,
        states: Sequence[RunState] = (),
        root: uuid.UUID | None = None,
        children: bool = False,
        limit: int = 50,
    ) -> list[RunView]:
        """Runs, newest first; child runs only when asked for."""
        query = select(Run)
        if agent is not None:
            query = query.where(col(Run.agent) == agent)
        if states:
            query = query.where(col(Run.state).in_([str(s) for s in states]))
        if root is not None:
            query = query.where(col(Run.root) == root)
        if not children:
            query = query.where(col(Run.parent_run).is_(None))
        query = query.order_by(col(Run.created_at).desc(), col(Run.id).desc()).limit(limit)
        return [RunView.of(run) for run in self._all(query)]

    def children(self, run: uuid.UUID) -> list[RunView]:
        """The child runs of a run, oldest first."""
        query = select(Run).where(Run.parent_run == run).order_by(col(Run.created_at))
        return [RunView.of(child) for child in self._all(query)]

    def list_signals(self, run: uuid.UUID, chapter: int) -> list[Signal]:
        """The signals sent to a chapter of a run, or left to it by the one before, in the order they came."""
        query = select(Signal).where(Signal.run_id == run, Signal.chapter == chapter)
        return self._all(query.order_by(col(Signal.seq)))

    def list_workers(self) -> list[Worker]:
        """Worker processes that have not ended."""
        return self._all(select(Worker).where(col(Worker.ended_at).is_(None)).order_by(col(Worker.slot)))

    def view_dead_letter(self, number: int) -> DeadLetter | None:
        """One of them, or None."""
        return next(iter(self._all(select(DeadLetter).where(DeadLetter.id == number))), None)

    def list_dead_letters(self, limit: int = 50) -> list[DeadLetter]:
        """Messages that could not be read, newest first."""
        return self._all(select(DeadLetter).order_by(col(DeadLetter.id).desc()).limit(limit))

    def count_open_steps(self, run: uuid.UUID) -> int:
        """How many of a run's steps have not ended."""
        ended = [str(s) for s in StepState if s.terminal]
        return len(self._all(select(Step.key).where(Step.run_id == run, col(Step.state).not_in(ended))))

    def _all(self, query: Any) -> list[Any]:
        return self._read(lambda session: list(session.exec(query)))

    def _read(self, work: Callable[[Session], T]) -> T:
        def attempt() -> T:
            with Session(self.database.engine, expire_on_commit=False) as session:
                return work(session)

        return self.database.patiently(attempt)


def _history(step: Any) -> list[dict[str, Any]]:
    exits = step.exits or {}
    past = _optional(step.history) or []
    return [{**entry, "exit": exits.get(entry["process"])} if "process" in entry else entry for entry in past]


def _optional(text: str | None) -> Any:
    return None if text is None else _values.load(text)
