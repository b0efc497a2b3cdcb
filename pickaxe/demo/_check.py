"""The demo's proof: the step log against the ledger."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pickaxe._states import StepKind
from pickaxe.cli._explain import Node
from pickaxe.demo._ledger import Body, read
from pickaxe.store import StepView


@dataclass(frozen=True)
class Victim:
    """The step that was cut short: which attempt, in which process, and when."""

    step: str
    attempt: int
    worker: str
    pid: int
    at: float


@dataclass(frozen=True)
class Proof:
    """What log and ledger say together. `violations` should be empty."""

    recorded: int
    bodies: int
    cut_short: int
    unrecorded: int
    violations: list[str]


def prove(node: Node, ledger: Path, victim: Victim) -> Proof:
    """Compare each tool step of a run and its child runs with the bodies that ran."""
    bodies: dict[tuple[str, str], list[Body]] = defaultdict(list)
    for body in read(ledger):
        bodies[body.run, body.step].append(body)
    steps = {(str(n.run.id), s.key): s for n in node.walk() for s in n.steps if s.kind == StepKind.TOOL}
    violations = _of_victim(victim, bodies[str(node.run.id), victim.step])
    violations += [f"{step} of run {run} is in the ledger, but not in the log" for run, step in bodies.keys() - steps]
    for place, step in steps.items():
        violations += _of_step(step, bodies[place])
    everything = [body for own in bodies.values() for body in own]
    finished = [step for step in steps.values() if step.finished_at is not None]
    return Proof(
        recorded=len(finished),
        bodies=len(everything),
        cut_short=sum(body.ended is None for body in everything),
        unrecorded=sum(body.ended is not None and body.attempt != steps[place].attempt
                       for place, own in bodies.items() for body in own if place in steps),
        violations=violations,
    )  # fmt: skip


def _of_victim(victim: Victim, bodies: list[Body]) -> list[str]:
    cut = [body for body in bodies if body.attempt == victim.attempt and body.pid == victim.pid]
    if len(cut) != 1 or cut[0].ended is not None or cut[0].began > victim.at:
        return [f"{victim.step}: process {victim.pid} was not in the middle of it when it was killed"]
    return []


def _of_step(step: StepView, bodies: list[Body]) -> list[str]:
    died = {int(past["attempt"]) for past in step.history if past.get("ended") == "died"}
    attempts = [body.attempt for body in bodies]
    found = []
    if len(set(attempts)) != len(attempts):
        found.append(f"{step.key}: an attempt began more than once: {attempts}")
    if not any(body.attempt == step.attempt and body.ended is not None for body in bodies):
        found.append(f"{step.key}: attempt {step.attempt} is recorded, but no such body came to its end")
    for body in bodies:
        if body.attempt != step.attempt and body.attempt not in died:
            found.append(f"{step.key}: attempt {body.attempt} ran, though its worker did not die")
        if step.finished_at is not None and body.began > step.finished_at.timestamp():
            found.append(f"{step.key}: attempt {body.attempt} began after the result was recorded")
    return found
