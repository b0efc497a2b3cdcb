"""A connection that does not wait for ever: a server may take every byte, and still never answer."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")

ANSWER_WITHIN = 30.0
"""Seconds of silence after which a statement's connection is given up, by default."""


class NoAnswerError(psycopg.OperationalError):
    """The server has acknowledged a statement and does not answer. Whether it was carried out, nobody knows."""


class AnsweringConnection(psycopg.Connection[Any]):
    """A psycopg connection that is closed, with `NoAnswerError`, when nothing has come for `answer_within` seconds.

    None, the default: it waits for ever, as for statements of a tool. The network layer cannot do this: a server
    that is stopped, or a proxy whose server is gone, still acknowledges whatever is sent.
    """

    answer_within: float | None = None

    def wait(self, gen: Generator[Any, Any, T], *options: Any, **named: Any) -> T:
        """What every statement, commit and rollback waits in."""
        if self.answer_within is None:
            return super().wait(gen, *options, **named)
        try:
            return super().wait(_answered(gen, self.answer_within), *options, **named)
        except NoAnswerError:
            self.close()  # the answer may yet come, and would be taken for that to the next statement
            raise


def _answered(gen: Generator[Any, Any, T], within: float) -> Generator[Any, Any, T]:
    """`gen`, as long as something comes: psycopg tells it every tenth of a second when nothing has."""
    silent_since: float | None = None
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                silent_since = None
            elif silent_since is None:
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since >= within:
                gen.close()
                raise NoAnswerError(f"Postgres did not answer within {within:g} s, though its network does")
            wanted = gen.send(ready)
    except StopIteration as end:
        value: T = end.value
        return value
