"""From lines of figures to tables: medians, with the least and the most, and the targets beside them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import FLOOR, OURS

Line = dict[str, Any]
Value = Callable[[Line], float | None]
Columns = tuple[tuple[str, Value], ...]

BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Row:
    """A row of the main table: one figure of the cases of a group, and what is wanted of it."""

    title: str
    group: str
    value: Value
    target: str = ""
    later: str = ""


def field(path: str, scale: float = 1.0) -> Value:
    """The figure at a dotted path."""

    def value(line: Line) -> float | None:
        found: Any = line
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return None if found is None else float(found) * scale

    return value


def growth(line: Line) -> float | None:
    """How much longer the last tenth of the steps took than the first."""
    first, last = line.get("first10pct_ms"), line.get("last10pct_ms")
    return last / first if first and last else None


ROWS = (
    Row("W1 hop, ms per step p50", "w1 hop", field("p50_ms"), "≤ 2.2", "≤ 1.5"),
    Row("W1 inline, ms per step p50", "w1 inline", field("p50_ms"), "≤ 0.6", "≤ 0.4"),
    Row("W2 hop, steps/s", "w2 hop", field("steps_per_s"), "≥ 650", "≥ 1,050"),
    Row("W2 inline, steps/s", "w2 inline", field("steps_per_s"), "≥ 2,000", "≥ 2,800"),
    Row("W3 1x100 join, s", "w3 one", field("wall_s"), "≤ 0.2", "≤ 0.12"),
    Row("W3 20x50, children/s", "w3 many", field("children_per_s"), "≥ 600", "≥ 1,100"),
    Row("W4 last 10 % ÷ first 10 % of 2,000 steps", "w4 2000", growth, "≤ 1.1", "≤ 1.1"),
    Row("W4 cold replay of 2,000 steps, ms", "w4 2000", field("replay_ms"), "≤ 40", "≤ 10"),
    Row("W4 last 10 % ÷ first 10 % of 50,000 steps", "w4 50000", growth),
    Row("W4 cold replay of 50,000 steps, ms", "w4 50000", field("replay_ms")),
    Row("W5 worker KiB per parked run of 5,000", "w5 5000", field("kb_per_parked_run"), "0", "0"),
    Row("W5 wake 5,000, s", "w5 5000", field("wake_all_s"), "≤ 12", "≤ 8"),
    Row("W5 10,000 parked: worker KiB per run", "w5 10000", field("kb_per_parked_run"), "0", "0"),
    Row("W5 10,000 parked: idle CPU, % of a core", "w5 10000", field("idle_cpu_pct")),
    Row("W6 beyond the uncrashed time, s", "w6", field("beyond_base_s"), "≤ 4", "≤ 1.5"),
    Row("W6 runs lost", "w6", field("unfinished_runs"), "0", "0"),
    Row("W6 bodies run twice, of 2,000", "w6", field("dup_steps"), "0", "0"),
    Row("W7 enqueue → first body, ms p50", "w7", field("p50_ms"), "≤ 6", "≤ 4.5"),
    Row("WAL, bytes per step", "w2 counts", field("pg.wal_bytes_per_step"), "≤ 1,000", "≤ 700"),
)

COSTS: Columns = (
    ("CPU-s per 1,000 steps", field("cpu_s_per_1000_steps")),
    ("transactions per step", field("pg.tx_per_step")),
    ("WAL bytes per step", field("pg.wal_bytes_per_step")),
    ("WAL fsyncs per step", field("pg.wal_fsync_per_step")),
    ("Redis commands per step", field("redis_cmds_per_step")),
)
OWN_COUNTS: Columns = (
    ("commits that wrote", field("writes")),
    ("transactions", field("transactions")),
    ("statements", field("statements")),
    ("Postgres round trips", field("round_trips")),
    ("messages", field("messages")),
    ("Redis commands", field("redis_commands")),
    ("Redis round trips", field("redis_round_trips")),
    ("WAL bytes", field("wal_bytes")),
)
OWN_COSTS: Columns = (
    ("steps/s", field("steps_per_s")),
    ("CPU-s per 1,000 steps", field("cpu_s_per_1000_steps")),
    ("peak MB per worker", field("peak_mb")),
    ("… after a run of 2,000 steps", field("peak_mb_2000")),
)
OWN_ENQUEUE: Columns = (("one by one, runs/s", field("single_per_s")), ("10,000 at once, runs/s", field("bulk_per_s")))


class Results:
    """The lines of one or more sessions."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = list(lines)

    @classmethod
    def read(cls, *paths: Path) -> Results:
        """The lines of these files."""
        return cls(json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines())

    def tables(self) -> str:
        """Everything there are figures for, as markdown."""
        parts = (
            self._conditions(),
            self._main(),
            self._table("w2 counts", COSTS, "W2 in detail: what each step costs"),
            self._table("own counts", OWN_COUNTS, "What our workers ask for, per step (100 x 10, counted on the wire)"),
            self._table("own costs", OWN_COSTS, "What watching costs, and memory (200 x 10)"),
            self._table("own enqueue", OWN_ENQUEUE, "Enqueueing, no worker running"),
        )
        return "\n\n".join(part for part in parts if part)

    def _conditions(self) -> str:
        found = [line for line in self.lines if line.get("group") == "conditions"]
        told = [f"- {name}: {value}" for line in found[-1:] for name, value in line["conditions"].items()]
        measured = [line for line in self.lines if "other_cpu_s" in line]
        disturbed = sum(line["other_cpu_s"] > 0.1 * sum(line["cpu_s"].values()) for line in measured)
        told += [f"- disturbed, the rest of the machine took over a tenth as much CPU: {disturbed} of {len(measured)}"]
        return "\n".join(told if measured else told[:-1])

    def _main(self) -> str:
        rows = [(row, cells) for row in ROWS if any(cells := self._cells(row))]
        if not rows:
            return ""
        head = (
            "| workload | Pickaxe | floor and plain Celery | peers | this issue | where we are going |\n" + "|---" * 6
        )
        body = (f"| {row.title} | {' | '.join(cells)} | {row.target} | {row.later} |" for row, cells in rows)
        return "\n".join((f"{head}|", *body))

    def _cells(self, row: Row) -> tuple[str, str, str]:
        cells: tuple[list[str], list[str], list[str]] = ([], [], [])
        for tag, lines in self._tagged(row.group).items():
            figure = _figure(lines, row.value)
            if figure:
                peer = lines[0]["peer"]
                which = 0 if peer == OURS else 1 if peer in FLOOR else 2
                cells[which].append(f"{_name(tag, ours=which == 0)} {figure}")
        ours, floors, peers = ("<br>".join(cell) for cell in cells)
        return ours, floors, peers

    def _table(self, group: str, columns: Columns, title: str) -> str:
        tagged = self._tagged(group, prefix=True)
        if not tagged:
            return ""
        head = f"### {title}\n\n| |{'|'.join(name for name, _ in columns)}|\n|---{'|---' * len(columns)}|"
        rows = (
            f"| {_label(lines[0], group)} | {' | '.join(_figure(lines, value) for _, value in columns)} |"
            for lines in tagged.values()
        )
        return "\n".join((head, *rows))

    def _tagged(self, group: str, *, prefix: bool = False) -> dict[str, list[Line]]:
        tagged: dict[str, list[Line]] = {}
        for line in self.lines:
            mine = line.get("group", "")
            if mine == group or (prefix and mine.startswith(f"{group},")):
                tagged.setdefault(line["tag"], []).append(line)
        return tagged


def write(readme: Path, tables: str) -> None:
    """Put the tables between the marks of the README."""
    text = readme.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", "utf-8")


def _figure(lines: Sequence[Line], value: Value) -> str:
    found = sorted(v for v in (value(line) for line in lines if line.get("ok")) if v is not None)
    if not found:
        return "failed" if not any(line.get("ok") for line in lines) else ""
    failed = sum(not line.get("ok") for line in lines)
    text = f"**{_number(statistics.median(found))}**"
    if found[0] != found[-1]:
        text += f" ({_number(found[0])}-{_number(found[-1])})"
    return f"{text}, {failed} of {len(lines)} failed" if failed else text


def _number(value: float) -> str:
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _name(tag: str, *, ours: bool) -> str:
    peer, mode, _, *options = tag.split()
    name = mode if ours else f"{peer} {mode}"
    pool = next((o.partition("=")[2] for o in options if o.startswith("BENCH_POOL=")), "solo")
    return f"{name} ({pool})" if pool != "solo" else name


def _label(line: Line, group: str) -> str:
    switched = line["group"].removeprefix(group).removeprefix(", ")
    name = str(line["mode"]) if line["peer"] == OURS else f"{line['peer']} {line['mode']}"
    return f"{name}, {switched}" if switched else name
