"""The connection to Postgres: named statements, and patience while the database is away."""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar, cast

import psycopg
from sqlalchemy import Connection, Engine, Row, TextClause, create_engine, event, text
from sqlalchemy.dialects.postgresql import psycopg as dialect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from pickaxe.errors import ConfigurationError, PickaxeError, SchemaError, ServiceUnavailableError
from pickaxe.store._connection import ANSWER_WITHIN, AnsweringConnection, NoAnswerError

logger = logging.getLogger("pickaxe.store")

T = TypeVar("T")

_CONFLICTS = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_SILENCE = {"keepalives_idle": 10, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
"""A server that has vanished without a word is given up after 10 to 16 s; Linux' own defaults take 11 minutes."""

LONGEST_IDLE = 5.0
"""Seconds for which a transaction of Pickaxe's own may do nothing before Postgres ends its session."""

_MISSING = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction)


@cache
def statement(name: str) -> TextClause:
    """The statement in `queries/{name}.sql`."""
    return text(sql(name))


@cache
def sql(name: str) -> str:
    """The text of `queries/{name}.sql`, without its comments."""
    source = resources.files("pickaxe.store").joinpath("queries", f"{name}.sql").read_text("utf-8")
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("--"))


class Database:
    """One process's connections to Postgres.

    `patience` is how long, in seconds, a statement that has failed is tried again while the database cannot be
    reached (default 5); after that `ServiceUnavailableError`. A connection that has been silent for `answer_within`
    seconds (default 30) is given up. Every statement of Pickaxe is guarded, so trying one again whose outcome is
    unknown changes nothing twice.
    """

    def __init__(
        self, url: str, *, pool_size: int = 10, patience: float = 5.0, answer_within: float = ANSWER_WITHIN
    ) -> None:
        self.url = _parse(url)
        self.patience = patience
        self.answer_within = answer_within
        self._pool_size = pool_size
        self._engine: Engine | None = None
        self._tool_engine: Engine | None = None
        self._lock = threading.Lock()
        self._asked = threading.local()

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine, made when first needed."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    self._engine = self._connect(isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)
                    event.listen(self._engine, "connect", self._settle_in)
        return self._engine

    @property
    def tool_engine(self) -> Engine:
        """Connections for transactional tools, apart from our own: a tool may leave anything behind."""
        if self._tool_engine is None:
            with self._lock:
                if self._tool_engine is None:
                    self._tool_engine = self._connect()
        return self._tool_engine

    def _connect(self, **options: Any) -> Engine:
        engine = create_engine(
            self.url,
            pool_size=self._pool_size,
            max_overflow=self._pool_size,
            pool_timeout=30,
            connect_args={"connect_timeout": 5, "application_name": "pickaxe", **_SILENCE},
            **options,
        )
        event.listen(engine, "do_connect", self._open)
        return engine

    def _open(self, _dialect: Any, _record: Any, args: Any, options: Any) -> AnsweringConnection:
        connection = AnsweringConnection.connect(*args, **options)
        connection.answer_within = self.answer_within
        return connection

    @staticmethod
    def _settle_in(connection: psycopg.Connection[Any], _record: Any) -> None:
        # Every statement finds its rows by a key or a small index: one plan fits all values, and is made once.
        connection.prepare_threshold = 1
        # A process that is frozen within a transaction must not hold its rows, and so the sweeper, for ever.
        connection.execute(
            "SELECT set_config('plan_cache_mode', 'force_generic_plan', false), "
            f"set_config('idle_in_transaction_session_timeout', '{LONGEST_IDLE:g}s', false)"
        )

    def forked(self) -> None:
        """Forget the parent's connections, which belong to the parent."""
        for engine in filter(None, (self._engine, self._tool_engine)):
            engine.dispose(close=False)
        self._engine = self._tool_engine = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all idle connections."""
        for engine in filter(None, (self._engine, self._tool_engine)):
            engine.dispose()
        self._engine = self._tool_engine = None

    @property
    def place(self) -> str:
        """Where the database is, without the password."""
        return self.url.render_as_string(hide_password=True).replace("postgresql+psycopg", "postgresql")

    @property
    def asked_at(self) -> float:
        """When this thread sent its last statement, on the monotonic clock: before the time that its answer tells,
        so what is reckoned from the two does not come before anything the database has noted."""
        return float(self._asked.at)

    def rows(self, name: str, /, **parameters: Any) -> Sequence[Row[Any]]:
        """The rows of a named statement."""
        return self.patiently(lambda: self._run(native(name), parameters))

    def rows_now(self, name: str, /, **parameters: Any) -> Sequence[Row[Any]]:
        """As `rows`, of a statement that is only right now, and not when the database is back. Raises `DBAPIError`."""
        return self._run(native(name), parameters)

    def row(self, name: str, /, **parameters: Any) -> Row[Any] | None:
        """The first row of a named statement, or None."""
        rows = self.rows(name, **parameters)
        return rows[0] if rows else None

    def one(self, name: str, /, **parameters: Any) -> Row[Any]:
        """The only row of a statement that always has one."""
        return self.rows(name, **parameters)[0]

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """`work(connection)` in one transaction, tried again as a whole when it conflicts."""

        def attempt() -> T:
            connection = self.engine.connect().execution_options(isolation_level="READ COMMITTED")
            with connection, connection.begin():
                return work(connection)

        return self.patiently(attempt)

    def _run(self, query: str, parameters: dict[str, Any]) -> Sequence[Row[Any]]:
        self._asked.at = time.monotonic()
        # On the driver's own connection: SQLAlchemy's result machinery costs as much as all the rest.
        try:
            pooled = self.engine.raw_connection()
        except psycopg.Error as error:
            raise DBAPIError.instance(query, parameters, error, psycopg.Error) from error
        try:
            connection = cast("psycopg.Connection[Any]", pooled.driver_connection)
            with connection.cursor() as cursor:
                rows = cursor.execute(query, parameters).fetchall()
                return _named(query, cursor, rows) if rows else []
        except BaseException as error:
            # Also when it was interrupted: the answer may still be on its way.
            lost = connection.closed or not isinstance(error, psycopg.Error)
            if lost:
                pooled.invalidate(error)
            if isinstance(error, NoAnswerError):
                self.engine.dispose()  # those that wait in the pool would not answer either, one after the other
            if not isinstance(error, psycopg.Error):
                raise
            raise DBAPIError.instance(query, parameters, error, psycopg.Error, connection_invalidated=lost) from error
        finally:
            pooled.close()

    def patiently(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns, tried again while the database is away or the attempt conflicts."""
        sys.audit("pickaxe.log")  # refused in an agent: a connection that is open already raises no event of its own
        deadline, pause = 0.0, 0.02
        while True:
            try:
                return attempt()
            except DBAPIError as error:
                # From the first failure on: some take longer than this to be noticed.
                deadline = deadline or time.monotonic() + self.patience
                self._may_try_again(error, deadline)
            except PoolTimeoutError as error:
                raise ServiceUnavailableError(
                    f"all connections of this process to Postgres at {self.place} are in use: raise PICKAXE_POOL_SIZE"
                ) from error
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, 1.0)

    def _may_try_again(self, error: DBAPIError, deadline: float) -> None:
        if isinstance(error.orig, _CONFLICTS):
            return
        if isinstance(error.orig, _MISSING):
            raise SchemaError(
                f"the database {self.place} has no Pickaxe tables, or old ones: run `pickaxe migrate`"
            ) from error
        if not self._is_away(error):
            raise error
        if time.monotonic() >= deadline:
            raise ServiceUnavailableError(
                f"cannot reach Postgres at {self.place}: {_first_line(error)}. Is it running, and is "
                f"PICKAXE_DATABASE_URL right? Nothing already accepted is lost."
            ) from error
        logger.info("Postgres is away, trying again: %s", _first_line(error))

    @staticmethod
    def _is_away(error: DBAPIError) -> bool:
        orig = error.orig
        if error.connection_invalidated or isinstance(error, InterfaceError):
            return True
        if isinstance(orig, psycopg.errors.ReadOnlySqlTransaction):
            return True  # in the middle of a failover
        if not isinstance(orig, psycopg.OperationalError):
            return False
        # Class 57P: shutdown and crash; 53: no more connections or disk; none at all: the socket is gone.
        state = orig.sqlstate
        return state is None or state.startswith(("57P", "53", "08"))


_ROW_MAKERS: dict[tuple[str, int], Callable[[tuple[Any, ...]], Row[Any]]] = {}


def _named(query: str, cursor: psycopg.Cursor[Any], rows: list[tuple[Any, ...]]) -> Sequence[Row[Any]]:
    """The rows with their columns' names, which are read only once for each statement."""
    kind = query, len(rows[0])
    make = _ROW_MAKERS.get(kind)
    if make is None:
        names = [column.name for column in cursor.description or ()]
        make = _ROW_MAKERS[kind] = cast("Any", namedtuple("Row", names))._make
    return [*map(make, rows)]


@cache
def native(name: str) -> str:
    """The statement in psycopg's own style."""
    return str(statement(name).compile(dialect=dialect.dialect()))  # type: ignore[no-untyped-call]


@cache
def array_of(texts: tuple[str, ...]) -> str:
    """A literal of Postgres' for an array of texts, which needs no type to be looked up."""
    quoted = (text.replace("\\", r"\\").replace('"', r"\"") for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"


def _parse(url: str) -> URL:
    # Without the URL itself: it may hold a password, and be wrong at any place.
    advice = "Pickaxe keeps its log in Postgres, such as postgresql://user@host:5432/name"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(f"PICKAXE_DATABASE_URL is not a database URL: {advice}") from error
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigurationError(f"PICKAXE_DATABASE_URL begins with {parsed.drivername + '://'!r}: {advice}")
    return parsed.set(drivername="postgresql+psycopg")


def _first_line(error: BaseException) -> str:
    orig = getattr(error, "orig", None) or error
    lines = str(orig).strip().splitlines()
    return lines[0] if lines else type(orig).__name__


__all__ = ["Connection", "Database", "PickaxeError", "native", "sql", "statement"]
