"""The commands, and what `pickaxe --help` says."""

from __future__ import annotations

import sys
from typing import Any

import click

from pickaxe._version import __version__
from pickaxe.cli._errors import EXIT_CODES, Group
from pickaxe.cli._project import global_app_option, json_option
from pickaxe.cli._text import print_json


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@global_app_option
def cli() -> None:
    """Durable, distributed LLM agents on Celery, Redis and Postgres.

    \b
    Start here:
      pickaxe demo                  watch an agent survive a kill -9; needs nothing
      pickaxe dev                   Postgres, Redis and workers of your own, reloaded on change
      pickaxe run AGENT JSON        start a run
      pickaxe show latest           what it did, and what it waits for

    RUN is always a run's id, the beginning of one, or `latest`. Services are found by PICKAXE_DATABASE_URL and
    PICKAXE_REDIS_URL (or a .env file), or by a `pickaxe dev` running in this folder or above it.
    """


@cli.command(epilog="Example:  pickaxe version --json")
@json_option
def version(as_json: bool) -> None:
    """The versions of Pickaxe, of the schema it works with, and of Python."""
    from pickaxe.store import SCHEMA_RANGE

    python = sys.version.split()[0]
    if as_json:
        print_json({"pickaxe": __version__, "schema": list(SCHEMA_RANGE), "python": python})
    else:
        click.echo(f"pickaxe {__version__} (schema {SCHEMA_RANGE[1]}, Python {python})")


def main(arguments: list[str] | None = None) -> Any:
    """The `pickaxe` program."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a question mark, not a crash.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    return cli(arguments, prog_name="pickaxe")


def _register() -> None:
    from pickaxe.cli import _aside, _demo, _dev, _doctor, _runs, _show, _worker

    for command in (
        _demo.demo, _dev.dev, _worker.worker, _worker.migrate, _runs.run, _runs.runs, _show.show, _runs.cancel,
        _runs.signal, _runs.retry, _aside.quarantine, _aside.resolve, _aside.drop, _doctor.doctor,
    ):  # fmt: skip
        cli.add_command(command)


_register()
