"""A fleet per test, see `fleet.py`; servers that a test may break; and the table in the end, see `report.py`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pickaxe.embedded import Services
from pickaxe.store import Database, migrate
from tests.faults.fleet import Fleet, cool_down, warm_up
from tests.faults.report import Report, Table, attach, scenarios_of
from tests.transitions import check, watch


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Table(), "faults")


@pytest.fixture(scope="session", autouse=True)
def warm_processes() -> Iterator[None]:
    """Worker processes that have imported everything, ready to be used."""
    warm_up()
    yield
    cool_down()


@pytest.fixture
def fleet(services: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A fleet with a database and a Redis of its own, and no workers yet."""
    with Fleet(services.database_url, services.redis_url, tmp_path) as own:
        request.node.fleet = own
        yield own


@pytest.fixture
def watched(services: Any) -> Iterator[None]:
    """Every change of state in the test's database is one of the transition tables."""
    watch(services.database_url)
    yield
    check(services.database_url)


@pytest.fixture
def own_services() -> Iterator[Services]:
    """Servers of this test's own, to be broken."""
    with Services.start(durable=False) as services:
        database = Database(services.database_url)
        migrate(database)
        database.close()
        yield services


@pytest.fixture
def own_fleet(own_services: Services, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A fleet on servers of its own."""
    with Fleet(own_services.database_url, own_services.redis_url, tmp_path) as fleet:
        request.node.fleet = fleet
        yield fleet


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What this test's random choices come from: printed, and repeated by setting PICKAXE_TEST_SEED."""
    chosen = int(os.environ.get("PICKAXE_TEST_SEED") or random.SystemRandom().randrange(2**31))
    print(f"{request.node.name}: PICKAXE_TEST_SEED={chosen}")
    return chosen


@pytest.fixture
def evidence(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Says, in the test's output, how the fault hit."""

    def tell(*words: object) -> None:
        with capsys.disabled():
            print("\n   ", *words, end="")

    return tell


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Takes what came of a scenario, see `report.py`."""
    request.node.fault_report = found = Report(request.node)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test of a scenario that proves no hit fails."""
    outcome = yield
    found: Report | None = getattr(item, "fault_report", None)
    if scenarios_of(item) and (found is None or not found.rows):
        pytest.fail(f"{item.name} plays scenario {scenarios_of(item)} and did not report that its fault hit")
    return outcome


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A test that fails shows what its fleet has left, and the ends of its workers' logs."""
    report = yield
    fleet = getattr(item, "fleet", None)
    if fleet is not None and report.when == "call" and report.failed:
        report.sections.append(("fleet", fleet.story()))
    attach(item, report, getattr(item, "fault_report", None))
    return report
