"""The fleet-wide rate limiter: slots are reserved ahead, and every start passes a strict gate.

Waiting for a rate limit must cost no worker, so a step is given its slot *before* a message is
sent for it (`RateLimiter.reserve`), and asks once more at the very moment it runs
(`RateLimiter.admit`), because messages come late, twice, or all at once after an outage.

Both are exact sliding windows.  The log of past units is the sliding log of the literature (and of
Kong's and Figma's limiters); handing out a time in the future, and spacing the waiters evenly, is
the idea of GCRA, the leaky-bucket meter of ATM networks.  Unlike GCRA, a window that is not full
takes a burst, and no window anywhere ever holds more than its limit.

The rules themselves are in ``_limiter.lua``; this module encodes calls and decodes answers.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from pickaxe._rates import Rate
from pickaxe.errors import ConfigurationError

# Slots keep 3 % more distance than the rate asks for and the gate 2 %, so a start that is
# a little later than its slot (by up to 1 % of the window) still finds the gate open.
SLOT_MARGIN = 0.03
START_MARGIN = 0.02
BATCH = 200
"""Reservations per script call: one call keeps Redis busy for a few milliseconds at most."""

_SCRIPT = Path(__file__).with_suffix(".lua").read_text(encoding="utf-8")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:/@+-]{1,80}")
_FOREVER = "1e18"


@dataclass(frozen=True, slots=True)
class Claim:
    """What one start takes from one key: ``units`` out of ``rate`` (default: one unit).

    A key with several rates is several claims with the same ``key``.

    Raises:
        ConfigurationError: ``units`` is less than 1, or more than ``rate`` ever allows.
    """

    key: str
    rate: Rate
    units: int = 1

    def __post_init__(self) -> None:
        """Refuse a claim that could never be granted: it would wait forever."""
        if not 1 <= self.units <= self.rate.count:
            raise ConfigurationError(
                f"{self.units!r} units of rate limit {self.key!r} can never be granted: "
                f"the rate {self.rate} allows 1 to {self.rate.count} at once"
            )


@dataclass(frozen=True, slots=True)
class Reservation:
    """The claims of one start: it gets one slot for all of them, or none."""

    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """A booked slot.

    Attributes:
        at: when to start, in epoch seconds of the Redis clock; never before ``now``.
        now: the Redis clock at the call, so ``at - now`` needs no local clock.
        remaining: claims that were not booked and must be reserved again at ``at``; always
            empty unless the limiter was given a ``lead``.
    """

    at: float
    now: float
    remaining: tuple[Claim, ...] = ()

    @property
    def wait(self) -> float:
        """Seconds from the call to the slot; 0.0 means at once."""
        return self.at - self.now


@dataclass(frozen=True, slots=True)
class Usage:
    """How full one window of one key is, for display.

    Attributes:
        used: units started in the window that ends now.
        limit: units the window can hold.
        waiting: units booked for later, counted up to ``limit``.
        next_slot: where a claim of one unit would be booked, in epoch seconds of the Redis clock.
        held_until: end of the key's penalty in the same clock, or None.
        now: the Redis clock at the call.
    """

    key: str
    rate: Rate
    used: int
    limit: int
    waiting: int
    next_slot: float
    held_until: float | None
    now: float


class RateLimiter:
    """Rate limits shared by every process that uses the same Redis and namespace.

    Every method is one script call (`reserve`: one per 200 reservations), is safe to use from
    several threads, and lets ``redis.exceptions.RedisError`` through: what to do without Redis is
    the caller's decision.  ``now``, in epoch seconds, replaces the Redis clock in tests.

    Redis can lose everything (FLUSHALL, a restart without persistence).  A limiter that made a call
    before the loss notices it inside its next call, before anything is granted; a process that
    did not must be told with `mark_lost`.  Either way every window counts as full at the moment of
    the loss.  Otherwise an empty Redis is a fresh deployment, and may burst.

    Args:
        client: the Redis (6.2 or later) that holds the logs; a cluster is not supported.
        namespace: prefix of every key, so that deployments can share one Redis.
        lead: seconds (default: no limit) that one key may push a start's slot back on its other
            keys.  Slots of a key are in order, so a start that waits ten minutes for its own tenant's
            limit and books that slot on a shared key too would hold up everyone else there.
            With a ``lead``, such a key stays unbooked and is named in ``Grant.remaining``.
    """

    def __init__(self, client: redis.Redis, *, namespace: str = "pickaxe", lead: float = math.inf) -> None:
        self._script = client.register_script(_SCRIPT)
        self._prefix = f"{namespace}:limit"
        self._lead = _FOREVER if math.isinf(lead) else _micros(lead)
        self._epoch = ""

    def reserve(self, requests: Sequence[Reservation], now: float | None = None) -> list[Grant]:
        """Book a slot for each request, in order, and return the slots in the same order.

        Raises:
            redis.exceptions.RedisError: Redis failed.  Batches booked before that stay booked;
                an unused slot costs capacity, never correctness.
        """
        grants: list[Grant] = []
        for start in range(0, len(requests), BATCH):
            grants += self._reserve_batch(requests[start : start + BATCH], now)
        return grants

    def admit(self, claims: Sequence[Claim], now: float | None = None) -> float:
        """Ask to start right now: 0.0 is a yes and counts as the start, else seconds to wait.

        Nothing is booked by a no.  A caller told to wait long should `reserve` again instead of coming
        back after exactly that time, for everyone else who waits was told the same.

        Raises:
            redis.exceptions.RedisError: Redis failed; whether the start was counted is unknown.
        """
        return self._ask("admit", claims, now)

    def check(self, claims: Sequence[Claim], now: float | None = None) -> float:
        """What `admit` would say now, without counting a start."""
        return self._ask("check", claims, now)

    def _ask(self, mode: str, claims: Sequence[Claim], now: float | None) -> float:
        claims = _merged(claims)
        if not claims:
            return 0.0
        meters = _Meters(self._prefix)
        request = _encode(claims, meters, "starts", START_MARGIN)
        _, reply = self._call(mode, now, meters=meters, tail=request)
        return float(reply[0]) / 1e6

    def penalise(self, key: str, until: float, now: float | None = None) -> float:
        """Grant and admit nothing on ``key`` before ``until``, fleet-wide; return the penalty's end.

        ``until`` is in epoch seconds of the Redis clock.  A penalty only ever grows.
        """
        return self._penalise(key, "until", until, now)

    def penalise_for(self, key: str, seconds: float, now: float | None = None) -> float:
        """Like `penalise`, for a ``Retry-After`` in seconds: needs no clock of the caller's."""
        return self._penalise(key, "for", seconds, now)

    def mark_lost(self, at: float | None = None, now: float | None = None) -> float:
        """Say that Redis lost its data at ``at`` (default: now; never later than now).

        Every window then counts as full at that moment, so nothing is granted on a rate until its
        window has passed, and evenly from then on.  Returns the latest known loss, in epoch seconds;
        an earlier ``at`` than one already known changes nothing.
        """
        option = "" if at is None else _micros(at)
        _, reply = self._call("lost", now, option=option)
        return float(reply[0]) / 1e6

    def peek(self, claims: Sequence[Claim], now: float | None = None) -> list[Usage]:
        """Show how full the claimed windows are, one `Usage` per claim; books nothing."""
        if not claims:
            return []
        meters = _Meters(self._prefix)
        for index, claim in enumerate(claims):  # a pair of meters each, so never shared
            meters.add(claim, "slots", SLOT_MARGIN, unique=index)
            meters.add(claim, "starts", START_MARGIN, unique=index)
        clock, reply = self._call("peek", now, meters=meters)
        rows = (reply[i : i + 4] for i in range(0, len(reply), 4))
        return [_usage(claim, row, clock) for claim, row in zip(claims, rows, strict=True)]

    def _reserve_batch(self, requests: Sequence[Reservation], now: float | None) -> list[Grant]:
        meters = _Meters(self._prefix)
        merged = [_merged(request.claims) for request in requests]
        tail = [arg for claims in merged for arg in _encode(claims, meters, "slots", SLOT_MARGIN)]
        clock, reply = self._call("reserve", now, option=self._lead, meters=meters, tail=tail)
        slots = zip(merged, reply[::2], reply[1::2], strict=True)
        return [Grant(float(at) / 1e6, clock, _picked(claims, left)) for claims, at, left in slots]

    def _penalise(self, key: str, how: str, value: float, now: float | None) -> float:
        hold = _hold_key(self._prefix, key)
        _, reply = self._call("penalise", now, option=_micros(value), keys=[hold], tail=[how])
        return float(reply[0]) / 1e6

    def _call(
        self,
        mode: str,
        now: float | None,
        *,
        option: str = "",
        keys: Sequence[str] = (),
        meters: _Meters | None = None,
        tail: Sequence[str | int] = (),
    ) -> tuple[float, list[str]]:
        """Run the script; return the clock it used, in epoch seconds, and the rest of its answer."""
        meters = meters or _Meters(self._prefix)
        clock = "" if now is None else _micros(now)
        args: list[str | int] = [mode, clock, self._epoch, secrets.token_hex(8), option, len(meters)]
        raw: Any = self._script(
            keys=[f"{self._prefix}:epoch", f"{self._prefix}:lost", *keys, *meters.keys],
            args=[*args, *meters.args, *tail],
        )
        # A client may or may not have been made with decode_responses.
        epoch, at, *rest = (part.decode() if isinstance(part, bytes) else part for part in raw)
        self._epoch = epoch
        return float(at) / 1e6, rest


class _Meters:
    """The distinct (key, rate) pairs of one script call, numbered from 1 as Lua does."""

    def __init__(self, prefix: str) -> None:
        self.keys: list[str] = []
        self.args: list[str | int] = []
        self._prefix = prefix
        self._numbers: dict[object, int] = {}
        self._groups: dict[object, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, claim: Claim, kind: str, margin: float, unique: int = 0) -> int:
        """Return the meter's number, adding it first if it is new."""
        identity = (claim.key, claim.rate, kind, unique)
        if identity not in self._numbers:
            self._numbers[identity] = len(self._numbers) + 1
            group = self._groups.setdefault((claim.key, unique), len(self._groups) + 1)
            self.keys += [_log_key(self._prefix, kind, claim), _hold_key(self._prefix, claim.key)]
            self.args += [claim.rate.count, _micros(claim.rate.window * (1 + margin)), group]
        return self._numbers[identity]


def _encode(claims: Sequence[Claim], meters: _Meters, kind: str, margin: float) -> list[str | int]:
    encoded: list[str | int] = [len(claims)]
    for claim in claims:
        encoded += [meters.add(claim, kind, margin), claim.units]
    return encoded


def _merged(claims: Iterable[Claim]) -> list[Claim]:
    """Add up claims on the same key and rate: the script takes each log once per request."""
    units: dict[tuple[str, Rate], int] = {}
    for claim in claims:
        pair = (claim.key, claim.rate)
        units[pair] = units.get(pair, 0) + claim.units
    return [Claim(key, rate, total) for (key, rate), total in units.items()]


def _picked(claims: Sequence[Claim], indexes: str) -> tuple[Claim, ...]:
    return tuple(claims[int(index)] for index in indexes.split(",")) if indexes else ()


def _usage(claim: Claim, row: Sequence[str], now: float) -> Usage:
    held = float(row[3]) / 1e6
    return Usage(
        key=claim.key,
        rate=claim.rate,
        used=int(row[0]),
        limit=claim.rate.count,
        waiting=int(row[1]),
        next_slot=float(row[2]) / 1e6,
        held_until=held if held > now else None,
        now=now,
    )


def _log_key(prefix: str, kind: str, claim: Claim) -> str:
    # The rate comes before the name: names are free text, and must not be able to imitate it.
    return f"{prefix}:{kind}:{claim.rate.count}/{claim.rate.window:.15g}:{_token(claim.key)}"


def _hold_key(prefix: str, key: str) -> str:
    return f"{prefix}:hold:{_token(key)}"


def _token(name: str) -> str:
    """Keep a plain name readable; hash the rest, for a computed name can be any text of any length."""
    if _PLAIN_NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", name[:24])
    return f"{readable}~{digest}"  # "~" is in no plain name, so the two can never meet


def _micros(seconds: float) -> str:
    return f"{seconds * 1e6:.2f}"
