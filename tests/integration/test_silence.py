"""A Postgres that takes a statement and says nothing more."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pickaxe.errors import ServiceUnavailableError
from pickaxe.store import Database
from pickaxe.store._transactions import tool_transaction


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, patience=0, answer_within=0.5)
    yield database
    database.close()


def silent(database: Database, seconds: float) -> object:
    return database.patiently(lambda: database._run("SELECT pg_sleep(%(s)s)", {"s": seconds}))


def test_a_statement_without_an_answer_is_given_up_and_the_next_one_has_a_connection_of_its_own(
    database: Database,
) -> None:
    before = database._run("SELECT pg_backend_pid()", {})[0][0]
    began = time.monotonic()
    with pytest.raises(ServiceUnavailableError, match=r"Postgres did not answer within 0\.5 s"):
        silent(database, 30)
    assert time.monotonic() - began < 5
    assert database._run("SELECT pg_backend_pid()", {})[0][0] != before


def test_after_one_silence_the_idle_connections_beside_it_are_not_asked_any_more(database: Database) -> None:
    held = [database.engine.connect() for _ in range(3)]
    pids = [connection.execute(text("SELECT pg_backend_pid()")).scalar() for connection in held]
    for connection in held:
        connection.close()
    with pytest.raises(ServiceUnavailableError):
        silent(database, 30)
    assert database._run("SELECT pg_backend_pid()", {})[0][0] not in pids


def test_a_transaction_without_an_answer_is_given_up_too(database: Database) -> None:
    with pytest.raises(ServiceUnavailableError, match="did not answer"):
        database.transaction(lambda connection: connection.execute(text("SELECT pg_sleep(30)")))


def test_an_answer_that_goes_on_coming_may_take_as_long_as_it_likes(database: Database) -> None:
    slowly = "SELECT repeat('x', 100000), pg_sleep(0.2) FROM generate_series(1, 6)"
    assert len(database._run(slowly, {})) == 6


def test_a_tools_own_statements_may_take_as_long_as_they_like_and_the_end_of_its_transaction_may_not(
    database: Database,
) -> None:
    with tool_transaction(database, "a tool") as transaction:
        connection = transaction.give(psycopg.Connection)
        assert connection.execute("SELECT pg_sleep(1.2)").fetchall()
    assert connection.answer_within == database.answer_within
    with database.tool_engine.connect() as again, pytest.raises(DBAPIError, match="did not answer"):
        again.execute(text("SELECT pg_sleep(30)"))
