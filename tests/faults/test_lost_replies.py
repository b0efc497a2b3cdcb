"""The connection is cut after Postgres has committed and before it could say so. The statement is tried again."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from pickaxe import Settings
from pickaxe.authoring._handles import EnqueueOptions
from pickaxe.client import Client
from pickaxe.store._database import sql
from tests.faults.app import ask_after, expected, program
from tests.faults.fleet import Fleet
from tests.faults.proxy import Proxy
from tests.faults.report import Report


def words_of(statement: str) -> str:
    """What a statement's text has between two of its parameters, and no other has."""
    return max(re.split(r"(?<!:):\w+|\n", sql(statement)), key=len)


OFTEN = ["advance", "claim", "settle", "commit"]
RARELY = ["retry_step", "beat", "due_steps", "due_timers"]


@pytest.fixture
def proxy(fleet: Fleet, seed: int) -> Iterator[Proxy]:
    with Proxy(fleet.database_url, seed=seed) as proxy:
        yield proxy


@pytest.mark.timeout(60)
@pytest.mark.scenario(3)
@pytest.mark.parametrize("statement", [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in RARELY)])
def test_a_workers_statement_whose_answer_is_lost_was_carried_out_once(
    fleet: Fleet, proxy: Proxy, seed: int, report: Report, statement: str
) -> None:
    chance = random.Random(seed)
    run = fleet.enqueue(program, 3, answer=11)
    proxy.lose_reply(words_of(statement), nth=chance.randint(1, 4) if statement in OFTEN else 1)
    # Where every call and every reduction has its own message, there is no `advance`.
    mode = {"PICKAXE_CONTINUATION": "resume"} if statement == "advance" else {}
    fleet.start("far", environment=mode | {"PICKAXE_DATABASE_URL": proxy.url})
    assert fleet.results([run]) == [expected(3, 11)]
    report(hits=proxy.hits["replies lost"], verdict=fleet.check(), statement=statement)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.scenario(3)
def test_every_third_answer_to_a_commit_is_lost_and_every_run_ends_right(
    fleet: Fleet, proxy: Proxy, report: Report
) -> None:
    runs = [fleet.enqueue(program, n, answer=n) for n in range(4)]
    for nth in range(1, 60, 3):
        for statement in OFTEN:
            proxy.lose_reply(words_of(statement), nth=nth)
    for name in ("one", "two"):
        fleet.start(name, pool="threads", concurrency=3, environment={"PICKAXE_DATABASE_URL": proxy.url})
    assert fleet.results(runs) == [expected(n, n) for n in range(4)]
    report(hits=proxy.hits["replies lost"], verdict=fleet.check())
    assert proxy.hits["replies lost"] > 5


@pytest.mark.timeout(60)
@pytest.mark.scenario(3)
def test_a_clients_run_and_signal_whose_answers_are_lost_are_there_once(
    fleet: Fleet, proxy: Proxy, report: Report
) -> None:
    client = Client(Settings(_env_file=None, database_url=proxy.url, redis_url=fleet.redis_url))  # type: ignore[call-arg, arg-type]
    proxy.lose_reply(words_of("enqueue"), nth=2)
    options = EnqueueOptions(idempotency_key="once"), EnqueueOptions()
    runs = [client.enqueue(ask_after, [((2,), {})], [option])[0] for option in options]
    assert client.enqueue(ask_after, [((2,), {})], [options[0]])[0].id == runs[0].id
    proxy.lose_reply(words_of("send_signal"), nth=1)
    proxy.lose_reply(words_of("send_signal"), nth=3)
    for run in runs:
        for number in range(2):
            run.signal("answer", number)
    client.close()
    fleet.start("one")
    fleet.runs += runs
    assert fleet.results([fleet.client.run(run.id) for run in runs]) == [[0, 1], [0, 1]]
    assert fleet.query("SELECT count(*) FROM pickaxe.run") == [(2,)]
    assert fleet.query("SELECT count(*) FROM pickaxe.signal") == [(4,)]
    report(hits=proxy.hits["replies lost"], verdict=fleet.check())
    assert proxy.hits["replies lost"] == 3
