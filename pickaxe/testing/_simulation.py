"""`simulate`: an agent, the real reduction of its log, and a world that costs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Generic, Literal, TypeVar, cast

from pickaxe import _values
from pickaxe._durations import Duration, seconds
from pickaxe._states import RunState
from pickaxe.authoring._handles import MAX_PAYLOAD, Agent
from pickaxe.client import Run
from pickaxe.core._records import Arrival, Decision
from pickaxe.engine import _turns
from pickaxe.errors import ConfigurationError, PickaxeError
from pickaxe.testing._deaths import verdict_of
from pickaxe.testing._rows import SimulatedRun, Step
from pickaxe.testing._stuck import describe
from pickaxe.testing._tools import Bodies
from pickaxe.testing._world import World, new_run

R = TypeVar("R")
When = Duration | datetime
"""A time: so long after the start, a `datetime`, or the key of a step, such as `"plan#1"`: once that has ended."""

LONGEST = 100_000
"""Things that may happen in one simulation."""

_START = datetime(2024, 1, 1, tzinfo=UTC)


class SimulationError(PickaxeError, AssertionError):
    """The simulation cannot go on: the agent waits for ever, never ends, or does something else when replayed."""


class Simulation(Generic[R]):
    """What became of a simulated run.

    `state` is how it ended, `published` what it last gave to `set_state`, `steps` its log in the order the
    steps were asked for (all chapters), `children` its child runs by step key, `now` the time at the end.
    """

    def __init__(self, run: SimulatedRun, handle: Any, now: float) -> None:
        self._run = run
        self._handle = handle
        self.state = run.state
        self.published: Any = None if run.published is None else _values.load(run.published)
        self.steps: list[Step] = [*run.past, *run.steps.values()]
        self.now = datetime.fromtimestamp(now, UTC)
        self.children: dict[str, Simulation[Any]] = {
            step.key: Simulation(step.child, None, now) for step in self.steps if step.child is not None
        }

    def result(self) -> R:
        """The typed result. Raises what `Run.result` would: `RunFailedError`, `RunCancelledError`, `RunPausedError`."""
        run = self._run
        view = SimpleNamespace(
            state=run.state, agent=run.agent, reason=run.reason,
            output=None if run.output is None else _values.load(run.output),
            error=None if run.error is None else _values.load(run.error),
        )  # fmt: skip
        ended: R = Run(cast("Any", None), run.id, self._handle)._ended(cast("Any", view))
        return ended

    def step(self, key: str) -> Step:
        """The step with this key. Raises `KeyError`, which lists those there are."""
        found = {step.key: step for step in self.steps}
        if key not in found:
            raise KeyError(f"there is no step {key!r} among {', '.join(found) or 'none'}")
        return found[key]

    def __repr__(self) -> str:
        return f"<Simulation of {self._run.agent}: {self.state}, {len(self.steps)} step(s)>"


def simulate(
    agent: Agent[Any, R],
    /,
    *args: Any,
    tools: Mapping[Any, Any] | None = None,
    signals: Sequence[tuple[When, str, Any]] = (),
    events: Sequence[tuple[Any, ...]] = (),
    cancel: When | None = None,
    resolve: Sequence[tuple[When, str, Mapping[str, Any]]] = (),
    start: datetime | None = None,
    crash: Literal["everywhere"] | None = None,
    shuffle: int | None = None,
    **kwargs: Any,
) -> Simulation[R]:
    """Run an agent to its end in memory, as the fleet would: same log, same validation, same retries.

    Time is virtual: nothing sleeps, three days take no longer than three seconds, and tools take no time
    (unless wrapped by `takes`). Child runs are simulated with it.

    `tools` replaces bodies of tools and of child agents, by handle or name: functions of the same
    parameters, sync or async, whose result is validated as the original's. `signals` are `(when, name,
    payload)`, `events` `(when, key, payload)` or `(when, key, payload, scope)`, `cancel` is when the run is
    cancelled. `resolve` are `(when, step, {"result": …} | {"failed": "why"} | {"again": True})`: what a
    person says about a step that was set aside (see `dies`), then, or as soon as it is. *when* is a duration
    after the start (`0`, `"3d"`), a `datetime`, or the key of a step (`"plan#1"`): as soon as that has ended.
    `start` is the time at the beginning (default: 2024-01-01 UTC).

    `crash="everywhere"` also replays the log from its beginning before everything that arrives, as after a
    crash, and compares: an agent that reads the clock or a global is found out. `shuffle` is a seed: results
    of tools that run at the same time arrive in an order drawn from it.

    ```python
    ran = simulate(research, "who?", tools={search: lambda query: ["hit"]}, signals=[("3d", "review", True)])
    assert ran.result() == "approved"
    ```

    Raises `InputError` for wrong arguments, and `SimulationError` when the agent waits for ever (naming what
    it waits for) or does something else when it is replayed.
    """
    if not isinstance(agent, Agent):
        raise ConfigurationError(f"simulate takes an agent's handle, not {agent!r}")
    began = _timestamp(start or _START, "start")
    bodies = Bodies(tools or {})
    world = World(bodies, began, shuffle)
    text = agent.spec.signature.encode_input(args, kwargs, cap=MAX_PAYLOAD)
    priority = agent.spec.priority if agent.spec.priority is not None else 5
    run = new_run(agent.spec, text, priority)
    outside = _Outside(world, run, began)
    outside.plan(signals, events, cancel)
    outside.plan_verdicts(resolve)
    world.start(run, agent.spec.timeout)
    try:
        _Driver(world, run, replay=crash == "everywhere").go()
    finally:
        world.close()
    _all_used(bodies.names, run)
    return Simulation(run, agent, world.now)


def _all_used(replaced: set[str], run: SimulatedRun) -> None:
    """A name that nobody asked for is misspelt, most likely, and the real tool ran. (A handle cannot be.)"""
    asked = {step.name for step in _below(run) if step.spec is not None}
    if unused := sorted(replaced - asked):
        raise SimulationError(
            f"tools= replaces {unused[0]!r}, which agent {run.agent!r} never called: it called "
            f"{', '.join(sorted(asked)) or 'nothing'}. Is the name right? What is not replaced runs for real."
        )


def _below(run: SimulatedRun) -> Iterator[Step]:
    for step in (*run.past, *run.steps.values()):
        yield step
        if step.child is not None:
            yield from _below(step.child)


class _Driver:
    """Reduces whatever is ready, else lets the next thing happen."""

    def __init__(self, world: World, root: SimulatedRun, *, replay: bool) -> None:
        self._world = world
        self._root = root
        self._replay = replay

    def go(self) -> None:
        """Until every run has ended, or nothing more happens."""
        for _ in range(LONGEST):
            self._reduce_ready()
            if self._root.state is RunState.PAUSED or not self._world.running:
                return
            if not self._world.advance():
                if self._root.state.terminal:
                    return
                raise SimulationError(describe(self._root))
        raise SimulationError(f"agent {self._root.agent!r} has not ended after {LONGEST:,} steps and arrivals")

    def _reduce_ready(self) -> None:
        while self._world.ready:
            run = self._world.ready.popleft()
            if run.state is RunState.READY and not run.held:
                self._reduce(run)

    def _reduce(self, run: SimulatedRun) -> None:
        engine = _engine(run)
        run.now = self._world.now
        arrivals: list[Arrival] = [*run.signals.values(), *([run.cancel] if run.cancel else [])]
        if run.reduction is None:
            run.reduction = _turns.reduction_of(engine, cast("Any", run))
        decision = run.reduction.resume([step.record() for step in run.changed.values()], arrivals)
        ending = _turns.ending(engine, run.spec, decision)
        if self._replay:
            self._compare(run, decision, arrivals, engine)
        self._world.commit(run, decision, ending)

    def _compare(self, run: SimulatedRun, decision: Decision, arrivals: list[Arrival], engine: Any) -> None:
        replay = _turns.reduction_of(engine, cast("Any", run))
        try:
            again = replay.resume([step.record() for step in run.steps.values()], arrivals)
        finally:
            replay.close()
        published = decision.published if decision.has_published else run.published
        before, after = _told(decision, published), _told(again, again.published)
        for what, first in before.items():
            if first != after[what]:
                raise SimulationError(
                    f"agent {run.agent!r} does something else when it is replayed: its {what} first {first!r}, then "
                    f"{after[what]!r}. It depends on something that is not in its log, such as time.time() "
                    f"(pickaxe.now), random (pickaxe.random), a global, or the order of a set."
                )


class _Outside:
    """What happens to the run from outside."""

    def __init__(self, world: World, run: SimulatedRun, began: float) -> None:
        self._world = world
        self._run = run
        self._began = began
        self._after: dict[str, list[Any]] = {}

    def plan(self, signals: Iterable[Any], events: Iterable[Any], cancel: When | None) -> None:
        """Put all of it on the agenda."""
        world, run = self._world, self._run
        for when, name, payload in signals:
            text = _encoded(payload, f"the signal {name!r}")
            self._at(when, lambda name=name, text=text: world.signal(run, name, text))
        for when, key, payload, *scope in events:
            text, tenant = _encoded(payload, f"the event {key!r}"), scope[0] if scope else ""
            self._at(when, lambda key=key, text=text, tenant=tenant: world.publish(key, tenant, text))
        if cancel is not None:
            self._at(cancel, lambda: world.cancel(run, "cancelled by a person"))
        world.on_end = self._ended

    def plan_verdicts(self, verdicts: Iterable[Any]) -> None:
        """Put what a person says on the agenda."""
        for when, key, given in verdicts:
            verdict = verdict_of(given)
            self._at(when, lambda key=key, verdict=verdict: self._world.person.tell(self._run, key, verdict))

    def _at(self, when: When, action: Any) -> None:
        if isinstance(when, str) and "#" in when:
            self._after.setdefault(when, []).append(action)
        elif isinstance(when, datetime):
            self._world.at(_timestamp(when, "a time"), action)
        else:
            self._world.at(self._began + seconds(when), action)

    def _ended(self, step: Step) -> None:
        for action in self._after.pop(step.key, ()):
            self._world.at(self._world.now, action)


def _engine(run: SimulatedRun) -> Any:
    return SimpleNamespace(agents={run.agent: run.spec}, settings=SimpleNamespace(max_payload=MAX_PAYLOAD))


def _told(decision: Decision, published: Any) -> dict[str, Any]:
    """What of a decision must be the same in every replay."""
    return {
        "requests were": [(r.key, r.kind.value, r.name, r.input, r.due, r.group) for r in decision.requests],
        "cancelled steps were": sorted(decision.cancels),
        "state was": (decision.state.value, decision.head),
        "settled waits were": decision.settled,
        "inline steps were": [r.key for r in decision.inline],
        "error was": repr(decision.error),
        "result was": _shown(decision.output),
        "published state was": published,
        "carried signals were": decision.carried,
    }


def _shown(output: Any) -> Any:
    try:
        return _values.encode(_values.ANYTHING, output, what="", cap=MAX_PAYLOAD)
    except PickaxeError:
        return type(output)


def _encoded(payload: Any, what: str) -> str:
    return _values.encode(_values.ANYTHING, payload, what=what, cap=MAX_PAYLOAD)


def _timestamp(moment: datetime, what: str) -> float:
    if moment.tzinfo is None:
        raise ConfigurationError(f"{what} of a simulation needs a time zone: {moment!r} has none")
    return (moment - datetime.fromtimestamp(0, UTC)) / timedelta(seconds=1)
