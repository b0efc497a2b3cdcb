"""The ledger: what bodies really did, written by themselves and independent of everything Pickaxe records.

Every line is one `write` to a file opened with O_APPEND: `word key attempt pid time`, where `word` is `start` or
`end` of a body, or tells of an effect, or of a fault that hit (`dropped`, `tripled`), or how wrong a `clock` is.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pickaxe import Context

EPOCH = float(os.environ["PICKAXE_TEST_EPOCH"]) if "PICKAXE_TEST_EPOCH" in os.environ else None
"""What the test's wall clock adds to the machine's monotonic one, on which no worker can disagree."""


def write(word: str, key: str, attempt: int | str = 0) -> None:
    """One line of the ledger."""
    at = time.time() if EPOCH is None else time.monotonic() + EPOCH
    line = f"{word} {key} {attempt} {os.getpid()} {at:.6f}\n"
    ledger = os.open(os.environ.get("PICKAXE_TEST_LEDGER", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(ledger, line.encode())
    finally:
        os.close(ledger)


@contextlib.contextmanager
def body(ctx: Context) -> Iterator[None]:
    """Notes that a body starts, and that it has ended."""
    write("start", ctx.idempotency_key, ctx.attempt)
    yield
    write("end", ctx.idempotency_key, ctx.attempt)


def count(word: str, key: str) -> int:
    """How often this was written."""
    lines = Path(os.environ["PICKAXE_TEST_LEDGER"]).read_text().splitlines()
    return sum(line.startswith(f"{word} {key} ") for line in lines)


def failures_before(key: str) -> int:
    """How often a call has failed, by its idempotency key. An attempt that a worker died in is not a failure."""
    return count("failed", key)
