"""JSON given on the command line, in a file, or on standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pickaxe.cli._text import one_line
from pickaxe.errors import InputError


def parsed(value: str, what: str) -> Any:
    """The value of JSON, `@FILE` or `-`. Raises `InputError`, which names it as `what`."""
    text = _read(value)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{what} is not JSON ({error}): {one_line(text, 60)!r}. Text is written with its quotes: '\"text\"'"
        ) from error


def _read(value: str) -> str:
    if value == "-":
        return sys.stdin.read()
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{value[1:]} cannot be read: {error}") from error
