"""`quarantine`, `resolve`, `drop`: what was set aside, and what becomes of it."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from pickaxe import _values
from pickaxe._durations import humanise
from pickaxe._states import RunState
from pickaxe.cli._explain import aside_lines, deaths
from pickaxe.cli._input import parsed
from pickaxe.cli._project import Project, app_option, json_option, pass_project
from pickaxe.cli._text import Cell, jsonable, one_line, print_json, print_table, safe, say, short, state_cell
from pickaxe.client import Client
from pickaxe.engine._resolution import NOTHING
from pickaxe.errors import InputError, NotFoundError, ResolveError
from pickaxe.store.models import DeadLetter

_LETTER = re.compile(r"letter-(\d+)")


@click.command(
    epilog="""\b
Examples:
  pickaxe quarantine
  pickaxe quarantine --json
  pickaxe retry 01a1faed-af31 'convert#1'          (let a quarantined step run again)
  pickaxe resolve 01a1faed-af31 'charge#1' --again (an unknown outcome: it did not happen)
  pickaxe retry letter-17                          (send an unreadable message once more)
  pickaxe drop letter-17
"""
)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="Of each kind.")
@json_option
@app_option
@pass_project
def quarantine(project: Project, limit: int, as_json: bool) -> None:
    """What was set aside, and waits for somebody to decide.

    Steps whose outcome is unknown (at_most_once calls whose end nobody saw), steps that kill the worker processes
    that run them, runs whose agent's code does, and messages that could not be read (dead letters).
    """
    found = [*_steps(project.client, limit), *_runs(project.client, limit), *_letters(project.client, limit)]
    if as_json:
        print_json([data for data, _ in found])
    elif not found:
        say("nothing is set aside")
    else:
        print_table(("which", "", "state", "since", "why, and what to do"), [row for _, row in found], elastic=1)


@click.command(
    epilog="""\b
Examples:
  pickaxe resolve 01a1faed-af31 'charge#1' --result '{"receipt": "r-17"}'
  pickaxe resolve latest 'charge#1' --failed "the bank says it was refused"
  pickaxe resolve latest 'charge#1' --again
"""
)
@click.argument("run", metavar="RUN")
@click.argument("step", metavar="STEP")
@click.option("--result", metavar="JSON", help="It happened, and this is its result (or @FILE, or -).")
@click.option("--failed", metavar="WHY", help="It has failed: its agent gets a ToolError that says why.")
@click.option("--again", is_flag=True, help="It did not happen, or may happen once more: let it run again.")
@click.option("--by", default=lambda: myself(), show_default="you", help="Who says so; kept with the step.")
@json_option
@app_option
@pass_project
def resolve(
    project: Project, run: str, step: str, result: str | None, failed: str | None, again: bool, by: str, as_json: bool
) -> None:
    """Say how a step goes on whose outcome is unknown, or that is quarantined."""
    if (result is not None) + (failed is not None) + again != 1:
        raise InputError("resolve takes exactly one of --result JSON, --failed WHY and --again")
    found = project.run(run)
    value = NOTHING if result is None else parsed(result, f"the result of {step!r}")
    found.resolve(step, result=value, failed=failed, again=again, by=by)
    how = "runs again" if again else "has failed" if failed is not None else "has succeeded"
    if as_json:
        print_json({"id": found.id, "step": step, "done": True})
    else:
        say("step ", (step, "bold"), " of run ", (short(found.id), "bold"), " ", how)


@click.command(
    epilog="""\b
Examples:
  pickaxe drop letter-17
"""
)
@click.argument("letter", metavar="letter-NUMBER")
@json_option
@app_option
@pass_project
def drop(project: Project, letter: str, as_json: bool) -> None:
    """Forget a message that could not be read."""
    number = letter_number(letter)
    if number is None:
        raise InputError(f"{letter!r} names no dead letter: `pickaxe quarantine` lists them as letter-1, letter-2, …")
    if not project.client.store.drop_dead_letter(number):
        raise NotFoundError(f"there is no dead letter {number}: see `pickaxe quarantine`")
    _said(letter, "is forgotten", as_json=as_json)


def letter_number(name: str) -> int | None:
    """The number in `letter-17`, or None for anything else."""
    found = _LETTER.fullmatch(name)
    return int(found[1]) if found else None


def send_again(client: Client, number: int, *, as_json: bool) -> None:
    """Send a dead letter once more, and forget it."""
    letter = client.store.view_dead_letter(number)
    if letter is None:
        raise NotFoundError(f"there is no dead letter {number}: see `pickaxe quarantine`")
    if letter.message is None:
        raise ResolveError(
            f"dead letter {number} was no message at all, or too large to keep, so it cannot be sent again: whoever "
            f"sent it must; `pickaxe drop letter-{number}` forgets it"
        )
    client.publisher.publish_again(letter.message)
    client.store.drop_dead_letter(number)
    _said(f"letter-{number}", f"was sent to queue {letter.queue!r} again", as_json=as_json)


def _said(what: str, words: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": what, "done": True})
    else:
        say((what, "bold"), " ", words)


def myself() -> str:
    """Who sits here, for the record."""
    try:
        return f"{getpass.getuser()}@{os.uname().nodename}"
    except (KeyError, OSError):
        return os.uname().nodename


Found = tuple[dict[str, Any], list[Cell]]


def _steps(client: Client, limit: int) -> Iterator[Found]:
    for run, root, agent, step in client.store.list_aside(most=limit):
        data = {"what": "step", "run": str(run), "root": str(root), "agent": agent, **jsonable(step)}
        told = aside_lines(str(run), step)
        why = f"{told[0].partition(': ')[2]} {_evidence(deaths(step.history))}".strip()
        since = step.history[-1]["at"] if step.history else None
        yield data, [
            f"{short(run)} {safe(step.key)}", safe(agent), state_cell(step.state), _since(since), one_line(why)
        ]  # fmt: skip


def _runs(client: Client, limit: int) -> Iterator[Found]:
    for run in client.store.list_runs(states=[RunState.PAUSED], children=True, limit=limit):
        error = run.error or {}
        if error.get("type") != "Quarantined":
            continue
        told = deaths(error.get("deaths"))
        data = {"what": "run", "run": str(run.id), "agent": run.agent, "state": run.state, "reason": run.reason}
        last = (error.get("deaths") or [{}])[-1].get("died")
        yield {**data, "deaths": error.get("deaths")}, [
            short(run.id), safe(run.agent), state_cell(run.state), _since(last),
            one_line(f"{run.reason} {_evidence(told)}"),
        ]  # fmt: skip


def _letters(client: Client, limit: int) -> Iterator[Found]:
    for letter in client.store.list_dead_letters(limit):
        again = letter.message is not None
        advice = f"`pickaxe retry letter-{letter.id}` sends it again" if again else "it cannot be sent again"
        data = {
            "what": "letter", "id": letter.id, "queue": letter.queue, "reason": letter.reason, "body": letter.body,
            "headers": _values.load(letter.headers), "can_be_sent_again": again,
            "created_at": jsonable(letter.created_at),
        }  # fmt: skip
        yield data, [
            f"letter-{letter.id}", safe(_task(letter)), "unreadable" if not again else "set aside",
            _since(letter.created_at.timestamp()), one_line(f"{letter.reason}; {advice}"),
        ]  # fmt: skip


def _task(letter: DeadLetter) -> str:
    """What the message was for, as far as it says."""
    return str(_values.load(letter.headers).get("task", "")).strip("'") or letter.queue


def _evidence(lines: list[str]) -> str:
    return f"({'; '.join(line.strip() for line in lines)})" if lines else ""


def _since(at: float | None) -> str:
    return f"{humanise(max(0.0, datetime.now(UTC).timestamp() - at))} ago" if at is not None else ""
