"""The benchmarks' proxies, between real clients and real servers."""

from __future__ import annotations

from urllib.parse import urlsplit

import psycopg
import redis

from benchmarks import meter
from benchmarks.own import _by_way_of


def through(url: str, watch: meter.Watched) -> tuple[meter.Proxy, str]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    proxy = meter.Proxy(parts.hostname, parts.port, watch)
    return proxy, _by_way_of(url, proxy)


def test_statements_round_trips_and_transactions_of_a_real_session_are_counted(database_url: str) -> None:
    proxy, url = through(database_url, meter.postgres)
    with psycopg.connect(url, autocommit=True) as connection:
        before = proxy.counts.copy()
        for number in range(4):  # a statement is prepared, which takes a round trip, at its sixth
            connection.execute("SELECT %s::int", (number,))
        with connection.transaction():
            connection.execute("SELECT 1")
        found = proxy.counts - before
    proxy.close()
    assert found == {"statements": 4 + 3, "round_trips": 4 + 3, "transactions": 4 + 1}


def test_a_pipeline_is_one_round_trip_to_redis(redis_url: str) -> None:
    proxy, url = through(redis_url, meter.redis)
    with redis.Redis.from_url(url) as client:
        client.ping()
        before = proxy.counts["round_trips"]
        client.ping()
        with client.pipeline() as pipe:
            pipe.set("a", 1).set("b", 2).get("a")
            pipe.execute()
        assert proxy.counts["round_trips"] - before == 2
    proxy.close()
