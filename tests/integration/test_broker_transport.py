"""A worker outlives its Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection

from pickaxe import broker
from pickaxe.broker import Message, Publisher
from pickaxe.broker._transport import Transport
from tests.integration.test_broker_support import RedisServer, events, eventually, make_app, worker


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("pool", ["prefork", "threads", "custom"])
def test_a_worker_survives_a_redis_restart_with_a_task_in_flight(
    server: RedisServer, tmp_path: Path, pool: str
) -> None:
    publisher = Publisher(make_app(server.url))
    with worker(server.url, tmp_path / "log", "-P", pool, "-c", "2") as process:
        publisher.publish([Message(task="slow", id="a", kwargs={"seconds": 3}, queue="celery")])
        eventually(lambda: events(server.url, "slow-start"))
        server.stop()
        server.start()
        eventually(lambda: events(server.url, "slow-end"))
        publisher.publish([Message(task="quick", id="b", kwargs={"n": 7}, queue="celery")])
        eventually(lambda: events(server.url, "quick"))
        assert process.is_alive
        assert "Unrecoverable" not in process.log


def test_a_worker_survives_repeated_restarts_under_load(server: RedisServer, tmp_path: Path) -> None:
    publisher = Publisher(make_app(server.url))
    with worker(server.url, tmp_path / "log", "-P", "custom", "-c", "20") as process:
        for round_ in range(4):
            naps = [Message(task="nap", id=f"{round_}-{n}", kwargs={"seconds": 1}, queue="celery") for n in range(20)]
            publisher.publish(naps)
            eventually(lambda: len(events(server.url, "nap-start")) >= 10)
            server.stop()
            server.start()
        publisher.publish([Message(task="quick", id="last", kwargs={}, queue="celery")])
        eventually(lambda: events(server.url, "quick"))
        assert process.is_alive


def test_the_transport_is_used_even_where_the_stock_one_was_looked_up_before(redis_url: str) -> None:
    from kombu import transport

    transport._transport_cache.pop("redis", None)
    transport.TRANSPORT_ALIASES["redis"] = "kombu.transport.redis:Transport"
    assert Connection(redis_url).transport_cls == "redis"
    assert not isinstance(Connection(redis_url).transport, Transport)
    broker.install()
    assert isinstance(Connection(redis_url).transport, Transport)
