"""Random programs on a fleet: started, supplied with what they wait for, and judged by the model."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from pickaxe.authoring._handles import EnqueueOptions
from pickaxe.errors import ServiceUnavailableError
from tests.faults.app import play
from tests.faults.fleet import Fleet
from tests.faults.random_model import Delivery, Effect, Outcome, deliveries, outcome_of
from tests.faults.random_plans import draw

STALLED = 40.0
"""Seconds in which something must happen. A call that saw four deaths is only tried again after 16."""


@dataclass
class Pending:
    """A delivery on its way. `due` is a time of the monotonic clock; `sent` counts the values that are gone."""

    delivery: Delivery
    root: str
    due: float
    sent: int = 0


@dataclass(frozen=True)
class Seen:
    """A run as it stands in the log."""

    id: str
    state: str
    published: str | None


@dataclass
class Programs:
    """`count` programs drawn from `seed`. What they need in the middle of the storm comes within `span` seconds."""

    fleet: Fleet
    seed: int
    count: int
    span: float
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plans = {label: draw(self.seed, label) for label in (f"p{n}" for n in range(self.count))}
        self.outcomes = {label: outcome_of(plan) for label, plan in self.plans.items()}
        self._chance = random.Random(self.seed)
        self._pending: list[Pending] = []
        self._calm, self._stop = threading.Event(), threading.Event()
        self._troubles: list[BaseException] = []
        self._outside = threading.Thread(target=self._deliver_all, daemon=True)

    def __enter__(self) -> Programs:
        self._outside.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._outside.join(30)

    # Start.

    def start(self, label: str) -> None:
        """Enqueue a program, and enqueue it again: there must be one run of it. Postgres may be away meanwhile."""
        pending = [Pending(d, label, self._due(d.when)) for d in deliveries(self.plans[label])]
        for early in [p for p in pending if p.delivery.kind == "event" and p.delivery.when == "before"]:
            insisted(lambda e=early: self._publish(e))
        ids = {insisted(lambda: self._enqueue(label)) for _ in range(2)}
        assert len(ids) == 1, f"{label} has two runs: {ids}"
        [self.roots[label]] = ids
        self._pending += pending

    def _enqueue(self, label: str) -> str:
        options = EnqueueOptions(idempotency_key=f"{self.seed} {label}")
        [run] = self.fleet.client.enqueue(play, [((self.plans[label],), {})], [options])
        return run.id

    def _due(self, when: str) -> float:
        match when:
            case "before":
                return 0.0
            case "during":
                return time.monotonic() + self._chance.uniform(0, self.span)
        return float("inf")

    # The outside world.

    def _deliver_all(self) -> None:
        while not self._stop.wait(0.05):
            try:
                self._deliver_due()
            except (psycopg.Error, ServiceUnavailableError):
                continue  # Postgres is away
            except BaseException as error:
                self._troubles.append(error)
                return

    def _deliver_due(self) -> None:
        now = time.monotonic()
        due = [p for p in self._pending if p.due <= now or self._calm.is_set()]
        if not due:
            return
        seen = self.seen()
        for pending in due:
            if self._delivered(pending, seen):
                self._pending.remove(pending)

    def _delivered(self, pending: Pending, seen: dict[str, list[Seen]]) -> bool:
        """Whether nothing is left to do. A run that does not exist yet, or is not yet parked, is waited for."""
        delivery = pending.delivery
        if delivery.kind == "event":
            return self._publish(pending)
        [root] = seen[pending.root]
        runs = seen.get(delivery.run, [])
        if not runs:
            return over(root.state)
        run = self.fleet.client.run(runs[0].id)
        if delivery.kind == "cancel":
            return over(runs[0].state) or (runs[0].published == delivery.name and run.cancel("by the test"))
        while pending.sent < len(delivery.values):
            key = f"{delivery.name} {pending.sent}"
            for _ in range(self._chance.choice([1, 1, 2])):
                run.signal(delivery.name, delivery.values[pending.sent], idempotency_key=key)
            pending.sent += 1
        return True

    def _publish(self, pending: Pending) -> bool:
        """The event, between others of the same key: one that does not match, and one that comes later."""
        if pending.sent == 0:
            name, (n,) = pending.delivery.name, pending.delivery.values
            for payload in ({"to": "nobody", "n": -1}, {"to": name, "n": n}, {"to": name, "n": -2}):
                self.fleet.client.publish_event(name, payload)
            pending.sent = 1
        return True

    def seen(self) -> dict[str, list[Seen]]:
        """All runs there are, by label."""
        runs = defaultdict(list)
        rows = self.fleet.query("SELECT id, state, published, input::json->'plan'->>'label' FROM pickaxe.run")
        for run, state, published, label in rows:
            runs[label].append(Seen(str(run), state, None if published is None else json.loads(published)))
        return runs

    # The end.

    def finish(self) -> None:
        """The storm is over: bring what is still missing, and wait until everything is at rest (I1, I8).

        However busy the machine is, as long as something moves.
        """
        self._calm.set()
        before, moved = self._progress(), time.monotonic()
        while not self._at_rest():
            if (now := self._progress()) != before:
                before, moved = now, time.monotonic()
            assert time.monotonic() < moved + STALLED, f"nothing has moved for {STALLED:g} s, and not all is at rest"
            time.sleep(0.1)
        if self._troubles:
            raise self._troubles[0]

    def _progress(self) -> tuple[object, ...]:
        """Something that changes whenever anything happens."""
        [runs] = self.fleet.query("SELECT count(*), sum(epoch), sum(wake) FROM pickaxe.run")
        [steps] = self.fleet.query("SELECT count(*), sum(attempt), count(finished_at) FROM pickaxe.step")
        return (*runs, *steps)

    def _at_rest(self) -> bool:
        return bool(self._troubles) or not (self._pending or self.fleet.leftovers())

    def judge(self) -> dict[str, int]:
        """Results, effects, runs and invariants are what they must be. Returns counts, for people."""
        seen = self.seen()
        wrong = [trouble for label in self.plans for trouble in self._misjudged(label, seen)]
        effects = {label: effect for outcome in self.outcomes.values() for label, effect in outcome.effects.items()}
        wrong += self._wrong_effects(effects)
        assert not wrong, "\n".join(wrong)
        self.fleet.check()
        states = Counter(outcome.state for outcome in self.outcomes.values())
        return {**states, "runs": sum(map(len, seen.values())), "effects": len(self.fleet.entries("did"))}

    def _misjudged(self, label: str, seen: dict[str, list[Seen]]) -> list[str]:
        outcome, view = self.outcomes[label], self.fleet.client.run(self.roots[label]).view()
        came_to = view.output if view.state == "succeeded" else (view.error or {}).get("type")
        wrong = []
        if view.state != outcome.state or (outcome.state != "cancelled" and came_to != outcome.value):
            wrong.append(f"{label} ({view.id}) came to {view.state} {came_to} {view.error}")
            wrong.append(f"    it should be {outcome.state} {outcome.value}")
        for run, state in outcome.runs.items():
            found = [s.state for s in seen.get(run, [])]
            if len(found) > 1 or (state is not None and found != [state]):
                wrong.append(f"{label}: its run {run} should be {state}, and there is {seen.get(run)}")
        own = {run for run in seen if run.split(".")[0] == label}
        return wrong + [f"{label}: nobody asked for a run {run}" for run in own - set(outcome.runs)]

    def _wrong_effects(self, expected: dict[str, Effect]) -> list[str]:
        done: dict[str, Counter[str]] = defaultdict(Counter)
        keys: dict[str, set[str]] = defaultdict(set)
        runners: dict[tuple[str, str], set[int]] = defaultdict(set)
        for entry in self.fleet.entries("did", "refused"):
            label, _, key = entry.key.partition(">")
            done[label][entry.word] += 1
            keys[label].add(key)
            runners[label, entry.attempt].add(entry.pid)
        deaths = dict(self.fleet.query("SELECT run_id || '/' || key, deaths FROM pickaxe.step WHERE kind = 'tool'"))
        wrong = [f"{label} has several idempotency keys: {found}" for label, found in keys.items() if len(found) > 1]
        wrong += [f"nobody asked for {label}" for label in done.keys() - expected.keys()]
        for label, effect in expected.items():
            # Each attempt that a worker died in, or gave back, may have had the effect.
            more = sum(deaths[key] for key in keys[label])
            if self.fleet.crashed:
                # A crash of Postgres can undo a claim, and another process may make it before the first does again.
                more += sum(len(pids) - 1 for (one, _), pids in runners.items() if one == label)
            for word, times in (("did", effect.did), ("refused", effect.refused)):
                least = times if effect.certain else 0
                if not least <= done[label][word] <= times + (more if times else 0):
                    by = [f"attempt {attempt} {pids}" for (one, attempt), pids in runners.items() if one == label]
                    wrong.append(
                        f"{label} {word} {done[label][word]} times, not {least} to {times} and {more} repeats: {by}"
                    )
        return wrong

    def story(self) -> str:
        """For people: what has not ended, and its plan."""
        left = {str(run) for run, *_ in self.fleet.leftovers()}
        seen = self.seen()
        stuck = {label.split(".")[0] for label, runs in seen.items() if any(run.id in left for run in runs)}
        return "\n".join([
            f"replay: PICKAXE_TEST_SEED={self.seed}",
            f"not delivered: {self._pending}",
            *(f"{label} ({self.roots.get(label)}): {json.dumps(self.plans[label])}" for label in sorted(stuck)),
            *(line for run in sorted(left) for line in self._log_of(run)),
        ])  # fmt: skip

    def _log_of(self, run: str) -> list[str]:
        rows = self.fleet.query(
            "SELECT 'run', agent, state, chapter, head, wake, epoch, due FROM pickaxe.run WHERE id = %s", run
        )
        rows += self.fleet.query(
            "SELECT key, state, chapter, seq, attempt, deaths, due, reason FROM pickaxe.step WHERE run_id = %s "
            "ORDER BY created_at", run,
        )  # fmt: skip
        rows += self.fleet.query(
            "SELECT 'signal', name, chapter, seq, payload FROM pickaxe.signal WHERE run_id = %s ORDER BY seq", run
        )
        return [f"--- the log of {run}", *map(str, rows)]


def over(state: str) -> bool:
    return state in ("succeeded", "failed", "cancelled")


def insisted(attempt: Callable[[], Any], within: float = 30) -> Any:
    """What `attempt` returns, tried again while Postgres is away."""
    deadline = time.monotonic() + within
    while True:
        try:
            return attempt()
        except ServiceUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
