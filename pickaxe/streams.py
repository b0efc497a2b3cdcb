"""A run's transitions, live and resumable: from its Redis stream while that is there, from the log always."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import redis

from pickaxe import _values
from pickaxe._states import RunState, StepState
from pickaxe.engine._doubt import NOT_HAPPENED
from pickaxe.engine._errors import brief
from pickaxe.engine._transitions import MAX_LENGTH, stream_key
from pickaxe.errors import NotFoundError
from pickaxe.store import RunView, StepView, Store

IDLE = 0.4
"""Seconds without a live entry after which the log is compared."""

_REPEATABLE = frozenset({"progress"})


@dataclass(frozen=True, slots=True)
class Transition:
    """One thing that happened to a run.

    `kind` is `"run"`, `"step"`, or `"restarted"`: what came before is told again from the beginning. `state`
    is the run's or step's new state; steps also have `requested`, `running`, `retrying`, `lost` (its worker
    died), `unknown` and `quarantined` (it was set aside), `released` (it may run again) and `progress`. `more` holds
    what else is known, such as `worker`, `reason` or `value`, and of a failure `error` (its type), `message` and, where
    known, `where` (a line of code). `cursor` resumes after this transition.
    """

    kind: str
    state: str
    step: str = ""
    name: str = ""
    attempt: int = 0
    at: datetime | None = None
    more: dict[str, Any] = field(default_factory=dict)
    cursor: str = ""

    @property
    def id(self) -> str:
        """The same for the same transition, wherever it was read."""
        if self.kind != "step":
            return f"{self.kind}:{self.state}"
        if self.state in _ENDED or self.state == "requested":
            return f"{self.step}:{self.state}"
        return f"{self.step}:{self.attempt}:{self.state}"

    def as_json(self) -> dict[str, Any]:
        """For `--json`, and for other languages."""
        at = self.at.isoformat() if self.at else None
        known = {"kind": self.kind, "state": self.state, "at": at, "cursor": self.cursor, **self.more}
        return known if self.kind != "step" else known | {"step": self.step, "name": self.name, "attempt": self.attempt}


_ENDED = frozenset(str(state) for state in StepState if state.terminal)
_FIELDS = ("kind", "state", "step", "name", "attempt")


def follow(
    store: Store, client: redis.Redis, run: uuid.UUID, cursor: str | None, *, ttl: float = 60.0
) -> Iterator[Transition]:
    """See `Run.stream`."""
    return iter(_Follower(store, client, run, cursor, ttl))


class _Follower:
    def __init__(self, store: Store, client: redis.Redis, run: uuid.UUID, cursor: str | None, ttl: float) -> None:
        self._store = store
        self._redis = client
        self._run = run
        self._key = stream_key(run)
        self._ttl = int(ttl * 1000)
        self._last = "0-0"
        self._seen: set[str] = set()
        self._from = cursor

    def __iter__(self) -> Iterator[Transition]:
        if self._from and not self._rejoin(self._from):
            yield Transition("restarted", "", cursor="0-0")
        while True:
            entries = self._read()
            yield from self._unseen(entries)
            if entries:
                continue
            view, missing = self._missing()
            yield from missing
            if view.state.terminal and not self._more():
                return

    def _rejoin(self, cursor: str) -> bool:
        """Find the place of a cursor in the live stream. False if it is no longer there."""
        cursor, _, told = cursor.partition("+")
        if told and not self._told_until(told):
            return False
        if cursor == "0-0":
            return True
        try:
            before: Any = self._redis.xrange(self._key, "-", cursor)
        except redis.RedisError:
            return False
        if not before or before[-1][0] != cursor:
            return False
        self._seen |= {_parse(entry, at).id for at, entry in before}
        self._last = cursor
        return True

    def _told_until(self, last: str) -> bool:
        """Take for seen what the log tells up to the transition `last`. False if it is not there."""
        view = self._store.view_run(self._run)
        ids = [t.id for t in from_log(view, self._store.view_steps(self._run))] if view else []
        if last not in ids:
            return False
        self._seen = set(ids[: ids.index(last) + 1])
        return True

    def _read(self) -> list[tuple[str, dict[str, str]]]:
        try:
            found: Any = self._redis.xread({self._key: self._last}, count=500, block=int(IDLE * 1000))
        except redis.RedisError:
            return []
        return found[0][1] if found else []

    def _more(self) -> bool:
        try:
            return bool(self._redis.xread({self._key: self._last}, count=1))
        except redis.RedisError:
            return False

    def _unseen(self, entries: list[tuple[str, dict[str, str]]]) -> Iterator[Transition]:
        for at, entry in entries:
            self._last = at
            transition = _parse(entry, at)
            if transition.id not in self._seen or transition.state in _REPEATABLE:
                self._seen.add(transition.id)
                yield transition

    def _missing(self) -> tuple[RunView, list[Transition]]:
        """What the log has and the live stream did not: added to the stream while the run is live."""
        view = self._store.view_run(self._run)
        if view is None:
            raise NotFoundError(f"there is no run {self._run}")
        recorded = from_log(view, self._store.view_steps(self._run))
        missing = [t for t in recorded if t.id not in self._seen]
        if not view.state.terminal and missing and self._heal(missing):
            return view, []
        self._seen |= {t.id for t in missing}
        return view, [_placed(t, self._last) for t in missing]

    def _heal(self, missing: list[Transition]) -> bool:
        pipe = self._redis.pipeline(transaction=False)
        for t in missing:
            entry = {name: getattr(t, name) for name in _FIELDS} | t.more | {"at": t.at.timestamp() if t.at else None}
            pipe.xadd(self._key, {"t": _values.dump(entry)}, maxlen=MAX_LENGTH, approximate=True)
        pipe.pexpire(self._key, self._ttl)
        try:
            pipe.execute()
        except redis.RedisError:
            return False
        return True


def from_log(run: RunView, steps: list[StepView]) -> list[Transition]:
    """All transitions that a run's rows tell of, in the order of their times."""
    found = []
    if run.started_at:
        found.append(Transition("run", "started", at=run.started_at))
    for step in steps:
        found += _of_step(step)
    if run.state.terminal or run.state is RunState.PAUSED:
        found.append(Transition("run", str(run.state), at=run.finished_at, more=brief(run.error)))
    return sorted(found, key=lambda t: (t.at is None, t.at or run.created_at))


def _of_step(step: StepView) -> list[Transition]:
    found = [Transition("step", "requested", step.key, step.name, at=step.created_at, more={"type": step.kind})]
    latest = 0
    for past in step.history:
        latest = int(past.get("attempt", latest))
        found += _of_the_past(step, past, latest)
    if step.started_at and step.attempt > latest:
        found.append(
            Transition("step", "running", step.key, step.name, step.attempt, step.started_at, {"worker": step.worker})
        )
    if step.state.aside:
        at = datetime.fromtimestamp(step.history[-1]["at"], step.created_at.tzinfo) if step.history else step.started_at
        aside = Transition("step", str(step.state), step.key, step.name, step.attempt, at, {"reason": step.reason})
        if found[-1].id == aside.id:
            found.pop()
        found.append(aside)
    if step.state.terminal:
        ended = str(step.state), step.key, step.name, step.attempt, step.finished_at
        found.append(Transition("step", *ended, brief(step.error)))
    return found


def _of_the_past(step: StepView, past: dict[str, Any], attempt: int) -> Iterator[Transition]:
    """What one entry of a step's history tells of: how an attempt ended, or what a person decided."""
    at = datetime.fromtimestamp(past["at"], step.created_at.tzinfo)
    if past["ended"] == "resolved":
        if past["how"] == "again":
            yield Transition("step", "released", step.key, step.name, attempt, at, {"by": past.get("by")})
        return
    yield Transition("step", "running", step.key, step.name, attempt, at, {"worker": past.get("owner")})
    ended = {"died": "lost", "unknown": "unknown", "not reconciled": "unknown"}.get(past["ended"], "retrying")
    more = {"reason": NOT_HAPPENED} if past["ended"] == "did not happen" else {}
    yield Transition("step", ended, step.key, step.name, attempt, at, brief(past) if "type" in past else more)


def _placed(t: Transition, cursor: str) -> Transition:
    # It is not in the live stream, so the place there is not all that it takes to find it again.
    return Transition(t.kind, t.state, t.step, t.name, t.attempt, t.at, t.more, f"{cursor}+{t.id}")


def _parse(entry: dict[str, str], cursor: str) -> Transition:
    raw = _values.load(entry["t"])
    at = raw.pop("at", None) or int(cursor.partition("-")[0]) / 1000
    known = {name: raw.pop(name) for name in _FIELDS if name in raw}
    return Transition(**known, at=datetime.fromtimestamp(at).astimezone(), more=raw, cursor=cursor)
