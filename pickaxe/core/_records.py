"""What goes into a reduction (records of the log) and what comes out of it (requests and a decision)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pickaxe._states import ChildPolicy, RunState, StepKind, StepState
from pickaxe.errors import MismatchError


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step as the log has it.

    `seq` is its place in the run's order of arrivals, set when its outcome was recorded (None before, and
    for the calls of a gather, which arrive with their gather). `at` is the time of that, in epoch seconds.
    `order` is the place of a gathered call among its siblings' completions, None if it did not count.
    """

    key: str
    kind: StepKind
    name: str
    digest: str
    state: StepState
    seq: int | None = None
    at: float = 0.0
    output: str | None = None
    error: str | None = None
    group: str | None = None
    order: int | None = None


@dataclass(frozen=True, slots=True)
class SignalRecord:
    """One outside message to the run; `payload` is JSON text."""

    seq: int
    at: float
    name: str
    payload: str


@dataclass(frozen=True, slots=True)
class CancelRecord:
    """The run was told to stop: by a person or its parent, or (`timed_out`) by its own timeout."""

    seq: int
    at: float
    timed_out: bool = False
    reason: str = ""


Arrival = StepRecord | SignalRecord | CancelRecord


@dataclass(frozen=True, slots=True)
class Request:
    """A step the agent asks for, on its way into the log.

    `input` is JSON text; `options` what the engine needs to run it, also JSON; `due` an absolute time in
    epoch seconds (timers); `group` and `index` its place in a gather. `body` is only set for inline steps:
    what to run in the reducer's process. `spec` is what the handle knows of itself, for simulations, which
    have no app to ask.
    """

    key: str
    kind: StepKind
    name: str
    input: str = "null"
    digest: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    due: float | None = None
    group: str | None = None
    index: int = 0
    policy: ChildPolicy = ChildPolicy.CANCEL
    body: Any = None
    spec: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a reduction came to. Everything in it is committed in one statement, or not at all.

    `state` is the run's next state (`READY` only for `continue_as`). `head` is the last arrival it has
    seen. `requests` are new steps, `cancels` the keys of steps no longer wanted, `settled` the signal waits
    that took a signal (key and the signal's seq), `inline` the steps to be run here and now. `carried` are
    the arrivals not yet taken (signals, a cancellation), which the next chapter inherits.
    """

    state: RunState
    head: int
    requests: tuple[Request, ...] = ()
    cancels: tuple[str, ...] = ()
    settled: tuple[tuple[str, int], ...] = ()
    inline: tuple[Request, ...] = ()
    output: Any = None
    error: BaseException | None = None
    published: Any = None
    has_published: bool = False
    carried: tuple[int, ...] = ()
    mismatch: MismatchError | None = None
