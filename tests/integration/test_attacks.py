"""What nobody should do, done on purpose: refused with a clear word, or survived without harm to others."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
import uuid
from datetime import UTC, datetime

import psycopg
import pytest
import redis

from pickaxe import Pickaxe, agent, continue_as, errors, tool, wait_for_event, wait_for_signal
from pickaxe._texts import checked, storable
from pickaxe.engine import _claims, _errors, _work
from pickaxe.engine._messages import agent_fault, tool_fault
from pickaxe.engine._stint import Stint
from pickaxe.engine._sweeper import sweep
from tests.workers import eventually, running_worker

LONG = "".join(chr(33 + i * 7919 % 20000) for i in range(9000))
UNSTORABLE = {"a NUL": "a\0b", "half a character": "\ud800", "much too long": LONG, "empty": "", "a number": 42}


@tool(retries=2)
def plain() -> int:
    return 1


@agent
async def calls(what: str) -> None:
    text = UNSTORABLE[what]
    for attempt in (
        lambda: plain.using(key=text)(),
        lambda: plain.using(queue=text)(),
        lambda: wait_for_signal(text),
        lambda: wait_for_event(text),
        lambda: wait_for_event("key", scope=text or "\0"),
        lambda: wait_for_event("key", within="99999999d"),
        lambda: plain.using(priority=100_000)(),
        lambda: plain.using(timeout=1e300)(),
    ):
        try:
            await attempt()
        except (errors.InputError, errors.ConfigurationError):
            continue
        raise AssertionError("it was not refused")


@agent
async def waits() -> str:
    return await wait_for_event("key", str)


@agent
async def once() -> int:
    return await plain()


@agent
async def swallows(chapter: int = 0) -> int:
    try:
        await wait_for_signal("go")
    except asyncio.CancelledError:
        continue_as(chapter + 1)
    return chapter


@agent
async def cleans_up(chapter: int = 0) -> None:
    async def helper():
        try:
            await wait_for_signal("never")
        finally:
            await plain()

    left = asyncio.create_task(helper())
    await wait_for_signal("go")
    assert not left.done()
    continue_as(chapter + 1)


@agent
async def interrupts() -> None:
    raise KeyboardInterrupt


@agent
async def chain(left: int) -> None:
    async def link(left: int) -> None:
        await plain()
        if left:
            links.append(asyncio.create_task(link(left - 1)))

    links = [asyncio.create_task(link(left))]
    await wait_for_signal("never")


@pytest.fixture
def app(services):
    handles = [calls, waits, once, swallows, interrupts, chain, cleans_up]
    app = Pickaxe(
        "attacked",
        agents=handles,
        tools=[plain],
        settings=services.settings(redispatch_after=0.05, continuation="plain"),
    )
    yield app
    app.client.close()


def advance(app, run):
    _work.reduce(app.engine, uuid.UUID(run.id))


def attempt(app, run, number=1, key="plain#1"):
    app.engine.store.register_worker(app.engine.owner, name="here", pid=1, handles=[])
    return _claims.claim(app.engine, plain.spec, {"run": run.id, "step": key, "attempt": number})


def perform(attempt):
    _work.work_off([attempt], Stint(attempt.engine))


@contextlib.contextmanager
def instead_of_plain(body):
    object.__setattr__(plain.spec, "function", body)  # a spec is frozen
    try:
        yield
    finally:
        object.__setattr__(plain.spec, "function", plain.__wrapped__)


@pytest.mark.parametrize("what", UNSTORABLE)
def test_what_postgres_cannot_hold_is_refused_in_the_agent_that_asks_for_it(app, what):
    run = calls.enqueue(what)
    advance(app, run)
    assert (run.status, run.view().error) == ("succeeded", None)


@pytest.mark.parametrize("what", UNSTORABLE)
def test_what_postgres_cannot_hold_is_refused_outside(app, what):
    text, run = UNSTORABLE[what], once.enqueue()
    for refused in (
        lambda: once.enqueue(idempotency_key=text),
        lambda: run.signal(text),
        lambda: run.signal("go", idempotency_key=text),
        lambda: run.cancel(text or "\0"),
        lambda: app.client.publish_event(text),
        lambda: app.client.publish_event("key", scope=text or "\0"),
    ):
        with pytest.raises(errors.InputError):
            refused()
    assert len(app.client.runs()) == 1


@pytest.mark.parametrize("options", [{"priority": 5.5}, {"priority": "high"}, {"metadata": "abc"}])
def test_options_of_another_type_are_refused(app, options):
    with pytest.raises(errors.InputError):
        once.enqueue(**options)


def test_an_endless_delay_is_refused(app):
    with pytest.raises(errors.ConfigurationError, match="a thousand years"):
        once.enqueue(delay="999999999999d")


def test_a_wait_that_cannot_be_looked_back_for_does_not_hold_up_the_fleet(app):
    stuck, other = waits.enqueue(), waits.enqueue()
    advance(app, stuck), advance(app, other)
    wanted = json.dumps({"where": {}, "within": 1e300, "scope": ""})
    with app.client.store.database.engine.connect() as connection:
        connection.exec_driver_sql(
            "UPDATE pickaxe.step SET due = now(), input = %s WHERE run_id = %s", (wanted, stuck.id)
        )
        connection.exec_driver_sql("UPDATE pickaxe.step SET due = now() WHERE run_id = %s", (other.id,))
    late = once.enqueue()
    eventually(lambda: late.view().due < datetime.now(UTC), what="its time has come")
    sweep(app.engine)
    assert other.steps()[0].due is None
    assert late.view().due is not None


def test_a_commit_that_postgres_refuses_waits_visibly(app):
    run = once.enqueue()
    with app.client.store.database.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE pickaxe.step ADD CONSTRAINT no CHECK (key <> 'plain#1')")
    with pytest.raises(Exception, match="check constraint"):
        advance(app, run)
    assert run.status == "ready"
    assert "is tried again later" in run.view().reason


@pytest.mark.parametrize("after", ["inf", "1e400", float("inf"), 1e300, "1e15", 10**400, "nan", "-5", "soon", [], -1])
def test_no_retry_after_is_too_odd(app, after):
    def fails():
        error = ValueError("busy")
        error.retry_after = after
        raise error

    run = once.enqueue()
    advance(app, run)
    with instead_of_plain(fails):
        perform(attempt(app, run))
    step = run.steps()[0]
    assert step.state == "ready"
    assert step.reason.startswith("attempt 1 failed (ValueError), next in")


def test_a_body_that_behaves_like_a_dying_process_is_not_run_in_a_hot_loop(app):
    def fails():
        raise KeyboardInterrupt

    run = once.enqueue()
    advance(app, run)
    with instead_of_plain(fails):
        for number in (1, 2, 3, 4):
            with pytest.raises(KeyboardInterrupt):
                perform(attempt(app, run, number))
    step = run.steps()[0]
    assert step.due.timestamp() > time.time() + 5


def test_an_agent_that_raises_keyboard_interrupt_waits_visibly(app):
    run = interrupts.enqueue()
    with pytest.raises(KeyboardInterrupt):
        advance(app, run)
    assert "KeyboardInterrupt" in run.view().reason


def test_a_cancellation_that_an_agent_has_seen_is_not_seen_again_in_its_next_chapter(app):
    run = swallows.enqueue()
    advance(app, run)
    assert run.cancel()
    advance(app, run)
    assert run.view().chapter == 1
    advance(app, run)
    assert (run.status, run.view().chapter) == ("waiting", 1)
    run.signal("go")
    advance(app, run)
    assert run.result() == 1


def test_a_cancellation_that_no_chapter_has_seen_is_seen_by_the_next(app):
    run = cleans_up.enqueue()
    advance(app, run)
    run.signal("go")
    advance(app, run)
    assert run.cancel()
    advance(app, run)
    assert (run.status, run.view().chapter) == ("waiting", 0)
    perform(attempt(app, run, key="helper#1/plain#1"))
    advance(app, run)
    assert run.view().chapter == 1
    advance(app, run)
    perform(attempt(app, run, key="1:helper#1/plain#1"))
    advance(app, run)
    assert run.status == "cancelled"


def test_the_keys_of_a_long_chain_of_tasks_do_not_grow(app):
    run = chain.enqueue(60)
    advance(app, run)
    for _ in range(60):
        ready = next(s for s in run.steps() if s.state == "ready")
        perform(attempt(app, run, key=ready.key))
        advance(app, run)
    keys = [step.key for step in run.steps()]
    assert len(set(keys)) == len(keys) == 62
    assert max(map(len, keys)) < 300


def waits_for_a_lock(services):
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return connection.execute(waiting).fetchall()


def test_one_key_in_two_transactions_gives_one_run(app, services):
    found = []
    with psycopg.connect(services.database_url) as first:
        run = once.enqueue(idempotency_key="k", connection=first)
        other = threading.Thread(target=lambda: found.append(once.enqueue(idempotency_key="k")))
        other.start()
        eventually(lambda: waits_for_a_lock(services), what="the other waits for the first")
        assert found == []
    other.join(30)
    assert found[0].id == run.id
    assert found[0].status == "ready"


def test_one_key_in_a_transaction_that_is_rolled_back_gives_the_other_run(app, services):
    found = []
    with psycopg.connect(services.database_url) as first:
        once.enqueue(idempotency_key="k", connection=first)
        other = threading.Thread(target=lambda: found.append(once.enqueue(idempotency_key="k")))
        other.start()
        eventually(lambda: waits_for_a_lock(services), what="the other waits for the first")
        first.rollback()
    other.join(30)
    assert [str(run.id) for run in app.client.runs()] == [found[0].id]


def test_a_stream_read_from_the_log_resumes_where_it_was_left(app):
    run = once.enqueue()
    advance(app, run)
    run.cancel(force=True)
    app.client.redis.flushdb()
    told = list(run.stream())
    assert len(told) == 4
    for index, transition in enumerate(told):
        assert [t.id for t in run.stream(transition.cursor)] == [t.id for t in told[index + 1 :]]
    assert next(iter(run.stream("nonsense"))).kind == "restarted"
    assert next(iter(run.stream("0-0+nonsense"))).kind == "restarted"


RUN = str(uuid.uuid4())
STEP = {"run": RUN, "step": "a#1", "attempt": 1}
BAD_TOOL_MESSAGES = {
    "nothing": {},
    "no run": {"step": "a#1", "attempt": 1},
    "run is no id": STEP | {"run": "x"},
    "run is a number": STEP | {"run": 7},
    "run is a list": STEP | {"run": [RUN]},
    "step is null": STEP | {"step": None},
    "NUL in step": STEP | {"step": "a\0"},
    "attempt is text": STEP | {"attempt": "1"},
    "attempt is true": STEP | {"attempt": True},
    "attempt is zero": STEP | {"attempt": 0},
    "attempt is huge": STEP | {"attempt": 2**31},
    "priority is text": STEP | {"priority": "high"},
    "limits is a number": STEP | {"limits": 5},
    "limits is a mapping": STEP | {"limits": {"a": 1}},
    "limits of numbers": STEP | {"limits": [1, 2]},
    "a limit without a rate": STEP | {"limits": [["a", "fast", 1]]},
    "a limit of nothing": STEP | {"limits": [["a", "1/s", 0]]},
    "a limit of too much": STEP | {"limits": [["a", "1/s", 2]]},
    "units are null": STEP | {"limits": [["a", "1/s", None]]},
}


@pytest.mark.parametrize("name", BAD_TOOL_MESSAGES)
def test_a_message_no_tool_can_take_is_recognised(name):
    assert tool_fault((), BAD_TOOL_MESSAGES[name])


def test_messages_of_our_own_are_taken():
    assert tool_fault((), STEP) is None
    assert tool_fault([], STEP | {"priority": 9, "limits": [["", "2/s", 2]]}) is None
    assert agent_fault((), {"run": RUN}) is None
    assert tool_fault((1,), STEP)
    assert agent_fault((1,), {"run": RUN})
    assert agent_fault((), {})
    assert agent_fault((), {"run": RUN, "more": 1})
    assert agent_fault((), {"run": None})


def envelope(task, args, kwargs):
    body = base64.b64encode(json.dumps([args, kwargs, {}]).encode()).decode()
    headers = {"task": task, "id": str(uuid.uuid4()), "lang": "py", "root_id": None, "parent_id": None, "group": None}
    properties = {
        "body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": "agents"}, "delivery_mode": 2,
        "delivery_tag": str(uuid.uuid4()), "correlation_id": headers["id"], "priority": 0, "reply_to": None,
    }  # fmt: skip
    return json.dumps(
        {"body": body, "content-encoding": "utf-8", "content-type": "application/json", "headers": headers,
         "properties": properties}
    )  # fmt: skip


def test_malformed_messages_for_known_tasks_are_set_aside_and_the_queue_goes_on(services, tmp_path):
    @agent(name="waiting")
    async def waiting(name: str = "go", seconds: float = 3600) -> str: ...

    app = Pickaxe("other", agents=[waiting], settings=services.settings())
    with running_worker(services.environment, tmp_path / "log", concurrency=1) as worker:
        raw = redis.Redis.from_url(services.redis_url)
        for kwargs in BAD_TOOL_MESSAGES.values():
            raw.lpush("agents", envelope("double", [], kwargs))
        raw.lpush("agents", envelope("waiting", [], {"run": "nonsense"}))
        raw.lpush("agents", envelope("not known at all", [], {"run": RUN, "step": "a\0\ud800"}))
        assert waiting.enqueue("go", 0.1).result(timeout=30) == "timed out"
        eventually(
            lambda: len(app.client.store.list_dead_letters(100)) == len(BAD_TOOL_MESSAGES) + 1, what="dead letters"
        )
        assert worker.process.poll() is None
    app.client.close()


def test_texts_are_checked_and_mended():
    assert checked("ä" * 250, "it") == "ä" * 250
    with pytest.raises(errors.InputError, match="it is 502 bytes long"):
        checked("ä" * 251, "it")
    assert storable("a\0\ud800ä") == "a\\0\\ud800ä"
    assert _errors.seconds_from("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@agent
async def counts() -> int:
    taken = 0
    while await wait_for_signal("more") != "stop":
        taken += 1
    return taken


def test_a_run_goes_on_under_a_storm_of_signals(services):
    app = Pickaxe("storm", agents=[counts], settings=services.settings())
    run = counts.enqueue()
    over = threading.Event()

    def storm():
        while not over.is_set():
            app.client.store.send_signal(uuid.UUID(run.id), "more", "1", None)

    senders = [threading.Thread(target=storm) for _ in range(3)]
    for sender in senders:
        sender.start()
    reducer = threading.Thread(target=lambda: [advance(app, run) for _ in range(20) if not over.is_set()])
    reducer.start()
    try:
        eventually(lambda: run.view().head > 50, what="progress")
    finally:
        over.set()
        for thread in (*senders, reducer):
            thread.join(30)
    run.signal("more", "stop")
    advance(app, run)
    sent = app.client.store.database.one("route", run=uuid.UUID(run.id)).wake
    assert run.result(timeout=10) == sent - 1
    app.client.close()
