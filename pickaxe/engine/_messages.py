"""What a message of Pickaxe's own must hold. Anybody who can reach the broker can send others."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pickaxe._rates import Rate
from pickaxe._texts import checked
from pickaxe.engine._limiter import Claim
from pickaxe.errors import ConfigurationError, InputError

LONGEST_KEY = 4_000
"""Bytes of a step's key: more than any step has."""

_HIGHEST = 2**31 - 1


def agent_fault(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why this cannot be a message to an agent, or None."""
    if args or kwargs.keys() != {"run"}:
        return "a message to an agent holds `run` and nothing else"
    return _run_fault(kwargs["run"])


def tool_fault(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why this cannot be a message to a tool, or None."""
    if args or not {"run", "step", "attempt"} <= kwargs.keys():
        return "a message to a tool holds `run`, `step` and `attempt`, by name"
    attempt, priority, limits = kwargs["attempt"], kwargs.get("priority", 5), kwargs.get("limits") or []
    if not _is_number(attempt, 1, _HIGHEST):
        return f"`attempt` is {attempt!r}, not a whole number from 1"
    if not _is_number(priority, 0, 9):
        return f"`priority` is {priority!r}, not 0 to 9"
    try:
        checked(kwargs["step"], "`step`", longest=LONGEST_KEY)
        for key, rate, units in limits:
            Claim(checked(key, "a limit's key", longest=LONGEST_KEY, empty=True), Rate.parse(rate), int(units))
    except (InputError, ConfigurationError) as error:
        return str(error)
    except (TypeError, ValueError):
        return f"`limits` is {limits!r}, not a list of [key, rate, units]"
    return _run_fault(kwargs["run"])


def _run_fault(run: object) -> str | None:
    try:
        uuid.UUID(run)  # type: ignore[arg-type] # that is the question
    except (TypeError, ValueError, AttributeError):
        return f"`run` is {run!r}, not the id of a run"
    return None


def _is_number(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
