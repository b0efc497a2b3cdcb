"""`doctor`: is everything there that a fleet needs?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
import redis

from pickaxe._durations import humanise
from pickaxe.cli._errors import FAILED, UNREACHABLE, refused
from pickaxe.cli._project import Project, app_option, json_option, pass_project
from pickaxe.cli._text import one_line, print_json, print_table, say
from pickaxe.cli._untaken import Takers, takers, untaken
from pickaxe.cli._worker import queues_of
from pickaxe.client import Client
from pickaxe.engine._namesakes import ADVICE, CONSEQUENCE, namesakes
from pickaxe.errors import PickaxeError
from pickaxe.store import SCHEMA_RANGE, check_schema

CLOCK_TOLERANCE = 2.0
"""Seconds that clocks may differ before it is worth a word."""


@dataclass(frozen=True)
class Check:
    """One finding. `status` is `ok`, `warning` (works, but look at it) or `problem`."""

    name: str
    status: str
    found: str
    advice: str = ""
    exit_code: int = 0


@click.command(
    epilog="""\b
Examples:
  pickaxe doctor
  pickaxe doctor --json || page-somebody
"""
)
@json_option
@app_option
@pass_project
def doctor(project: Project, as_json: bool) -> None:
    """Look at the database, Redis, the clocks, the workers and what is stuck.

    Exits with 0 when there is no problem (warnings are none), 3 when a service cannot be reached or the schema
    does not fit, 1 for any other problem.
    """
    checks = list(_checks(project))
    code = max((check.exit_code for check in checks if check.status == "problem"), default=0)
    if as_json:
        print_json({"ok": code == 0, "checks": checks})
    else:
        styles = {"ok": ("✓ ok", "green"), "warning": ("! warning", "yellow"), "problem": ("✗ problem", "red")}
        print_table(
            ("check", "", "found, and what to do"),
            [(c.name, styles[c.status], one_line(c.found + (f": {c.advice}" if c.advice else ""))) for c in checks],
        )
        say(_summary([check.status for check in checks]))
    raise click.exceptions.Exit(code)


def _summary(found: list[str]) -> str:
    counts = {status: found.count(status) for status in ("problem", "warning")}
    told = [f"{count} {status}{'s' if count > 1 else ''}" for status, count in counts.items() if count]
    return ", ".join(told) or "all is well"


def _checks(project: Project) -> Iterator[Check]:
    client = project.client
    if project.broken:
        yield Check("app", "problem", project.broken, "its workers cannot start like this", FAILED)
    database = [*_guarded("database", lambda: _database(client))]
    yield from database
    server = [*_guarded("redis", lambda: _redis(client))]
    yield from server
    if any(check.status == "problem" for check in database):
        return
    yield from _guarded("stuck", lambda: _stuck(client))
    reachable = all(check.status != "problem" for check in server)
    yield from _guarded("workers", lambda: _workers(project, ask=reachable))


def _guarded(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    try:
        return look()
    except (PickaxeError, redis.RedisError) as error:
        found = refused(error)
        return [Check(name, "problem", found.message, exit_code=found.exit_code)]


def _database(client: Client) -> list[Check]:
    client.store.database.patience = 1.0
    version = check_schema(client.store.database)
    before = time.time()
    health = client.store.database.one("health")
    return [
        Check("database", "ok", f"Postgres {health.version} at {client.store.database.place}"),
        Check("schema", "ok", f"version {version}; this Pickaxe works with {SCHEMA_RANGE[0]} to {SCHEMA_RANGE[1]}"),
        _clock("database clock", health.now, (before + time.time()) / 2),
    ]


def _redis(client: Client) -> list[Check]:
    before = time.time()
    try:
        seconds, micros = client.redis.time()
    except redis.RedisError as error:
        found = f"cannot reach Redis at {client.redis_place} ({str(error).rstrip('.')})"
        return [Check("redis", "problem", found, "is it running, and is PICKAXE_REDIS_URL right?", UNREACHABLE)]
    middle = (before + time.time()) / 2
    info: Any = client.redis.info()
    checks = [
        Check("redis", "ok", f"Redis {info.get('redis_version')} with {info.get('used_memory_human')} in use"),
        _clock("redis clock", seconds + micros / 1e6, middle),
    ]
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return [*checks, Check("redis eviction", "ok", policy)]
    advice = "set maxmemory-policy noeviction: evicted messages and limits cost speed and exactness, never a run"
    return [*checks, Check("redis eviction", "problem", policy, advice, FAILED)]


def _clock(name: str, theirs: float, ours: float) -> Check:
    difference = theirs - ours
    found = f"{abs(difference):.2f} s {'ahead of' if difference > 0 else 'behind'} this machine"
    if abs(difference) <= CLOCK_TOLERANCE:
        return Check(name, "ok", found)
    return Check(name, "warning", found, "let NTP keep the clocks; durations shown here are off by that much")


def _stuck(client: Client) -> list[Check]:
    health = client.store.database.one("health")
    letters = client.store.list_dead_letters(1)
    newest = f"newest: {letters[0].reason}" if letters else ""
    return [
        _count("runs overdue", health.late_runs + health.overdue_runs, "due for 30 s and not taken",
               "are workers on their queues? see below", problem=True),
        _count("calls overdue", health.late_steps, "due for 30 s and not taken",
               "are workers on their queues? see below", problem=True),
        _count("paused runs", health.paused, "wait for a person", "pickaxe runs --state paused"),
        _count("set aside", health.aside, "steps have an unknown outcome or kill their workers", "pickaxe quarantine"),
        _count("dead letters", health.dead_letters, "messages could not be read", f"pickaxe quarantine; {newest}"),
    ]  # fmt: skip


def _count(name: str, count: int, what: str, advice: str, *, problem: bool = False) -> Check:
    if not count:
        return Check(name, "ok", "none")
    return Check(name, "problem" if problem else "warning", f"{count} {what}", advice, FAILED if problem else 0)


def _workers(project: Project, *, ask: bool) -> list[Check]:
    client, app = project.client, project.app_if_sound
    workers = client.store.list_workers()
    if not workers:
        return [Check("workers", "problem", "none is running", "start one with `pickaxe worker`", FAILED)]
    shared = namesakes(client.store, vanished=client.settings.vanished_after)
    who = takers(workers, client.queues_served() if ask else {}, shared)
    checks = [_names(workers), *_namesakes(shared), _beats(workers), *_open_work(client, who)]
    if app is None and not project.broken:
        checks.append(Check("app", "warning", "none here", "with -A, doctor compares its handles with the workers'"))
    elif app is not None:
        checks.append(_handles(app, who))
    return [*checks, *_queues(app, who)] if ask else checks


def _handles(app: Any, who: Takers) -> Check:
    missing = sorted(set(app.handles) - set().union(*who.knows.values()))
    if not missing:
        return Check("handles", "ok", f"all {len(app.handles)} of the app are known to a live worker")
    return Check("handles", "problem", f"no live worker knows {', '.join(missing)}",
                 "deploy the workers, or add them to their Pickaxe(...)", FAILED)  # fmt: skip


def _open_work(client: Client, who: Takers) -> list[Check]:
    """Calls and runs that stand still because nobody is there to take them."""
    found = untaken(client, who)
    if not found:
        return [Check("open work", "ok", "there is a worker for all of it")]
    return [_if_certain("open work", work.found, work.advice, who, certain=work.certain) for work in found]


def _if_certain(name: str, found: str, advice: str, who: Takers, *, certain: bool) -> Check:
    """A problem, unless somebody who was not heard may see to it."""
    if certain:
        return Check(name, "problem", found, advice, FAILED)
    return Check(name, "warning", found, f"{advice}; but it is not known what {', '.join(who.unheard)} take from")


def _namesakes(shared: dict[str, list[list[int]]]) -> Iterator[Check]:
    for name, workers in shared.items():
        processes = " and ".join(", ".join(map(str, pids)) for pids in workers)
        found = f"{len(workers)} workers are named {name} (processes {processes}): {CONSEQUENCE}"
        yield Check("node names", "warning", found, ADVICE)


def _names(workers: list[Any]) -> Check:
    by_name: dict[str, int] = {}
    for worker in workers:
        by_name[worker.name] = by_name.get(worker.name, 0) + 1
    names = ", ".join(f"{name} ({count} process{'es' if count > 1 else ''})" for name, count in by_name.items())
    return Check("workers", "ok", names)


def _beats(workers: list[Any]) -> Check:
    oldest = max((datetime.now(UTC) - worker.beat_at).total_seconds() for worker in workers)
    if oldest <= 10:
        return Check("signs of life", "ok", f"the oldest is {humanise(max(0.0, oldest))} old")
    return Check("signs of life", "warning", f"the oldest is {humanise(oldest)} old",
                 "that process is frozen or cut off, or nobody sweeps")  # fmt: skip


def _queues(app: Any, who: Takers) -> list[Check]:
    if not who.serves:
        return [Check("queues", "warning", "no worker answered within 1 s",
                      "busy solo workers do not; else look at Redis")]  # fmt: skip
    if app is None:
        return []
    if unserved := [name for name in queues_of(app) if name not in who.serves]:
        found, advice = f"no worker takes from {', '.join(unserved)}", f"pickaxe worker -Q {','.join(unserved)}"
        return [_if_certain("queues", found, advice, who, certain=not who.unheard)]
    return [Check("queues", "ok", f"{', '.join(queues_of(app))} are served")]
