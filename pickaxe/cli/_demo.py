"""`demo`: the command."""

from __future__ import annotations

import click

QUESTION = (
    "Which of these licences let me build a closed network service, grant me patents, and ask me to keep notices?"
)


@click.command(
    epilog="""\b
Examples:
  pickaxe demo
  pickaxe demo --keep
  pickaxe demo --question "Which of these licences grant patents?" | less -R
"""
)
@click.option("--question", default=QUESTION, help="What the agent is to find out about the licences.")
@click.option("--workers", default=3, show_default=True, type=click.IntRange(2, 8), help="Worker processes.")
@click.option("--keep", is_flag=True, help="Keep everything running at the end, until Ctrl-C.")
def demo(question: str, workers: int, keep: bool) -> None:
    """Watch an agent survive a kill -9. Needs nothing: no service, no key, no Docker.

    Starts a real Postgres, a real Redis and a fleet of Celery workers; runs an agent that researches a question in
    a folder of licence texts; kills the worker that is in the middle of a step; and checks, with a ledger that the
    tools' bodies keep apart from Pickaxe, that no recorded step ran twice. Exits with 1 if one did.
    """
    from pickaxe.demo import Demo

    raise click.exceptions.Exit(Demo(question=question, workers=workers, keep=keep).run())
