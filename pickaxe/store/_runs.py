"""The statements a run moves by."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Row

from pickaxe import _values
from pickaxe._states import RunState, StepKind, StepState
from pickaxe.core._records import CancelRecord, SignalRecord, StepRecord
from pickaxe.store._database import Database, array_of


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be enqueued. `delay`, `timeout` and `due_in`, when it is to be published again, in seconds."""

    id: uuid.UUID
    agent: str
    version: str
    queue: str
    priority: int
    input: str
    delay: float = 0.0
    due_in: float = 0.0
    timeout: float | None = None
    idempotency_key: str | None = None
    metadata: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"id": str(self.id)}


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as a reduction loads it. `started` is None until the first commit; `now` is the database's time.

    `read` is this process's monotonic clock at that moment.
    """

    id: uuid.UUID
    agent: str
    version: str
    state: RunState
    chapter: int
    epoch: int
    head: int
    wake: int
    queue: str
    priority: int
    input: str
    root: uuid.UUID
    parent: uuid.UUID | None
    started: float | None
    now: float
    cancel: CancelRecord | None
    dispatches: int = 0
    read: float = field(default_factory=time.monotonic, compare=False)


@dataclass(frozen=True, slots=True)
class Log:
    """A run's log: its steps, the signals to it, and how many attempts each step has had."""

    steps: list[StepRecord]
    signals: list[SignalRecord]
    ready_inline: dict[str, int]


@dataclass(frozen=True, slots=True)
class News:
    """A run's row, and what its log has got since it was as in `seen`; all of it, if that is None."""

    seen: RunRow | None
    row: RunRow
    log: Log


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit did. `moved`: more has arrived meanwhile, so the run is ready still.

    `orphans` are child runs to be cancelled, `released` steps of the parent's gather.
    """

    committed: bool
    moved: bool
    parent: uuid.UUID | None
    parent_woken: bool
    released: list[str]
    orphans: list[uuid.UUID]


@dataclass(frozen=True, slots=True)
class Claim:
    """A step, owned. `expires` and `now` are epoch seconds on the database's clock.

    `agent`, `root`, `queue` and `priority` are its run's: what it takes to publish that. So are `chapter`, `epoch`,
    `head` and `wake`: where the run was at that moment. `strikes` are the deaths the step is charged with;
    `reconciling`: it is not to be run, but to be asked whether it has been.
    """

    run: uuid.UUID
    key: str
    name: str
    digest: str
    input: str
    options: dict[str, Any]
    attempt: int
    deaths: int
    group: str | None
    history: str | None
    agent: str
    root: uuid.UUID
    queue: str
    priority: int
    chapter: int
    epoch: int
    head: int
    wake: int
    expires: float | None
    now: float
    strikes: float = 0.0
    reconciling: bool = False
    read: float = field(default_factory=time.monotonic, compare=False)
    news: News | None = field(default=None, compare=False)

    def clock(self) -> float:
        """The database's time now, as far as it can be told from here: epoch seconds, in whole microseconds."""
        return round(self.now + time.monotonic() - self.read, 6)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, and `at` what time of the database's clock."""

    claim: Claim
    owner: str
    state: StepState
    output: str | None
    error: str | None
    at: float

    def record(self, seq: int) -> StepRecord:
        """What the log will hold of it, as its run's arrival `seq`."""
        claim = self.claim
        return StepRecord(
            claim.key, StepKind.TOOL, claim.name, claim.digest, self.state, seq, self.at, self.output, self.error
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """What recording an outcome did. Not `accepted`: somebody else owns the step now, or it is over."""

    accepted: bool
    woken: bool
    seq: int | None
    released: list[str]


@dataclass(frozen=True, slots=True)
class StepDue:
    """A call that belongs in the broker now. `attempt` counts the claims it has had so far."""

    run: uuid.UUID
    key: str
    name: str
    queue: str
    priority: int
    attempt: int
    options: dict[str, Any]
    input: str
    root: uuid.UUID
    granted: bool = False
    strikes: float = 0.0

    @classmethod
    def of(cls, row: Row[Any]) -> StepDue:
        return cls(
            row.run_id, row.key, row.name, row.queue, row.priority, row.attempt,
            _values.load(row.options), row.input, row.root, bool(getattr(row, "granted", False)),
            float(getattr(row, "strikes", 0.0)),
        )  # fmt: skip


class RunStore:
    """Enqueue, load, commit, claim, settle. `redispatch` is the pause before the sweeper sends a message again."""

    def __init__(self, database: Database, *, redispatch: float = 5.0) -> None:
        self.database = database
        self.redispatch = redispatch

    def enqueue(self, runs: Sequence[NewRun]) -> list[uuid.UUID]:
        """Insert runs. Returns, for each, its id, or that of the run already there under its idempotency key."""
        inserted = self.database.rows("enqueue", runs=_values.dump([run.as_json() for run in runs]))
        return self._ids(runs, {row.id for row in inserted})

    def _ids(self, runs: Sequence[NewRun], inserted: set[uuid.UUID]) -> list[uuid.UUID]:
        keys = [run.idempotency_key for run in runs if run.id not in inserted and run.idempotency_key]
        if not keys:
            return [run.id for run in runs]
        known = {}
        for agent in {run.agent for run in runs}:
            for row in self.database.rows("find_by_key", agent=agent, keys=keys):
                known[agent, row.idempotency_key] = row.id
        return [run.id if run.id in inserted else known.get((run.agent, run.idempotency_key), run.id) for run in runs]

    def load(self, run: uuid.UUID) -> News | None:
        """A run's row and, unless it is over or paused, its current chapter's log. None: there is no such run."""
        row = self.database.row("load", run=run)
        return None if row is None else News(None, _run_row(row, self.database.asked_at), _log(row.news))

    def route(self, run: uuid.UUID) -> Row[Any] | None:
        """What a run's message says, or None if there is no such run."""
        return self.database.row("route", run=run)

    def catch_up(self, seen: RunRow, inline: Sequence[str] = ()) -> News | None:
        """Where a run is now and what its log has got since it was as in `seen`; None if that chapter is over.

        `inline` are the open inline steps, of which it matters whether they are due.
        """
        row = self.database.row(
            "catch_up", run=seen.id, chapter=seen.chapter, head=seen.head, epoch=seen.epoch, inline=_array(inline)
        )
        return None if row is None else News(seen, _as_now(seen, row, self.database.asked_at), _log(row.news))

    def commit(self, run: RunRow, **values: Any) -> Commit:
        """Commit a reduction, if nothing has moved since `run` was loaded."""
        return _commit(self.database.one("commit", **self._reduction(run, **values)))

    def advance(self, run: RunRow, outcome: Outcome, **values: Any) -> tuple[Settled, Commit]:
        """Record an outcome, and in the same statement the reduction that has seen it, if nothing else has moved."""
        claim = outcome.claim
        row = self.database.one(
            "advance", key=claim.key, attempt=claim.attempt, step_owner=outcome.owner, outcome=str(outcome.state),
            step_output=outcome.output, step_error=outcome.error, at=outcome.at, **self._reduction(run, **values),
        )  # fmt: skip
        return Settled(row.accepted, row.woken, row.seq, row.step_released), _commit(row)

    def _reduction(
        self, run: RunRow, *, cancels: Sequence[str], settled: Sequence[tuple[str, int]], carried: Sequence[int],
        **values: Any,
    ) -> dict[str, Any]:  # fmt: skip
        return {
            "run": run.id, "epoch": run.epoch, "head": run.head, "wake": run.wake, "redispatch": self.redispatch,
            "cancels": _array(cancels), "settled_keys": _array([key for key, _ in settled]),
            "settled_seqs": _array([seq for _, seq in settled]), "carried": _array(carried), **values,
        }  # fmt: skip

    def claim(
        self, run: uuid.UUID, key: str, attempt: int, owner: str, *,
        grace: float | None, name: str | None = None, agents: tuple[str, ...] = (),
        seen: RunRow | None = None,
    ) -> Claim | None:  # fmt: skip
        """Own a step's next attempt, or None: a duplicate, late or unwanted message, or the step is no call of `name`.

        If its run's agent is one of `agents`: also what it takes to go on with the run, as far as that is not in
        `seen`, the run as this process has seen it last. The sweeper takes it away `grace` seconds after its timeout
        (None: never).
        """
        row = self.database.row(
            "claim", run=run, key=key, attempt=attempt, owner=owner, grace=grace, name=name, agents=array_of(agents),
            seen_chapter=seen and seen.chapter, seen_head=seen and seen.head, seen_epoch=seen and seen.epoch,
        )  # fmt: skip
        if row is None:
            return None
        read = self.database.asked_at
        return Claim(
            run, key, row.name, row.digest, row.arguments, _values.load(row.options), row.attempt, row.deaths,
            row.group_key, row.history, row.agent, row.root, row.queue, row.priority,
            row.chapter, row.epoch, row.head, row.wake, row.expires, row.now, row.strikes, row.reconciling,
            read, None if row.news is None else News(seen, _as_now(seen, row, read), _log(row.news)),
        )  # fmt: skip

    def settle(
        self,
        run: uuid.UUID,
        key: str,
        state: StepState,
        *,
        origin: Iterable[StepState],
        output: str | None = None,
        error: str | None = None,
        attempt: int | None = None,
        owner: str | None = None,
    ) -> Settled:
        """Record how a step ended, if it still is in one of the states `origin`, at `attempt`, owned by `owner`."""
        row = self.database.one(
            "settle", run=run, key=key, origin=[str(s) for s in origin], attempt=attempt, owner=owner,
            state=str(state), output=output, error=error, redispatch=self.redispatch,
        )  # fmt: skip
        return Settled(row.accepted, row.woken, row.seq, row.released)

    def retry_step(self, claim: Claim, owner: str, **values: Any) -> bool:
        """Give a failed attempt back, to be tried again after `wait` seconds."""
        return self._did(
            "retry_step",
            run=claim.run,
            key=claim.key,
            attempt=claim.attempt,
            owner=owner,
            overdue=False,
            transaction=None,
            **values,
        )

    def give_back(self, token: str, owner: str) -> bool:
        """Have a call that `owner` holds, named as `beat` names it, issued again at once."""
        run, attempt, key = token.split(" ", 2)
        return self._did("give_back", run=run, key=key, attempt=int(attempt), owner=owner)

    def progress(self, claim: Claim, owner: str, *, progress: str | None, grace: float) -> bool:
        """A heartbeat of a running step: the time for its attempt starts again."""
        return self._did(
            "progress", run=claim.run, key=claim.key, attempt=claim.attempt, owner=owner,
            progress=progress, grace=grace,
        )  # fmt: skip

    def wake(self, run: uuid.UUID) -> bool:
        """Wake a run. True if the caller must publish it."""
        return bool(self.database.one("wake", run=run, redispatch=self.redispatch).woken)

    def cancel_run(self, run: uuid.UUID, *, reason: str, error: str, timed_out: bool, force: bool) -> Row[Any]:
        """Tell a run to stop, or end it here and now."""
        return self.database.one(
            "cancel_run", run=run, reason=reason, error=error, timed_out=timed_out, force=force,
            redispatch=self.redispatch,
        )  # fmt: skip

    def send_signal(self, run: uuid.UUID, name: str, payload: str, key: str | None) -> Row[Any]:
        """Add a signal. `state` is the run's state (null: no such run), `woken` whether to publish it."""
        # A key of its own for every signal, so that one whose answer was lost is not sent twice.
        key = key or f"once:{uuid.uuid4()}"
        return self.database.one(
            "send_signal", run=run, name=name, payload=payload, key=key, redispatch=self.redispatch
        )

    def resume_run(self, run: uuid.UUID, version: str) -> bool:
        """Let a paused run go on. False if it is not paused."""
        return self._did("resume_run", run=run, version=version, redispatch=self.redispatch)

    def released(self, run: uuid.UUID, keys: Sequence[str]) -> Sequence[Row[Any]]:
        """What a gather's cap has let go."""
        return self.database.rows("released", run=run, keys=list(keys))

    def _did(self, name: str, /, **values: Any) -> bool:
        return self.database.row(name, **values) is not None


def _array(values: Sequence[Any]) -> list[Any] | str:
    # Nearly always empty, and then a literal, for the driver looks for the type of a list anew each time.
    return list(values) or "{}"


def _run_row(row: Row[Any], read: float) -> RunRow:
    return RunRow(
        row.id, row.agent, row.version, RunState(row.state), row.chapter, row.epoch, row.head, row.wake,
        row.queue, row.priority, row.input, row.root, row.parent_run, row.started, row.now, _cancel(row),
        row.dispatches, read,
    )  # fmt: skip


def _as_now(seen: RunRow | None, row: Row[Any], read: float) -> RunRow:
    if seen is None:
        return _run_row(row, read)
    return replace(
        seen, state=RunState(row.state), epoch=row.epoch, head=row.head, wake=row.wake, cancel=_cancel(row),
        now=row.now, dispatches=row.dispatches, read=read,
    )  # fmt: skip


def _cancel(row: Row[Any]) -> CancelRecord | None:
    if row.cancel_seq is None:
        return None
    return CancelRecord(row.cancel_seq, row.cancelled, row.timed_out, row.cancel_reason or "")


def _log(news: list[list[Any] | None] | None) -> Log:
    """A log from what `pickaxe.news` tells."""
    if news is None:
        return Log([], [], {})
    steps, ready = [], {}
    for key, kind, name, digest, state, seq, at, output, error, group, ordinal, attempt, later in news[0] or ():
        known = StepState(state)
        steps.append(StepRecord(
            key, StepKind(kind), name, digest, known, seq, at or 0.0, output, error, group, ordinal
        ))  # fmt: skip
        if known in (StepState.READY, StepState.UNKNOWN) and not later:
            ready[key] = attempt
    return Log(steps, [SignalRecord(*signal) for signal in news[1] or ()], ready)


def _commit(row: Row[Any]) -> Commit:
    return Commit(row.committed, row.moved, row.parent, row.parent_woken, row.released, row.orphans)
