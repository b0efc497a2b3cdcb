"""Ids of runs."""

from __future__ import annotations

import time
import uuid


def uuid7() -> uuid.UUID:
    """A UUID that sorts by its time (RFC 9562, version 7), so that new runs are neighbours on disk."""
    random_bits = uuid.uuid4().int & ((1 << 74) - 1)
    value = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | (random_bits >> 62) << 64
    return uuid.UUID(int=value | 0b10 << 62 | random_bits & ((1 << 62) - 1))
