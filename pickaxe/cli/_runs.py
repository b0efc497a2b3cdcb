"""`run`, `runs`, `cancel`, `signal`, `retry`."""

from __future__ import annotations

import difflib
import uuid
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from pickaxe import _values
from pickaxe._durations import humanise
from pickaxe._states import RunState
from pickaxe.authoring._handles import Agent
from pickaxe.cli import _follow
from pickaxe.cli._aside import letter_number, myself, send_again
from pickaxe.cli._explain import Fleet, signal_waits, why_run
from pickaxe.cli._input import parsed
from pickaxe.cli._project import DURATION, Project, app_option, json_option, pass_project
from pickaxe.cli._text import (
    Cell,
    console,
    jsonable,
    one_line,
    print_json,
    print_table,
    safe,
    say,
    short,
    shown_value,
    state_cell,
    told,
)
from pickaxe.client import Client, Run
from pickaxe.errors import InputError, NotFoundError, RunError
from pickaxe.store import RunView


@click.command(
    epilog="""\b
Examples:
  pickaxe run research '{"text": "Which licences grant patents?"}' --follow
  pickaxe run research @question.json --key order-17 --wait 60
  echo '{"text": "..."}' | pickaxe run research - --json --delay 5m
"""
)
@click.argument("agent")
@click.argument("value", required=False, metavar="[JSON | @FILE | -]")
@click.option("--key", help="Idempotency key: a second run with it is the first one.")
@click.option("--delay", type=DURATION, help="Start later, such as 90s or 2h.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9, the most urgent.")
@click.option("--metadata", metavar="JSON", help="A JSON object kept with the run.")
@click.option("--follow", is_flag=True, help="Show the steps as they happen, then the result.")
@click.option("--wait", type=DURATION, help="Wait so long for the result (with --follow: no longer than this).")
@json_option
@app_option
@pass_project
def run(
    project: Project,
    agent: str,
    value: str | None,
    key: str | None,
    delay: float | None,
    priority: int | None,
    metadata: str | None,
    follow: bool,
    wait: float | None,
    as_json: bool,
) -> None:
    """Start a run of AGENT on the fleet.

    An agent with one parameter gets the JSON as its value; one with several gets a JSON object of them, by name.
    """
    handle = _agent(project, agent)
    args, kwargs = _arguments(handle, value)
    started = handle.enqueue(
        *args, **kwargs, idempotency_key=key, delay=delay, priority=priority, metadata=_metadata(metadata)
    )
    if not started.is_new and not as_json:
        given = handle.spec.signature.encode_input(tuple(args), kwargs, cap=project.client.settings.max_payload)
        _say_known(started.view(), _values.load(given), key)
    if follow:
        _follow.follow(project.client, started, as_json=as_json, patience=wait)
        _ended(started, as_json=as_json, patience=0 if wait is not None else None)
    elif wait is not None:
        _ended(started, as_json=as_json, patience=wait)
    elif as_json:
        print_json({"id": started.id, "agent": agent, "new": started.is_new})
    else:
        say("started " if started.is_new else "found ", (started.id, "bold"), " of agent ", agent)
        say((f"  pickaxe show {short(started.id)} --follow", "dim"))


@click.command(
    epilog="""\b
Examples:
  pickaxe runs --state waiting --state paused
  pickaxe runs --agent research --limit 5 --json
"""
)
@click.option("--agent", help="Only of this agent.")
@click.option("--state", "states", multiple=True, type=click.Choice([str(s) for s in RunState]), help="Only in this.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--children", is_flag=True, help="Child runs too.")
@json_option
@app_option
@pass_project
def runs(
    project: Project, agent: str | None, states: tuple[str, ...], limit: int, children: bool, as_json: bool
) -> None:
    """The newest runs."""
    found = project.client.runs(agent=agent, states=[RunState(s) for s in states], children=children, limit=limit)
    aside = _aside_of(project.client, found)
    if as_json:
        print_json([{**jsonable(view), "aside": aside.get(view.id, [])} for view in found])
    elif not found:
        say("no runs" + (" like that" if agent or states else " yet: `pickaxe run AGENT JSON` starts one"))
    else:
        print_table(
            ("run", "agent", "state", "age", "took", "input, or why it stands still"),
            (_row(view, aside.get(view.id)) for view in found),
            elastic=1,
        )


@click.command(
    epilog="""\b
Examples:
  pickaxe cancel latest --reason "asked twice"
  pickaxe cancel 01a1faed-af31 --force
"""
)
@click.argument("run", metavar="RUN")
@click.option("--reason", default="cancelled by a person", show_default=True)
@click.option("--force", is_flag=True, help="End it at once, without letting its agent clean up.")
@json_option
@app_option
@pass_project
def cancel(project: Project, run: str, reason: str, force: bool, as_json: bool) -> None:
    """Tell a run, and its child runs, to stop."""
    found = project.run(run)
    done = found.cancel(reason, force=force)
    _report(
        found,
        as_json,
        done,
        "is cancelled" if found.status.terminal else "is being cancelled",
        "is over, or was told before",
    )
    if not done:
        raise click.exceptions.Exit(1)


@click.command(
    epilog="""\b
Examples:
  pickaxe signal latest review '{"approved": true, "reviewer": "Ada"}'
  pickaxe signal 01a1faed-af31 go
"""
)
@click.argument("run", metavar="RUN")
@click.argument("name")
@click.argument("value", required=False, metavar="[JSON | @FILE | -]")
@click.option("--key", help="Idempotency key: a second signal with it changes nothing.")
@json_option
@app_option
@pass_project
def signal(project: Project, run: str, name: str, value: str | None, key: str | None, as_json: bool) -> None:
    """Send a run the signal NAME. It is kept until the run waits for it."""
    found = project.run(run)
    view, steps = found.view(), found.steps()
    awaited = name in signal_waits(steps)
    sent = found.signal(name, None if value is None else parsed(value, f"the signal {name!r}"), idempotency_key=key)
    if as_json:
        print_json({"id": found.id, "done": sent, "awaited": awaited, "waits_for": signal_waits(steps)})
    elif not sent or awaited:
        _report(found, False, sent, f"was sent {name!r}", "is over: the signal was not kept")
    else:
        say("run ", (short(found.id), "bold"), f" does not wait for {name!r} now, and keeps it until it does")
        for line in why_run(view, steps, Fleet(project.client)):
            say("  ", one_line(line))
        for close in _close(name, signal_waits(steps, now=False)):
            say("  did you mean ", (repr(close), "bold"), "?")
    if not sent:
        raise click.exceptions.Exit(1)


@click.command(
    epilog="""\b
Examples:
  pickaxe runs --state paused
  pickaxe retry 01a1faed-af31
  pickaxe retry 01a1faed-af31 'convert#1'
  pickaxe retry letter-17
"""
)
@click.argument("run", metavar="RUN | letter-NUMBER")
@click.argument("step", required=False, metavar="[STEP]")
@json_option
@app_option
@pass_project
def retry(project: Project, run: str, step: str | None, as_json: bool) -> None:
    """Let a paused run go on, with the code its workers have now.

    With STEP, let that quarantined step run again. A dead letter is sent to its queue once more.
    """
    if (number := letter_number(run)) is not None and step is None:
        send_again(project.client, number, as_json=as_json)
        return
    found = project.run(run)
    if step is not None:
        found.retry(step, by=myself())
        _report(found, as_json, True, f"runs its step {step} again", "")
        return
    done = found.retry()
    _report(found, as_json, done, "goes on", f"is not paused, it is {found.status}")
    if not done:
        raise click.exceptions.Exit(1)


def _agent(project: Project, name: str) -> Agent[Any, Any]:
    handle = project.app.handles.get(name)
    if not isinstance(handle, Agent):
        known = ", ".join(sorted(h.name for h in project.app.handles.values() if isinstance(h, Agent))) or "none"
        raise NotFoundError(f"the app has no agent {name!r}; its agents are: {known}")
    return handle


def _arguments(handle: Agent[Any, Any], value: str | None) -> tuple[list[Any], dict[str, Any]]:
    if value is None:
        return [], {}
    given = parsed(value, f"the input of {handle.name!r}")
    names = list(handle.spec.signature.input.json_schema().get("properties", {}))
    if len(names) == 1:
        return [given], {}
    if not isinstance(given, dict):
        raise InputError(f"agent {handle.name!r} takes a JSON object with {', '.join(names) or 'nothing'} in it")
    return [], given


def _metadata(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    found = parsed(text, "--metadata")
    if not isinstance(found, dict):
        raise InputError("--metadata must be a JSON object, such as '{\"customer\": 17}'")
    return found


def _say_known(view: RunView, given: Any, key: str | None) -> None:
    """Nothing was started, and whoever gave another input under the same key should know."""
    age = humanise(max(0.0, (datetime.now(UTC) - view.created_at).total_seconds()))
    note = f"nothing was started: the run with the key {key!r} was enqueued {age} ago, and is {view.state}"
    if view.chapter == 0 and view.input != given:  # the input of a later chapter is the agent's own
        note += f"; it has another input: {shown_value(view.input, 200)}"
    say(("pickaxe: ", "bold"), note, to=console(stderr=True))


def _ended(started: Run[Any], *, as_json: bool, patience: float | None) -> None:
    failure: RunError | None = None
    try:
        started.result(timeout=patience)
    except RunError as error:
        failure = error
    view = started.view()
    if as_json:
        known = {"id": view.id, "state": view.state, "output": view.output, "error": view.error}
        print_json({**known, "new": started.is_new})
    elif failure is None:
        _follow.print_value(view.output)
    if failure is not None:
        raise failure


def _aside_of(client: Client, views: Sequence[RunView]) -> dict[uuid.UUID, list[dict[str, str | None]]]:
    """The steps that are set aside below each of these runs, itself included."""
    found: dict[uuid.UUID, list[dict[str, str | None]]] = defaultdict(list)
    waiting = [view.id for view in views if not view.state.terminal]
    for run, root, _, step in client.store.list_aside(roots=[view.root for view in views]) if waiting else ():
        entry = {"run": str(run), "step": step.key, "state": str(step.state), "reason": step.reason}
        for of in {run, root}:
            found[of].append(entry)
    return found


def _row(view: RunView, aside: Sequence[dict[str, str | None]] | None) -> list[Cell]:
    now = datetime.now(UTC)
    note = shown_value(view.input, 80)
    if aside and not view.state.terminal:
        more = f", and {len(aside) - 1} more" if len(aside) > 1 else ""
        note = one_line(f"{aside[0]['step']} is {aside[0]['state']}: {aside[0]['reason']}{more}", 200)
    elif view.state in (RunState.PAUSED, RunState.READY) and view.reason:
        note = one_line(view.reason, 200)
    elif view.error:
        note = told(view.error, 200)
    ran = humanise(max(0.0, ((view.finished_at or now) - (view.started_at or now)).total_seconds()))
    age = humanise(max(0.0, (now - view.created_at).total_seconds())) + " ago"
    return [(short(view.id), "bold"), safe(view.agent), state_cell(view.state), age, ran, (note, "dim")]


def _close(name: str, known: Sequence[str]) -> list[str]:
    """The name that was meant, if this one is none that the run has used, but nearly."""
    return [] if name in known else difflib.get_close_matches(name, known, 1)


def _report(run: Run[Any], as_json: bool, done: bool, yes: str, no: str) -> None:
    if as_json:
        print_json({"id": run.id, "done": done})
    else:
        say("run ", (short(run.id), "bold"), " ", yes if done else no)
