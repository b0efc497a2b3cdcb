"""A message put together from its pieces, unknown fields and all."""

from __future__ import annotations

import copy
import json
from typing import Any

from pickaxe.models._prose import Prose, whole

Json = dict[str, Any]

GROWING = frozenset(
    {"content", "text", "summary", "refusal", "reasoning", "reasoning_content", "arguments", "thinking"}
)
"""The fields that come in pieces. Any other is told again if it is told twice."""

BY_INDEX = frozenset({"reasoning.text", "reasoning.summary"})
"""Entries of `reasoning_details` that come in pieces."""


def grow(message: Json, delta: Json) -> None:
    """Add a piece to a message. What it says as null, or as nothing again, takes nothing back."""
    for key, value in delta.items():
        old = message.get(key)
        if isinstance(value, str) and key in GROWING:
            if isinstance(old, Prose):
                old.add(value)
            elif old is None:
                message[key] = Prose(value)
        elif isinstance(value, list) and isinstance(old, list):
            _extend(old, value)
        elif isinstance(value, list):
            message[key] = []
            _extend(message[key], value)
        elif isinstance(value, dict) and isinstance(old, dict):
            grow(old, value)
        elif isinstance(value, dict):
            message[key] = {}
            grow(message[key], value)
        elif key not in message or value not in (None, ""):
            message[key] = value


def _extend(entries: list[Any], more: list[Any]) -> None:
    for entry in more:
        last = entries[-1] if entries else None
        if isinstance(entry, dict) and isinstance(last, dict) and _same(last, entry):
            grow(last, entry)
        elif isinstance(entry, dict):
            entries.append({})
            grow(entries[-1], entry)
        else:
            entries.append(copy.deepcopy(entry))


def _same(last: Json, entry: Json) -> bool:
    """Whether an entry goes on where the last one ended."""
    kind = entry.get("type")
    if kind != last.get("type"):
        return False
    if kind in BY_INDEX:
        return bool(entry.get("index") == last.get("index"))
    return kind in ("text", "thinking")


def payload(message: object) -> str:
    """A message as JSON text."""
    return whole(json.dumps(message, ensure_ascii=False, separators=(",", ":"), default=str))
