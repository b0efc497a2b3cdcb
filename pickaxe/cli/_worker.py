"""`worker` and `migrate`."""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import click
import redis

from pickaxe._durations import humanise
from pickaxe.cli._errors import refused
from pickaxe.cli._project import DURATION, Project, app_option, json_option, pass_project
from pickaxe.cli._text import console, print_json, say
from pickaxe.errors import ServiceUnavailableError
from pickaxe.store import migrate as migrate_schema

POOLS = {"prefork": "prefork", "threads": "threads", "solo": "solo", "coroutines": "custom"}
QUIET = ["--quiet"]
"""Celery's own option: no banner."""
CONCURRENCY = {"prefork": None, "threads": 16, "solo": 1, "coroutines": 100}
"""How many tasks at a time, by pool. None: Celery's default, the number of CPUs."""


@click.command(
    epilog="""\b
Examples:
  pickaxe worker
  pickaxe worker -Q agents,tools -c 4
  pickaxe worker -Q models --pool coroutines -c 200
  celery -A workers.app worker -Q agents,tools      (the same, in Celery's words)
"""
)
@click.option("-Q", "--queues", help="Comma-separated; default: every queue the app's agents and tools name.")
@click.option("--pool", type=click.Choice(list(POOLS)), default="prefork", show_default=True,
              help="prefork isolates and has hard time limits; coroutines is for async tools.")  # fmt: skip
@click.option("-c", "--concurrency", type=click.IntRange(1), help="Tasks at a time.")
@click.option("-n", "--hostname", metavar="NAME", help="This worker's name, such as web-1@%h.")
@click.option("-l", "--loglevel", default="INFO", show_default=True,
              type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False))  # fmt: skip
@click.option("--wait", default="30s", show_default=True, type=DURATION, help="How long to wait for services.")
@app_option
@pass_project
def worker(
    project: Project,
    queues: str | None,
    pool: str,
    concurrency: int | None,
    hostname: str | None,
    loglevel: str,
    wait: float,
) -> None:
    """Run agents and tools in this process, until Ctrl-C."""
    app = project.app
    wait_for_services(project, wait)
    app.client.close()
    if pool == "coroutines":
        from pickaxe.broker import use_coroutine_pool

        use_coroutine_pool()
    count = concurrency or CONCURRENCY[pool]
    names = queues or ",".join(queues_of(app))
    arguments = ["worker", "-Q", names, "-P", POOLS[pool], "-l", loglevel.upper()]
    arguments += [*(["-c", str(count)] if count else []), *(["-n", hostname] if hostname else [])]
    if os.environ.get("PICKAXE_DEV"):
        # On a developer's machine, as root in a container, Celery's advice not to be root is known.
        warnings.filterwarnings("ignore", message=r"\s*You're running the worker with superuser")
    say(("pickaxe worker", "bold"), f"  {project.name}, {pool} with {count or os.cpu_count()} at a time, on {names}")
    app.worker_main([*QUIET, *arguments, "--without-gossip", "--without-mingle"])


@click.command(
    epilog="""\b
Examples:
  pickaxe migrate
  pickaxe migrate --wait 60s --json
"""
)
@click.option("--wait", default="0s", show_default=True, type=DURATION, help="How long to wait for Postgres.")
@json_option
@app_option
@pass_project
def migrate(project: Project, wait: float, as_json: bool) -> None:
    """Make or update Pickaxe's tables. Safe to run from several places at once."""
    store = project.client.store
    before, after = _patiently(lambda: migrate_schema(store.database), wait)
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        say(f"the schema of {store.database.place} is at version {after} already")
    else:
        say(f"the schema of {store.database.place} is at version {after} now (was {before or 'none'})")


def wait_for_services(project: Project, patience: float) -> None:
    """Return once Postgres, its schema and Redis are there; raise what is wrong after `patience` seconds."""
    client = project.client
    client.store.database.patience = 0.5
    _patiently(client.check, patience)
    _patiently(client.redis.ping, patience)


def queues_of(app: Any) -> list[str]:
    """The queues that the app's handles name, agents first."""
    return list(dict.fromkeys(handle.spec.queue for handle in app.handles.values()))


def _patiently(attempt: Callable[[], Any], patience: float) -> Any:
    deadline, pause, told = time.monotonic() + patience, 0.2, ""
    while True:
        try:
            return attempt()
        except (ServiceUnavailableError, redis.ConnectionError, redis.TimeoutError) as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            message = refused(error).message
            if message != told:
                say("pickaxe: ", message.rstrip("."), f"; trying again for {humanise(left)}", to=console(stderr=True))
            told = message
        time.sleep(min(left, pause * random.uniform(0.7, 1.3)))
        pause = min(pause * 2, 5.0)
