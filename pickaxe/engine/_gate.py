"""The gate of a rate limit: asked before a call is claimed, and passed at the last moment before its body.

Slots were handed out before (`_dispatch.py`); this is what makes the limit strict, whatever was late, doubled or
waited in a backlog. Only passing counts as a start.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

import redis

from pickaxe.engine._dispatch import claims_of, dispatch
from pickaxe.engine._engine import Engine
from pickaxe.engine._limiter import START_MARGIN, Claim
from pickaxe.store import StepDue

logger = logging.getLogger("pickaxe.limits")

SHORT_WAIT = 0.05
"""A wait this short, in seconds, is slept in the slot: giving the call back would take longer."""

PATIENCE = 0.5
"""Seconds of short waits after which a claimed call is given back all the same."""

ASKS = 3
"""How often a call whose yes came late asks for another before it makes do with it: with a far-away Redis all do."""

AWAY = 1.0
"""Seconds after which a call asks again when the limiter could not be asked."""


class Throttled(BaseException):
    """Raised instead of a body: the limit does not let it start for another `wait` seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"the limit is used up for another {wait:.3f} s")
        self.wait = wait


def may_start(engine: Engine, message: dict[str, Any], tool: str, queue: str) -> bool:
    """Whether a call may be claimed now. If not, it gets a slot like any other: late, early or in a crowd."""
    claims = claims_of(engine, queue, message.get("limits") or [])
    if not claims:
        return True
    try:
        if engine.limiter.check(claims) <= SHORT_WAIT:
            return True
    except redis.RedisError as error:
        logger.warning("%s: the limiter is away, the call waits: %s", message["step"], error)
        return False
    run = uuid.UUID(message["run"])
    root = uuid.UUID(engine.current_root() or message["run"])
    options = {"limits": message.get("limits") or []}
    attempt = int(message["attempt"]) - 1
    dispatch(
        engine, [StepDue(run, message["step"], tool, queue, message.get("priority", 5), attempt, options, "", root)]
    )
    return False


def enter(engine: Engine, claims: Sequence[Claim]) -> None:
    """Pass the gate; from here on the start counts. Raises `Throttled`."""
    deadline = time.monotonic() + PATIENCE
    # The limiter counted the start at some moment since it was asked. Its margin covers what a start is later than
    # counted, so a process that was not given the processor meanwhile has missed its turn.
    late, asks = START_MARGIN * 0.9 * min((claim.rate.window for claim in claims), default=0.0), 0
    while claims:
        asked, wait = time.monotonic(), _ask(engine, claims)
        if wait == 0:
            asks += 1
            if time.monotonic() - asked <= late or asks == ASKS:
                return
        elif wait > SHORT_WAIT or time.monotonic() + wait > deadline:
            raise Throttled(wait)
        else:
            time.sleep(wait)


def _ask(engine: Engine, claims: Sequence[Claim]) -> float:
    try:
        return engine.limiter.admit(claims)
    except redis.RedisError as error:
        logger.warning("the limiter is away, the call waits: %s", error)
        raise Throttled(AWAY) from error
