"""`dev`: everything a developer needs, in one process group."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from pickaxe.cli._processes import Children
from pickaxe.cli._project import (
    APP_FILE,
    DEFAULT_APP,
    DEV_FILE,
    Project,
    app_option,
    load_app,
    nearest,
    pass_project,
    template,
)
from pickaxe.cli._text import say
from pickaxe.errors import ConfigurationError

QUIET_ENVIRONMENT = {"PICKAXE_DEV": "1"}
IGNORED = (".pickaxe", ".venv", ".git", "__pycache__")


@click.command(
    epilog="""\b
Examples:
  pickaxe dev
  pickaxe dev -A myproject.fleet:app --workers 4
  pickaxe dev --no-flower --no-reload
"""
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 16), help="Worker processes.")
@click.option("-c", "--concurrency", default=2, show_default=True, type=click.IntRange(1), help="Tasks in each.")
@click.option("--reload/--no-reload", default=True, help="Restart the workers when Python files change.")
@click.option("--flower/--no-flower", default=True, help="Flower, if it is installed.")
@click.option("--log-level", default="WARNING", show_default=True,
              type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False))  # fmt: skip
@app_option
@pass_project
def dev(project: Project, workers: int, concurrency: int, reload: bool, flower: bool, log_level: str) -> None:
    """Postgres and Redis of your own, migrated, with workers that reload on change.

    Runs the workers/app.py of this folder, or of the next above; without one, the fleet that comes with Pickaxe.
    Data stays in .pickaxe beside it. Other commands, there and below, find the services by themselves while this
    runs. Ctrl-C stops everything.
    """
    signal.signal(signal.SIGTERM, _leave)
    path, folder, home = _target(project)
    with ExitStack() as stack:
        services = _start_services(stack, home)
        load_app(path, folder)  # what is wrong with it is said here, once, not by every worker
        stack.enter_context(announced(services, folder, path, home))
        environment = {
            **QUIET_ENVIRONMENT,
            "PICKAXE_DATABASE_URL": services.database_url,
            "PICKAXE_REDIS_URL": services.redis_url,
        }
        children, sides = Children(folder, environment), Children(folder, environment)
        stack.callback(sides.stop)
        stack.callback(children.stop)
        command = ["-m", "pickaxe", "-A", path, "worker", "-c", str(concurrency), "-l", log_level]
        _start_workers(children, command, workers)
        _say_where(services, path, folder, home)
        if flower:
            _start_flower(sides, path)
        say(("Ctrl-C stops everything", "dim"))
        with suppress(KeyboardInterrupt):
            _watch(children, command, workers, reload=reload)
        say("stopping")


@contextmanager
def announced(services: Any, folder: Path, path: str = DEFAULT_APP, home: Path | None = None) -> Iterator[None]:
    """While this is entered, commands in `home` (default: the working directory) find these services and this app."""
    place = (home or Path.cwd()) / DEV_FILE
    place.parent.mkdir(exist_ok=True)
    known = {
        "pid": os.getpid(),
        "app": path,
        "folder": str(folder),
        "database_url": services.database_url,
        "redis_url": services.redis_url,
    }
    file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it holds passwords
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        json.dump(known, opened)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        with suppress(OSError):
            place.parent.rmdir()


def _target(project: Project) -> tuple[str, Path, Path]:
    """Which app, the folder it is in, and the one that data stays in."""
    here = Path.cwd()
    if project.path:
        return project.path, here, here
    if folder := nearest(APP_FILE):
        return DEFAULT_APP, folder, folder
    return DEFAULT_APP, template(), here


def _start_services(stack: ExitStack, home: Path) -> Any:
    from pickaxe.embedded import Services
    from pickaxe.store import Database, migrate

    (home / DEV_FILE.parent).mkdir(exist_ok=True)
    (home / DEV_FILE.parent / ".gitignore").write_text("*\n", "utf-8")  # it holds data and passwords
    services = stack.enter_context(Services.start(home / DEV_FILE.parent / "services"))
    os.environ["PICKAXE_DATABASE_URL"] = services.database_url
    os.environ["PICKAXE_REDIS_URL"] = services.redis_url
    database = Database(services.database_url)
    migrate(database)
    database.close()
    return services


def _start_workers(children: Children, command: list[str], count: int) -> None:
    for number in range(1, count + 1):
        children.start(f"worker-{number}", [*command, "-n", f"dev-{number}@%h"])


def _say_where(services: Any, path: str, folder: Path, home: Path) -> None:
    say(("pickaxe dev", "bold"), f"  {path} in {folder}")
    say(f"  in {home} `pickaxe` finds these by itself; elsewhere:")
    say(f"  export PICKAXE_DATABASE_URL='{services.database_url}'")
    say(f"  export PICKAXE_REDIS_URL='{services.redis_url}'")


def _start_flower(children: Children, path: str) -> None:
    if find_spec("flower") is None:
        say(("  Flower is not installed: pip install 'pickaxe[flower]'", "dim"))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    password = secrets.token_urlsafe(12)
    # By its environment, not its command line, which every user of the machine can read.
    children.environment = {**children.environment, "FLOWER_BASIC_AUTH": f"pickaxe:{password}"}
    celery_app = path.replace(":", ".") if ":" in path else path
    children.start("flower", ["-m", "celery", "-A", celery_app, "-q", "flower", "--address=127.0.0.1",
                              f"--port={port}", "--logging=warning"])  # fmt: skip
    say(f"  Flower  http://127.0.0.1:{port}  user pickaxe, password {password}")


def _watch(children: Children, command: list[str], count: int, *, reload: bool) -> None:
    if not reload:
        signal.pause()
        return
    try:
        from watchfiles import PythonFilter, watch
    except ImportError as error:
        raise ConfigurationError("reloading needs watchfiles: pip install 'pickaxe[dev]', or --no-reload") from error
    only = PythonFilter(ignore_paths=[str(children.folder / name) for name in IGNORED])
    for changes in watch(children.folder, watch_filter=only, raise_interrupt=True):
        names = ", ".join(sorted({Path(changed).name for _, changed in changes})[:3])
        say(("reloading", "yellow"), f": {names}")
        children.stop(patience=10.0)
        _start_workers(children, command, count)


def _leave(*_: object) -> None:
    sys.exit(143)
