"""Runs and their steps in words: what they are about, why they stand still, what was replayed."""

from __future__ import annotations

import re
import shlex
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pickaxe import _values
from pickaxe._durations import humanise
from pickaxe._effects import Effect
from pickaxe._states import RunState, StepKind, StepState
from pickaxe.cli._text import one_line, safe, short, shown_value, told
from pickaxe.client import Client
from pickaxe.engine._doubt import UNKNOWN
from pickaxe.store import RunView, StepView

_MISMATCH = re.compile(r"recorded (.*), but the code now asks for (.*?)\. The run is paused", re.DOTALL)


@dataclass(frozen=True)
class Node:
    """A run, its steps and its child runs."""

    run: RunView
    steps: list[StepView]
    children: list[Node]

    def walk(self) -> Iterable[Node]:
        """This run and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def tree(client: Client, run: uuid.UUID, *, most: int = 500) -> Node:
    """A run with everything below it; `most` child runs of each."""
    view = client.store.view_run(run)
    assert view is not None
    children = [tree(client, child.id, most=most) for child in client.store.children(run)[:most]]
    return Node(view, client.store.view_steps(run), children)


def last_takeover(node: Node) -> float | None:
    """When, in epoch seconds, the run last lost a worker process that was in one of its steps."""
    return max(
        (past["at"] for n in node.walk() for s in n.steps for past in s.history if past.get("ended") == "died"),
        default=None,
    )


def was_replayed(step: StepView, run: RunView, takeover: float | None) -> bool:
    """Whether a step's result was recorded before a worker of the run died, and used again by what came after."""
    if takeover is None or step.finished_at is None or not step.state.terminal:
        return False
    run_went_on = run.finished_at is None or run.finished_at.timestamp() > takeover
    return run_went_on and step.finished_at.timestamp() < takeover


def about(step: StepView, most: int = 40) -> str:
    """What a call is about: the first text in its input, else the first number."""
    if step.kind not in (StepKind.TOOL, StepKind.CHILD):
        return ""
    found = [*_plain_values(step.input)]
    chosen = next((value for value in found if isinstance(value, str)), found[0] if found else "")
    return one_line(chosen, most)


def _plain_values(value: Any, depth: int = 0) -> Iterable[str | float]:
    """The texts and numbers in a value; of a list, as many texts as one can take in, or how long it is."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list):
        texts = [item for item in value if isinstance(item, str)]
        yield ", ".join(texts[:5]) if texts and len(texts) == len(value) else f"{len(value)} items"
    elif isinstance(value, dict) and depth < 4:
        for inner in value.values():
            yield from _plain_values(inner, depth + 1)


class Fleet:
    """What the live workers know."""

    def __init__(self, client: Client) -> None:
        self.workers = client.store.list_workers()
        self.handles = {name for worker in self.workers for name in _values.load(worker.handles)}

    def missing(self, kind: str, name: str) -> str:
        """Why a call cannot be taken, or nothing."""
        if not self.workers:
            return "no worker is running: start one with `pickaxe worker`"
        if name in self.handles:
            return ""
        return f"no live worker knows {kind} {name!r}: list it in Pickaxe({kind}s=[...]) and restart its worker"


def tally(calls: Sequence[StepView]) -> str:
    """What has become of a gather's calls: `3 calls, all here`, or how many are in which state."""
    counts = Counter(str(call.state) for call in calls)
    number = f"{len(calls)} call{'s' if len(calls) != 1 else ''}"
    if set(counts) == {"succeeded"}:
        return f"{number}, all here"
    order = ["succeeded", "failed", "cancelled"]
    states = sorted(counts, key=lambda state: order.index(state) if state in order else len(order))
    return f"{number}: {', '.join(f'{counts[state]} {state}' for state in states)}" if calls else ""


def why_step(step: StepView, steps: Sequence[StepView], fleet: Fleet) -> str:
    """What an open step waits for; for one that has ended badly, its error."""
    if step.state is StepState.CANCELLED and _was_cut_off(step):
        return f"no longer wanted while it ran: {UNKNOWN}"
    if step.kind == StepKind.GATHER and step.state.terminal:
        return tally([s for s in steps if s.group == step.key])
    if step.state in (StepState.FAILED, StepState.CANCELLED):
        return told(step.error)
    if step.state.terminal:
        return _attempts(step)
    if step.state.aside:
        return _aside(step)
    if step.state is StepState.RUNNING and step.reconciling:
        return f"its reconcile is asked: {_attempts(step)}"
    if step.state is StepState.RUNNING:
        return f"in progress: {shown_value(step.progress, 60)}" if step.progress is not None else ""
    if step.state is StepState.BLOCKED:
        return "held back by its gather's limit"
    if step.state is StepState.READY:
        return fleet.missing("tool", step.name) or _ready(step)
    return _waiting(step, steps)


def why_run(run: RunView, steps: Sequence[StepView], fleet: Fleet) -> list[str]:
    """Why a run does not move right now, one line per reason."""
    match run.state:
        case RunState.PAUSED:
            return [*_mismatch(run.reason or ""), *(f"  {death}" for death in deaths((run.error or {}).get("deaths")))]
        case RunState.READY:
            missing = fleet.missing("agent", run.agent)
            return [missing or run.reason or f"its turn: a message in queue {run.queue!r}{_at(run.due, 'again')}"]
        case RunState.WAITING:
            found = [line for s in steps if s.state.aside for line in aside_lines(str(run.id), s)]
            open_steps = [s for s in steps if not s.state.terminal and not s.state.aside and s.group is None]
            found += [f"{s.key}: {why_step(s, steps, fleet) or s.state}" for s in open_steps]
            if not found:
                return ["for nothing that is in its log: its agent awaits something that no step will ever bring"]
            return found[:8] + ([f"and {len(found) - 8} more"] if len(found) > 8 else [])
    return []


def signal_waits(steps: Iterable[StepView], *, now: bool = True) -> list[str]:
    """The names of the signals that a run waits for `now`, or has ever waited for."""
    waits = [s for s in steps if s.kind == StepKind.SIGNAL]
    return list(dict.fromkeys(s.name for s in waits if not (now and s.state.terminal)))


def kept_signals(client: Client, run: RunView, steps: Sequence[StepView]) -> Counter[str]:
    """The names of the signals that came and that nothing in a run has waited for, and how many of each."""
    taken = {s.seq for s in steps if s.kind == StepKind.SIGNAL and s.chapter == run.chapter}
    sent = [signal for signal in client.store.list_signals(run.id, run.chapter) if signal.seq not in taken]
    awaited = signal_waits(steps)  # what has just come for one of these is about to be taken
    return Counter(signal.name for signal in sent if signal.name not in awaited)


def aside_lines(run: str, step: StepView) -> list[str]:
    """Why a step was set aside, on what evidence, and the command that lets it go on."""
    lines = [f"{safe(step.key)} is {step.state}: {_aside(step)}", *(f"  {death}" for death in deaths(step.history))]
    place = f"{short(run)} {_quoted(step.key)}"
    if step.state is StepState.QUARANTINED:
        return [*lines, f"  pickaxe retry {place}", f"  pickaxe resolve {place} --failed WHY | --result JSON"]
    return [*lines, f"  pickaxe resolve {place} --result JSON | --failed WHY | --again"]


def deaths(history: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The deaths in a history, one line each."""
    return [_death(past) for past in history or () if past.get("ended", "died") == "died"]


def _death(past: Mapping[str, Any]) -> str:
    attempt = f"attempt {past['attempt']}: " if "attempt" in past else ""
    by = f" by {past['exit']}" if past.get("exit") else ""
    began, ended = past.get("started"), past.get("died") or past.get("at")
    lasted = f", {humanise(max(0.0, ended - began))} after it began" if began is not None and ended else ""
    stamp = f" at {datetime.fromtimestamp(ended).astimezone():%Y-%m-%d %H:%M:%S}" if ended else ""
    shared = "" if past.get("alone", True) else ", with others"
    return f"{attempt}worker process {safe(past.get('owner'))} was ended{by}{stamp}{lasted}{shared}"


def _aside(step: StepView) -> str:
    asked = _at(step.due, "asked") if step.due is not None else ""
    if step.state is StepState.QUARANTINED:
        return f"{step.reason}; `pickaxe retry` releases it"
    return f"{step.reason or UNKNOWN}{asked or '; `pickaxe resolve` says how it goes on'}"


def _was_cut_off(step: StepView) -> bool:
    """Whether a call that may only run once was cancelled in the middle: its attempt left nothing behind."""
    known = {past.get("attempt") for past in step.history}
    return step.effect == Effect.AT_MOST_ONCE and step.attempt > 0 and step.reason is None and step.attempt not in known


def _quoted(key: str) -> str:
    return shlex.quote(safe(key))


def _waiting(step: StepView, steps: Sequence[StepView]) -> str:
    match step.kind:
        case StepKind.TIMER:
            return f"waits for its time{_at(step.due)}"
        case StepKind.SIGNAL:
            return f"waits for the signal {safe(step.name)!r}"
        case StepKind.EVENT:
            return f"waits for the event {safe(step.name)!r} {_where(step.input)}".rstrip()
        case StepKind.CHILD:
            return f"waits for the child run {short(step.child)}" if step.child else "waits for its child run"
        case StepKind.GATHER:
            own = [s for s in steps if s.group == step.key]
            return f"waits for {sum(not s.state.terminal for s in own)} of {len(own)} calls"
    return step.reason or ""


def _where(value: Any) -> str:
    where = value.get("where") if isinstance(value, Mapping) else None
    return f"where {shown_value(where, 80)}" if where else ""


def _ready(step: StepView) -> str:
    if step.reason and step.due is not None and step.due > datetime.now(UTC):
        return f"{step.reason}{_at(step.due)}"
    return step.reason or f"in queue {safe(step.queue)!r}"


def _at(due: datetime | None, word: str = "until") -> str:
    if due is None:
        return ""
    left = (due - datetime.now(UTC)).total_seconds()
    local = due.astimezone()
    stamp = f"{local:%H:%M:%S}" if abs(left) < 12 * 3600 else f"{local:%Y-%m-%d %H:%M}"
    return f", {word} {stamp} (in {humanise(left)})" if left > 0 else f", {word} now"


def _attempts(step: StepView) -> str:
    ends = [str(past.get("ended")) for past in step.history]
    words = {
        "died": "its worker died", "failed": "failed", "timed out": "ran out of time", "unknown": "was lost sight of",
        "not reconciled": "could not tell whether it had happened", "did not happen": "found that it had not happened",
    }  # fmt: skip
    return "; ".join(
        f"resolved by {safe(past.get('by') or 'a person')}"
        if end == "resolved"
        else f"attempt {past.get('attempt')} {words.get(end, safe(end))}"
        for past, end in zip(step.history, ends, strict=True)
    )


def _mismatch(reason: str) -> list[str]:
    sides = _MISMATCH.search(reason)
    if sides is None:
        return [one_line(reason)]
    return [
        f"the code no longer fits the log at step {safe(reason.split(chr(39))[1])!r}",
        f"  recorded:  {one_line(sides[1])}",
        f"  code asks: {one_line(sides[2])}",
        "  deploy code that fits, then `pickaxe retry`",
    ]
