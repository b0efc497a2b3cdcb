"""What to say of a run that waits for ever."""

from __future__ import annotations

from collections.abc import Iterator

from pickaxe import _values
from pickaxe._states import StepKind
from pickaxe.testing._rows import SimulatedRun, Step


def describe(run: SimulatedRun) -> str:
    """Why a simulated run cannot go on, and what to do."""
    reasons = list(_reasons(run)) or [
        f"nothing in its log{_lines(run)}: only the agent itself could end that wait (a queue, a lock, a future)"
    ]
    return f"agent {run.agent!r} waits for ever, for {'; and for '.join(reasons)}"


def _reasons(run: SimulatedRun) -> Iterator[str]:
    for step in run.steps.values():
        if not step.state.terminal and (step.group is None or step.state.aside):
            yield f"{_reason(step)}{_lines(run)}"


def _reason(step: Step) -> str:
    if step.kind is StepKind.SIGNAL:
        return f"the signal {step.name!r} (step {step.key!r}): send it with signals=[(0, {step.name!r}, payload)]"
    if step.kind is StepKind.EVENT:
        wanted = {name: value for name, value in step.input.items() if value}
        return (
            f"the event {step.name!r} (step {step.key!r}, {_values.dump(wanted)}): publish it with "
            f"events=[(0, {step.name!r}, payload)]"
        )
    if step.child is not None:
        return f"child run {step.key!r}, which is {step.child.state}: {step.child.reason or describe(step.child)}"
    if step.state.aside:
        return (
            f"step {step.key!r}, which is {step.state} ({step.reason}): say how it goes on with "
            f"resolve=[(0, {step.key!r}, {{'result': …}})], or 'failed', or 'again'"
        )
    return f"step {step.key!r}, which is {step.state}"


def _lines(run: SimulatedRun) -> str:
    if run.reduction is None:
        return ""
    frames = [task.get_stack(limit=1) for task in run.reduction.loop.tasks]
    lines = [f"{stack[0].f_code.co_filename}:{stack[0].f_lineno}" for stack in frames if stack]
    return f" at {', '.join(lines)}" if lines else ""
