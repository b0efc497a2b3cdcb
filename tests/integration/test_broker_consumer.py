"""Whatever lies on the queue: it is run, or it is set aside, and the worker goes on."""

from __future__ import annotations

import base64
import json
import pickle
import random
import zlib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from kombu.utils.json import dumps
from redis import Redis

from pickaxe.broker import Message, Publisher
from pickaxe.broker._wire import KEPT_OF_TOO_LARGE
from tests.integration.test_broker_support import Worker, events, eventually, leftovers, make_app, worker

ABSENT = object()


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=["prefork", "custom"])
def running(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[Worker]:
    with worker(redis_url, tmp_path / "log", "-P", request.param, "-c", "2") as process:
        yield process


def envelope(body: Any = ABSENT, **changes: Any) -> dict[str, Any]:
    """A valid message for `quick(n=1)`; each change replaces one part of it, given by its name."""
    payload = [[], {"n": 1}, {}] if body is ABSENT else body
    message: dict[str, Any] = {
        "body": base64.b64encode(payload if isinstance(payload, bytes) else dumps(payload).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "quick", "id": "x", "lang": "py", "retries": 0, "timelimit": [None, None]},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": f"tag-{random.random()}",
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = message
        for parent in parents:
            part = part[parent]
        last = last.replace("content_", "content-")
        if value is ABSENT:
            part.pop(last, None)
        else:
            part[last] = value
    return message


MALFORMED: dict[str, Any] = {
    "random bytes": bytes(range(256)),
    "nothing": b"",
    "truncated JSON": dumps(envelope()).encode()[:-20],
    "nested too deep": b"[" * 100_000,
    **{f"JSON {text}": text.encode() for text in ("null", "1", '"text"', "[]", "{}", "[[], {}, {}]", "NaN")},
    "no properties": envelope(properties=ABSENT),
    "properties are a list": envelope(properties=[]),
    "no delivery tag": envelope(properties__delivery_tag=ABSENT),
    "delivery tag is an object": envelope(properties__delivery_tag={}),
    "delivery tag is half a surrogate": envelope(properties__delivery_tag="\ud800"),
    "no delivery info": envelope(properties__delivery_info=ABSENT),
    "no exchange": envelope(properties__delivery_info={"routing_key": "celery"}),
    "routing key is a number": envelope(properties__delivery_info={"exchange": "", "routing_key": 1}),
    "infinite priority": envelope(properties__priority=float("inf")),
    "headers are a list": envelope(headers=[]),
    "no headers": envelope(headers=ABSENT),
    "headers are null": envelope(headers=None),
    "body is a number": {**envelope(), "body": 5},
    "body is not base64": {**envelope(), "body": "***"},
    "body has bad padding": {**envelope(), "body": "abcde"},
    "unknown body encoding": envelope(properties__body_encoding="rot13"),
    "body encoding is a list": envelope(properties__body_encoding=[]),
    "content type is null": envelope(content_type=None),
    "content type is an object": envelope(content_type={}),
    "pickle": envelope(body=pickle.dumps([[], {}, {}]), content_type="application/x-python-serialize"),
    "unknown content type": envelope(content_type="application/x-unheard-of"),
    "body is not JSON": envelope(body=b"\xff\xfe{"),
    "unknown compression": envelope(headers__compression="application/x-none"),
    "broken compression": envelope(headers__compression="application/x-gzip"),
    "protocol 1": envelope(headers={}, body={"task": "quick", "id": "x", "args": [], "kwargs": {}}),
    "hybrid protocol": envelope(body={"args": [], "kwargs": {}}),
    "no id": envelope(headers__id=ABSENT),
    "id is a list": envelope(headers__id=[]),
    "task is an object": envelope(headers__task={}),
    "body is an object": envelope(body={}),
    "body is a null": envelope(body=None),
    "body is too short": envelope(body=[[], {}]),
    "args are a text": envelope(body=["abc", {}, {}]),
    "kwargs are a list": envelope(body=[[], [], {}]),
    "kwargs are null": envelope(body=[[], None, {}]),
    "embed is a list": envelope(body=[[], {}, [1]]),
    "callbacks are a number": envelope(body=[[], {}, {"callbacks": 3}]),
    "chord is a text": envelope(body=[[], {}, {"chord": "x"}]),
    "time limit is a text": envelope(headers__timelimit="soon"),
    "time limit is negative": envelope(headers__timelimit=[-1, None]),
    "expires is no date": envelope(headers__expires="whenever"),
    "expires is a number": envelope(headers__expires=5),
    "eta is no date": envelope(headers__eta="whenever"),
    "stamps are a list": envelope(headers__stamps=[1]),
    "unexpected argument": envelope(body=[[], {"m": 1}, {}]),
    "too many arguments": envelope(body=[[1, 2, 3], {}, {}]),
}


def push(client: Redis, message: Any) -> None:
    client.lpush("celery", message if isinstance(message, bytes) else json.dumps(message))


def test_every_malformed_message_is_set_aside_and_the_queue_goes_on(
    running: Worker, redis_url: str, client: Redis
) -> None:
    for message in MALFORMED.values():
        push(client, message)
        push(client, envelope())
    expected = len(MALFORMED)
    eventually(lambda: len(events(redis_url, "quick")) == expected, 30)
    eventually(lambda: len(events(redis_url, "malformed")) == expected)
    eventually(lambda: leftovers(redis_url) == 0)
    assert running.is_alive
    assert "Connection to broker lost" not in running.log
    assert all(event["reason"] for event in events(redis_url, "malformed"))


@pytest.mark.parametrize("name", list(MALFORMED))
def test_a_malformed_message_is_recognised_for_what_it_is(name: str) -> None:
    from types import SimpleNamespace

    from kombu.transport.virtual import Message as VirtualMessage
    from kombu.transport.virtual.base import Base64

    from pickaxe.broker import Consumer
    from pickaxe.broker._wire import read_envelope

    item = MALFORMED[name]
    read = read_envelope(item if isinstance(item, bytes) else json.dumps(item).encode(), "celery")
    channel = SimpleNamespace(decode_body=lambda body, encoding: Base64().decode(body))
    message = VirtualMessage(read, channel=channel, accept={"application/json"})
    task = SimpleNamespace(typing=True, __header__=lambda n=0: None)
    consumer = SimpleNamespace(app=SimpleNamespace(tasks={"quick": task}))
    consumer._argument_fault = lambda *a: Consumer._argument_fault(consumer, *a)
    by_celery = {"expires is no date", "eta is no date"}
    if name not in by_celery and not message.errors:
        assert Consumer._fault(consumer, message)


def test_a_message_for_an_unknown_task_keeps_its_arguments(running: Worker, redis_url: str, client: Redis) -> None:
    app = make_app(redis_url)
    Publisher(app).publish([Message(task="gone", id="g", kwargs={"a": [1, "ü"]}, queue="celery")])
    app.send_task("gone", args=[3], task_id="h")
    push(client, envelope(headers__task="also gone"))
    eventually(lambda: len(events(redis_url, "unknown")) == 3)
    told = {event["id"]: (event["task"], event["args"], event["kwargs"]) for event in events(redis_url, "unknown")}
    assert told == {
        "g": ("gone", [], {"a": [1, "ü"]}),
        "h": ("gone", [3], {}),
        "x": ("also gone", [], {"n": 1}),
    }
    eventually(lambda: leftovers(redis_url) == 0)


def test_a_message_from_a_foreign_exchange_is_run_and_can_be_restored(
    running: Worker, redis_url: str, client: Redis
) -> None:
    client.set("database-down", 1)
    info = {"exchange": "nowhere", "routing_key": "nothing"}
    push(client, envelope(headers__task="gone", properties__delivery_info=info))
    eventually(lambda: client.get("refused"))
    running.stop()
    assert client.llen("celery") == 1


def test_of_an_over_large_message_the_beginning_is_set_aside(running: Worker, redis_url: str, client: Redis) -> None:
    push(client, envelope(body=[["a" * 36_000_000], {}, {}]))  # 48 MB on the wire
    push(client, b"x" * 50_000_000)
    push(client, envelope())
    eventually(lambda: events(redis_url, "quick"), 30)
    told = eventually(lambda: len(events(redis_url, "malformed")) == 2 and events(redis_url, "malformed"), 30)
    assert [event["size"] for event in told] == [KEPT_OF_TOO_LARGE] * 2
    eventually(lambda: leftovers(redis_url) == 0)
    assert running.is_alive


def test_while_the_database_is_down_nothing_is_lost_and_the_queue_goes_on(
    running: Worker, redis_url: str, client: Redis
) -> None:
    client.set("database-down", 1)
    for n in range(30):
        push(client, envelope(headers__task="gone", headers__id=f"u{n}") if n % 2 else b"garbage %d" % n)
    push(client, envelope())
    eventually(lambda: events(redis_url, "quick"))
    assert client.hlen("unacked") >= 30
    # Each is tried again after 0.5, 1, 2… seconds: about ten times in all over the visibility timeout.
    eventually(lambda: int(client.get("refused") or 0) >= 60)
    client.delete("database-down")
    eventually(lambda: len({event["id"] for event in events(redis_url, "unknown")}) == 15)
    eventually(lambda: len({event["start"] for event in events(redis_url, "malformed")}) == 15)
    eventually(lambda: leftovers(redis_url) == 0)


def test_what_could_not_be_stored_survives_the_death_of_the_worker(
    redis_url: str, client: Redis, tmp_path: Path
) -> None:
    client.set("database-down", 1)
    with worker(redis_url, tmp_path / "log", "-P", "solo") as process:
        push(client, b"garbage")
        push(client, envelope(headers__task="gone"))
        eventually(lambda: int(client.get("refused") or 0) >= 2)
        process.kill()
    client.delete("database-down")
    with worker(redis_url, tmp_path / "log2", "-P", "solo"):
        eventually(lambda: events(redis_url, "unknown") and events(redis_url, "malformed"))
        eventually(lambda: leftovers(redis_url) == 0)


def test_a_failing_task_and_a_broken_broadcast_change_nothing(running: Worker, redis_url: str, client: Redis) -> None:
    database = client.connection_pool.connection_kwargs["db"]
    for broadcast in (b"garbage", b"{}", b"[]", json.dumps(envelope()).encode()):
        client.publish(f"/{database}.celery.pidbox", broadcast)
        client.publish(f"/{database}.celery.pidboxes", broadcast)
    push(client, envelope(headers__task="broken", body=[[], {}, {}]))
    push(client, envelope())
    eventually(lambda: events(redis_url, "quick"))
    assert make_app(redis_url).control.ping(timeout=1)
    assert running.is_alive
    assert "Connection to broker lost" not in running.log


def test_random_damage_never_stops_the_worker(running: Worker, redis_url: str, client: Redis) -> None:
    seed = zlib.crc32(redis_url.encode())
    rng = random.Random(seed)
    count = 600
    for _ in range(count):
        push(client, _damaged(rng))
    push(client, envelope(headers__id="last"))
    eventually(lambda: leftovers(redis_url) == 0, 10)
    told = eventually(lambda: len(events(redis_url)) > count and events(redis_url))
    handled = [event["kind"] for event in told if event["kind"] in {"quick", "unknown", "malformed"}]
    assert len(handled) == count + 1, f"seed {seed}"
    assert running.is_alive, f"seed {seed}: {running.log[-3000:]}"
    assert "Connection to broker lost" not in running.log, f"seed {seed}"
    assert "Traceback" not in running.log.replace("ValueError: as asked", ""), f"seed {seed}"


JUNK = (None, True, 0, -1, 2.5, "", "x", "\ud800", [], [1], [None], {}, {"a": 1}, [[], {}, {}], "é" * 50)


def _damaged(rng: random.Random) -> bytes:
    message = envelope()
    message["body"] = [[], {"n": 1}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    message["headers"] |= {"eta": None, "expires": None, "group": None, "shadow": None, "stamps": {}}
    for _ in range(rng.randint(1, 2)):
        part: Any = message
        while True:
            keys = list(part) if isinstance(part, dict) else range(len(part))
            key = rng.choice(list(keys))
            if isinstance(part[key], (dict, list)) and part[key] and rng.random() < 0.7:
                part = part[key]
                continue
            if isinstance(part, dict) and rng.random() < 0.2:
                del part[key]
            else:
                part[key] = deepcopy(rng.choice(JUNK))
            break
    if isinstance(message.get("body"), (list, dict)):
        message["body"] = base64.b64encode(json.dumps(message["body"]).encode()).decode()
    text = json.dumps(message).encode()
    if rng.random() < 0.1:
        position = rng.randrange(len(text))
        text = text[:position] + bytes([rng.randrange(256)]) + text[position + 1 :]
    return text
