"""Publishing: what arrives, in how many round trips, and after how much waiting it fails."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kombu.utils.functional
import pytest
import redis.connection
import redis.retry
from redis import Redis

from pickaxe.broker import Message, Publisher, PublishError
from pickaxe.broker._config import SOCKET_TIMEOUT
from pickaxe.errors import ConfigurationError, ServiceUnavailableError
from tests.integration.test_broker_support import (
    RedisServer,
    events,
    eventually,
    leftovers,
    make_app,
    worker,
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Wire:
    """What this process asked of Redis."""

    sent: int = 0
    """Times that commands were sent: a pipeline counts once."""
    refused: int = 0
    """Connections that were not accepted."""
    timed_out: int = 0
    """Answers that did not come within the socket's time-out."""
    pauses: float = 0.0
    """Seconds of waiting between tries, as asked for."""


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Counts what is asked of Redis from here on."""
    seen, connection = Wire(), redis.connection.AbstractConnection
    send, connect, read = connection.send_packed_command, connection.connect, connection.read_response

    def counted_send(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.sent += 1
        return send(self, *args, **kwargs)

    def counted_connect(self: Any) -> Any:
        try:
            return connect(self)
        except redis.ConnectionError:
            seen.refused += 1
            raise

    def counted_read(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(self, *args, **kwargs)
        except redis.TimeoutError:
            seen.timed_out += 1
            raise

    def counted_sleep(seconds: float) -> None:
        seen.pauses += seconds
        time.sleep(seconds)

    monkeypatch.setattr(connection, "send_packed_command", counted_send)
    monkeypatch.setattr(connection, "connect", counted_connect)
    monkeypatch.setattr(connection, "read_response", counted_read)
    for module in (redis.retry, kombu.utils.functional):
        monkeypatch.setattr(module, "sleep", counted_sleep)
    return seen


def quick(n: int, **changes: object) -> Message:
    return Message(**{"task": "quick", "id": f"id-{n}", "kwargs": {"n": n}, "queue": "celery", **changes})  # type: ignore[arg-type]


def sent(url: str, queue: str) -> list[dict[str, Any]]:
    """What waits in the queue, of all priorities, oldest first."""
    with Redis.from_url(url) as client:
        lists = [client.lrange(key, 0, -1) for key in sorted(client.scan_iter(f"{queue}*"))]
        return [json.loads(item) for items in lists for item in reversed(items)]


@pytest.mark.parametrize("count", [1, 3, 500])
def test_messages_are_sent_in_order_with_everything_flower_shows(redis_url: str, count: int) -> None:
    Publisher(make_app(redis_url)).publish(
        [quick(n, argsrepr=f"run=7 n={n}", root="run-7", headers={"x": 1}) for n in range(count)]
    )
    headers = [message["headers"] for message in sent(redis_url, "celery")]
    assert [header["id"] for header in headers] == [f"id-{n}" for n in range(count)]
    expected = {
        "task": "quick",
        "argsrepr": f"run=7 n={count - 1}",
        "root_id": "run-7",
        "ignore_result": True,
        "eta": None,
        "retries": 0,
        "x": 1,
    }
    assert expected.items() <= headers[-1].items()


def test_commands_that_go_along_come_before_the_message_and_in_its_round_trip(redis_url: str) -> None:
    publisher = Publisher(make_app(redis_url), redis_url=redis_url)
    publisher.publish([quick(0)])  # connects
    assert publisher.takes_along([quick(1)])
    with Redis.from_url(redis_url, decode_responses=True) as client, client.monitor() as monitor:
        publisher.publish([quick(1), quick(2)], along=[("SET", "told", "yes"), ("NONSENSE",), ("INCR", "counted")])
        publisher.publish([quick(3)])
        client.set("over", "1")  # on a connection of its own, which says hello first
        told = []
        while "over" not in (command := monitor.next_command())["command"]:
            told.append((command["client_port"], command["command"].split()[0]))
        assert (client.get("told"), client.get("counted")) == ("yes", "1")
    assert [name for port, name in told if port == told[0][0]] == ["SET", "INCR", "LPUSH", "LPUSH", "LPUSH"]
    assert [m["headers"]["id"] for m in sent(redis_url, "celery")] == ["id-0", "id-1", "id-2", "id-3"]


def test_commands_go_along_only_where_they_are_meant_for(redis_url: str) -> None:
    elsewhere = redis_url.rpartition("/")[0] + "/15"
    assert not Publisher(make_app(redis_url)).takes_along([quick(1)])
    assert not Publisher(make_app(redis_url), redis_url=elsewhere).takes_along([quick(1)])
    assert not Publisher(make_app(redis_url), redis_url=redis_url).takes_along([quick(n) for n in range(4)])


def test_commands_that_went_along_are_not_sent_again_with_the_message(server: RedisServer) -> None:
    publisher = Publisher(make_app(server.url), redis_url=server.url)
    publisher.publish([quick(0)])
    server.stop()
    server.start()
    publisher.publish([quick(1)], along=[("INCR", "counted")])
    with Redis.from_url(server.url, decode_responses=True) as client:
        assert client.get("counted") in (None, "1")
    assert [m["headers"]["id"] for m in sent(server.url, "celery")][-1] == "id-1"


def test_the_most_urgent_messages_run_first(redis_url: str, tmp_path: Path) -> None:
    app = make_app(redis_url)
    Publisher(app).publish([quick(priority, priority=priority) for priority in range(10)])
    with worker(redis_url, tmp_path / "log", "-P", "solo"):
        told = eventually(lambda: len(events(redis_url, "quick")) == 10 and events(redis_url, "quick"))
    assert [event["n"] for event in told] == [6, 7, 8, 9, 2, 3, 4, 5, 0, 1]


def test_queues_need_not_be_declared_anywhere(redis_url: str, tmp_path: Path) -> None:
    Publisher(make_app(redis_url)).publish([quick(1, queue="brand-new")])
    with worker(redis_url, tmp_path / "log", "-P", "solo", queues="brand-new"):
        eventually(lambda: events(redis_url, "quick"))


@pytest.mark.parametrize("pool", ["prefork", "custom"])
def test_a_chord_sends_its_body_once_after_all_headers(redis_url: str, tmp_path: Path, pool: str) -> None:
    app = make_app(redis_url)
    header = [Message(task="nap", id=f"nap-{n}", kwargs={"seconds": 0.01, "n": n}, queue="celery") for n in range(40)]
    body = quick(99, id="the-body", queue="other", root="run-7")
    with worker(redis_url, tmp_path / "log", "-P", pool, "-c", "4", queues="celery,other"):
        Publisher(app).publish_chord(header, body)
        told = eventually(lambda: events(redis_url, "quick"))
        assert told[0]["message"] == "the-body"
        assert len(events(redis_url, "nap-end")) == 40
        Publisher(app).publish([quick(1, id="later", queue="other")])
        eventually(lambda: len(events(redis_url, "quick")) == 2)
        eventually(lambda: leftovers(redis_url, "celery", "other") == 0)
    with Redis.from_url(redis_url) as client:
        assert list(client.scan_iter("celery-task-meta*")) == []
        keys = list(client.scan_iter("*taskset*"))
        assert keys
        assert all(key.startswith(b"pickaxe:chord:") and client.ttl(key) > 0 for key in keys)


def test_a_chord_without_headers_is_its_body(redis_url: str) -> None:
    Publisher(make_app(redis_url)).publish_chord([], quick(1))
    assert len(sent(redis_url, "celery")) == 1


def test_a_chord_of_a_thousand_is_sent_in_six_round_trips(redis_url: str, wire: Wire) -> None:
    publisher = Publisher(make_app(redis_url))
    publisher.publish_chord([quick(n) for n in range(4)], quick(4))  # what connecting takes
    before = wire.sent
    publisher.publish_chord([quick(n) for n in range(1000)], quick(1000))
    assert wire.sent - before == 6  # the chord's size, and five batches
    assert len(sent(redis_url, "celery")) == 1004


def test_a_chord_needs_a_redis_to_count_in(redis_url: str) -> None:
    app = make_app(redis_url, result_backend=None)
    with pytest.raises(ConfigurationError, match="result_backend"):
        Publisher(app).publish_chord([quick(1)], quick(2))


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("warm", [True, False])
def test_a_frozen_redis_is_an_error_after_one_time_out(server: RedisServer, wire: Wire, count: int, warm: bool) -> None:
    assert SOCKET_TIMEOUT < 5
    publisher = Publisher(make_app(server.url))
    if warm:
        publisher.publish([quick(0)])
    messages = [quick(n) for n in range(count)]
    with server.frozen():
        for send in (publisher.publish, lambda batch: publisher.publish_chord(batch, quick(99))):
            before = wire.timed_out
            with pytest.raises(PublishError):
                send(messages)
            assert wire.timed_out - before == 1
    assert wire.pauses == 0
    publisher.publish(messages)


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("warm", [True, False])
def test_a_dead_redis_is_an_error_after_the_second_refusal(
    server: RedisServer, wire: Wire, count: int, warm: bool
) -> None:
    publisher = Publisher(make_app(server.url))
    if warm:
        publisher.publish([quick(0)])
    server.stop()
    messages = [quick(n) for n in range(count)]
    for send in (publisher.publish, lambda batch: publisher.publish_chord(batch, quick(99))):
        before = wire.refused
        with pytest.raises(ServiceUnavailableError, match="broker"):
            send(messages)
        assert wire.refused - before == 2
    assert wire.pauses < 0.1
    assert wire.timed_out == 0
    server.start()
    publisher.publish(messages)
    assert len(sent(server.url, "celery")) == count


@pytest.mark.parametrize("count", [1, 50])
def test_a_restarted_redis_costs_no_error_at_all(server: RedisServer, count: int) -> None:
    publisher = Publisher(make_app(server.url))
    publisher.publish([quick(0)])
    server.stop()
    server.start()
    publisher.publish([quick(n) for n in range(count)])
    assert len(sent(server.url, "celery")) == count


def test_a_host_that_never_answers_is_an_error_after_one_time_out(wire: Wire) -> None:
    with socket.socket() as mute:  # connections to it are made by the kernel, and nobody ever speaks
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        publisher = Publisher(make_app(f"redis://127.0.0.1:{mute.getsockname()[1]}/0"))
        with pytest.raises(PublishError):
            publisher.publish([quick(1)])
        assert (wire.timed_out, wire.pauses) == (1, 0)


def test_a_forked_child_opens_its_own_connections(server: RedisServer) -> None:
    app = make_app(server.url)
    publisher = Publisher(app)
    publisher.publish_chord([quick(0)], quick(1))
    with Redis.from_url(server.url) as client:
        before = client.info("stats")["total_connections_received"]
        child = os.fork()
        if child == 0:
            try:
                publisher.publish_chord([quick(n) for n in range(10)], quick(11))
                os._exit(0)
            finally:
                os._exit(1)
        for n in range(20):
            publisher.publish([quick(n)])
        _, status = os.waitpid(child, 0)
        assert status == 0
        # Its own for the broker and its own for the chord, while the parent went on with what it had.
        assert client.info("stats")["total_connections_received"] - before in (2, 3)
    assert len(sent(server.url, "celery")) == 31
