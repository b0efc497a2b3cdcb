"""A step's history: what has become of its attempts, as JSON text that Postgres reads too."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from pickaxe import _values
from pickaxe._texts import storable

LONGEST_MESSAGE = 500
"""Characters of an error's message that are kept."""


def entry(attempt: int, owner: str, ended: str, **more: Any) -> dict[str, Any]:
    """How one attempt ended, and that it was now."""
    return {"attempt": attempt, "owner": owner, "ended": ended, "at": time.time(), **more}


def of_error(described: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry keeps of an error."""
    return {"type": described["type"], "message": described["message"][:LONGEST_MESSAGE]}


def load(history: str | None) -> list[dict[str, Any]]:
    """The entries of a history."""
    past: list[dict[str, Any]] = _values.load(history) if history else []
    return past


def dump(past: Iterable[Mapping[str, Any]]) -> str:
    """Entries as text. Postgres looks into them, and stumbles over characters that it could not hold itself."""
    return _values.dump([{k: storable(v) if isinstance(v, str) else v for k, v in entry.items()} for entry in past])
