"""The crash clock: a process dies before and after each commit and publish, at each time that it passes there.

A run without deaths is recorded first: which places it passes, and how often. Then the same run is started once for
each of these moments, by a worker that dies at it; another worker, or a third one, brings it to its end.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.faults import app, places
from tests.faults.fleet import FAST, Fleet, WorkerProcess, eventually
from tests.faults.one_client import TOLD
from tests.services import isolated_database, isolated_redis

MODES = ("plain", "resume", "inline")
"""The ways in which an agent goes on: PICKAXE_CONTINUATION."""

AT_ONCE = 4
"""Clocks that run side by side: most of the time of each is waiting."""

FOR_EVER = {"sweep", "reclaim", "purge"}
"""Passed all the time, whatever the run does: a few times will do."""

RUN = (3, 11)


@dataclass(frozen=True)
class Moment:
    """The `time`th time that a process gets to this place."""

    place: str
    time: int

    def __str__(self) -> str:
        return f"{self.place}@{self.time}"


@dataclass
class Struck:
    """What a clock did: the moments that killed somebody."""

    deaths: list[Moment]
    missed: list[Moment]


@pytest.fixture
def clocks(template: str, tmp_path: Path) -> Clocks:
    return Clocks(template, tmp_path)


@dataclass
class Clocks:
    """Each has a database, a Redis and a run of its own."""

    template: str
    folder: Path

    @contextmanager
    def fleet(self, name: str, mode: str) -> Iterator[Fleet]:
        folder = self.folder / name
        folder.mkdir()
        with ExitStack() as stack:
            url = stack.enter_context(isolated_database(self.template))
            settings = {**FAST, "PICKAXE_CONTINUATION": mode}
            fleet = stack.enter_context(Fleet(url, isolated_redis(), folder, settings))
            try:
                yield fleet
            except BaseException as error:
                raise AssertionError(f"{name}: {error}\n{fleet.story()}") from error

    def record(self, mode: str) -> Counter[str]:
        """How often each place is passed when nobody dies."""
        with self.fleet(f"recorded-{mode}", mode) as fleet:
            counts = fleet.folder / "counts"
            run = fleet.enqueue(app.clockwork, RUN[0], answer=RUN[1])
            fleet.start("recorder", environment=counting(counts), wait=False)
            assert fleet.results([run]) == [app.expected_clockwork(*RUN)]
            return Counter(counts.read_text().split())

    def strike(self, mode: str, moments: Sequence[Moment]) -> Struck:
        """One worker after the other dies at its moment, and the last one lives."""
        name = "-".join(map(str, moments))
        struck = Struck([], [])
        with self.fleet(f"{mode}-{name}", mode) as fleet:
            run = fleet.enqueue(app.clockwork, RUN[0], answer=RUN[1])
            for number, moment in enumerate(moments):
                armed = {"PICKAXE_FAILPOINTS": f"{moment.place}=kill@{moment.time}"}
                victim = fleet.start(f"victim{number}", environment=armed, wait=False)
                eventually(lambda v=victim: v.has_died() or over(run), f"a worker dies at {moment}", 40)
                (struck.deaths if killed(victim) else struck.missed).append(moment)
            fleet.start("heir", wait=False)
            assert fleet.results([run]) == [app.expected_clockwork(*RUN)]
            fleet.check()
        return struck

    def strike_all(self, mode: str, clocks: Sequence[Sequence[Moment]]) -> list[Struck]:
        """Some at a time. All are heard before any is complained about."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures = [pool.submit(self.strike, mode, moments) for moments in clocks]
        failed = [error for future in futures if (error := future.exception()) is not None]
        assert not failed, "\n\n".join([f"{len(failed)} of {len(clocks)} clocks broke something", *map(str, failed)])
        return [future.result() for future in futures]


def counting(counts: Path) -> dict[str, str]:
    counts.touch()
    return {"PICKAXE_FAILPOINTS": "*=count", "PICKAXE_FAILPOINT_COUNTS": str(counts)}


def killed(process: WorkerProcess) -> bool:
    """Whether it died at its place: nobody else kills here, and who is not killed leaves with another number."""
    if not process.has_died():
        return False
    assert process.process.returncode == -9, process.text()
    return True


def over(run: Any) -> bool:
    return bool(run.status.terminal)


def moments_of(passes: Counter[str]) -> list[Moment]:
    return [Moment(place, time) for place in sorted(passes) for time in range(1, passes_of(place, passes) + 1)]


def passes_of(place: str, passes: Counter[str]) -> int:
    return min(passes[place], 3 if place.partition(".")[0] in FOR_EVER else passes[place])


def told(struck: Sequence[Struck]) -> str:
    deaths = [moment for one in struck for moment in one.deaths]
    missed = [moment for one in struck for moment in one.missed]
    return f"{len(deaths)} workers died, at {' '.join(map(str, deaths))}; not at {' '.join(map(str, missed)) or '-'}"


@cache
def _recorded(template: str, mode: str, folder: Path) -> Counter[str]:
    return Clocks(template, folder).record(mode)


@pytest.fixture
def passes(template: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Counter[str]]:
    """The recorded passes of each mode: recorded once."""
    folder = tmp_path_factory.getbasetemp()
    return lambda mode: _recorded(template, mode, folder)


@pytest.mark.timeout(120)
def test_the_clock_passes_every_place_there_is(passes: Callable[[str], Counter[str]], evidence: Any) -> None:
    passed = sum((passes(mode) for mode in MODES), Counter())
    expected = set(places.ENGINE) - (set(places.SET_ASIDE) - set(passed))
    assert set(passed) == expected, "give `clockwork` something that passes there"
    evidence({mode: sum(passes(mode).values()) for mode in MODES}, "passes")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", MODES)
def test_a_worker_dies_at_some_moments_and_the_run_comes_to_the_same(
    clocks: Clocks, passes: Callable[[str], Counter[str]], seed: int, evidence: Callable[..., None], mode: str
) -> None:
    singles = random.Random(seed).sample(moments_of(passes(mode)), 4)
    struck = clocks.strike_all(mode, [[moment] for moment in singles])
    evidence(mode, told(struck))
    assert sum(bool(one.deaths) for one in struck) >= len(struck) / 2


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", MODES)
def test_a_worker_dies_at_one_moment_and_its_heir_at_another_and_the_run_comes_to_the_same(
    clocks: Clocks, passes: Callable[[str], Counter[str]], seed: int, evidence: Callable[..., None], mode: str
) -> None:
    chance = random.Random(seed)
    moments = moments_of(passes(mode))
    pairs = [[chance.choice(moments), Moment(chance.choice(list(passes(mode))), 1)] for _ in range(4)]
    struck = clocks.strike_all(mode, pairs)
    evidence(mode, told(struck))
    assert sum(len(one.deaths) for one in struck) >= len(struck)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
def test_a_worker_dies_at_every_moment_and_the_run_comes_to_the_same(
    clocks: Clocks, passes: Callable[[str], Counter[str]], evidence: Callable[..., None], mode: str
) -> None:
    moments = moments_of(passes(mode))
    struck = clocks.strike_all(mode, [[moment] for moment in moments])
    hits = Counter(moment.place for one in struck for moment in one.deaths)
    evidence(f"{mode}: {sum(hits.values())} of {len(moments)} moments struck: {dict(sorted(hits.items()))}")
    assert set(hits) == set(passes(mode))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("share", range(len(MODES)))
def test_a_worker_and_its_heir_die_at_every_two_places_and_the_run_comes_to_the_same(
    clocks: Clocks, passes: Callable[[str], Counter[str]], seed: int, evidence: Callable[..., None], share: int
) -> None:
    """Each mode gets a third of the pairs, which third depends on the seed."""
    mode, chance = MODES[(share + seed) % len(MODES)], random.Random(seed)
    counts = passes(mode)
    pairs = [
        [Moment(first, chance.randint(1, passes_of(first, counts))), Moment(second, 1)]
        for first in sorted(counts)
        for second in sorted(counts)
    ][share :: len(MODES)]
    struck = clocks.strike_all(mode, pairs)
    both = sum(len(one.deaths) == 2 for one in struck)
    evidence(f"{mode}: {both} of {len(pairs)} pairs struck twice")
    assert both > len(pairs) / 2


# Clients.


@dataclass
class ClientClock:
    """A client that dies while it speaks, and another that says it all again."""

    fleet: Fleet
    paused: Any

    def start(self, **environment: str) -> WorkerProcess:
        client = self.fleet.start_client({"PICKAXE_TEST_PAUSED": self.paused.id, **environment})
        eventually(client.has_died, "the client has said everything, or has died")
        return client

    def accepted(self) -> dict[str, str]:
        """What is known of its runs, by agent."""
        rows = self.fleet.query("SELECT agent, state FROM pickaxe.run WHERE idempotency_key = 'the only one'")
        states = dict(rows)
        assert len(states) == len(rows), f"an agent has several runs: {rows}"
        return states


@contextmanager
def client_clock(clocks: Clocks, name: str) -> Iterator[ClientClock]:
    """A fleet without workers, and a run that is paused and that a person may let go on."""
    with clocks.fleet(name, "plain") as fleet:
        run = fleet.enqueue(app.changed, 3)
        worker = fleet.start("old", wait=False)
        eventually(lambda: any(step.kind == "signal" for step in run.steps()), "it waits")
        worker.kill()
        run.signal("answer")
        worker = fleet.start("new", environment={"PICKAXE_TEST_CHANGED": "1"}, wait=False)
        eventually(lambda: run.status == "paused", "it is paused")
        worker.kill()
        yield ClientClock(fleet, run)


def client_passes(clocks: Clocks) -> Counter[str]:
    with client_clock(clocks, "recorded-client") as clock:
        counts = clock.fleet.folder / "counts"
        assert clock.start(**counting(counts)).process.returncode == 0, clock.fleet.story()
        return Counter(counts.read_text().split())


@pytest.mark.timeout(120)
def test_a_client_dies_where_it_writes_and_what_was_accepted_happens_once(
    clocks: Clocks, seed: int, evidence: Callable[..., None]
) -> None:
    passes = client_passes(clocks)
    assert set(places.CLIENT) <= set(passes), "let `one_client` say something that passes there"
    _clients_die(clocks, random.Random(seed).sample(moments_of(passes), 5), evidence)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_client_dies_wherever_it_writes_and_what_was_accepted_happens_once(
    clocks: Clocks, evidence: Callable[..., None]
) -> None:
    _clients_die(clocks, moments_of(client_passes(clocks)), evidence)


def _clients_die(clocks: Clocks, moments: Sequence[Moment], evidence: Callable[..., None]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda moment: _client_dies(clocks, moment), moments))
    told = " ".join(f"{moment} ({count})" for moment, count in zip(moments, found, strict=True))
    evidence(f"clients died, with so many of their runs accepted: {told}")


def _client_dies(clocks: Clocks, moment: Moment) -> int:
    with client_clock(clocks, f"client-{moment}") as clock:
        fleet = clock.fleet
        assert killed(clock.start(PICKAXE_FAILPOINTS=f"{moment.place}=kill@{moment.time}")), f"not at {moment}"
        before, resumed = clock.accepted(), clock.paused.status == "ready"
        fleet.start("worker", wait=False)
        # What was accepted needs nobody to say it again.
        if "kid" in before:
            eventually(lambda: clock.accepted()["kid"] == "succeeded", "the accepted run ends")
        if before.get("endless") == "cancelled":
            assert clock.accepted()["endless"] == "cancelled"
        if resumed:
            assert fleet.results([clock.paused]) == [3]
        assert clock.start().process.returncode == 0, fleet.story()
        fleet.check()
        assert clock.accepted() == {"kid": "succeeded", "told": "succeeded", "endless": "cancelled"}
        [[output]] = fleet.query("SELECT output::json FROM pickaxe.run WHERE agent = 'told'")
        assert output == TOLD
        assert fleet.results([clock.paused]) == [3]
        assert fleet.query("SELECT count(*) FROM pickaxe.signal WHERE name = 'answer'") == [(2,)]
        return len(before)
