"""A message that is not taken in time was lost, or waits behind others. Only in the first case is it sent again."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter

import pytest

from pickaxe import Pickaxe
from pickaxe.broker import PublishError
from pickaxe.engine._late import resend
from pickaxe.engine._work import reduce
from tests.integration.late_app import AGENTS, TOOLS, at_once, echoes
from tests.workers import running_worker

QUEUE, URGENT = "agents\x06\x164", "agents"
"""The Redis lists of priorities 5 and 9."""


@pytest.fixture
def app(services):
    app = Pickaxe("late", agents=AGENTS, tools=TOOLS, settings=services.settings())
    yield app
    app.client.close()


def query(app, text, *parameters):
    with app.client.store.database.engine.connect() as connection:
        return list(connection.exec_driver_sql(text, parameters).all())


def make_late(app):
    query(app, "UPDATE pickaxe.run SET due = clock_timestamp() WHERE due IS NOT NULL RETURNING 1")
    query(app, "UPDATE pickaxe.step SET due = clock_timestamp() WHERE due IS NOT NULL RETURNING 1")


def in_queue(app, name=QUEUE):
    """The ids of the messages in a queue, and the runs and steps they are about; longest first."""
    items = [item for item in reversed(app.client.redis.lrange(name, 0, -1)) if item.startswith("{")]
    return [json.loads(item)["headers"]["id"].rpartition(":")[0] for item in items]


def about(*runs):
    return [f"{run.id}:at_once" for run in runs]


def lose(app, name=QUEUE, *, place):
    """Take the message out that has waited longest but for `place` others."""
    redis = app.client.redis
    redis.lrem(name, 1, redis.lindex(name, -1 - place))


def look(app, *, steps=False):
    make_late(app)
    before = len(in_queue(app))
    resend(app.engine)
    return in_queue(app)[before:]


def test_what_waits_in_a_long_queue_is_not_sent_again_and_looked_at_ever_more_rarely(app):
    runs = at_once.enqueue_many(range(1500))
    assert look(app) == []
    query(app, "UPDATE pickaxe.run SET sent_at = sent_at - interval '1 minute' RETURNING 1")
    assert look(app) == []
    [(least, most, dispatches)] = query(
        app, "SELECT min(due - now()), max(due - now()), max(dispatches) FROM pickaxe.run"
    )
    assert 55 < least.total_seconds() <= most.total_seconds() < 65
    assert dispatches == 0, "nothing has come of its message is a suspicion, and there is none"
    assert len(runs) == len(in_queue(app))


def test_what_was_lost_is_sent_again_once_its_queue_has_come_past_it_and_nothing_else_is(app):
    first, lost, next_, last = (at_once.enqueue(n) for n in range(4))
    lose(app, place=1)
    assert in_queue(app) == about(first, next_, last)
    assert look(app) == [], "it may still be behind the first"
    lose(app, place=0)
    assert look(app) == about(first, lost)
    assert look(app) == []


def test_what_is_alone_and_lost_is_sent_again_at_the_first_look(app):
    run = at_once.enqueue(1)
    lose(app, place=0)
    assert look(app) == about(run)
    assert query(app, "SELECT dispatches FROM pickaxe.run") == [(1,)]


def test_the_messages_of_another_priority_tell_nothing(app):
    at_once.enqueue(1, priority=9)
    run = at_once.enqueue(2)
    lose(app, place=0)
    assert len(in_queue(app, URGENT)) == 1
    assert look(app) == about(run)
    assert len(in_queue(app, URGENT)) == 1


def test_a_message_about_what_is_over_and_one_of_somebody_else_tell_nothing(app):
    over, lost, waits = (at_once.enqueue(n) for n in range(3))
    over.cancel()
    app.client.redis.rpush(QUEUE, "not even an envelope")
    lose(app, place=2)
    assert look(app) == about(lost)
    assert in_queue(app) == about(over, waits, lost)


def test_calls_are_looked_for_like_runs(app):
    run = echoes.enqueue(3)
    reduce(app.engine, uuid.UUID(run.id))
    assert look(app) == []
    for _ in range(3):
        lose(app, place=0)
    assert look(app) == [f"{run.id}:echo#1", f"{run.id}:echo#2"]


def test_a_run_that_was_delayed_is_sent_when_it_is_due_however_long_its_queue(app):
    at_once.enqueue_many(range(10))
    later = at_once.enqueue(1, delay=60)
    make_late(app)
    app.engine.store.due_runs(300)
    assert query(app, "SELECT dispatches FROM pickaxe.run WHERE id = %s", later.id) == [(1,)]


def test_a_broker_that_cannot_be_asked_is_told_everything_again(app, monkeypatch):
    run = at_once.enqueue(1)

    def refuse(_):
        raise PublishError("away")

    monkeypatch.setattr(app.engine.publisher, "waiting", refuse)
    assert look(app) == about(run)


def test_a_worker_receives_each_message_of_a_long_queue_once(app, services, tmp_path):
    log = tmp_path / "worker.log"
    environment = {
        **services.environment, "PICKAXE_CONTINUATION": "plain", "PICKAXE_REDISPATCH_AFTER": "0.5",
        "PICKAXE_SWEEP_EVERY": "0.2",
    }  # fmt: skip
    runs = echoes.enqueue_many([(5, 0.01)] * 60)
    with running_worker(environment, log, queues="agents", app="tests.integration.late_app"):
        assert [run.result(timeout=60) for run in runs] == [10] * 60
    received = Counter(re.findall(r"Task (\w+)\[[^]]+\] received", log.read_text("utf-8")))
    # What it has taken from the queue and not begun looks lost: that is a message or two a round.
    assert 300 <= received["echo"] < 330
    assert 120 <= received["echoes"] < 140
