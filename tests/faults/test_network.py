"""The network between a worker and its services: silent, flapping, slow, half-open; for Postgres, Redis, or both."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.app import expected, expected_load, load, program
from tests.faults.fleet import Fleet, eventually
from tests.faults.proxy import Proxy
from tests.faults.report import Report, Verdict

pytestmark = [pytest.mark.timeout(120), pytest.mark.scenario(20)]

LOAD = 10


@dataclass
class Far:
    """A fleet of two: `near` is beside the services, `far` behind proxies. At default settings."""

    fleet: Fleet
    proxies: dict[str, Proxy]
    runs: list[Any]
    more: Any

    def start(self, **more: str) -> None:
        """`more` are variables of the far worker."""
        fleet, url = self.fleet, {name: proxy.url for name, proxy in self.proxies.items()}
        names = {"postgres": "PICKAXE_DATABASE_URL", "redis": "PICKAXE_REDIS_URL"}
        environment = {names[name]: value for name, value in url.items()} | more
        self.far = fleet.start("far", pool="threads", concurrency=4, environment=environment)
        self.near = fleet.start("near", pool="threads", concurrency=4)
        self.more = fleet.enqueue(program, 2, answer=9)
        self.runs = fleet.enqueue_many(load, [(n, 0.3) for n in range(LOAD)])
        eventually(lambda: fleet.running(self.far.pid), "the far worker runs something")

    def finish(self) -> Verdict:
        assert self.fleet.results([self.more]) == [expected(2, 9)]
        assert self.fleet.results(self.runs) == [expected_load(n) for n in range(LOAD)]
        verdict = self.fleet.check()
        assert not self.near.has_died()
        # The far worker takes part again.
        seen = len([e for e in self.fleet.entries("start") if e.pid == self.far.pid])

        def takes_part() -> bool:
            self.fleet.results(self.fleet.enqueue_many(load, [(n, 0.0) for n in range(4)]))
            return len([e for e in self.fleet.entries("start") if e.pid == self.far.pid]) > seen

        eventually(takes_part, "the far worker works again", 40)
        return verdict


@pytest.fixture
def far(services: Any, tmp_path: Path, seed: int, request: pytest.FixtureRequest) -> Iterator[Callable[..., Far]]:
    with contextlib.ExitStack() as stack:

        def make(*targets: str) -> Far:
            fleet = stack.enter_context(Fleet(services.database_url, services.redis_url, tmp_path, settings={}))
            request.node.fleet = fleet
            urls = {"postgres": services.database_url, "redis": services.redis_url}
            proxies = {name: stack.enter_context(Proxy(urls[name], seed=seed)) for name in targets}
            return Far(fleet, proxies, [], None)

        yield make


TARGETS = [("postgres",), ("redis",), ("postgres", "redis")]


def hits(far: Far, what: str) -> int:
    """How often it hit, in the proxy where it hit least."""
    return min(proxy.hits[what] for proxy in far.proxies.values())


@pytest.mark.parametrize(
    "targets", [*(pytest.param(t, marks=pytest.mark.slow) for t in TARGETS[:2]), TARGETS[2]], ids="+".join
)
def test_silence_for_seconds_costs_no_more_than_that(
    far: Callable[..., Far], seed: int, report: Report, targets: tuple[str, ...]
) -> None:
    world, chance = far(*targets), random.Random(seed)
    world.start()
    moment = world.fleet.moment(pid=world.far.pid)
    length = chance.uniform(2, 8)
    for proxy in world.proxies.values():
        proxy.blackhole()
    time.sleep(length)  # the length of the fault
    for proxy in world.proxies.values():
        proxy.heal()
    verdict = world.finish()
    report(hits=hits(world, "held"), verdict=verdict, recovery=world.fleet.recovery(moment), silence=length)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_postgres_that_hears_and_is_not_heard_or_the_other_way_round(
    far: Callable[..., Far], report: Report, direction: Any
) -> None:
    world = far("postgres")
    world.start()
    moment = world.fleet.moment(pid=world.far.pid)
    world.proxies["postgres"].blackhole(direction)
    time.sleep(5)  # the length of the fault
    world.proxies["postgres"].heal()
    verdict = world.finish()
    report(hits=hits(world, "held"), verdict=verdict, recovery=world.fleet.recovery(moment))


@pytest.mark.slow
@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_connections_that_are_cut_again_and_again_cost_no_run(
    far: Callable[..., Far], seed: int, report: Report, targets: tuple[str, ...]
) -> None:
    world, chance = far(*targets), random.Random(seed)
    world.start()
    moment = world.fleet.moment(pid=world.far.pid)
    until = time.monotonic() + 4
    while time.monotonic() < until:
        for proxy in world.proxies.values():
            proxy.cut(reset=chance.random() < 0.5)
            if chance.random() < 0.5:
                proxy.refuse()
        time.sleep(chance.uniform(0.05, 0.5))  # the rhythm of the fault
        for proxy in world.proxies.values():
            proxy.heal()
        time.sleep(chance.uniform(0.05, 0.5))
    verdict = world.finish()
    report(hits=hits(world, "cut"), verdict=verdict, recovery=world.fleet.recovery(moment))


@pytest.mark.slow
@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_two_seconds_of_latency_and_lost_packets_only_slow_it_down(
    far: Callable[..., Far], report: Report, targets: tuple[str, ...]
) -> None:
    world = far(*targets)
    world.start()
    for proxy in world.proxies.values():
        proxy.delay(1.0, 0.3)
        proxy.stutter(0.3, 0.5)
    time.sleep(6)  # the length of the fault
    for proxy in world.proxies.values():
        proxy.heal()
    verdict = world.finish()
    report(hits=hits(world, "delayed"), verdict=verdict)


@pytest.mark.slow
@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_half_open_connections_are_noticed_and_replaced(
    far: Callable[..., Far], report: Report, targets: tuple[str, ...]
) -> None:
    world = far(*targets)
    world.start()
    moment = world.fleet.moment(pid=world.far.pid)
    for proxy in world.proxies.values():
        proxy.forget()
    verdict = world.finish()
    report(hits=hits(world, "forgotten"), verdict=verdict, recovery=world.fleet.recovery(moment))


@pytest.mark.parametrize(
    "targets", [TARGETS[0], *(pytest.param(t, marks=pytest.mark.slow) for t in TARGETS[1:])], ids="+".join
)
def test_connections_that_acknowledge_everything_and_never_answer_are_given_up_and_replaced(
    far: Callable[..., Far], report: Report, targets: tuple[str, ...]
) -> None:
    """TCP finds nothing wrong with them."""
    world = far(*targets)
    world.start(PICKAXE_ANSWER_WITHIN="3")
    moment = world.fleet.moment(pid=world.far.pid)
    assert all(proxy.mute() for proxy in world.proxies.values())
    verdict = world.finish()
    if "postgres" in targets:
        assert world.far.has_said("Postgres did not answer within 3 s")
    report(hits=hits(world, "unanswered"), verdict=verdict, recovery=world.fleet.recovery(moment))
