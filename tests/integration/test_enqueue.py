"""Enqueueing: exactly once, now or later, alone or in the caller's own transaction; refused clearly."""

from __future__ import annotations

import asyncio
import uuid

import psycopg
import pytest
import sqlalchemy
from pydantic import BaseModel
from sqlalchemy.orm import Session

from pickaxe import Client, Pickaxe, Settings, agent, errors
from pickaxe.testing import simulate


class Order(BaseModel):
    number: int


@agent
async def ship(order: Order, express: bool = False) -> str:
    return f"{order.number} {express}"


@pytest.fixture
def app(services):
    app = Pickaxe("shop", agents=[ship], settings=services.settings())
    yield app
    app.client.close()


def runs(app):
    return app.client.store.list_runs()


def queued(app):
    return app.client.redis.llen("agents") + sum(
        app.client.redis.llen(key) for key in app.client.redis.scan_iter("agents\x06*")
    )


def test_an_enqueued_run_is_in_postgres_and_its_message_in_the_broker(app):
    run = ship.enqueue(Order(number=1), express=True)
    assert run.status == "ready"
    assert run.view().input == {"order": {"number": 1}, "express": True}
    assert queued(app) == 1


def test_defaults_are_recorded_as_they_were_when_the_run_was_enqueued(app):
    assert ship.enqueue(Order(number=1)).view().input["express"] is False


def test_an_agent_can_neither_start_nor_look_at_a_run_from_outside_even_in_a_warm_process(app):
    known = ship.enqueue(Order(number=1))  # statements are read, and connections are open

    @agent
    async def enqueues(number: int) -> None:
        ship.enqueue(Order(number=number))

    @agent
    async def signals(number: int) -> None:
        known.signal("go")

    @agent
    async def looks(number: int) -> str:
        return str(known.status)

    for careless in (enqueues, signals, looks):
        refused = r"ImpureAgentError: an agent tried to enqueue, signal or look at a run at .*test_enqueue\.py:\d+\."
        with pytest.raises(errors.RunFailedError, match=refused) as told:
            simulate(careless, 2).result()
        assert "Another agent is awaited like a tool" in str(told.value)
    assert [run.id for run in runs(app)] == [uuid.UUID(known.id)]
    assert app.client.store.list_signals(uuid.UUID(known.id), 0) == []


def test_an_agent_cannot_send_a_celery_task_even_over_a_connection_that_is_open(app):
    app.send_task("legacy.mail", queue="agents")

    @app.task(name="legacy.call", queue="agents")
    def call() -> None: ...

    @agent
    async def sends(how: str) -> None:
        app.send_task("legacy.mail", queue="agents") if how == "send_task" else call.delay()

    for how in ("send_task", "delay"):
        with pytest.raises(
            errors.RunFailedError, match=r"an agent tried to send a Celery task at .*test_enqueue\.py:\d+"
        ):
            simulate(sends, how).result()
    assert queued(app) == 1


def test_the_same_idempotency_key_gives_the_same_run(app):
    first = ship.enqueue(Order(number=1), idempotency_key="order-1")
    second = ship.enqueue(Order(number=1), idempotency_key="order-1")
    assert first.id == second.id
    assert (first.is_new, second.is_new) == (True, False)
    assert len(runs(app)) == 1
    assert queued(app) == 1


def test_a_delayed_run_is_not_published_before_its_time(app):
    run = ship.enqueue(Order(number=1), delay="2s")
    assert queued(app) == 0
    assert run.view().due is not None


def test_priority_and_metadata_are_kept_with_the_run(app):
    view = ship.enqueue(Order(number=1), priority=9, metadata={"tenant": "a"}).view()
    assert (view.priority, view.metadata) == (9, {"tenant": "a"})


def test_many_runs_are_enqueued_with_one_statement_or_not_at_all(app):
    made = ship.enqueue_many([Order(number=1), (Order(number=2), True)], idempotency_keys=["a", "b"])
    assert [run.view().input["order"]["number"] for run in made] == [1, 2]
    again = ship.enqueue_many([Order(number=1), Order(number=3)], idempotency_keys=["a", "c"])
    assert [run.is_new for run in again] == [False, True]
    with pytest.raises(errors.InputError):
        ship.enqueue_many([Order(number=4), "not an order"])
    assert len(runs(app)) == 3


def test_asynchronous_code_enqueues_without_blocking_its_loop(app):
    async def go():
        return (await ship.aenqueue(Order(number=1))).status

    assert asyncio.run(go()) == "ready"


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("driver", ["session", "connection", "psycopg"])
def test_a_run_enqueued_in_the_callers_transaction_exists_exactly_if_that_commits(app, services, driver, commits):
    engine = sqlalchemy.create_engine(services.database_url.replace("postgresql:", "postgresql+psycopg:"))
    opened = {
        "session": lambda: Session(engine),
        "connection": engine.connect,
        "psycopg": lambda: psycopg.connect(services.database_url),
    }[driver]()
    with opened:
        run = ship.enqueue(Order(number=1), connection=opened)
        assert runs(app) == []
        opened.commit() if commits else opened.rollback()
    engine.dispose()
    assert [str(view.id) for view in runs(app)] == ([run.id] if commits else [])
    if driver == "session":
        assert queued(app) == commits
    due = app.client.store.due_runs(300) if driver != "session" else []
    assert len(due) == (commits and driver != "session")


def test_an_idempotency_key_also_counts_inside_a_transaction(app, services):
    first = ship.enqueue(Order(number=1), idempotency_key="k")
    with psycopg.connect(services.database_url) as connection:
        second = ship.enqueue(Order(number=1), idempotency_key="k", connection=connection)
    assert first.id == second.id
    assert (first.is_new, second.is_new) == (True, False)


def test_a_connection_of_another_kind_is_refused_with_what_to_do(app):
    with pytest.raises(errors.ConfigurationError, match="run_sync"):
        ship.enqueue(Order(number=1), connection=object())


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("seven",), r"agent 'ship' does not fit: order: Input should be a valid dictionary .* \(given 'seven'\)"),
        (({"number": "x"},), r"order.number: Input should be a valid integer"),
        ((), "order: Field required"),
        ((Order(number=1), True, 3), "too many positional arguments"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_stored(app, args, told):
    with pytest.raises(errors.InputError, match=told):
        ship.enqueue(*args)
    assert runs(app) == []


def test_a_broker_that_is_away_loses_nothing(services):
    settings = Settings(_env_file=None, database_url=services.database_url, redis_url="redis://127.0.0.1:1/0")
    app = Pickaxe("shop", agents=[ship], settings=settings)
    run = ship.enqueue(Order(number=1))
    assert run.status == "ready"
    app.client.close()


def test_a_database_that_is_away_is_named_and_the_advice_is_there(services):
    settings = Settings(
        _env_file=None, database_url="postgresql://user:secret@127.0.0.1:1/x", redis_url=services.redis_url
    )
    app = Pickaxe("shop", agents=[ship], settings=settings)
    app.client.store.database.patience = 0.2
    with pytest.raises(errors.ServiceUnavailableError, match="PICKAXE_DATABASE_URL") as caught:
        ship.enqueue(Order(number=1))
    assert "secret" not in str(caught.value)


def test_an_unmigrated_database_is_named_with_the_command_that_mends_it(services):
    from tests.services import isolated_database, template_database

    with isolated_database(template_database("empty", lambda url: None)) as url:
        client = Client(Settings(_env_file=None, database_url=url, redis_url=services.redis_url))
        with pytest.raises(errors.SchemaError, match="pickaxe migrate"):
            client.runs()
        client.close()


def test_a_handle_of_no_app_says_what_is_missing(monkeypatch):
    @agent
    async def lonely() -> None: ...

    monkeypatch.chdir("/")
    with pytest.raises(errors.UnboundHandleError, match="PICKAXE_DATABASE_URL"):
        lonely.enqueue()


def test_a_handle_of_no_app_uses_the_environment(services, monkeypatch):
    @agent
    async def lonely() -> None: ...

    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)
    assert lonely.enqueue().status == "ready"


def test_two_handles_of_one_name_are_refused():
    @agent(name="ship")
    async def other() -> None: ...

    with pytest.raises(errors.DuplicateHandleError, match=r"ship.*test_enqueue\.ship and .*other"):
        Pickaxe("shop", agents=[ship, other], settings=Settings(_env_file=None))


def test_a_run_that_is_not_there_is_said_so(app):
    with pytest.raises(errors.NotFoundError, match="pickaxe runs"):
        app.run("01900000-0000-7000-8000-000000000000")
