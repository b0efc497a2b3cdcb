"""The log's semantics in memory: what the statements of `pickaxe/store` do, with a clock that jumps.

Whatever wakes a run gives it the next sequence number; a gathered call is counted once, by its gather; a
commit takes all of a decision. `World.advance` does the next thing that is due.
"""

from __future__ import annotations

import heapq
import itertools
import random
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, cast

from pickaxe import _values
from pickaxe._specs import AgentSpec
from pickaxe._states import ChildPolicy, RunState, StepKind, StepState
from pickaxe.core._records import CancelRecord, Decision, SignalRecord
from pickaxe.engine import _errors
from pickaxe.engine._doubt import is_once
from pickaxe.engine._plan import child_id, plan_steps
from pickaxe.store import Log
from pickaxe.store._events import matches
from pickaxe.testing._deaths import Person, died, doubt
from pickaxe.testing._rows import SimulatedRun, Step, new_step
from pickaxe.testing._tools import Bodies, OutOfTimeError, WorkerDied, failure, retry_in

_ORPHANED = "its parent run no longer waits for it"
_OVERDUE = "the run did not end within its agent's timeout"


class World:
    """Every run of a simulation, and what is going to happen to them."""

    def __init__(self, bodies: Bodies, start: float, shuffle: int | None) -> None:
        self.now = start
        self.bodies = bodies
        self.ready: deque[SimulatedRun] = deque()
        self.running = 0
        self.on_end: Callable[[Step], None] = lambda _step: None
        self._agenda: list[tuple[float, float, int, Callable[[], None]]] = []
        self._counter = itertools.count()
        self._shuffle = None if shuffle is None else random.Random(shuffle)
        self._events: list[tuple[str, str, str, float]] = []
        self._runs: list[SimulatedRun] = []
        self.person = Person(self, {})

    # Time.

    def at(self, time: float, action: Callable[[], None], *, rank: float = 0.0) -> None:
        """Do `action` at this time, after what was planned for it before."""
        heapq.heappush(self._agenda, (max(time, self.now), rank, next(self._counter), action))

    def advance(self) -> bool:
        """Do the next thing. False if there is none."""
        if not self._agenda:
            return False
        self.now, _, _, action = heapq.heappop(self._agenda)
        action()
        return True

    # Runs.

    def start(self, run: SimulatedRun, timeout: float | None) -> None:
        """A run is there."""
        self._runs.append(run)
        self.running += 1
        if not run.held:
            self.ready.append(run)
        if timeout is not None:
            self.at(self.now + timeout, lambda: self.cancel(run, _OVERDUE, timed_out=True))

    def wake(self, run: SimulatedRun) -> int | None:
        """Something arrives at a run. Its sequence number, None if the run is over."""
        if run.state.terminal:
            return None
        run.wake += 1
        if run.state is RunState.WAITING:
            run.state = RunState.READY
            self.ready.append(run)
        return run.wake

    def cancel(self, run: SimulatedRun, reason: str, *, timed_out: bool = False) -> None:
        """Tell a run to stop; one that has not begun, or is paused, ends at once."""
        if run.state.terminal:
            return
        if run.started is None or run.state is RunState.PAUSED:
            kind = "RunTimeoutError" if timed_out else "cancelled"
            error = _values.dump({"type": kind, "message": reason})
            self._end(run, RunState.FAILED if timed_out else RunState.CANCELLED, None, error)
            for step in run.steps.values():
                self._drop(run, step)
        elif run.cancel is None:
            run.cancel = CancelRecord(self.wake(run) or 0, self.now, timed_out, reason)

    def signal(self, run: SimulatedRun, name: str, payload: str) -> None:
        """A message to a run."""
        if (seq := self.wake(run)) is not None:
            run.signals[seq] = SignalRecord(seq, self.now, name, payload)

    def publish(self, key: str, scope: str, payload: str) -> None:
        """An outside fact."""
        self._events.append((key, scope, payload, self.now))
        for run in self._runs:
            for step in list(run.steps.values()):
                if step.kind is StepKind.EVENT and step.state is StepState.WAITING and step.name == key:
                    self._match(run, step, scope, payload)

    def _match(self, run: SimulatedRun, step: Step, scope: str, payload: str) -> bool:
        wanted = step.input
        if wanted["scope"] != scope or not matches(wanted["where"], _values.load(payload)):
            return False
        return self.settle(run, step, {StepState.WAITING}, StepState.SUCCEEDED, payload)

    def _look_back(self, run: SimulatedRun, step: Step) -> None:
        since = step.created - step.input["within"]
        for key, scope, payload, at in self._events:
            if key == step.name and at >= since and self._match(run, step, scope, payload):
                return

    # Steps.

    def settle(
        self,
        run: SimulatedRun,
        step: Step,
        origin: Iterable[StepState],
        state: StepState,
        output: str | None = None,
        error: str | None = None,
    ) -> bool:
        """A step ends, if it still is in one of the states `origin`."""
        if step.state not in origin:
            return False
        gather = run.steps.get(step.group or "")
        fired = None
        if step.group is None:
            step.seq = self.wake(run)
        elif gather is not None and gather.state is StepState.WAITING:
            gather.counted += 1
            gather.failed += state is not StepState.SUCCEEDED
            step.order = gather.counted - 1
            fired = _verdict(gather)
        self._mark(run, step, state, output, error)
        if gather is not None and fired is not None:
            gather.seq = self.wake(run)
            self._mark(run, gather, fired)
        elif (
            not step.passed
            and step.order is not None
            and gather is not None
            and gather.options.get("limit") is not None
        ):
            self.release(run, gather)
        return True

    def _mark(
        self,
        run: SimulatedRun,
        step: Step,
        state: StepState,
        output: str | None = None,
        error: str | None = None,
    ) -> None:
        step.state, step.output_json, step.error_json, step.ended = state, output, error, self.now
        if step.chapter == run.chapter:
            run.changed[step.key] = step
        if run.parent is None:
            self.on_end(step)

    def release(self, run: SimulatedRun, gather: Step) -> None:
        while gather.held:
            step = gather.held.popleft()
            if step.state is not StepState.BLOCKED:
                continue
            run.changed[step.key] = step
            if step.child is None:
                step.state = StepState.READY
                self.issue(run, step)
            else:
                step.state, step.child.held = StepState.WAITING, False
                self.ready.append(step.child)
            return

    def _drop(self, run: SimulatedRun, step: Step) -> None:
        """Nobody wants this step any more."""
        if not step.is_open:
            return
        if step.kind is not StepKind.CHILD or step.options.get("policy") == ChildPolicy.DETACH:
            step.state, step.ended = StepState.CANCELLED, self.now
            return
        step.state = StepState.CANCELLING
        if step.child is not None:
            self.cancel(step.child, _ORPHANED)
        else:
            self.settle(run, step, {StepState.CANCELLING}, StepState.CANCELLED)

    # A tool's attempts.

    def issue(self, run: SimulatedRun, step: Step, wait: float = 0.0) -> None:
        rank = self._shuffle.random() if self._shuffle else 0.0
        attempt = step.attempt
        self.at(self.now + wait, lambda: self._claim(run, step, attempt), rank=rank)

    def _claim(self, run: SimulatedRun, step: Step, attempt: int) -> None:
        if step.state is StepState.READY and step.attempt == attempt:
            step.state, step.attempt = StepState.RUNNING, attempt + 1
            self._perform(run, step)

    def _perform(self, run: SimulatedRun, step: Step) -> None:
        duration, attempt = self.bodies.duration(step), step.attempt

        def finish() -> None:
            if step.state is StepState.RUNNING and step.attempt == attempt:
                self._run_body(run, step)

        if duration:
            self.at(self.now + duration, finish)
        else:
            finish()

    def _run_body(self, run: SimulatedRun, step: Step) -> None:
        try:
            output = self.bodies.run(run, step)
        except WorkerDied:
            died(self, run, step)
        except OutOfTimeError as error:
            if is_once(step.options):
                step.reason = f"attempt {step.attempt} did not end in time"
                doubt(self, run, step, spared=0)
            else:
                self._failed(run, step, error)
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is its outcome
            self._failed(run, step, error)
        else:
            self.settle(run, step, {StepState.RUNNING}, StepState.SUCCEEDED, output)

    def _failed(self, run: SimulatedRun, step: Step, error: Exception) -> None:
        step.strikes = 0
        wait = retry_in(step, error, self.now)
        if wait is None:
            self.settle(run, step, {StepState.RUNNING}, StepState.FAILED, None, failure(step, error))
        else:
            step.state = StepState.READY
            self.issue(run, step, wait)

    def _expire(self, run: SimulatedRun, step: Step) -> None:
        if step.attempt == 0:
            error = _errors.timed_out("did not start within its schedule timeout")
            self.settle(run, step, {StepState.BLOCKED, StepState.READY}, StepState.FAILED, None, error)

    # What an agent decided.

    def commit(self, run: SimulatedRun, decision: Decision, ending: tuple[RunState, str | None, str | None]) -> None:
        """Take in all of a decision."""
        state, output, error = ending
        run.started = self.now if run.started is None else run.started
        run.head, run.state, run.error, run.changed = max(run.head, decision.head), state, error, {}
        run.reason = str(decision.error) if state is RunState.PAUSED else None
        if decision.has_published:
            run.published = decision.published
        new = self._insert(run, decision)
        for key in decision.cancels:
            self._drop(run, run.steps[key])
        for key, seq in decision.settled:
            if run.steps[key].state is StepState.WAITING:
                run.steps[key].seq = seq
                self._mark(run, run.steps[key], StepState.SUCCEEDED, run.signals[seq].payload)
        if state is RunState.READY:
            self._next_chapter(run, output or "{}", decision.carried)
        elif state.terminal:
            self._end(run, state, output, error)
        for step in new:
            self._begin(run, step)

    def _insert(self, run: SimulatedRun, decision: Decision) -> list[Step]:
        plan = plan_steps(cast("Any", run), decision, Log([], [], {}), owner="simulation", redispatch=0.0)
        specs = {request.key: request.spec for request in decision.requests}
        new = [new_step(row, specs[row["key"]], run.chapter, self.now) for row in _values.load(plan.steps_json or "[]")]
        run.steps |= {step.key: step for step in new}
        for step in new:
            if step.state is StepState.BLOCKED and step.group is not None:
                run.steps[step.group].held.append(step)
        for row in _values.load(plan.children_json or "[]"):
            step = run.steps[row["step"]]
            if self.bodies.of(step.name) is not None:
                step.state = StepState.BLOCKED if row["held"] else StepState.READY
                continue
            step.child = SimulatedRun(
                child_id(run.id, step.key), step.spec, row["input"], run.root, run.priority, run, step, row["held"],
            )  # fmt: skip
            self.start(step.child, row["timeout"])
        return new

    def _begin(self, run: SimulatedRun, step: Step) -> None:
        """What a new step sets going."""
        if step.state is StepState.READY:
            self.issue(run, step)
        elif step.state is StepState.RUNNING:
            self.at(self.now, lambda: self._perform(run, step))
        elif step.kind is StepKind.TIMER and step.due is not None:
            self.at(step.due, lambda: self._elapsed(run, step))
        elif step.kind is StepKind.EVENT:
            self._look_back(run, step)
        if getattr(step.spec, "schedule_timeout", None) is not None and step.expires is not None:
            self.at(step.expires, lambda: self._expire(run, step))

    def _elapsed(self, run: SimulatedRun, step: Step) -> None:
        self.settle(run, step, {StepState.WAITING}, StepState.SUCCEEDED)

    def _next_chapter(self, run: SimulatedRun, text: str, carried: Collection[int]) -> None:
        run.past += run.steps.values()
        run.steps, run.changed = {}, {}
        run.signals = {seq: run.signals[seq] for seq in carried if seq in run.signals}
        if run.cancel is not None and run.cancel.seq not in carried:
            run.cancel = None
        run.input, run.chapter, run.started = text, run.chapter + 1, self.now
        self._forget(run)
        self.ready.append(run)

    def _end(self, run: SimulatedRun, state: RunState, output: str | None, error: str | None) -> None:
        run.state, run.output, run.error = state, output, error
        self.running -= 1
        self._forget(run)
        if run.parent is not None and run.parent_step is not None:
            self.settle(
                run.parent, run.parent_step, {StepState.WAITING, StepState.CANCELLING},
                StepState(state), output, error,
            )  # fmt: skip

    @staticmethod
    def _forget(run: SimulatedRun) -> None:
        if run.reduction is not None:
            run.reduction.close()
            run.reduction = None

    def close(self) -> None:
        """Drop every coroutine."""
        for run in self._runs:
            self._forget(run)


def new_run(spec: AgentSpec, text: str, priority: int) -> SimulatedRun:
    """A run that nobody started but the test: always the same id, so that all chance is repeated."""
    own = uuid.uuid5(uuid.NAMESPACE_OID, spec.name)
    return SimulatedRun(own, spec, text, own, priority)


def _verdict(gather: Step) -> StepState | None:
    count, quorum, counted, failed = (
        gather.options["count"],
        gather.options.get("quorum"),
        gather.counted,
        gather.failed,
    )
    if quorum is not None:
        if counted - failed >= quorum:
            return StepState.SUCCEEDED
        return StepState.FAILED if count - failed < quorum else None
    if failed and not gather.options["tolerant"]:
        return StepState.FAILED
    return StepState.SUCCEEDED if counted == count else None
