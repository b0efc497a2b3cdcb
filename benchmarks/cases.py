"""What is measured: each case is one workload of the peer harness on one peer, in one configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

SOLO = {"BENCH_POOL": "solo"}
OURS = "pickaxe"
FLOOR = ("floor", "celery")
"""Not peers: the least code on Celery and Postgres, and Celery alone."""
HOP = ("plain", "resume")
"""Our modes in which each tool is a message."""
IN_PROCESS = ("inline", "step")


@dataclass(frozen=True)
class Case:
    """One call of the driver. `group` names the row of the table; `once` is not repeated in later rounds."""

    group: str
    peer: str
    mode: str
    options: str
    env: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    once: bool = False

    @property
    def work(self) -> str:
        """The harness' name of the workload."""
        return self.group.split()[0]

    @property
    def tag(self) -> str:
        """Names the case in the results, as the harness' own suite does."""
        env = (f"{name}={value}" for name, value in self.env.items())
        return " ".join([self.peer, self.mode, self.work, *self.options.split(), *env])


def cases() -> list[Case]:
    """All of them, rows of the table in order, Pickaxe first in each."""
    return [*_sequences(), *_fans(), *_growth(), *_parked(), *_crashes(), *_latency(), *_counts()]


def _ours(
    group: str, modes: tuple[str, ...], options: str = "--procs 2 --conc 1", quick: bool = False
) -> Iterator[Case]:
    for mode in modes:
        yield Case(group, OURS, mode, options, quick=quick)


def _sequences() -> Iterator[Case]:
    for work in ("w1", "w2"):
        scale = "" if work == "w1" else "--procs 2 --conc 64"
        yield from _ours(f"{work} hop", HOP, quick=True)
        yield Case(f"{work} hop", OURS, "plain", "--procs 1 --conc 2", {"BENCH_POOL": "prefork"})
        yield Case(f"{work} hop", "floor", "tool", "--procs 2 --conc 1", SOLO, quick=True)
        yield Case(f"{work} hop", "floor", "chainq", "--procs 2 --conc 1", SOLO, quick=True)
        yield Case(f"{work} hop", "restate", "child", "--conc 1")
        yield Case(f"{work} hop", "absurd", "child", "--procs 1 --conc 1" if work == "w1" else "--procs 2 --conc 8")
        yield Case(f"{work} hop", "dbos", "child", scale or "--procs 1")
        yield from _ours(f"{work} inline", ("inline",), quick=True)
        yield from _ours(f"{work} inline", ("step",))
        yield Case(f"{work} inline", "floor", "inline", "--procs 2 --conc 1", SOLO, quick=True)
        yield Case(f"{work} inline", "restate", "step", "--conc 1")
        yield Case(f"{work} inline", "absurd", "step", "--procs 1 --conc 1" if work == "w1" else "--procs 4 --conc 1")
        yield Case(f"{work} inline", "dbos", "step", scale or "--procs 1")


def _fans() -> Iterator[Case]:
    for group, scale in (("w3 one", "--runs 1 --steps 100"), ("w3 many", "--runs 20 --steps 50")):
        solo = f"--procs 2 --conc 1 {scale}"
        quick = group == "w3 many"
        yield from _ours(group, ("plain",), solo)
        yield from _ours(group, ("inline",), solo, quick=quick)
        yield Case(group, "floor", "inline", solo, SOLO, quick=quick)
        yield Case(group, "celery", "link", solo, SOLO)
        yield Case(group, "restate", "child", f"--conc 1 {scale}")
        yield Case(group, "absurd", "child", f"--procs 2 --conc 8 {scale}")
        yield Case(group, "dbos", "child", f"--procs 2 --conc 64 {scale}")


def _growth() -> Iterator[Case]:
    size = "--steps 2000"
    yield from _ours("w4 2000", ("plain", "inline"), f"--procs 2 --conc 1 {size}")
    yield Case("w4 2000", "absurd", "step", f"--procs 1 --conc 1 {size}", {"BENCH_CLAIM": "5"})
    yield Case("w4 2000", "restate", "step", f"--conc 1 {size}")
    yield Case("w4 2000", "dbos", "step", f"--procs 1 {size}")
    yield Case("w4 50000", OURS, "inline", "--procs 2 --conc 1 --steps 50000", once=True)


def _parked() -> Iterator[Case]:
    runs = "--runs 5000"
    yield from _ours("w5 5000", ("plain", "inline"), f"--procs 2 --conc 1 {runs}")
    yield Case("w5 5000", "floor", "inline", f"--procs 2 --conc 1 {runs}", SOLO)
    yield Case("w5 5000", "absurd", "step", f"--procs 4 --conc 1 {runs}")
    yield Case("w5 5000", "restate", "step", f"--conc 1 {runs}", {"BENCH_INACTIVITY": "1"})
    yield Case("w5 10000", OURS, "inline", "--procs 2 --conc 1 --runs 10000", once=True)


def _crashes() -> Iterator[Case]:
    yield from _ours("w6", (*HOP, "inline"))
    yield Case("w6", "restate", "step", "--conc 1")
    yield Case("w6", "absurd", "step", "--procs 4 --conc 1", {"BENCH_CLAIM": "5"})
    yield Case("w6", "dbos", "step", "--procs 2 --conc 64")


def _latency() -> Iterator[Case]:
    yield from _ours("w7", ("inline",), "--procs 1 --conc 1", quick=True)
    yield Case("w7", "floor", "inline", "--procs 1 --conc 1", SOLO, quick=True)
    yield Case("w7", "celery", "link", "--procs 1 --conc 1", SOLO)
    yield Case("w7", "restate", "step", "--conc 1")
    yield Case("w7", "absurd", "step", "--procs 1 --conc 1")
    yield Case("w7", "dbos", "step", "--procs 1")


def _counts() -> Iterator[Case]:
    """W2 again, once, with the wait after which Postgres has counted everything."""
    for peer, mode, options, env in (
        *((OURS, mode, "--procs 2 --conc 1", {}) for mode in (*HOP, *IN_PROCESS)),
        *(("floor", mode, "--procs 2 --conc 1", SOLO) for mode in ("tool", "chainq", "inline")),
        ("absurd", "child", "--procs 2 --conc 8", {}),
        ("absurd", "step", "--procs 4 --conc 1", {}),
        ("dbos", "child", "--procs 2 --conc 64", {}),
        ("dbos", "step", "--procs 2 --conc 64", {}),
    ):
        yield Case("w2 counts", peer, mode, f"{options} --settle 11", env, once=True)
