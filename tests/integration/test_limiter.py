"""The rate limiter against a real Redis, mostly under a fake clock.

The invariants are checked from outside, by a plain count over every window, never by the
limiter's own arithmetic.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from pickaxe._rates import Rate, parse_rates
from pickaxe.engine._limiter import BATCH, Claim, Grant, RateLimiter, Reservation
from pickaxe.errors import ConfigurationError

NOW = 1_800_000_000.0
MICROSECOND = 1e-6
_namespaces = itertools.count()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connection:
        connection.flushdb()
        yield connection


@pytest.fixture
def limiter(client: redis.Redis) -> RateLimiter:
    return fresh(client)


def fresh(client: redis.Redis, **options: float) -> RateLimiter:
    return RateLimiter(client, namespace=f"test{next(_namespaces)}", **options)


def claims(key: str, rates: str, units: int = 1) -> list[Claim]:
    return [Claim(key, rate, units) for rate in parse_rates(rates)]


def wants(key: str, rates: str, count: int = 1, units: int = 1) -> list[Reservation]:
    return [Reservation(tuple(claims(key, rates, units)))] * count


def slots(grants: Sequence[Grant]) -> list[float]:
    return [grant.at for grant in grants]


def fullest(booked: Sequence[tuple[float, int]], window: float) -> int:
    """The most units any window of that length holds."""
    inside: deque[tuple[float, int]] = deque()
    most = held = 0
    for at, units in sorted(booked):
        inside.append((at, units))
        held += units
        while inside[0][0] <= at - window:
            held -= inside.popleft()[1]
        most = max(most, held)
    return most


def gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


# --- reserve


def test_an_empty_window_takes_a_burst_of_the_whole_limit(limiter: RateLimiter) -> None:
    grants = limiter.reserve(wants("k", "50/s", 50), NOW)
    assert slots(grants) == [NOW] * 50
    assert {grant.wait for grant in grants} == {0.0}


def test_waiters_are_spread_evenly_after_the_burst(limiter: RateLimiter) -> None:
    at = slots(limiter.reserve(wants("k", "50/s", 250), NOW))
    assert at[50] == pytest.approx(NOW + 1.03, abs=2 * MICROSECOND)
    assert all(0.0200 <= gap <= 0.0208 for gap in gaps(at[50:]))


@pytest.mark.parametrize("rate", ["1/s", "7/s", "50/s", "1000/h", "5000/s", "100000/s", "3/d"])
def test_a_backlog_uses_at_least_97_percent_of_the_rate(limiter: RateLimiter, rate: str) -> None:
    (parsed,) = parse_rates(rate)
    grants = limiter.reserve(wants("k", rate, parsed.count), NOW)
    backlog = slots(limiter.reserve(wants("k", rate, 1000), NOW))
    assert slots(grants) == [NOW] * parsed.count
    ideal = (len(backlog) - 1) * parsed.window / parsed.count
    assert 0.97 <= ideal / (backlog[-1] - backlog[0]) <= 1.0
    assert min(gaps(backlog)) >= parsed.window / parsed.count * 0.99


def test_slots_are_in_order_over_separate_calls_and_clients(client: redis.Redis) -> None:
    fleet = [RateLimiter(client, namespace="fleet") for _ in range(3)]
    at = [fleet[i % 3].reserve(wants("k", "5/s"), NOW + i / 100)[0].at for i in range(60)]
    assert at == sorted(at)
    assert fullest([(t, 1) for t in at], 1.0) == 5


def test_a_burst_is_possible_again_once_the_window_is_empty(limiter: RateLimiter) -> None:
    limiter.reserve(wants("k", "5/s", 5), NOW)
    assert slots(limiter.reserve(wants("k", "5/s", 5), NOW + 1.03)) == [NOW + 1.03] * 5


def test_units_count_as_that_many_starts(limiter: RateLimiter) -> None:
    grants = limiter.reserve(wants("k", "10/s", 6, units=4), NOW)
    assert slots(grants)[:2] == [NOW, NOW]
    assert grants[2].wait == pytest.approx(1.03, abs=MICROSECOND)
    assert fullest([(t, 4) for t in slots(grants)], 1.0) == 8


@pytest.mark.parametrize("units", [0, -1, 11])
def test_a_claim_that_can_never_be_granted_is_refused(units: int) -> None:
    with pytest.raises(ConfigurationError, match=r"10/s allows 1 to 10"):
        Claim("k", Rate(10, 1), units)


def test_two_claims_on_one_key_in_one_request_add_up(limiter: RateLimiter) -> None:
    double = Reservation((*claims("k", "10/s", 6), *claims("k", "10/s", 4)))
    assert limiter.reserve([double], NOW)[0].wait == 0
    assert limiter.reserve(wants("k", "10/s"), NOW)[0].wait > 1
    with pytest.raises(ConfigurationError, match="12 units"):
        limiter.reserve([Reservation((*claims("k", "10/s", 6), *claims("k", "10/s", 6)))], NOW)


def test_a_request_gets_one_slot_that_suits_all_its_keys(limiter: RateLimiter) -> None:
    limiter.reserve(wants("tenant", "2/s", 3), NOW)
    both = Reservation((*claims("model", "50/s"), *claims("tenant", "2/s")))
    at = limiter.reserve([both], NOW)[0].at
    assert at == pytest.approx(NOW + 1.03 + 0.515, abs=2 * MICROSECOND)
    # and it is booked on the other key too, whose slots are in order
    assert limiter.reserve(wants("model", "50/s"), NOW)[0].at >= at


def test_with_a_lead_a_key_is_not_held_up_by_another_keys_backlog(client: redis.Redis) -> None:
    limiter = fresh(client, lead=0.5)
    limiter.reserve(wants("tenant", "1/m", 10), NOW)
    both = Reservation((*claims("model", "50/s"), *claims("tenant", "1/m")))
    grant = limiter.reserve([both], NOW)[0]
    assert grant.wait > 500
    assert grant.remaining == tuple(claims("model", "50/s"))
    assert limiter.reserve(wants("model", "50/s"), NOW)[0].wait == 0
    later = limiter.reserve([Reservation(grant.remaining)], grant.at)[0]
    assert (later.at, later.remaining) == (grant.at, ())


def test_a_long_window_that_is_not_full_does_not_slow_a_short_one(limiter: RateLimiter) -> None:
    at = slots(limiter.reserve(wants("k", "50/s,1000/h", 1010), NOW))
    assert at[999] < NOW + 21
    assert at[1000] >= NOW + 3600
    assert min(gaps(at[1000:])) >= 3.6 * 0.99  # from here on the long window sets the pace
    assert fullest([(t, 1) for t in at], 1.0) == 50


def test_requests_without_claims_start_now(limiter: RateLimiter) -> None:
    assert limiter.reserve([Reservation(())], NOW) == [Grant(NOW, NOW)]
    assert limiter.admit([], NOW) == 0.0
    assert limiter.reserve([], NOW) == []


def test_a_batch_gets_the_slots_that_single_calls_would_get(client: redis.Redis) -> None:
    requests = [*wants("a", "7/s,40/m", BATCH), *wants("b", "3/s", 20, units=2), *wants("a", "7/s,40/m", 30)]
    singles, batch = fresh(client), fresh(client)
    one_by_one = [singles.reserve([request], NOW)[0] for request in requests]
    assert batch.reserve(requests, NOW) == one_by_one


# --- admit


def test_the_gate_lets_the_limit_through_and_then_says_how_long_to_wait(limiter: RateLimiter) -> None:
    one = claims("k", "3/s")
    assert [limiter.admit(one, NOW) for _ in range(3)] == [0.0] * 3
    wait = limiter.admit(one, NOW + 0.4)
    assert wait == pytest.approx(0.62, abs=MICROSECOND)
    assert limiter.admit(one, NOW + 0.4 + wait - 0.001) > 0
    assert limiter.admit(one, NOW + 0.4 + wait + MICROSECOND) == 0.0


def test_a_refused_start_counts_on_none_of_its_keys(limiter: RateLimiter) -> None:
    limiter.admit(claims("full", "1/s"), NOW)
    for _ in range(10):
        assert limiter.admit([*claims("free", "2/s"), *claims("full", "1/s")], NOW) > 0
    assert limiter.peek(claims("free", "2/s"), NOW)[0].used == 0


@pytest.mark.parametrize("rate", ["1/s", "10/s", "50/s", "100/15m"])
def test_a_start_up_to_one_percent_late_always_passes_the_gate(limiter: RateLimiter, rate: str) -> None:
    (parsed,) = parse_rates(rate)
    late = random.Random(rate)
    granted = slots(limiter.reserve(wants("k", rate, 5 * parsed.count), NOW))
    starts = sorted(at + late.uniform(0, 0.0099) * parsed.window for at in granted)
    assert [limiter.admit(claims("k", rate), at) for at in starts] == [0.0] * len(starts)


def test_a_backlog_of_late_and_doubled_messages_cannot_burst_through(limiter: RateLimiter) -> None:
    granted = slots(limiter.reserve(wants("k", "10/s", 40), NOW))
    waiting = [NOW + 60 for _ in granted for _ in range(2)]  # an outage: all arrive late, and twice
    started: list[tuple[float, int]] = []
    while waiting:
        waiting.sort()
        at = waiting.pop(0)
        wait = limiter.admit(claims("k", "10/s"), at)
        if wait:
            waiting.append(at + wait + MICROSECOND)
        else:
            started.append((at, 1))
    assert len(started) == 80
    assert fullest(started, 1.0) == 10
    assert max(started)[0] - NOW - 60 <= 7 * 1.0201


def test_a_clock_set_back_does_not_stop_the_fleet(limiter: RateLimiter) -> None:
    for _ in range(3):
        limiter.admit(claims("k", "3/s"), NOW)
    earlier = NOW - 3600
    assert limiter.admit(claims("k", "3/s"), earlier) == pytest.approx(1.02, abs=MICROSECOND)
    assert limiter.admit(claims("k", "3/s"), earlier + 1.03) == 0.0


# --- penalties


def test_a_penalty_holds_back_slots_and_starts_on_every_window_of_the_key(client: redis.Redis) -> None:
    limiter, other = fresh(client), RateLimiter(client, namespace=f"test{next(_namespaces) - 1}")
    assert limiter.penalise("k", NOW + 30, NOW) == NOW + 30
    at = slots(other.reserve(wants("k", "5/s,100/h", 4), NOW + 1))
    assert at[0] == NOW + 30
    assert all(gap >= 0.2 for gap in gaps(at))  # not all at once into a service that just said 429
    assert other.admit(claims("k", "5/s"), NOW + 10) == pytest.approx(20)
    assert other.admit(claims("k", "5/s"), NOW + 30) == 0.0
    assert other.admit(claims("elsewhere", "5/s"), NOW + 10) == 0.0


def test_a_penalty_only_grows(limiter: RateLimiter) -> None:
    limiter.penalise_for("k", 30, NOW)
    assert limiter.penalise_for("k", 5, NOW) == NOW + 30
    assert limiter.penalise("k", NOW - 5, NOW) == NOW + 30
    assert limiter.penalise_for("k", 40, NOW) == NOW + 40
    assert limiter.admit(claims("k", "5/s"), NOW) == pytest.approx(40)


# --- loss of Redis


def test_an_empty_redis_that_nobody_has_seen_before_is_a_fresh_deployment(client: redis.Redis) -> None:
    assert slots(fresh(client).reserve(wants("k", "5/s", 5), NOW)) == [NOW] * 5
    assert fresh(client).admit(claims("k", "5/s"), NOW) == 0.0


def test_after_a_loss_nothing_starts_for_a_window_and_then_evenly(limiter: RateLimiter) -> None:
    assert limiter.mark_lost(NOW - 0.2, NOW) == pytest.approx(NOW - 0.2, abs=MICROSECOND)
    at = slots(limiter.reserve(wants("k", "5/s", 10), NOW))
    assert at[0] == pytest.approx(NOW - 0.2 + 1.03, abs=2 * MICROSECOND)
    assert min(gaps(at)) >= 0.198
    assert limiter.admit(claims("k", "5/s"), NOW) == pytest.approx(0.82, abs=2 * MICROSECOND)
    assert limiter.admit(claims("k", "5/s"), NOW + 0.82) == 0.0


def test_a_loss_is_over_after_one_window(limiter: RateLimiter) -> None:
    limiter.mark_lost(now=NOW)
    assert slots(limiter.reserve(wants("k", "5/s", 5), NOW + 1.03)) == [NOW + 1.03] * 5


def test_a_later_loss_wins_and_none_lies_in_the_future(limiter: RateLimiter) -> None:
    limiter.mark_lost(NOW, NOW)
    assert limiter.mark_lost(NOW - 9, NOW) == NOW
    assert limiter.mark_lost(NOW + 99, NOW + 1) == NOW + 1


def test_what_was_granted_before_a_loss_was_marked_still_counts(limiter: RateLimiter) -> None:
    before = slots(limiter.reserve(wants("k", "5/s", 5), NOW))
    limiter.mark_lost(NOW, NOW)
    after = slots(limiter.reserve(wants("k", "5/s", 10), NOW + 0.5))
    assert fullest([(t, 1) for t in before + after], 1.0) == 5


def test_a_flush_is_noticed_by_the_next_call_of_whoever_was_there_before(client: redis.Redis) -> None:
    limiter = RateLimiter(client, namespace="flushed")
    started = [NOW for _ in range(5) if limiter.admit(claims("k", "5/s"), NOW) == 0]
    client.flushdb()
    assert limiter.admit(claims("k", "5/s"), NOW + 0.1) == pytest.approx(1.02, abs=2 * MICROSECOND)
    assert limiter.reserve(wants("k", "5/s"), NOW + 0.1)[0].wait > 1
    assert len(started) == 5


def test_a_flush_between_marking_a_loss_and_reserving_is_a_loss_too(client: redis.Redis) -> None:
    limiter = RateLimiter(client, namespace="flushed")
    limiter.mark_lost(NOW, NOW)
    client.flushdb()
    assert limiter.reserve(wants("k", "5/s"), NOW + 0.5)[0].wait == pytest.approx(1.03, abs=2 * MICROSECOND)


def test_a_newcomer_after_a_flush_does_not_hide_the_loss_from_the_others(client: redis.Redis) -> None:
    old, older = (RateLimiter(client, namespace="flushed") for _ in range(2))
    for limiter in (old, older):
        limiter.reserve(wants("k", "5/s"), NOW)
    client.flushdb()
    newcomer = RateLimiter(client, namespace="flushed")
    assert newcomer.reserve(wants("other", "5/s"), NOW + 0.1)[0].wait == 0
    assert old.reserve(wants("k", "5/s"), NOW + 0.3)[0].wait > 0.8
    assert newcomer.reserve(wants("k", "5/s"), NOW + 0.3)[0].wait > 0.8
    # the second witness names the same moment, so the pause is not drawn out by each of them
    assert older.reserve(wants("third", "5/s"), NOW + 1.13)[0].wait == 0


# --- properties

KEYS = {"a": "5/s,12/5s", "b": "3/2s", "c": "20/10s"}
_units = st.integers(1, 3)
_claimed = st.dictionaries(st.sampled_from(sorted(KEYS)), _units, min_size=1)
_operation = st.one_of(
    st.tuples(st.just("reserve"), st.lists(_claimed, min_size=1, max_size=12)),
    st.tuples(st.just("admit"), st.lists(_claimed, min_size=1, max_size=12)),
    st.tuples(st.just("penalise"), st.sampled_from(sorted(KEYS))),
)
_program = st.lists(st.tuples(st.floats(0, 2), _operation), min_size=1, max_size=25)
_property = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def expand(claimed: dict[str, int]) -> list[Claim]:
    return [claim for key, units in claimed.items() for claim in claims(key, KEYS[key], units)]


def book(log: dict[str, list[tuple[float, int]]], claimed: dict[str, int], at: float) -> None:
    for key, units in claimed.items():
        log[key].append((at, units))


def assert_within_limits(log: dict[str, list[tuple[float, int]]]) -> None:
    for key, booked in log.items():
        for rate in parse_rates(KEYS[key]):
            assert fullest(booked, rate.window) <= rate.count, (key, rate)


@_property
@given(program=_program)
def test_no_window_ever_holds_more_than_its_limit(client: redis.Redis, program: list) -> None:
    limiter, now = fresh(client), NOW
    granted: dict[str, list[tuple[float, int]]] = {key: [] for key in KEYS}
    started: dict[str, list[tuple[float, int]]] = {key: [] for key in KEYS}
    held = dict.fromkeys(KEYS, 0.0)
    for delay, (operation, argument) in program:
        now += delay
        if operation == "reserve":
            grants = limiter.reserve([Reservation(tuple(expand(one))) for one in argument], now)
            for claimed, grant in zip(argument, grants, strict=True):
                assert grant.at >= max(now - MICROSECOND, *(held[key] for key in claimed))
                book(granted, claimed, grant.at)
        elif operation == "admit":
            for claimed in argument:
                if limiter.admit(expand(claimed), now) == 0:
                    assert now >= max(held[key] for key in claimed) - MICROSECOND
                    book(started, claimed, now)
        else:
            held[argument] = limiter.penalise(argument, now + 1, now) - MICROSECOND
    assert_within_limits(granted)
    assert_within_limits(started)
    for booked in granted.values():
        assert booked == sorted(booked, key=lambda entry: entry[0])


@_property
@given(
    count=st.integers(1, 60),
    window=st.sampled_from([0.1, 1.0, 60.0, 900.0]),
    arrivals=st.lists(st.tuples(st.floats(0, 0.05), st.integers(1, 20)), min_size=10, max_size=40),
)
def test_a_lasting_backlog_is_spread_evenly_and_wastes_nothing(
    client: redis.Redis, count: int, window: float, arrivals: list[tuple[float, int]]
) -> None:
    limiter, rate = fresh(client), Rate(count, window)
    one = Reservation((Claim("k", rate),))
    now, waiting = NOW, []
    limiter.reserve([one] * count, now)
    for delay, number in arrivals:
        now += delay * window / count  # slower than they are served, so the backlog lasts
        waiting += limiter.reserve([one] * number, now)
    at = [grant.at for grant in waiting]
    assert min(gaps(at)) >= window / count * 0.99
    assert (len(at) - 1) * window / count >= 0.97 * (at[-1] - at[0])


@_property
@given(st.lists(_claimed, min_size=1, max_size=40), st.floats(0.01, 30))
def test_with_a_lead_no_window_ever_holds_more_than_its_limit_either(
    client: redis.Redis, requests: list[dict[str, int]], lead: float
) -> None:
    limiter = fresh(client, lead=lead)
    granted: dict[str, list[tuple[float, int]]] = {key: [] for key in KEYS}
    grants = limiter.reserve([Reservation(tuple(expand(one))) for one in requests], NOW)
    for claimed, grant in zip(requests, grants, strict=True):
        left = {claim.key for claim in grant.remaining}
        assert left != set(claimed)
        book(granted, {key: units for key, units in claimed.items() if key not in left}, grant.at)
    assert_within_limits(granted)


# --- keys, clock, clients


@pytest.mark.parametrize("name", ["", "x" * 10_000, "a b\n{c}*", "ключ", "a~b", "slots:5/1:k", "\udcff"])
def test_any_text_can_name_a_key(limiter: RateLimiter, client: redis.Redis, name: str) -> None:
    assert limiter.admit(claims(name, "1/s"), NOW) == 0
    assert limiter.admit(claims(name, "1/s"), NOW) > 0
    assert all(len(key) < 150 and b"\n" not in key for key in client.keys("*"))


def test_names_that_look_alike_are_different_keys(limiter: RateLimiter) -> None:
    names = ["k", "K", "k ", "x" * 100, "x" * 101, "a b", "a_b", "a~b"]
    assert [limiter.admit(claims(name, "1/d"), NOW) for name in names] == [0.0] * len(names)


def test_namespaces_share_nothing(client: redis.Redis) -> None:
    for limiter in (fresh(client), fresh(client)):
        assert limiter.admit(claims("k", "1/s"), NOW) == 0


def test_idle_keys_vanish(client: redis.Redis) -> None:
    limiter = RateLimiter(client, namespace="idle")
    for _ in range(3):
        limiter.reserve(wants("k", "2/10s"))
    limiter.admit(claims("k", "2/10s"))
    limiter.penalise_for("k", 5)
    left = {key.split(b":")[2]: client.pttl(key) / 1000 for key in client.keys("idle:*")}
    assert left.pop(b"slots") == pytest.approx(10.2 * 2 + 1, abs=0.5)
    assert left.pop(b"starts") == pytest.approx(10.1 + 1, abs=0.5)
    assert left.pop(b"hold") == pytest.approx(5 + 1, abs=0.5)
    assert left == {b"epoch": pytest.approx(-0.001)}


def test_a_log_never_grows_beyond_its_limit(limiter: RateLimiter, client: redis.Redis) -> None:
    for step in range(300):
        limiter.reserve(wants("k", "20/s"), NOW + step / 7)
        limiter.admit(claims("k", "20/s"), NOW + step / 7)
    assert max(client.zcard(key) for key in client.keys("*:s*:20/1:k")) <= 20


def test_the_redis_clock_is_the_clock(limiter: RateLimiter, client: redis.Redis) -> None:
    seconds, micros = client.time()
    grant = limiter.reserve(wants("k", "1/s"))[0]
    assert 0 <= grant.now - (seconds + micros / 1e6) < 5
    assert grant.at == grant.now


def test_a_client_that_decodes_and_a_server_without_the_script_both_work(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        limiter = RateLimiter(client, namespace="decoded")
        assert limiter.admit(claims("k", "1/s"), NOW) == 0.0
        client.script_flush()
        assert limiter.admit(claims("k", "1/s"), NOW) > 0


def test_a_redis_that_is_away_is_the_callers_to_handle() -> None:
    never = Retry(NoBackoff(), 0)
    with redis.Redis(port=1, retry=never) as nowhere, pytest.raises(redis.RedisError):
        RateLimiter(nowhere).admit(claims("k", "1/s"))


def test_peek_shows_starts_waiters_and_the_next_slot_and_books_nothing(limiter: RateLimiter) -> None:
    for _ in range(3):
        limiter.admit(claims("k", "4/s"), NOW)
    limiter.reserve(wants("k", "4/s", 6), NOW)
    limiter.penalise("held", NOW + 9, NOW)
    for _ in range(2):
        usage, held = limiter.peek([*claims("k", "4/s"), *claims("held", "1/s")], NOW + 0.1)
        assert (usage.used, usage.limit, usage.waiting, usage.held_until) == (3, 4, 2, None)
        assert usage.next_slot == pytest.approx(NOW + 1.03 + 2 * 0.2575, abs=4 * MICROSECOND)
        assert (held.used, held.held_until, held.next_slot) == (0, NOW + 9, NOW + 9)
    assert limiter.peek(claims("k", "4/s"), NOW + 5)[0].used == 0
    assert limiter.peek([]) == []


def test_threads_in_real_time_never_start_more_than_the_limit(redis_url: str) -> None:
    began = time.monotonic()  # before the first try, so that no window is overlooked

    def hammer(_: int) -> int:
        with redis.Redis.from_url(redis_url) as own:
            limiter, started = RateLimiter(own, namespace="threads"), 0
            for _ in range(150):
                started += limiter.admit(claims("k", "20/0.2s")) == 0
            return started

    with ThreadPoolExecutor(8) as pool:
        started = sum(pool.map(hammer, range(8)))
    windows = math.ceil((time.monotonic() - began) / 0.2)
    assert 20 <= started <= 20 * windows
