"""Runs and steps as a simulation keeps them: what the database's tables are in production."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pickaxe import _values
from pickaxe._specs import AgentSpec
from pickaxe._states import RunState, StepKind, StepState
from pickaxe.core._records import CancelRecord, SignalRecord, StepRecord
from pickaxe.core._reduction import Reduction


@dataclass(slots=True, eq=False)
class Step:
    """One step of a simulated run, as the log has it.

    `attempt` counts the tries, `seq` is its place among what arrived at the run, `at` when it ended;
    `input`, `output` and `error` are JSON as Python sees it. `group` is the `gather` it belongs to. `deaths` are the
    attempts that cost none of its tries, `reason` is why it was set aside.
    """

    key: str
    kind: StepKind
    name: str
    state: StepState
    digest: str
    input_json: str
    chapter: int
    group: str | None
    index: int
    options: dict[str, Any]
    spec: Any
    created: float
    expires: float | None = None
    due: float | None = None
    attempt: int = 0
    seq: int | None = None
    ended: float = 0.0
    died: int = 0
    deaths: int = 0
    strikes: int = 0
    questions: int = 0
    passed: bool = False
    reason: str | None = None
    output_json: str | None = None
    error_json: str | None = None
    order: int | None = None
    counted: int = 0
    failed: int = 0
    held: deque[Step] = field(default_factory=deque)
    child: SimulatedRun | None = None

    @property
    def input(self) -> Any:
        """What the step was given."""
        return _values.load(self.input_json)

    @property
    def output(self) -> Any:
        """What it came to, None if it did not succeed."""
        return None if self.output_json is None else _values.load(self.output_json)

    @property
    def error(self) -> dict[str, Any] | None:
        """Why it failed: `type`, `message`, and where known `traceback`."""
        return None if self.error_json is None else _values.load(self.error_json)

    @property
    def at(self) -> datetime | None:
        """When it ended."""
        return datetime.fromtimestamp(self.ended, UTC) if self.state.terminal else None

    @property
    def is_open(self) -> bool:
        """Whether it is still wanted."""
        return not self.state.terminal and self.state is not StepState.CANCELLING

    def record(self) -> StepRecord:
        """The step as a reduction reads it."""
        return StepRecord(
            self.key, self.kind, self.name, self.digest, self.state, self.seq, self.ended,
            self.output_json, self.error_json, self.group, self.order,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Step {self.key} {self.state}>"


def new_step(row: dict[str, Any], spec: Any, chapter: int, now: float) -> Step:
    """A step from the row that the engine's plan would insert."""
    expires = row["expires_in"]
    return Step(
        row["key"], StepKind(row["kind"]), row["name"], StepState(row["state"]), row["digest"], row["input"],
        chapter, row["group_key"], row["index"], _values.load(row["options"]), spec, now,
        None if expires is None else now + expires, row["due"], int(row["state"] == StepState.RUNNING),
    )  # fmt: skip


@dataclass(slots=True, eq=False)
class SimulatedRun:
    """One run, as its row has it, with its log. The names are those of the engine's `RunRow`."""

    id: uuid.UUID
    spec: AgentSpec
    input: str
    root: uuid.UUID
    priority: int = 5
    parent: SimulatedRun | None = None
    parent_step: Step | None = None
    held: bool = False
    state: RunState = RunState.READY
    chapter: int = 0
    head: int = 0
    wake: int = 0
    started: float | None = None
    now: float = 0.0
    cancel: CancelRecord | None = None
    output: str | None = None
    error: str | None = None
    reason: str | None = None
    published: str | None = None
    steps: dict[str, Step] = field(default_factory=dict)
    past: list[Step] = field(default_factory=list)
    signals: dict[int, SignalRecord] = field(default_factory=dict)
    changed: dict[str, Step] = field(default_factory=dict)
    reduction: Reduction | None = None

    @property
    def agent(self) -> str:
        """The agent's name."""
        return self.spec.name
