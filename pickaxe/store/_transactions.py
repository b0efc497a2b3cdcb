"""A transaction that a tool works in and Pickaxe ends: its effect is committed with its result, or not at all."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any, NoReturn

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, tuple_row
from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pickaxe._states import StepState
from pickaxe.errors import TransactionError
from pickaxe.store._connection import AnsweringConnection
from pickaxe.store._database import LONGEST_IDLE, Database, native
from pickaxe.store._runs import Settled

_LEFT_BEHIND = (
    "RESET ALL; RESET SESSION AUTHORIZATION; UNLISTEN *; DISCARD TEMP; DISCARD SEQUENCES; "
    "SELECT pg_advisory_unlock_all()"
)
"""Undoes what a tool may do to a session that outlives its transaction."""

_TAKEN_OVER = f"RELEASE SAVEPOINT pickaxe; SET LOCAL idle_in_transaction_session_timeout = {LONGEST_IDLE * 1000:.0f}"
"""From here on the transaction holds rows that the whole fleet needs: a process that freezes must not keep them."""

_CONFLICTS = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


class ToolTransaction:
    """One attempt's transaction. `ending`: the commit is on its way.

    `violation`: the tool has tried to end it, whatever it raised or returned after that.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        driver: Any = connection.connection.driver_connection
        self._driver: AnsweringConnection = driver
        self._answer_within = self._driver.answer_within
        self._session: Session | None = None
        self.violation: TransactionError | None = None
        self._given: Any = None
        self._over = False
        self.ending = False
        for moment in ("commit", "rollback"):
            event.listen(connection, moment, self._refuse_event)

    @property
    def lost(self) -> bool:
        """Whether the connection is gone, and with it whatever was not committed."""
        return self._driver.closed

    def give(self, kind: type) -> Any:
        """The connection, as the tool wants it: what would end its transaction raises `TransactionError`.

        Its statements may take as long as they like.
        """
        self._driver.answer_within = None
        if issubclass(kind, Session):
            # Its own begin() and rollback() reach a savepoint, never the transaction.
            self._session = self._given = kind(bind=self._connection, join_transaction_mode="create_savepoint")
        else:
            self._given = self._connection if issubclass(kind, Connection) else self._driver
        if self._given is not self._connection:
            for name in ("commit", "rollback", "close"):
                setattr(self._given, name, self._refuse)
        return self._given

    def settle(self, run: uuid.UUID, key: str, *, attempt: int, owner: str, output: str, redispatch: float) -> Settled:
        """Record the result, in this transaction. Raises `TransactionError` if the tool ended or broke that."""
        self._driver.answer_within = self._answer_within
        self._close_body()
        values = {
            "run": run, "key": key, "origin": [str(StepState.RUNNING)], "attempt": attempt, "owner": owner,
            "state": str(StepState.SUCCEEDED), "output": output, "error": None, "redispatch": redispatch,
        }  # fmt: skip
        # A cursor of our own: the tool may have changed what the connection's cursors return.
        cursor = psycopg.Cursor(self._driver, row_factory=dict_row)
        row = cursor.execute(native("settle"), values).fetchone()
        assert row is not None
        return Settled(**row)

    def commit(self) -> None:
        """Make it so."""
        self.ending = True
        psycopg.Connection.commit(self._driver)
        self.ending = False

    @staticmethod
    def is_conflict(error: BaseException) -> bool:
        """Whether this is Postgres asking for the whole transaction to be tried again."""
        return isinstance(error, _CONFLICTS)

    @staticmethod
    def is_the_tools(error: BaseException) -> bool:
        """Whether this, raised while the result was recorded, is still the tool's: a constraint checked at the end."""
        return isinstance(error, (psycopg.Error, SQLAlchemyError, TransactionError))

    def close(self) -> None:
        """Roll back what was not committed, and leave the connection as it was found."""
        self._over = True
        self._driver.answer_within = self._answer_within
        try:
            self._clean()
        except psycopg.Error:
            self._connection.invalidate()
        finally:
            self._connection.close()

    def _clean(self) -> None:
        driver = self._driver
        if self._given is driver:
            for name in ("commit", "rollback", "close"):
                vars(driver).pop(name, None)
        if driver.info.transaction_status in (TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN):
            self._connection.invalidate()  # interrupted in the middle of a statement, or gone
            return
        driver.rollback()
        driver.row_factory = tuple_row
        driver.cursor_factory = psycopg.Cursor
        driver.execute(_LEFT_BEHIND)
        driver.commit()

    def _close_body(self) -> None:
        if self.violation is not None:
            raise self.violation
        if self._session is not None:
            self._session.flush()
        try:
            psycopg.Cursor(self._driver).execute(_TAKEN_OVER)
        except (psycopg.errors.InvalidSavepointSpecification, psycopg.errors.NoActiveSqlTransaction) as error:
            raise TransactionError(
                "the tool ended its transaction with an SQL statement of its own, so its effect is not committed with "
                "its result: leave COMMIT and ROLLBACK to Pickaxe, and use savepoints for parts that may fail"
            ) from error
        except psycopg.errors.InFailedSqlTransaction as error:
            raise TransactionError(
                "the tool caught an SQL error and returned, but that error has undone its whole transaction: let it "
                "through, or put that statement into a savepoint (begin_nested() or, with psycopg, transaction())"
            ) from error

    def _refuse_event(self, _connection: Connection) -> None:
        if not self._over:
            self._refuse()

    def _refuse(self, *_args: Any, **_options: Any) -> NoReturn:
        self.violation = TransactionError(
            "a transactional tool must not commit, roll back or close its connection: Pickaxe commits it together "
            "with the result, or rolls it back when the tool raises"
        )
        raise self.violation


@contextlib.contextmanager
def tool_transaction(database: Database, name: str) -> Iterator[ToolTransaction]:
    """A transaction that the server knows by this name; rolled back at the end unless it was committed."""
    transaction = ToolTransaction(database.patiently(lambda: _begun(database, name)))
    try:
        yield transaction
    finally:
        transaction.close()


def _begun(database: Database, name: str) -> Connection:
    connection = database.tool_engine.connect()
    try:
        connection.begin()
        # The savepoint is gone if the tool ends the transaction behind our back.
        named = sql.SQL("SET LOCAL application_name = {}; SAVEPOINT pickaxe").format(sql.Literal(name))
        connection.exec_driver_sql(named.as_string())
    except BaseException:
        connection.invalidate()
        connection.close()
        raise
    return connection
