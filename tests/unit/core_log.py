"""A run's log, kept by hand: what arrives, and what a reduction makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import replace
from typing import Any

from pickaxe._states import StepKind, StepState
from pickaxe.core._records import Arrival, CancelRecord, Decision, SignalRecord, StepRecord
from pickaxe.core._reduction import Reduction

Main = Callable[[], Coroutine[Any, Any, Any]]


class Log:
    """Every `reduce` is a replay from the beginning, and its requests go into the log."""

    def __init__(self, main: Main, *, start: float = 1_000.0) -> None:
        self.main = main
        self.start = start
        self.steps: dict[str, StepRecord] = {}
        self.messages: list[Arrival] = []
        self.seq = 0

    def reduction(self) -> Reduction:
        return Reduction(self.main, seed="seed", started_at=self.start)

    def reduce(self, main: Main | None = None) -> Decision:
        self.main = main or self.main
        with closing(self.reduction()) as reduction:
            decision = reduction.resume(self.steps.values(), self.messages)
        self.commit(decision)
        return decision

    def commit(self, decision: Decision) -> None:
        for r in decision.requests:
            self.steps[r.key] = StepRecord(r.key, r.kind, r.name, r.digest, StepState.WAITING, group=r.group)
        for key in decision.cancels:
            child = self.steps[key].kind is StepKind.CHILD
            self.steps[key] = replace(self.steps[key], state=StepState.CANCELLING if child else StepState.CANCELLED)
        for key, seq in decision.settled:
            signal = next(m for m in self.messages if m.seq == seq)
            self.steps[key] = replace(
                self.steps[key], state=StepState.SUCCEEDED, seq=seq, output=signal.payload, at=signal.at
            )

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def ends(self, key: str, value: Any = None, *, state: StepState = StepState.SUCCEEDED, error: str = "") -> None:
        told = json.dumps({"type": "ValueError", "message": error}) if error else None
        seq = self.next_seq()
        self.steps[key] = replace(
            self.steps[key], state=StepState.FAILED if error else state, seq=seq, at=self.start + seq,
            output=None if error else json.dumps(value), error=told,
        )  # fmt: skip

    def counts(self, key: str, order: int, value: Any = None) -> None:
        """A gathered call ends and is counted."""
        self.steps[key] = replace(
            self.steps[key], state=StepState.SUCCEEDED, order=order, output=json.dumps(value), at=self.start
        )

    def signal(self, name: str, payload: Any = None) -> None:
        seq = self.next_seq()
        self.messages.append(SignalRecord(seq, self.start + seq, name, json.dumps(payload)))

    def cancel(self, *, timed_out: bool = False) -> None:
        seq = self.next_seq()
        self.messages.append(CancelRecord(seq, self.start + seq, timed_out, "stop"))


def keys(decision: Decision) -> list[str]:
    return [request.key for request in decision.requests]
