"""Transactional tools: what they do is committed with their result by Pickaxe, and by nobody else."""

from __future__ import annotations

import contextlib
import threading
import uuid
from dataclasses import replace

import psycopg
import pytest
import sqlalchemy
import sqlmodel
from psycopg.rows import dict_row
from sqlalchemy.orm import Session

from pickaxe import Pickaxe, Retry, agent, inject, tool
from pickaxe.engine import _claims, _effects, _work
from pickaxe.engine._stint import Stint
from pickaxe.engine._sweeper import sweep
from pickaxe.errors import RunFailedError
from pickaxe.store import ToolTransaction
from tests.proxy import proxied
from tests.unit.test_docs_examples import load
from tests.workers import eventually

OVERDUE = """UPDATE pickaxe.step SET due = now(),
    options = '{{"effect": "transactional", "timeout": 0.1, "attempts": {}}}'"""
SLEEPING = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND application_name LIKE 'pickaxe %'"
INSERT = "INSERT INTO public.effect VALUES (1)"


def in_a_with(connection):
    with connection:
        pass


def swallowed(call):
    with contextlib.suppress(Exception):
        call()


def in_savepoint(connection: psycopg.Connection) -> None:
    with contextlib.suppress(psycopg.Error), connection.transaction():
        connection.execute("SELECT 1/0")


def nested(connection: sqlalchemy.Connection | Session) -> None:
    with connection.begin_nested() as savepoint:
        savepoint.rollback()


def fail(_connection: object) -> None:
    raise ValueError("on purpose")


def leave_state(connection: psycopg.Connection) -> None:
    connection.row_factory = dict_row  # type: ignore[assignment]
    connection.execute("SET search_path = nowhere")
    connection.execute("SET application_name = 'mine'")
    connection.execute("SELECT pg_advisory_lock(4711)")
    connection.execute("CREATE TEMP TABLE mine (n integer)")


ANY = {
    "commit": lambda c: c.commit(),
    "rollback": lambda c: c.rollback(),
    "close": lambda c: c.close(),
    "with": in_a_with,
    "raise": fail,
    "nothing else": lambda c: None,
}
PSYCOPG = ANY | {
    "commit by SQL": lambda c: c.execute("COMMIT"),
    "rollback by SQL": lambda c: c.execute("ROLLBACK"),
    "commit and begin by SQL": lambda c: (c.execute("COMMIT"), c.execute("BEGIN")),
    "swallow": lambda c: swallowed(c.commit),
    "broken": lambda c: swallowed(lambda: c.execute("SELECT 1/0")),
    "savepoint": in_savepoint,
    "state": leave_state,
    "deferred": lambda c: c.execute("INSERT INTO public.child VALUES (99)"),
}
SQLALCHEMY = ANY | {
    "commit by SQL": lambda c: c.exec_driver_sql("COMMIT"),
    "swallow": lambda c: (swallowed(c.commit), c.exec_driver_sql("SELECT 1")),
    "transaction": lambda c: c.get_transaction().commit(),
    "savepoint": nested,
}
SESSION = ANY | {"savepoint": nested}


@tool(effect="transactional", name="psycopg")
def by_psycopg(how: str, connection: psycopg.Connection[tuple[object, ...]] = inject()) -> str:
    connection.execute(INSERT)
    PSYCOPG[how](connection)
    return "done"


@tool(effect="transactional", name="sqlalchemy")
def by_sqlalchemy(how: str, connection: sqlalchemy.Connection = inject()) -> str:
    connection.exec_driver_sql(INSERT)
    SQLALCHEMY[how](connection)
    return "done"


@tool(effect="transactional", name="session")
def by_session(how: str, session: sqlmodel.Session = inject()) -> str:
    assert isinstance(session, sqlmodel.Session)
    session.execute(sqlalchemy.text(INSERT))
    SESSION[how](session)
    return "done"


@tool(effect="transactional", name="wrong")
def promises_otherwise(how: str, connection: psycopg.Connection = inject()) -> int:
    connection.execute(INSERT)
    return how  # type: ignore[return-value]


@tool(effect="transactional", name="conflicts", retries=Retry(attempts=2, backoff=0.0))
def conflicts(how: str, connection: psycopg.Connection = inject()) -> str:
    connection.execute(INSERT)
    if not ATTEMPTS.append(how) and len(ATTEMPTS) == 1:
        raise psycopg.errors.SerializationFailure("try again")
    return "done"


@tool(effect="transactional", timeout=0.1)
def slow(how: str, connection: psycopg.Connection = inject()) -> str:
    connection.execute(INSERT)
    connection.execute("SELECT pg_sleep(60)")
    return how


ATTEMPTS: list[str] = []
TOOLS = {handle.name: handle for handle in (by_psycopg, by_sqlalchemy, by_session, promises_otherwise, conflicts, slow)}


@agent
async def uses(which: str, how: str) -> str:
    return await TOOLS[which](how)


def make_app(services):
    return Pickaxe(
        "transactions", agents=[uses], tools=list(TOOLS.values()), settings=services.settings(continuation="plain")
    )


@pytest.fixture
def app(services):
    execute(services.database_url, "CREATE TABLE public.effect (n integer)")
    execute(services.database_url, "CREATE TABLE public.parent (n integer PRIMARY KEY)")
    execute(
        services.database_url,
        "CREATE TABLE public.child (n integer REFERENCES public.parent DEFERRABLE INITIALLY DEFERRED)",
    )
    ATTEMPTS.clear()
    app = make_app(services)
    yield app
    app.client.close()


def execute(url, text):
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        cursor = connection.execute(text)
        return cursor.fetchall() if cursor.description else []


def effects(services):
    return execute(services.database_url, "SELECT count(*) FROM public.effect")[0][0]


def advance(app, run):
    _work.reduce(app.engine, uuid.UUID(run.id))


def perform(attempt):
    _work.work_off([attempt], Stint(attempt.engine))


def attempt(app, which, how, number=1, run=None):
    """An attempt that this process has claimed."""
    if run is None:
        run = uses.enqueue(which, how)
        advance(app, run)
    app.engine.store.register_worker(app.engine.owner, name="here", pid=1, handles=[])
    message = {"run": run.id, "step": f"{which}#1", "attempt": number}
    return run, _claims.claim(app.engine, TOOLS[which].spec, message)


def outcome(app, which, how):
    run, claimed = attempt(app, which, how)
    perform(claimed)
    advance(app, run)
    try:
        return run.result(timeout=30)
    except RunFailedError as error:
        return str(error)


@pytest.mark.parametrize("which", ["psycopg", "sqlalchemy", "session"])
def test_the_effect_is_committed_with_the_result(app, services, which):
    assert outcome(app, which, "nothing else") == "done"
    assert effects(services) == 1


@pytest.mark.parametrize(("which", "how"), [
    *(("psycopg", how) for how in ("commit", "rollback", "close", "with", "swallow")),
    *(("sqlalchemy", how) for how in ("commit", "rollback", "close", "with", "swallow", "transaction")),
    *(("session", how) for how in ("commit", "rollback", "with")),
])  # fmt: skip
def test_a_tool_that_ends_its_transaction_itself_fails_and_nothing_of_it_is_left(app, services, which, how):
    assert "TransactionError: a transactional tool must not commit" in outcome(app, which, how)
    assert effects(services) == 0
    assert outcome(app, which, "nothing else") == "done", "its connection is as good as new"


@pytest.mark.parametrize(("which", "how", "left"), [
    ("psycopg", "commit by SQL", 1), ("psycopg", "rollback by SQL", 0), ("psycopg", "commit and begin by SQL", 1),
    ("sqlalchemy", "commit by SQL", 1),
])  # fmt: skip
def test_a_tool_that_ends_its_transaction_by_sql_fails_for_good_and_is_told_why(app, services, which, how, left):
    assert "TransactionError: the tool ended its transaction with an SQL statement" in outcome(app, which, how)
    assert effects(services) == left
    assert outcome(app, which, "nothing else") == "done"


def test_a_tool_that_swallows_an_sql_error_fails_and_one_that_uses_a_savepoint_does_not(app, services):
    assert "TransactionError: the tool caught an SQL error" in outcome(app, "psycopg", "broken")
    assert effects(services) == 0
    for number, which in enumerate(("psycopg", "sqlalchemy", "session"), start=1):
        assert outcome(app, which, "savepoint") == "done"
        assert effects(services) == number


@pytest.mark.parametrize(("which", "how", "error"), [
    *((which, "raise", "ValueError: on purpose") for which in ("psycopg", "sqlalchemy", "session")),
    ("wrong", "no number", "OutputError: the result of tool 'wrong'"),
    ("psycopg", "deferred", "ForeignKeyViolation"),
])  # fmt: skip
def test_a_tool_that_fails_or_whose_result_does_not_fit_leaves_nothing_behind(app, services, which, how, error):
    assert error in outcome(app, which, how)
    assert effects(services) == 0


def test_what_a_tool_leaves_behind_in_its_session_does_not_reach_the_next(app, services):
    assert outcome(app, "psycopg", "state") == "done"
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711"
    assert execute(services.database_url, locks) == [(0,)]
    assert outcome(app, "psycopg", "state") == "done", "nor is there a temporary table in its way"
    assert outcome(app, "sqlalchemy", "nothing else") == "done"
    assert effects(services) == 3


def test_a_result_that_comes_too_late_takes_its_effect_with_it(app, services):
    run, late = attempt(app, "psycopg", "nothing else")
    app.engine.store.give_back(late.token, app.engine.owner)
    _, second = attempt(app, "psycopg", "nothing else", 2, run)
    _, settled = _effects.in_transaction(late)
    assert settled is not None
    assert not settled.accepted
    assert effects(services) == 0
    perform(second)
    advance(app, run)
    assert run.result(timeout=30) == "done"
    assert effects(services) == 1


def test_a_tool_that_raises_a_conflict_is_tried_again_as_its_retries_say(app, services):
    run, first = attempt(app, "conflicts", "x")
    perform(first)
    assert effects(services) == 0
    _, second = attempt(app, "conflicts", "x", 2, run)
    perform(second)
    advance(app, run)
    assert run.result(timeout=30) == "done"
    assert effects(services) == 1


def test_a_commit_whose_answer_is_lost_is_found_out_and_its_run_goes_on(app, services):
    with proxied(services.database_url) as proxy:
        own = make_app(replace(services, database_url=proxy.url))
        try:
            run, claimed = attempt(own, "psycopg", "nothing else")
            proxy.lose_reply = True
            perform(claimed)
            assert proxy.cut == 1, "the fault has hit"
            [step] = run.steps()
            assert (step.state, step.attempt, step.deaths) == ("succeeded", 1, 0)
            assert run.status == "ready"
            advance(own, run)
            assert run.result(timeout=30) == "done"
            assert effects(services) == 1
        finally:
            own.client.close()


def test_a_connection_that_is_gone_before_the_commit_costs_no_try_and_leaves_nothing(app, services):
    run, claimed = attempt(app, "psycopg", "nothing else")
    body = claimed.spec.function

    def cut(how, connection):
        body(how, connection)
        execute(services.database_url, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        return "done"

    object.__setattr__(claimed.spec, "function", cut)  # a spec is frozen
    try:
        perform(claimed)
    finally:
        object.__setattr__(claimed.spec, "function", body)
    [step] = run.steps()
    assert (step.state, step.attempt - step.deaths) == ("ready", 0)
    assert "lost its connection" in (step.reason or "")
    assert effects(services) == 0
    _, second = attempt(app, "psycopg", "nothing else", 2, run)
    perform(second)
    assert effects(services) == 1


def test_a_process_that_freezes_between_its_result_and_the_commit_holds_its_run_for_seconds_and_no_more(
    app, services, monkeypatch
):
    run, claimed = attempt(app, "psycopg", "nothing else")
    commit = ToolTransaction.commit

    def freeze(transaction):
        # Whatever else the fleet has to do with the run waits for its row.
        app.engine.store.wake(uuid.UUID(run.id))
        commit(transaction)

    monkeypatch.setattr(ToolTransaction, "commit", freeze)
    perform(claimed)
    monkeypatch.undo()
    [step] = run.steps()
    assert (step.state, step.attempt - step.deaths) == ("ready", 0)
    assert effects(services) == 0
    _, second = attempt(app, "psycopg", "nothing else", 2, run)
    perform(second)
    assert effects(services) == 1


@pytest.mark.parametrize(("attempts", "state"), [(1, "failed"), (2, "ready")])
def test_a_transaction_that_runs_out_of_time_costs_a_try_though_its_connection_ends_with_it(
    app, services, monkeypatch, attempts, state
):
    run, claimed = attempt(app, "slow", "x")
    execute(services.database_url, OVERDUE.format(attempts))
    body = threading.Thread(target=perform, args=[claimed], daemon=True)
    body.start()
    eventually(lambda: execute(services.database_url, SLEEPING), what="the tool is in its transaction")
    end = app.engine.store.end_transactions
    monkeypatch.setattr(app.engine.store, "end_transactions", lambda names: (end(names), body.join(10)))
    sweep(app.engine, bury=False)
    body.join(10)
    assert not body.is_alive()
    [step] = run.steps()
    assert (step.state, step.attempt - step.deaths) == (state, 1)
    assert effects(services) == 0


def test_the_tool_in_the_documentation_books_a_seat_once(services):
    execute(services.database_url, "CREATE TABLE public.booking (seat text PRIMARY KEY, guest text)")
    book = load("effects.md").book

    @agent
    async def travels(guest: str) -> bool:
        return await book("12A", guest)

    app = Pickaxe("docs", agents=[travels], tools=[book], settings=services.settings(continuation="plain"))
    try:
        for guest, got_it in (("Ada", True), ("Bob", False)):
            run = travels.enqueue(guest)
            advance(app, run)
            app.engine.store.register_worker(app.engine.owner, name="here", pid=1, handles=[])
            message = {"run": run.id, "step": "book#1", "attempt": 1}
            perform(_claims.claim(app.engine, book.spec, message))
            advance(app, run)
            assert run.result(timeout=30) is got_it
    finally:
        app.client.close()
    assert execute(services.database_url, "SELECT seat, guest FROM public.booking") == [("12A", "Ada")]


def test_a_transactional_tool_called_by_hand_takes_the_callers_connection(services):
    execute(services.database_url, "CREATE TABLE public.effect (n integer)")
    with pytest.raises(Exception, match="pass connection= yourself"):
        by_psycopg("nothing else")
    with psycopg.connect(services.database_url.replace("postgresql+psycopg", "postgresql")) as connection:
        assert by_psycopg("nothing else", connection=connection) == "done"
        assert by_psycopg("nothing else", connection) == "done"
    assert effects(services) == 2
