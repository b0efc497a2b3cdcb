"""What the command line prints: safe, and legible on a terminal and in a pipe.

Text from models, tools and users may hold anything. Nothing of it is ever read as markup, and control
characters (which could rewrite the screen) are shown, not sent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from pickaxe._durations import humanise

# C0 and C1 controls, marks that reverse the direction of text, and surrogates no terminal can take.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_STATES = {
    "succeeded": ("✓", "green"),
    "failed": ("✗", "red"),
    "cancelled": ("⊘", "yellow"),
    "cancelling": ("⊘", "yellow"),
    "lost": ("✗", "red"),
    "retrying": ("↻", "yellow"),
    "running": ("▶", "cyan"),
    "ready": ("·", "cyan"),
    "blocked": ("·", "dim"),
    "waiting": ("…", "blue"),
    "paused": ("‖", "magenta"),
    "unknown": ("?", "magenta"),
    "quarantined": ("!", "red"),
    "released": ("↻", "yellow"),
}

Cell = str | tuple[str, str]
"""Text, or text and its style."""


def safe(text: object) -> str:
    """Text from anywhere, for a terminal: control characters as visible escapes."""
    return _UNSAFE.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", str(text))


def one_line(text: object, most: int = 0) -> str:
    """Safe text on one line, at most so many characters long (0: any)."""
    line = " ".join(safe(text).split())
    return line if not most or len(line) <= most else line[: most - 1] + "…"


def console(*, stderr: bool = False) -> Console:
    """Where to print."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def styled(*cells: Cell) -> Text:
    """A line made of pieces. All of it is plain text, already safe or made so here."""
    return Text.assemble(*(safe(c) if isinstance(c, str) else (safe(c[0]), c[1]) for c in cells))


def say(*cells: Cell, to: Console | None = None) -> None:
    """Print a line."""
    (to or console()).print(styled(*cells), soft_wrap=True)


def state_cell(state: object, note: str = "") -> Cell:
    """A state with its sign and colour."""
    sign, style = _STATES.get(str(state), ("·", ""))
    return f"{sign} {state}{note}", style


def sign_of(state: object) -> Cell:
    """Only the sign of a state."""
    return _STATES.get(str(state), ("·", ""))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], *, elastic: int = -1) -> None:
    """Aligned columns; those with nothing in them are left out. The last column is for notes.

    In a pipe nothing is cut off. On a terminal too narrow for all of it the `elastic` column is cut, and a note
    that does not fit goes on a line of its own.
    """
    lines = [[_split(cell) for cell in row] for row in rows]
    used = [i for i in range(len(heads)) if i == 0 or not lines or any(line[i][0] for line in lines)]
    lines = [[(head, "bold") for head in heads], *lines]
    widths = {i: max(cell_len(line[i][0]) for line in lines) for i in used}
    out = console()
    if out.is_terminal:
        _fit(widths, out.width, elastic % len(heads), last=len(heads) - 1)
    for line in lines:
        _print_line(out, line, widths, last=len(heads) - 1)


def _fit(widths: dict[int, int], most: int, elastic: int, *, last: int) -> None:
    """Make room: cut the elastic column, but not to less than 10."""
    room = most - sum(width + 2 for i, width in widths.items() if i not in (elastic, last))
    if elastic in widths and elastic != last:
        widths[elastic] = max(10, min(widths[elastic], room - 2 - min(widths.get(last, 0), 26)))


def _print_line(out: Console, line: list[tuple[str, str]], widths: Mapping[int, int], *, last: int) -> None:
    made = Text()
    for i in widths:
        text, style = line[i]
        if i != last:
            made.append(set_cell_size(_cut(text, widths[i]), widths[i]) + "  ", style)
    note, style = line[last] if last in widths else ("", "")
    if note and out.is_terminal and made.cell_len + cell_len(note) > out.width:
        made.rstrip()
        made.append(f"\n    ↳ {note}", style)
    else:
        made.append(note, style)
    made.rstrip()
    out.print(made, soft_wrap=True)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _split(cell: Cell) -> tuple[str, str]:
    """A cell's text on one line, its indentation kept, and its style."""
    text, style = (cell, "") if isinstance(cell, str) else cell
    return " " * (len(text) - len(text.lstrip(" "))) + one_line(text), style


def print_json(value: Any) -> None:
    """One JSON document on one line, in ASCII: safe on any terminal."""
    click.echo(json.dumps(jsonable(value), ensure_ascii=True))


def jsonable(value: Any) -> Any:
    """What views and errors hold, as plain JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, uuid.UUID) else value


def shown_value(value: Any, most: int = 0) -> str:
    """A JSON value on one line, for people."""
    return one_line(value if isinstance(value, str) else json.dumps(jsonable(value), ensure_ascii=False), most)


def took(start: datetime | None, end: datetime | None) -> str:
    """The time between two moments."""
    return humanise(max(0.0, (end - start).total_seconds())) if start and end else ""


def short(run: object) -> str:
    """The beginning of a run's id: enough to tell it from others."""
    return str(run)[:18]


def told(error: Mapping[str, Any] | None, most: int = 300) -> str:
    """A recorded error on one line: its type, what it says, and where it was raised."""
    if not error:
        return ""
    at = f", at {place(error['where'])}" if error.get("where") else ""
    return one_line(": ".join(filter(None, (error.get("type"), error.get("message")))), most) + at


def place(where: object) -> str:
    """A recorded line of code, without the working directory."""
    return safe(where).removeprefix(f"{Path.cwd()}{os.sep}")


def short_worker(worker: str | None) -> str:
    """A worker process without its machine: `worker-1 4711` for `worker-1@host 4711`."""
    name, _, pid = (worker or "").rpartition(" ")
    return f"{name.partition('@')[0]} {pid}" if name else (worker or "")[:12]
