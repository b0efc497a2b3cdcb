"""Server-sent events, as the providers write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def frame(data: dict[str, Any] | str, event: str | None = None) -> bytes:
    """One event: its name, if it has one, and its data, a string as it is."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()


def pieces(text: str, size: int) -> Iterator[str]:
    """The text in deltas of so many characters."""
    return (text[start : start + size] for start in range(0, len(text), size))
