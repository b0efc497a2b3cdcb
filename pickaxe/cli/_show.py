"""`show`: a run, its child runs, and the timeline of its steps."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import click

from pickaxe._states import RunState, StepKind
from pickaxe.cli import _follow
from pickaxe.cli._explain import Fleet, Node, about, kept_signals, last_takeover, tree, was_replayed, why_run, why_step
from pickaxe.cli._project import Project, app_option, json_option, pass_project
from pickaxe.cli._text import (
    Cell,
    jsonable,
    one_line,
    place,
    print_json,
    print_table,
    safe,
    say,
    short,
    short_worker,
    shown_value,
    state_cell,
    took,
)
from pickaxe.client import Client
from pickaxe.store import StepView

SHOWN_OF_A_GATHER = 6


@click.command(
    epilog="""\b
Examples:
  pickaxe show latest
  pickaxe show 01a1faed-af31 --follow
  pickaxe show latest --json | python -m json.tool
"""
)
@click.argument("run", metavar="RUN")
@click.option("--follow", is_flag=True, help="Show what happens as it happens, until the run ends.")
@click.option("--all", "everything", is_flag=True, help="Every call of every gather.")
@json_option
@app_option
@pass_project
def show(project: Project, run: str, follow: bool, everything: bool, as_json: bool) -> None:
    """A run: its tree, why it waits, and the timeline of its steps.

    The columns: attempts begun; start, from the run's own; duration of the last attempt; the worker process that
    ran it; and whether the step was replayed. A step is *replayed* when its result was recorded before a worker
    process died in the middle of another step of the same run or of its child runs: everything after that death
    read the result from the log, and its body did not run again. (Every continuation of an agent reads its log;
    what is marked is what a crash would have cost without one.)
    """
    found = project.run(run)
    if follow:
        _follow.follow(project.client, found, as_json=as_json)
        if as_json:
            return
    node = tree(project.client, uuid.UUID(found.id))
    if as_json:
        print_json(as_data(project.client, node))
    else:
        print_run(project.client, node, everything=everything)


def print_run(client: Client, node: Node, *, everything: bool = False, summary: bool = True) -> None:
    """What `pickaxe show` prints."""
    fleet = Fleet(client)
    if summary:
        _print_summary(client, node, fleet)
    takeover = last_takeover(node)
    rows = list(_rows(node, node.run.started_at or node.run.created_at, takeover, fleet, everything=everything))
    if rows:
        print_table(("step", "about", "state", "att.", "start", "took", "worker", "replayed", "note"), rows, elastic=1)
    if summary and node.run.state is RunState.SUCCEEDED:
        say(("result", "bold"))
        _follow.print_value(node.run.output)
    elif summary and node.run.error:
        say(("error   ", "bold"), (safe(node.run.error.get("type", "")), "red"))
        say(safe(node.run.error.get("message", "")))
        if where := node.run.error.get("where"):
            say((f"  raised at {place(where)}", "dim"))


def as_data(client: Client, node: Node) -> dict[str, object]:
    """What `pickaxe show --json` prints."""
    fleet, takeover = Fleet(client), last_takeover(node)

    def data(n: Node) -> dict[str, object]:
        steps = [
            {
                **jsonable(s),
                "why": why_step(s, n.steps, fleet),
                "replayed": was_replayed(s, n.run, takeover),
            }
            for s in n.steps
        ]
        told = {"why": why_run(n.run, n.steps, fleet), "kept_signals": kept_signals(client, n.run, n.steps)}
        return {**jsonable(n.run), **told, "steps": steps, "children": [data(c) for c in n.children]}

    return data(node)


def _print_summary(client: Client, node: Node, fleet: Fleet) -> None:
    run = node.run
    say(("run     ", "bold"), str(run.id), "  agent ", (safe(run.agent), "bold"), f" {safe(run.version)}")
    lasted = took(run.started_at, run.finished_at)
    say(("state   ", "bold"), state_cell(run.state), f" after {lasted}" if lasted else "")
    say(("input   ", "bold"), shown_value(run.input, 200))
    if run.published is not None:
        say(("says    ", "bold"), shown_value(run.published, 200))
    if run.metadata:
        say(("metadata ", "bold"), shown_value(run.metadata, 200))
    for number, line in enumerate(why_run(run, node.steps, fleet)):
        say(("waiting " if number == 0 else "        ", "bold"), one_line(line) if number == 0 else safe(line))
    kept = {} if run.state.terminal else kept_signals(client, run, node.steps)
    for name, count in kept.items():
        say(("kept    ", "bold"), f"{f'{count} signals' if count > 1 else 'the signal'} {name!r}, not waited for yet")
    for child in node.children[:20]:
        _print_child(child, 1)
    if len(node.children) > 20:
        say(f"        and {len(node.children) - 20} more child runs")


def _print_child(node: Node, depth: int) -> None:
    say("  " * depth, "└─ ", (short(node.run.id), "bold"), f" {safe(node.run.agent)} ", state_cell(node.run.state))
    for child in node.children[:20]:
        _print_child(child, depth + 1)


def _rows(
    node: Node, began: datetime, takeover: float | None, fleet: Fleet, *, everything: bool, depth: int = 0
) -> Iterator[list[Cell]]:
    children = {child.run.parent_step: child for child in node.children}
    grouped = {s.key: [m for m in node.steps if m.group == s.key] for s in node.steps if s.kind == StepKind.GATHER}
    for step in node.steps:
        if step.group is not None and step.group in grouped:
            continue
        members = grouped.get(step.key, [])
        for item, indent in [(step, depth), *((m, depth + 1) for m in (members if everything else _some(members)))]:
            row = _row(item, began, indent)
            yield [*row, _replayed(item, node, takeover), (one_line(why_step(item, node.steps, fleet)), "dim")]
            if item.key in children:
                yield from _rows(children[item.key], began, takeover, fleet, everything=everything, depth=indent + 1)
        if not everything and len(members) > SHOWN_OF_A_GATHER:
            yield _rest(members, node, takeover, depth + 1)


def _replayed(step: StepView, node: Node, takeover: float | None) -> Cell:
    if not step.state.terminal:
        return ""
    return ("yes", "magenta") if was_replayed(step, node.run, takeover) else ("no", "dim")


def _some(members: list[StepView]) -> list[StepView]:
    """The calls of a gather worth a line: what did not go smoothly first, then the first few."""
    if len(members) <= SHOWN_OF_A_GATHER:
        return members
    telling = [m for m in members if m.history or str(m.state) != "succeeded"]
    smooth = [m for m in members if m not in telling]
    chosen = (telling + smooth)[: SHOWN_OF_A_GATHER - 1]
    return [m for m in members if m in chosen]


def _rest(members: list[StepView], node: Node, takeover: float | None, depth: int) -> list[Cell]:
    rest = [m for m in members if m not in _some(members)]
    states = ", ".join(f"{n} {state}" for state, n in Counter(str(m.state) for m in rest).items())
    replayed = sum(was_replayed(m, node.run, takeover) for m in rest)
    head = ("  " * depth + f"and {len(rest)} more", "dim")
    return [
        head,
        "",
        (states, "dim"),
        "",
        "",
        "",
        "",
        (f"{replayed} yes" if replayed else "no", "magenta" if replayed else "dim"),
        "",
    ]


def _row(step: StepView, began: datetime, depth: int) -> list[Cell]:
    start = step.started_at or step.created_at
    return [
        "  " * depth + safe(step.key),
        about(step, 28),
        state_cell(step.state),
        str(step.attempt) if step.attempt else "",
        f"+{max(0.0, (start - began).total_seconds()):.2f} s",
        took(start, step.finished_at),
        short_worker(safe(step.worker or "")),
    ]
