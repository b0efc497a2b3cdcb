"""What a plan comes to, worked out without Pickaxe: result, effects, child runs, and what it needs from outside.

An op is *certain* if it is played to its end in every run of the plan, whatever is lost, late or killed. What stands
in a part that is cut off at some moment (by a timeout, a failed sibling, a reached quorum) is not: it may happen, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Op = dict[str, Any]
Plan = dict[str, Any]

ATTEMPTS = 3
"""Attempts that every tool has."""


@dataclass(frozen=True)
class Effect:
    """How often a tool's call has its effect, and fails, if no worker dies in it. Not `certain`: that, or less."""

    did: int
    refused: int
    certain: bool


@dataclass(frozen=True)
class Delivery:
    """What a run needs from outside: `kind` is signal, event or cancel. `when`: before, during or after the storm."""

    kind: str
    run: str
    name: str
    values: tuple[int, ...]
    when: str


@dataclass
class Outcome:
    """`state` and `value` of the root run; `value` is the error's type if it failed. `runs`: how each run of the tree
    ends, None if that is not certain."""

    state: str = "succeeded"
    value: Any = None
    effects: dict[str, Effect] = field(default_factory=dict)
    runs: dict[str, str | None] = field(default_factory=dict)


class Failed(Exception):
    """An op ends with an error of this type."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Cancelled(Exception):
    """The run is cancelled from outside."""


class Endless(Exception):
    """The op waits for ever."""


def outcome_of(plan: Plan) -> Outcome:
    """What the plan comes to."""
    outcome = Outcome()
    try:
        outcome.value = _Model(outcome).run(plan, True)
    except Failed as failed:
        outcome.value = failed.kind
    outcome.state = outcome.runs[plan["label"]] or "?"
    return outcome


def deliveries(plan: Plan) -> Iterator[Delivery]:
    """What the plan's runs need from outside, in the order in which they need it."""
    for op, within in _walk(plan["ops"], plan):
        run = within["label"]
        if op["op"] == "signal":
            values = tuple(op["n"] + i for i in range(op["count"] * within["chapters"]))
            yield Delivery("signal", run, op["label"], values, op["when"])
        elif op["op"] == "event":
            yield Delivery("event", run, op["label"], (op["n"],), op["when"])
        elif op["op"] == "park":
            yield Delivery("cancel", run, op["label"], (), op["when"])


def _walk(ops: Sequence[Op], plan: Plan) -> Iterator[tuple[Op, Plan]]:
    """Every op, with the plan of the run that plays it."""
    for op in ops:
        yield op, plan
        if op["op"] == "child":
            yield from _walk(op["plan"]["ops"], op["plan"])
        for part in (op.get("calls", ()), op.get("body", ()), op.get("cleanup", ()), *op.get("branches", ())):
            yield from _walk(part, plan)
        for name in ("between", "meanwhile", "call"):
            if name in op:
                yield from _walk([op[name]], plan)


class _Model:
    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.chapter = 0

    def run(self, plan: Plan, certain: bool) -> list[Any]:
        """A run of a plan: the values of its chapters."""
        before, runs = self.chapter, self.outcome.runs
        runs[plan["label"]] = "failed" if certain else None
        try:
            values = []
            for self.chapter in range(plan["chapters"]):
                values.append(self.sequence(plan["ops"], certain))
        except Cancelled:
            runs[plan["label"]] = "cancelled" if certain else None
            raise Failed("cancelled") from None
        except Endless:
            runs[plan["label"]] = None
            raise
        finally:
            self.chapter = before
        runs[plan["label"]] = "succeeded" if certain else None
        return values

    def sequence(self, ops: Sequence[Op], certain: bool) -> list[Any]:
        return [self.one(op, certain) for op in ops]

    def one(self, op: Op, certain: bool) -> Any:
        try:
            return getattr(self, op["op"])(op, certain)
        except Failed as failed:
            if not op.get("caught"):
                raise
            return ["!", failed.kind]

    def settled(self, attempt: Any) -> Any:
        """The value of an attempt, or how it failed, as an exception."""
        try:
            return attempt()
        except (Failed, Endless) as error:
            return error

    def rehearsed(self, attempt: Any) -> Any:
        """The same, and nothing of it counts."""
        before, self.outcome = self.outcome, Outcome()
        try:
            return self.settled(attempt)
        finally:
            self.outcome = before

    # The ops.

    def tool(self, op: Op, certain: bool) -> int:
        forever = op["fails"] < 0
        effect = Effect(0, ATTEMPTS, certain) if forever else Effect(1, op["fails"], certain)
        label = f"{op['label']}~{self.chapter}"
        assert label not in self.outcome.effects, f"{label} is played twice"
        self.outcome.effects[label] = effect
        if forever:
            raise Failed("ToolError")
        return op["n"] * 3 + 1

    def child(self, op: Op, certain: bool) -> Any:
        detached = op["policy"] == "detach"
        try:
            return self.run(op["plan"], certain or detached)
        except Failed:
            raise Failed("ChildRunError") from None

    def gather(self, op: Op, certain: bool) -> list[Any]:
        calls, quorum = op["calls"], op["quorum"]
        ends = [self.rehearsed(lambda c=call: self.one(c, True)) for call in calls]
        good = [not isinstance(end, Failed | Endless) for end in ends]
        bad = [isinstance(end, Failed) for end in ends]
        if quorum is None and (op["tolerant"] or all(good)):
            results = [self.settled(lambda c=call: self.one(c, certain)) for call in calls]
            return [["!", r.kind] if isinstance(r, Failed) else r for r in results]
        if quorum is None:
            needed, decisive, kind = 1, bad, next(e.kind for e in ends if isinstance(e, Failed))
        elif sum(good) >= quorum:
            needed, decisive, kind = quorum, good, ""
        else:
            needed, decisive, kind = len(calls) - quorum + 1, bad, "QuorumError"
        sure = sum(decisive) == needed
        results = [
            self.settled(lambda c=call, d=decides: self.one(c, certain and sure and d))
            for call, decides in zip(calls, decisive, strict=True)
        ]
        if kind:
            raise Failed(kind)
        assert sure, "a quorum that could be reached in several ways"
        return [result for result, wins in zip(results, good, strict=True) if wins]

    def together(self, op: Op, certain: bool) -> list[Any]:
        branches = op["branches"]
        ends = [self.rehearsed(lambda b=branch: self.sequence(b, True)) for branch in branches]
        failed = [isinstance(end, Failed) for end in ends]
        cut = any(failed) and op["how"] != "settled"
        assert not cut or sum(failed) == 1, "two failures race"
        results = [
            self.settled(lambda b=branch, f=fails: self.sequence(b, certain and (f or not cut)))
            for branch, fails in zip(branches, failed, strict=True)
        ]
        if cut:
            raise Failed(
                "ExceptionGroup" if op["how"] == "group" else next(e.kind for e in ends if isinstance(e, Failed))
            )
        return [["!", r.kind] if isinstance(r, Failed) else r for r in results]

    def pool(self, op: Op, certain: bool) -> list[Any]:
        return self.sequence(op["calls"], certain)

    def whichever(self, op: Op, certain: bool) -> list[Any]:
        return [self.one(op["between"], certain), *(self.sequence(branch, certain) for branch in op["branches"])]

    def timeout(self, op: Op, certain: bool) -> Any:
        ends = self.rehearsed(lambda: self.sequence(op["body"], True))
        if isinstance(ends, Endless):
            self.settled(lambda: self.sequence(op["body"], False))
            self.sequence(op["cleanup"], certain)
            raise Failed("TimeoutError")
        values = self.settled(lambda: self.sequence(op["body"], certain))
        self.sequence(op["cleanup"], certain)
        if isinstance(values, Failed):
            raise values
        return values

    def race(self, op: Op, certain: bool) -> str:
        self.one(op["call"], False)
        return "raced"

    def either(self, op: Op, certain: bool) -> Any:
        values = [self.one(call, False) for call in op["calls"]]
        assert len(set(values)) == 1, "it would matter who wins"
        return values[0]

    def cut(self, op: Op, certain: bool) -> list[Any]:
        ends = self.settled(lambda: self.sequence(op["body"], False))
        assert isinstance(ends, Endless), "it might end before it is cut off"
        value = self.one(op["meanwhile"], certain)
        self.sequence(op["cleanup"], certain)
        return [value, True]

    def park(self, op: Op, certain: bool) -> None:
        self.sequence(op["cleanup"], certain)
        raise Cancelled

    def sleep(self, op: Op, certain: bool) -> None:
        return None

    def signal(self, op: Op, certain: bool) -> list[int]:
        start = op["n"] + self.chapter * op["count"]
        return list(range(start, start + op["count"]))

    def event(self, op: Op, certain: bool) -> int:
        return int(op["n"])

    def never(self, op: Op, certain: bool) -> None:
        raise Endless

    def raise_(self, op: Op, certain: bool) -> None:
        raise Failed("ValueError")


setattr(_Model, "raise", _Model.raise_)
