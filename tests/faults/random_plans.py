"""Draws plans: see `random_programs.py` for what they are. Whoever wins a race in them, the outcome is the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

Op = dict[str, Any]
Plan = dict[str, Any]

DEEPEST = 2
"""Below the root run are its child runs, and theirs."""

_KINDS = {
    "tool": 7, "gather": 3, "together": 2, "child": 2, "signal": 1.5, "event": 1, "pool": 1, "whichever": 0.7,
    "timeout": 1, "race": 0.5, "either": 0.5, "cut": 1, "sleep": 1, "detach": 0.4,
}  # fmt: skip
_SHORT = ("together", "pool", "whichever", "timeout", "cut")
"""Not inside each other: plans would grow without bounds."""

_SAFE = ("tool", "gather", "sleep", "child", "race", "either", "pool")
"""What may stand in a part that is cut off: needs nothing from outside, and everything it starts ends with it."""


def draw(seed: int, label: str) -> Plan:
    """One program."""
    return _Draw(random.Random(f"{seed} {label}"), label).root()


class _Draw:
    def __init__(self, chance: random.Random, label: str) -> None:
        self.chance = chance
        self.label = label
        self.count = 0

    def named(self, op: str, **more: Any) -> Op:
        self.count += 1
        return {"op": op, "label": f"{self.label}.{self.count}", **more}

    def maybe(self, probability: float) -> bool:
        return self.chance.random() < probability

    def root(self) -> Plan:
        return self.plan(0, self.chance.randint(4, 8), self.label)

    def plan(self, depth: int, length: int, label: str | None = None) -> Plan:
        """A run whose every op is certain, until one fails that is not caught."""
        ops = self.ops(length, depth)
        chapters = 1
        if self.maybe(0.15):
            ops.append(self.ending())
        elif self.maybe(0.2):
            chapters, ops = self.chance.randint(2, 3), [op for op in ops if not _has(op, ("child",))]
        return {"label": label or self.named("")["label"], "ops": ops, "chapters": chapters}

    def ending(self) -> Op:
        if self.maybe(0.5):
            return self.named("raise")
        return self.named("park", cleanup=[self.call()], when=self.when())

    def ops(self, length: int, depth: int, *, safe: bool = False, without: Sequence[str] = ()) -> list[Op]:
        barred = {*without, *(("child", "detach") if depth == DEEPEST else ())}
        kinds = {k: w for k, w in _KINDS.items() if k not in barred and (not safe or k in _SAFE)}
        chosen = self.chance.choices(list(kinds), list(kinds.values()), k=length)
        return [getattr(self, kind)(depth, safe) for kind in chosen]

    def inner(self, depth: int, *, safe: bool = False) -> list[Op]:
        """A branch of something else."""
        return self.ops(self.chance.randint(1, 3), depth, safe=safe, without=_SHORT)

    def cut_off(self, depth: int) -> list[Op]:
        return [*self.inner(depth, safe=True), self.named("never")]

    def when(self) -> str:
        return self.chance.choice(["before", "during", "during", "after"])

    def call(self, *, fails: int | None = None, tools: Sequence[str] = ()) -> Op:
        if fails is None:
            fails = self.chance.choices([0, 1, 2], [8, 1, 1])[0]
        kind = self.chance.choice(tools or ["work", "work", "work_async", "work_async", "work_inline", "work_limited"])
        seconds = self.chance.choice([0, 0, 0, 0.02, 0.1, 0.4]) if kind != "work_inline" else 0
        return self.named("tool", tool=kind, n=self.chance.randint(0, 99), fails=fails, seconds=seconds)

    # One of each kind. In a `safe` place nothing may fail that is not caught.

    def tool(self, depth: int, safe: bool) -> Op:
        if self.maybe(0.12):
            return {**self.call(fails=-1), "caught": safe or self.maybe(0.8)}
        return self.call()

    def child(self, depth: int, safe: bool) -> Op:
        policy = self.chance.choice(["cancel", "wait"])
        if not safe:
            plan = self.plan(depth + 1, self.chance.randint(1, 4 - depth))
            return self.named("child", policy=policy, plan=plan, caught=self.maybe(0.9))
        ops = self.ops(self.chance.randint(1, 2), depth + 1, safe=True, without=_SHORT)
        return self.named("child", policy=policy, plan=self.run(ops), caught=True)

    def run(self, ops: list[Op]) -> Plan:
        return {"label": self.named("")["label"], "ops": ops, "chapters": 1}

    def detach(self, depth: int, safe: bool) -> Op:
        """A child run that its parent lets go, and that goes on."""
        plan = self.run([self.call(), self.signal(depth, safe) | {"when": "after"}, self.call()])
        child = self.named("child", policy="detach", plan=plan)
        waits = [child, self.named("never")]
        return self.named("timeout", seconds=0.05, body=waits, cleanup=[], caught=True)

    def gather(self, depth: int, safe: bool) -> Op:
        match self.chance.choice(["all", "all", "tolerant", "fails", "quorum", "out of reach"]):
            case "all":
                calls, quorum, tolerant = self.members(depth, safe, 5), None, self.maybe(0.3)
            case "tolerant":
                calls, quorum, tolerant = [*self.members(depth, safe, 4), self.call(fails=-1)], None, True
            case "fails":
                calls, quorum, tolerant = [*self.members(DEEPEST, True, 4), self.call(fails=-1)], None, False
            case "quorum":
                calls = self.members(depth, safe, 3)
                quorum, tolerant = len(calls), False
                calls += [self.call(fails=-1) if self.maybe(0.5) else self.endless() for _ in range(2)]
            case _:
                calls = self.members(DEEPEST, True, 3)
                quorum, tolerant = len(calls) + 1, False
                calls += [self.call(fails=-1) for _ in range(self.chance.randint(1, 2))]
                quorum = min(quorum, len(calls))
        self.chance.shuffle(calls)
        endless = sum(_has(call, ("never",)) for call in calls)
        limit = self.chance.choice([None, None, endless + self.chance.randint(1, 3)])
        return self.named(
            "gather", calls=calls, limit=limit, quorum=quorum, tolerant=tolerant, caught=safe or self.maybe(0.9)
        )

    def members(self, depth: int, safe: bool, most: int) -> list[Op]:
        """Calls that succeed."""
        count = self.chance.randint(1, most)
        return [
            self.named("child", policy="cancel", plan=self.run([self.call() for _ in range(2)]))
            if depth < DEEPEST and self.maybe(0.25) else self.call()
            for _ in range(count)
        ]  # fmt: skip

    def endless(self) -> Op:
        return self.named("child", policy="cancel", plan=self.run([self.call(), self.named("never")]))

    def together(self, depth: int, safe: bool) -> Op:
        how = self.chance.choice(["all", "group", "settled"])
        if self.maybe(0.7):
            branches = [self.inner(depth) for _ in range(self.chance.randint(2, 3))]
            branches = [[{**op, "caught": True} for op in branch] for branch in branches]
        else:
            branches = [self.inner(depth, safe=True) for _ in range(2)]
            branches.insert(self.chance.randint(0, 2), [self.call(), self.call(fails=-1)])
        return self.named("together", how=how, branches=branches, caught=safe or self.maybe(0.9))

    def pool(self, depth: int, safe: bool) -> Op:
        calls = [{**self.tool(depth, safe), "caught": True} for _ in range(self.chance.randint(2, 6))]
        return self.named("pool", calls=calls, takers=self.chance.randint(1, 3))

    def whichever(self, depth: int, safe: bool) -> Op:
        branches = [[{**op, "caught": True} for op in self.inner(depth)] for _ in range(2)]
        return self.named("whichever", branches=branches, between=self.call())

    def timeout(self, depth: int, safe: bool) -> Op:
        cleanup = [self.call() for _ in range(self.chance.randint(0, 1))]
        if self.maybe(0.3):
            return self.named("timeout", seconds=86400, body=self.inner(depth), cleanup=cleanup, caught=True)
        seconds = self.chance.choice([0.02, 0.1, 0.4])
        return self.named("timeout", seconds=seconds, body=self.cut_off(depth), cleanup=cleanup, caught=self.maybe(0.9))

    def race(self, depth: int, safe: bool) -> Op:
        return self.named("race", seconds=self.chance.choice([0.01, 0.05, 0.15]), call=self.call(fails=0))

    def either(self, depth: int, safe: bool) -> Op:
        n = self.chance.randint(0, 99)
        return self.named("either", calls=[{**self.call(), "n": n} for _ in range(self.chance.randint(2, 3))])

    def cut(self, depth: int, safe: bool) -> Op:
        return self.named("cut", body=self.cut_off(depth), meanwhile=self.call(), cleanup=[self.call()])

    def sleep(self, depth: int, safe: bool) -> Op:
        return self.named("sleep", seconds=self.chance.choice([0, 0.01, 0.1, 0.5]))

    def signal(self, depth: int, safe: bool) -> Op:
        count = self.chance.randint(1, 3)
        return self.named("signal", n=self.chance.randint(0, 999), count=count, when=self.when())

    def event(self, depth: int, safe: bool) -> Op:
        return self.named("event", n=self.chance.randint(0, 999), when=self.when())


def _has(op: Op, kinds: Sequence[str]) -> bool:
    """Whether the op is of one of these kinds, or holds one that is."""
    if op["op"] in kinds:
        return True
    parts = [op.get("calls", ()), op.get("body", ()), op.get("cleanup", ()), *op.get("branches", ())]
    parts += [op["plan"]["ops"]] if "plan" in op else []
    return any(_has(inner, kinds) for part in parts for inner in part)
