"""What the fault suite found, scenario by scenario, in one table.

A test says by a mark which scenarios of the catalogue it plays, and by the fixture `report` what came of it:

```python
@pytest.mark.scenario(3)
def test_...(fleet: Fleet, report: Report) -> None:
    ...
    report(hits=proxy.hits["replies lost"], verdict=fleet.check(), recovery=[1.2])
```

`hits` is the injector's own evidence: a fault that did not hit fails the test, and so does a marked test that
reports nothing. With PICKAXE_TEST_REPORT naming a file, every row is also written there, as one line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

SCENARIOS = {
    1: "random programs under kill -9",
    2: "crash clock: every commit and publish point",
    3: "commit acknowledged late: the reply is lost",
    4: "zombie: frozen while it runs a tool",
    5: "zombie after park and resume",
    6: "stale write while the sweep is open",
    7: "completed between the sweeper's look and its write",
    8: "two sweepers from the same snapshot",
    9: "Postgres restarts in the middle of a recovery",
    10: "Postgres restarts again and again under load",
    11: "backends terminated; connections used up",
    12: "draining worker and its namesake",
    13: "queue of one whose owner dies",
    14: "FLUSHALL with everything in flight",
    15: "Redis down, empty, full, evicting",
    16: "published and not committed; committed and not published",
    17: "messages doubled, reordered, replayed later",
    18: "task longer than the visibility timeout",
    19: "killed with prefetched messages",
    20: "network: silent, flapping, slow, half-open",
    21: "clocks that are wrong, and that jump",
    22: "signal before, during and at the end of a wait",
    23: "children that end at once, late or again",
    24: "dies after the effect and before the result",
    25: "poison messages",
    26: "out of memory, again and again",
    27: "segfault, exit, fork bomb, blocked GIL",
    28: "snapshot half written or corrupt",
    29: "idle transactions and old snapshots",
    30: "retry storm of a provider",
    31: "token limits under skew and crashes",
    32: "one tenant's flood, another's trickle",
    33: "cancel storm on one key",
    34: "rolling deploys of other code",
    35: "migration cut short, doubled, ahead of its workers",
    36: "code that no longer fits its log",
    37: "fork at every step",
    38: "pruning interrupted",
    39: "stream of a worker that dies",
    40: "Postgres full, or read-only",
    41: "told to stop, and told again",
    42: "long logs, many parked, many due",
    43: "schedules and clocks",
    44: "liveness at default settings",
}
"""The catalogue, and what the issue adds to it."""

NOT_BUILT = {
    28: "there are no snapshots: a run is its log",
    30: "there are no model calls yet",
    31: "there are no token limits yet",
    32: "there is no fairness between tenants yet",
    33: "there are no concurrency keys yet",
    37: "there are no forks yet",
    38: "there is no pruning yet",
    43: "there are no schedules yet",
}
"""Scenarios of features that do not exist."""


@dataclass(frozen=True)
class Verdict:
    """What `Fleet.check` found. `lost` and `doubled` are nought, or it would have failed; `again` are bodies that were
    run again, as they may be; `refused` are writes of stale owners and reductions that were not taken."""

    lost: int = 0
    doubled: int = 0
    refused: int = 0
    again: int = 0

    def __add__(self, other: Verdict) -> Verdict:
        mine, theirs = asdict(self), asdict(other)
        return Verdict(**{name: mine[name] + theirs[name] for name in mine})


@dataclass
class Row:
    """What one test found of one scenario. Recovery is in seconds, one figure for every time it recovered."""

    scenario: int
    test: str
    outcome: str = ""
    reason: str = ""
    hits: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    recovery: list[float] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        told = {**asdict(self), "name": SCENARIOS[self.scenario], **asdict(self.verdict)}
        return {name: value for name, value in told.items() if name != "verdict"}


class Report:
    """The fixture: called once, or more often, with what was found."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self.rows: list[Row] = []

    def __call__(
        self,
        *,
        hits: int,
        verdict: Verdict | None = None,
        recovery: Iterable[float] = (),
        scenario: int | None = None,
        **figures: Any,
    ) -> None:
        """Record a row. `figures` are further measurements, for the file."""
        name = SCENARIOS.get(scenario or 0, self._item.name)
        assert hits > 0, f"{name}: the fault did not hit: {figures}"
        for number in [scenario] if scenario is not None else scenarios_of(self._item):
            times, counts = [round(s, 3) for s in recovery], verdict or Verdict()
            self.rows.append(Row(number, self._item.name, hits=hits, verdict=counts, recovery=times, figures=figures))


def scenarios_of(item: pytest.Item) -> list[int]:
    """The scenarios that a test is marked with."""
    return [int(number) for mark in item.iter_markers("scenario") for number in mark.args]


def attach(item: pytest.Item, report: pytest.TestReport, found: Report | None) -> None:
    """Let the test's rows travel with its report, to the controller of pytest-xdist too."""
    if report.when != "call":
        return
    rows = found.rows if found is not None else []
    if report.failed or not rows:
        missing = set(scenarios_of(item)) - {row.scenario for row in rows}
        rows = [*rows, *(Row(number, item.name) for number in sorted(missing))]
    for row in rows:
        row.outcome = report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            row.reason = report.longrepr[2].removeprefix("Skipped: ")
        report.user_properties.append(("fault", row.as_json()))


class Table:
    """Collects the rows, and prints them in the end."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """In the controller, for every test."""
        if report.when == "call":
            self.rows += [value for name, value in report.user_properties if name == "fault"]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """After all tests."""
        if not self.rows:
            return
        if path := os.environ.get("PICKAXE_TEST_REPORT"):
            Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in self.rows))
        terminalreporter.section("faults")
        for line, is_bad in lines(self.rows):
            terminalreporter.write_line(line, **({"red": True} if is_bad else {}))


HEADINGS = ("scenario", "tests", "hits", "lost", "doubled", "refused", "again", "p50 s", "max s")


def lines(rows: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """The table, and of each line whether something is wrong with it."""
    by_scenario: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_scenario[row["scenario"]].append(row)
    cells = [(HEADINGS, False)]
    for number in sorted({*by_scenario, *NOT_BUILT}):
        found = by_scenario.get(number)
        cells.append(_line(number, found) if found else ((f"{number:>2} {SCENARIOS[number]}", "-"), False))
    widths = [max(len(line[i]) for line, _ in cells if i < len(line)) for i in range(len(HEADINGS))]
    told = []
    for line, is_bad in cells:
        text = "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        number = int(line[0][:2]) if line[0][:2].strip().isdigit() else 0
        why = f"not built: {NOT_BUILT[number]}" if line[1:] == ("-",) else _skipped(by_scenario.get(number, ()))
        told.append((f"{text}  {why}".rstrip(), is_bad))
    return told


def _skipped(rows: Sequence[dict[str, Any]]) -> str:
    reasons = [row["reason"] for row in rows if row["outcome"] == "skipped"]
    return f"{len(reasons)} skipped: {'; '.join(dict.fromkeys(reasons))}" if reasons else ""


def _line(number: int, rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], bool]:
    total = {name: sum(row[name] for row in rows) for name in ("hits", "lost", "doubled", "refused", "again")}
    recovery = [seconds for row in rows for seconds in row["recovery"]]
    failed = sum(row["outcome"] == "failed" for row in rows)
    times = (f"{statistics.median(recovery):.2f}", f"{max(recovery):.2f}") if recovery else ("-", "-")
    counts = tuple(str(value) for value in total.values())
    tests = f"{len(rows)}, {failed} FAILED" if failed else str(len(rows))
    return (f"{number:>2} {SCENARIOS[number]}", tests, *counts, *times), failed > 0
