"""The same faults for Pickaxe and its peers: `python -m tests.faults.peers --venvs FOLDER` writes benchmarks/FAULTS.md.

FOLDER has an environment for each peer, `dbos` and `absurd`, as the peer harness has; without it there is only Pickaxe.
All that is told comes from a ledger that the bodies of steps and runs write, never from what a peer says of itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

from pickaxe.embedded import Services

HERE, TARGET = Path(__file__).parent, Path(__file__).parents[3] / "benchmarks" / "FAULTS.md"
PATIENCE = 60.0
PACKAGES = {"pickaxe": "pickaxe", "dbos": "dbos", "absurd": "absurd-sdk"}


@dataclass(frozen=True)
class Entry:
    word: str
    run: str
    step: int
    pid: int
    at: float


@dataclass
class Outcome:
    """What came of a scenario: None where it says nothing."""

    hits: int = 0
    lost: int = 0
    doubled: int = 0
    again: int = 0
    recovery: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class Peer:
    """One library: its programs, over a database of its own."""

    def __init__(self, name: str, python: Path | str, services: Services, folder: Path) -> None:
        self.name, self._python, self.services = name, str(python), services
        self.database = f"{name}_{int(time.time() * 1000)}"
        with psycopg.connect(services.database_url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {self.database}")
        redis.Redis.from_url(services.redis_url).flushall()
        self.url = services.database_url.rpartition("/")[0] + f"/{self.database}"
        self._folder, self._ledger = folder, folder / f"{self.database}.ledger"
        self._ledger.touch()
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.exits = 0
        self._start("setup").wait(60)
        self._client = self._start("client", stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _start(self, program: str, worker: str = "", **pipes: int) -> subprocess.Popen[bytes]:
        root = str(HERE.parents[2])
        told = {"DATABASE": self.url, "REDIS": self.services.redis_url, "LEDGER": str(self._ledger)}
        environment = {**os.environ, **{f"FAULTS_{name}": value for name, value in told.items()}}
        environment |= {"FAULTS_WORKER": worker} if worker else {}
        environment |= {"PYTHONPATH": root} if self.name == "pickaxe" else {}
        command = [self._python, str(HERE / f"peer_{self.name}.py"), program]
        with (self._folder / f"{self.database}.{program}{worker}.log").open("ab") as log:
            known: dict[str, Any] = {"stdout": log, "stderr": log, **pipes}
            return subprocess.Popen(command, cwd=root, env=environment, start_new_session=True, **known)

    def worker(self, *names: str, key: str | None = None) -> None:
        """Start workers; `key` is what one is called here, if there is another of its name."""
        for name in names:
            self.workers[key or name] = self._start("worker", name)

    def kill(self, name: str) -> None:
        os.killpg(self.workers[name].pid, signal.SIGKILL)
        self.workers[name].wait()

    def supervise(self) -> None:
        """Start again whatever has ended by itself, as an init system would."""
        for name, process in list(self.workers.items()):
            if process.poll() is not None:
                self.exits += 1
                self.worker(name.rstrip("'"), key=name)

    def enqueue(self, count: int, *, steps: int = 3, seconds: float = 1.0, kind: str = "work") -> list[str]:
        runs = [f"{kind}-{time.monotonic_ns()}-{number}" for number in range(count)]
        for run in runs:
            self._tell(what="start", kind=kind, run=run, steps=steps, seconds=seconds)
        return runs

    def signal(self, run: str) -> None:
        self._tell(what="signal", run=run)

    def _tell(self, **words: object) -> None:
        stdin, stdout = self._client.stdin, self._client.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(words).encode() + b"\n")
        stdin.flush()
        while not (line := stdout.readline()).startswith(b'{"error"'):
            assert line, f"the client of {self.name} has ended"
        if error := json.loads(line)["error"]:
            raise RuntimeError(f"{self.name}: {error}")

    def entries(self, *words: str) -> list[Entry]:
        lines = [line.split() for line in self._ledger.read_text().splitlines()]
        found = [Entry(word, run, int(step), int(pid), float(at)) for word, run, step, pid, at in lines]
        return [entry for entry in found if not words or entry.word in words]

    def running(self, name: str) -> list[Entry]:
        """The bodies that a worker is in."""
        pid = self.workers[name].pid
        ended = {(e.run, e.step) for e in self.entries("end") if e.pid == pid}
        return [e for e in self.entries("start") if e.pid == pid and (e.run, e.step) not in ended]

    def busiest(self) -> str:
        """The worker that is in the most bodies, once one is in any."""
        assert until(lambda: any(self.running(name) for name in self.workers)), "no worker works"
        return max(self.workers, key=lambda name: len(self.running(name)))

    def unfinished(self, runs: list[str]) -> set[str]:
        return set(runs) - {e.run for e in self.entries("done")}

    def judge(self, runs: list[str], within: float = PATIENCE, *, hits: int = 1) -> Outcome:
        """Wait for all of them, and count."""
        until(lambda: self.supervise() or not self.unfinished(runs), within)
        starts, ends = self.entries("start"), self.entries("end")
        found = Outcome(hits, lost=len(self.unfinished(runs)))
        found.again = len(starts) - len({(e.run, e.step) for e in starts})
        found.doubled = len(ends) - len({(e.run, e.step) for e in ends})
        if self.exits:
            found.remarks.append(f"{self.exits} workers ended and were started again")
        return found

    def restarted(self, hit: list[Entry], since: float) -> list[float]:
        """How long after `since` each of these bodies was begun again."""
        again = {(e.run, e.step): e.at for e in reversed(self.entries("start")) if e.at > since}
        return [again[e.run, e.step] - since for e in hit if (e.run, e.step) in again]

    def close(self) -> None:
        for process in [*self.workers.values(), self._client]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def until(check: Callable[[], object], within: float = PATIENCE) -> bool:
    deadline = time.monotonic() + within
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def killed(peer: Peer, chance: random.Random) -> Outcome:
    """A worker is killed in the middle of its steps and started again at once, under its name; five times."""
    return _killed(peer, chance, heirs=1, rounds=5)


def abandoned(peer: Peer, chance: random.Random) -> Outcome:
    """A worker is killed and never comes back; another is there."""
    return _killed(peer, chance, heirs=0)


def two_recoverers(peer: Peer, chance: random.Random) -> Outcome:
    """A worker is killed, and two are started in its place at the same moment, both under its name."""
    return _killed(peer, chance, heirs=2)


def _killed(peer: Peer, chance: random.Random, *, heirs: int, rounds: int = 1) -> Outcome:
    peer.worker("a", "b")
    runs, recovery, hits = [], [], 0
    for _ in range(rounds):
        runs += (batch := peer.enqueue(8))
        name = peer.busiest()
        time.sleep(chance.uniform(0.2, 0.8))  # the moment of the fault
        hit, since = peer.running(name), time.monotonic()
        peer.kill(name)
        del peer.workers[name]
        for number in range(heirs):
            peer.worker(name, key=name + "'" * number)
        until(lambda: not peer.unfinished(batch), PATIENCE if heirs else 40)
        recovery += peer.restarted(hit, since)
        hits += len(hit)
    found = peer.judge(runs, 1, hits=hits)
    found.recovery = recovery
    return found


def early_zombie(peer: Peer, _: random.Random) -> Outcome:
    """A worker is frozen in a step, and wakes up when its heir is in that same step."""
    return _zombie(peer, 0)


def late_zombie(peer: Peer, _: random.Random) -> Outcome:
    """A worker is frozen in a step, and wakes up when its heir is in the next one."""
    return _zombie(peer, 1)


def _zombie(peer: Peer, step: int) -> Outcome:
    peer.worker("a")
    runs = peer.enqueue(1, steps=4, seconds=3.0)
    hit, old = peer.running(peer.busiest()), peer.workers["a"]
    os.killpg(old.pid, signal.SIGSTOP)
    since = time.monotonic()
    peer.worker("a")
    heir = peer.workers["a"].pid
    taken = until(lambda: any(e.pid == heir and e.step == step for e in peer.entries("start")))
    peer.workers["zombie"] = old
    os.killpg(old.pid, signal.SIGCONT)
    peer.judge(runs)
    time.sleep(4)  # whatever it would yet begin
    found, starts = peer.judge(runs), peer.entries("start")
    found.recovery = peer.restarted(hit, since)
    over = min((e.at for e in peer.entries("end") if e.pid == heir and e.step == 0), default=since)
    accepted = any(e.step == 1 and e.at < over for e in starts)
    told = "its late result was accepted" if accepted else "its late result changed nothing"
    found.remarks.insert(0, told if taken else "nobody took over")
    return found


def restarts(peer: Peer, _: random.Random) -> Outcome:
    """Postgres crashes three times under load."""
    return _disturbed(peer, 3, 1.5, lambda: peer.services.postgres.restart("immediate"))


def cuts(peer: Peer, _: random.Random) -> Outcome:
    """All connections of the peer's workers are cut ten times."""
    return _disturbed(peer, 10, 0.5, lambda: _cut(peer))


def _disturbed(peer: Peer, times: int, pause: float, disturb: Callable[[], object]) -> Outcome:
    peer.worker("a", "b")
    runs = peer.enqueue(80, steps=6, seconds=0.5)
    peer.busiest()
    for _ in range(times):
        disturb()
        until(peer.supervise, pause)  # the rhythm of the fault
    since = time.monotonic()
    found = peer.judge(runs, hits=times)
    last = max((e.at for e in peer.entries("done")), default=since)
    found.remarks.append(f"all over {last - since:.0f} s after the last" if not found.lost else "")
    return found


def _cut(peer: Peer) -> None:
    with psycopg.connect(peer.services.database_url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [peer.database])


def races(peer: Peer, chance: random.Random) -> Outcome:
    """Signals are sent at the instant at which the wait for them times out."""
    peer.worker("a", "b")
    runs, told = peer.enqueue(60, kind="wait", seconds=3.0), set()
    while len(told) < len(runs) and any(p.poll() is None for p in peer.workers.values()):
        for run, at in {e.run: e.at for e in reversed(peer.entries("asks"))}.items():
            if run not in told and time.monotonic() > at + 3 + chance.uniform(-0.1, 0.4):
                told.add(run)
                peer.signal(run)
        time.sleep(0.002)
    found = peer.judge(runs)
    words = {word: len({e.run for e in peer.entries(word)}) for word in ("in", "late", "never")}
    found.hits = min(words["in"], words["late"])
    found.lost += words["never"]
    found.remarks.insert(0, f"{words['in']} in time, {words['late']} late")
    return found


SCENARIOS = (killed, abandoned, early_zombie, late_zombie, restarts, cuts, two_recoverers, races)
HEAD = """| | hit | lost | ended twice | begun again | p50 s | max s | |
|---|---|---|---|---|---|---|---|"""
TEXT = """# The same faults, beside other libraries

Written by `python -m tests.faults.peers`, where the faults are described; {versions}. One machine, {cores} cores,
shared with other work; seed {seed}. PostgreSQL 18 on loopback, with fsync; two workers of eight slots. DBOS and Absurd
poll every 0.1 s, and Absurd's claims last 5 s (120 by default); all else is the default. A worker that ends is
started again at once.

- *hit*: what the fault hit: bodies in a killed worker, crashes, cuts; of races, the rarer outcome.
- *lost*: runs that had not ended {patience:g} s later (40 s, where nobody comes back).
- *ended twice*, *begun again*: bodies of steps, by a ledger that no library knows of. Those that were cut short must
  begin again; a body that a zombie was in ends twice by necessity.
- *p50*, *max*: from the fault until a body that was cut short was begun again.

DBOS recovers the runs of an executor when one of the same name starts; nobody else does by itself, unless its Conductor
is used, which was not. So whoever takes over here has the name of who is gone. Neither DBOS nor Absurd has a call that
tells whether a late write was refused: what is told of zombies is what happened next.
"""


def play(scenario: Callable[[Peer, random.Random], Outcome], name: str, python: Path | str, seed: int) -> str:
    """One peer in one scenario: a row."""
    with Services.start() as services, tempfile.TemporaryDirectory() as folder:
        peer = Peer(name, python, services, Path(folder))
        try:
            found = scenario(peer, random.Random(seed))
        except AssertionError:
            for log in Path(folder).glob("*.log"):
                print(log.name, log.read_text()[-2000:], file=sys.stderr)
            raise
        finally:
            peer.close()
    times = found.recovery
    spread = (f"{statistics.median(times):.1f}", f"{max(times):.1f}") if times else ("", "")
    counts = (found.hits, found.lost, found.doubled, found.again, *spread, "; ".join(filter(None, found.remarks)))
    return f"| {name} | {' | '.join(map(str, counts))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, help="the folder with the peers' environments")
    parser.add_argument("--only", help="a scenario, whose rows are printed and not written")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    pythons: dict[str, Path | str] = {"pickaxe": sys.executable}
    pythons |= {
        name: options.venvs / name / "bin" / "python" for name in PACKAGES if options.venvs and name != "pickaxe"
    }
    lines = []
    for scenario in SCENARIOS:
        lines += ["", f"**{(scenario.__doc__ or '').rstrip('.')}**", "", HEAD]
        for name, python in pythons.items():
            if options.only in (None, scenario.__name__):
                lines.append(play(scenario, name, python, options.seed))
                print(scenario.__name__, lines[-1], flush=True)
    if options.only is None:
        versions = ", ".join(_version(name, python) for name, python in pythons.items())
        head = TEXT.format(versions=versions, cores=os.cpu_count(), seed=options.seed, patience=PATIENCE)
        TARGET.write_text("\n".join([head.rstrip(), *lines, ""]))


def _version(name: str, python: Path | str) -> str:
    code = f"import importlib.metadata as m; print(m.version({PACKAGES[name]!r}))"
    return (
        f"{name} {subprocess.run([str(python), '-c', code], capture_output=True, text=True, check=True).stdout.strip()}"
    )


if __name__ == "__main__":
    main()
