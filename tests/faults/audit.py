"""What the database itself saw: every change of a run and of a step, whoever made it; and barriers inside of it.

Triggers write it all down in the transaction that does it. So the audit depends on nothing that Pickaxe records
for itself, and holds whatever statements Pickaxe may use. It is I2 and I5 seen from the rows: a second result, or the
write of a stale owner, would have to change an outcome, or go back behind an epoch, a head or an attempt.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from types import TracebackType

import psycopg

from pickaxe._states import RUN_TRANSITIONS, STEP_TRANSITIONS

SCHEMA = """
CREATE SCHEMA audit;
CREATE TABLE audit.run (
    n bigint GENERATED ALWAYS AS IDENTITY, id uuid, old_epoch int, epoch int, old_head int, head int,
    old_wake int, wake int, old_chapter int, chapter int, old_state text, state text, changed bool,
    at timestamptz DEFAULT clock_timestamp());
CREATE TABLE audit.step (
    n bigint GENERATED ALWAYS AS IDENTITY, run uuid, key text, old_attempt int, attempt int, old_owner text,
    owner text, old_state text, state text, changed bool, asks_otherwise bool, counts_back bool,
    at timestamptz DEFAULT clock_timestamp());
CREATE TABLE audit.refused (n bigint GENERATED ALWAYS AS IDENTITY, what text);

CREATE FUNCTION audit.of_run() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit.run (
        id, old_epoch, epoch, old_head, head, old_wake, wake, old_chapter, chapter, old_state, state, changed)
    VALUES (
        NEW.id, OLD.epoch, NEW.epoch, OLD.head, NEW.head, OLD.wake, NEW.wake, OLD.chapter, NEW.chapter,
        OLD.state, NEW.state,
        (OLD.output, OLD.error, OLD.finished_at) IS DISTINCT FROM (NEW.output, NEW.error, NEW.finished_at));
    RETURN NULL;
END $$;
CREATE FUNCTION audit.of_step() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit.step (
        run, key, old_attempt, attempt, old_owner, owner, old_state, state, changed, asks_otherwise, counts_back)
    VALUES (
        NEW.run_id, NEW.key, OLD.attempt, NEW.attempt, OLD.owner, NEW.owner, OLD.state, NEW.state,
        (OLD.output, OLD.error, OLD.seq, OLD.ordinal) IS DISTINCT FROM (NEW.output, NEW.error, NEW.seq, NEW.ordinal),
        OLD.input IS DISTINCT FROM NEW.input,
        coalesce(NEW.deaths < OLD.deaths OR NEW.counted < OLD.counted, false));
    RETURN NULL;
END $$;
CREATE FUNCTION audit.of_refusal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF current_query() LIKE '%commit%' AND NOT EXISTS (SELECT 1 FROM taken) THEN
        INSERT INTO audit.refused (what) VALUES ('reduction');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER UPDATE ON pickaxe.run FOR EACH ROW EXECUTE FUNCTION audit.of_run();
CREATE TRIGGER audit AFTER UPDATE ON pickaxe.step FOR EACH ROW EXECUTE FUNCTION audit.of_step();
CREATE TRIGGER audit_refused AFTER UPDATE ON pickaxe.run
    REFERENCING NEW TABLE AS taken FOR EACH STATEMENT EXECUTE FUNCTION audit.of_refusal();
"""

OVER = "('succeeded', 'failed', 'cancelled')"

VIOLATIONS = {
    "a run's epoch, head, wake count or chapter went back":
        "SELECT * FROM audit.run"
        " WHERE epoch < old_epoch OR head < old_head OR wake < old_wake OR chapter < old_chapter",
    "a run was changed after its end":
        f"SELECT * FROM audit.run WHERE old_state IN {OVER} AND (state <> old_state OR changed OR head <> old_head)",
    "a run's head or end changed without a new epoch, so not by a reduction that was up to date":
        f"SELECT * FROM audit.run WHERE epoch <= old_epoch AND (head <> old_head OR state IN {OVER})"
        f" AND old_state NOT IN {OVER}",
    "two commits had the same epoch":
        "SELECT id, epoch, count(*) FROM audit.run WHERE epoch > old_epoch GROUP BY 1, 2 HAVING count(*) > 1",
    "a step was changed after its end":
        f"SELECT * FROM audit.step WHERE old_state IN {OVER}"
        " AND (state <> old_state OR changed OR attempt <> old_attempt)",
    "a step ended in an attempt that was not the running one":
        f"SELECT * FROM audit.step WHERE state IN {OVER} AND old_state = 'running' AND attempt <> old_attempt",
    "a step's attempt went back, or one was left out":
        "SELECT * FROM audit.step WHERE attempt NOT IN (old_attempt, old_attempt + 1)",
    "a step changed hands while it ran":
        "SELECT * FROM audit.step WHERE old_state = 'running' AND state = 'running' AND owner <> old_owner",
    "a step's input was changed":
        "SELECT * FROM audit.step WHERE asks_otherwise",
    "a step's deaths, or what a gather has counted, went back":
        "SELECT * FROM audit.step WHERE counts_back",
}  # fmt: skip
"""I2 and I5, as queries that must find nothing."""


def install(url: str) -> None:
    """Have the database watch itself from now on."""
    with psycopg.connect(url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'audit'").fetchone():
            connection.execute(SCHEMA)


def check(connection: psycopg.Connection) -> int:
    """Raises when the database saw what must not be. Returns how many stale reductions were refused."""
    for what, query in VIOLATIONS.items():
        found = connection.execute(query).fetchmany(5)
        assert not found, f"{what}: {found}"
    for table, legal in (("run", RUN_TRANSITIONS), ("step", STEP_TRANSITIONS)):
        seen = connection.execute(f"SELECT DISTINCT old_state, state FROM audit.{table} WHERE old_state <> state")
        illegal = [(before, after) for before, after in seen if after not in {str(s) for s in legal[before]}]  # type: ignore[index]
        assert not illegal, f"a {table} went from {illegal}"
    row = connection.execute("SELECT count(*) FROM audit.refused").fetchone()
    assert row is not None
    return int(row[0])


_numbers = itertools.count(1)


class Barrier:
    """Statements that change a row of `table` and whose text contains `words` wait here until it is opened.

    They have read what they read, and hold the locks they hold. `when` narrows it down, by OLD and NEW.
    """

    def __init__(self, url: str, table: str, words: str, when: str = "true") -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._number = next(_numbers)
        self._table = table
        name, quoted = f"barrier_{self._number}", words.replace("'", "''")
        self._connection.execute("SELECT pg_advisory_lock(7, %s)", [self._number])
        self._connection.execute(f"""
            CREATE FUNCTION audit.{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF position('{quoted}' IN current_query()) > 0 AND ({when}) THEN
                    PERFORM pg_advisory_lock_shared(7, {self._number});
                    PERFORM pg_advisory_unlock_shared(7, {self._number});
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER a_{name} BEFORE UPDATE ON pickaxe.{table} FOR EACH ROW EXECUTE FUNCTION audit.{name}();
        """)

    def __enter__(self) -> Barrier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._connection, contextlib.suppress(psycopg.OperationalError):  # Postgres may be away by now
            self.open()

    def waiting(self) -> int:
        """How many statements wait here now."""
        return self._count(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7 AND objid = %s AND NOT granted",
            self._number,
        )

    def await_waiting(self, count: int = 1, within: float = 30) -> int:
        """Wait until so many statements wait here."""
        deadline = time.monotonic() + within
        while (found := self.waiting()) < count:
            assert time.monotonic() < deadline, f"{found} of {count} statements came to the barrier in {within:g} s"
            time.sleep(0.001)
        return found

    def open(self) -> None:
        """Let them go on; whoever comes later does not wait."""
        self._connection.execute("SELECT pg_advisory_unlock_all()")

    def close(self) -> None:
        """Whoever comes from now on waits again. It was open before."""
        self._connection.execute("SELECT pg_advisory_lock(7, %s)", [self._number])

    def await_blocked(self, count: int = 1, within: float = 30) -> None:
        """Wait until so many statements wait for a row that others hold, such as those that wait here."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock' AND wait_event IN ('transactionid', 'tuple')"
        )
        deadline = time.monotonic() + within
        while (found := self._count(query)) < count:
            assert time.monotonic() < deadline, f"{found} of {count} statements waited for a row in {within:g} s"
            time.sleep(0.001)

    def _count(self, query: str, *parameters: object) -> int:
        row = self._connection.execute(query, parameters).fetchone()
        assert row is not None
        return int(row[0])
