"""The proxy itself: a fault that does not hit proves nothing."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator

import psycopg
import pytest
import redis

from tests.conftest import Services
from tests.faults.proxy import Proxy


@pytest.fixture
def to_postgres(services: Services) -> Iterator[Proxy]:
    with Proxy(services.database_url, seed=1) as proxy:
        yield proxy


@pytest.fixture
def to_redis(services: Services) -> Iterator[Proxy]:
    with Proxy(services.redis_url, seed=1) as proxy:
        yield proxy


def connect(proxy: Proxy, **more: int) -> psycopg.Connection:
    return psycopg.connect(proxy.url.replace("postgresql+psycopg", "postgresql"), autocommit=True, **more)


def client(proxy: Proxy) -> redis.Redis:
    return redis.Redis.from_url(proxy.url, socket_timeout=0.3, socket_connect_timeout=0.3)


def test_a_statement_whose_answer_is_lost_is_committed_even_when_it_was_prepared_before(to_postgres: Proxy) -> None:
    with connect(to_postgres) as connection, connect(to_postgres) as other:
        connection.execute("CREATE TABLE t (n int)")
        for n in range(9):
            connection.execute("INSERT INTO t VALUES (%s)", [n], prepare=True)
        to_postgres.lose_reply("INSERT INTO t", nth=2)
        connection.execute("INSERT INTO t VALUES (%s)", [9])
        with pytest.raises(psycopg.OperationalError):
            connection.execute("INSERT INTO t VALUES (%s)", [10])
        assert other.execute("SELECT count(*) FROM t").fetchone() == (11,)
        assert to_postgres.hits["replies lost"] == 1
        # Once, as it was told.
        other.execute("INSERT INTO t VALUES (11)")


def test_a_blackhole_tells_nobody_and_what_was_held_comes_when_it_is_healed(to_redis: Proxy) -> None:
    with client(to_redis) as one, client(to_redis) as two:
        one.set("key", "0")
        to_redis.blackhole()
        with pytest.raises(redis.TimeoutError):
            one.incr("key")
        with pytest.raises(redis.RedisError):
            two.ping()
        to_redis.heal()
        assert to_redis.hits["held"] >= 2
        # The client has gone, but what it had sent is delivered.
        deadline = time.monotonic() + 5
        while two.get("key") != b"1":
            assert time.monotonic() < deadline


def test_a_muted_connection_has_its_commands_carried_out_and_never_hears_of_it_and_new_ones_do(to_redis: Proxy) -> None:
    with client(to_redis) as one, client(to_redis) as two:
        one.ping()
        assert to_redis.mute() == 1
        with pytest.raises(redis.TimeoutError):
            one.set("key", "1")
        assert two.get("key") == b"1"
        assert to_redis.hits["unanswered"]


def test_one_direction_alone_can_be_silent(to_redis: Proxy) -> None:
    with client(to_redis) as one:
        one.set("key", "0")
        to_redis.blackhole("down")
        with pytest.raises(redis.TimeoutError):
            one.incr("key")
        to_redis.heal()
        assert one.get("key") == b"1"


def test_refused_and_cut_connections_fail_at_once_and_the_port_stays(to_redis: Proxy) -> None:
    for reset in (True, False):
        with client(to_redis) as one:
            one.ping()
            to_redis.refuse()
            one.ping()
            assert to_redis.cut(reset=reset) == 1
            with pytest.raises(redis.ConnectionError):
                one.ping()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", to_redis.port), timeout=1)
            to_redis.heal()
            assert one.ping()
    assert to_redis.hits["cut"] == 2


def test_forgotten_connections_are_half_open_and_new_ones_work(to_redis: Proxy) -> None:
    with client(to_redis) as one, client(to_redis) as two:
        one.ping()
        assert to_redis.forget() == 1
        with pytest.raises(redis.TimeoutError):
            one.ping()
        assert two.ping()
        assert to_redis.connections == 1


def test_latency_and_stalls_are_counted(to_redis: Proxy) -> None:
    with client(to_redis) as one:
        one.ping()
        to_redis.delay(0.05, 0.01)
        began = time.monotonic()
        one.ping()
        assert time.monotonic() - began >= 0.08
        to_redis.heal()
        to_redis.stutter(1.0, 0.06, "up")
        began = time.monotonic()
        one.ping()
        assert time.monotonic() - began >= 0.06
    assert to_redis.hits["delayed"] >= 2
    assert to_redis.hits["stalled"] >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a socket filter of Linux")
def test_a_forgotten_connection_is_not_even_acknowledged(to_postgres: Proxy) -> None:
    with connect(to_postgres, tcp_user_timeout=1000) as connection:
        connection.execute("SELECT 1")
        to_postgres.forget()
        # After its second, and not after the quarter of an hour that Linux goes on for by itself.
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
