"""From exceptions to one clear sentence and an exit code."""

from __future__ import annotations

import os
import sys
from typing import IO, Any

import click
import redis
from sqlalchemy.exc import SQLAlchemyError

from pickaxe.cli._text import console, safe, styled
from pickaxe.errors import (
    ConfigurationError,
    PickaxeError,
    ResultTimeoutError,
    RunPausedError,
    ServiceUnavailableError,
    ValidationError,
)

EXIT_CODES = """
Exit codes: 0 done; 1 it did not work (the run failed or was cancelled, there is no such run, doctor found a
problem, the demo's check failed); 2 the command or its input was wrong; 3 Postgres or Redis cannot be reached, or
the schema does not fit; 4 the run is paused and needs a person; 5 the run has not ended within --wait; 70 a bug;
130 interrupted.
"""

FAILED, USAGE, UNREACHABLE, PAUSED, TIMED_OUT, BUG, INTERRUPTED = 1, 2, 3, 4, 5, 70, 130

_CODES: list[tuple[type[BaseException], int]] = [
    (ServiceUnavailableError, UNREACHABLE),
    (redis.ConnectionError, UNREACHABLE),
    (redis.TimeoutError, UNREACHABLE),
    (RunPausedError, PAUSED),
    (ResultTimeoutError, TIMED_OUT),
    (ConfigurationError, USAGE),
    (ValidationError, USAGE),
    (PickaxeError, FAILED),
]


class Refused(click.ClickException):
    """Shown as one sentence on standard error."""

    exit_code: int = FAILED  # type: ignore[misc] # click calls it a class variable and lets instances set it

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002 - click's signature
        """Print it."""
        console(stderr=True).print(styled(("pickaxe: ", "bold red"), safe(self.message)), soft_wrap=True)


def refused(error: Exception) -> Refused:
    """What to show for an exception."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), BUG)
    if isinstance(error, redis.RedisError):
        return Refused(f"Redis cannot be reached ({error}): check PICKAXE_REDIS_URL, or run `pickaxe doctor`", code)
    if isinstance(error, SQLAlchemyError):
        return Refused(f"the database refused: {str(error).splitlines()[0]}; run `pickaxe doctor`", FAILED)
    if code == BUG:
        return Refused(
            f"{type(error).__name__}: {error}. That was not foreseen: PICKAXE_TRACEBACK=1 shows where it happened", code
        )
    return Refused(str(error), code)


class Group(click.Group):
    """The commands, with errors as sentences."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            raise click.exceptions.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except Exception as error:
            if os.environ.get("PICKAXE_TRACEBACK"):
                raise
            raise refused(error) from None
