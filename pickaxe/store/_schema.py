"""The schema: its version, and how it gets there."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from pickaxe.errors import SchemaError
from pickaxe.store._database import Database

SCHEMA_RANGE = (3, 3)
"""Oldest and newest schema version this Pickaxe works with. Versions are the numbers of the migrations."""

_LOCK = 0x5049434B00000001
_HERE = Path(__file__).parent / "migrations"


def migrate(database: Database) -> tuple[int, int]:
    """Bring the schema up to this Pickaxe's newest version. Returns the versions before and after.

    Safe to call from several processes at once: one migrates, the others wait and find it done.
    """

    def work(connection: Connection) -> tuple[int, int]:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        before = _version(connection)
        if before > SCHEMA_RANGE[1]:
            raise SchemaError(_newer(before))
        if before < SCHEMA_RANGE[1]:
            connection.execute(text("CREATE SCHEMA IF NOT EXISTS pickaxe"))
            command.upgrade(_config(connection), "head")
        return before, _version(connection)

    result: tuple[int, int] = database.transaction(work)
    return result


def schema_version(database: Database) -> int:
    """The database's schema version, 0 for none."""
    version: int = database.transaction(_version)
    return version


def check_schema(database: Database) -> int:
    """The schema version, if this Pickaxe can work with it. Raises `SchemaError`."""
    version = schema_version(database)
    if version < SCHEMA_RANGE[0]:
        found = f"is at schema version {version}" if version else "has no Pickaxe tables"
        raise SchemaError(
            f"the database {database.place} {found}, and this Pickaxe needs {SCHEMA_RANGE[0]}: run `pickaxe migrate`"
        )
    if version > SCHEMA_RANGE[1]:
        raise SchemaError(_newer(version))
    return version


def _newer(version: int) -> str:
    return (
        f"the database is at schema version {version}, and this Pickaxe knows up to {SCHEMA_RANGE[1]}: "
        f"upgrade pickaxe on this machine"
    )


def _version(connection: Connection) -> int:
    if connection.execute(text("SELECT to_regclass('pickaxe.alembic_version')")).scalar() is None:
        return 0
    found = connection.execute(text("SELECT version_num FROM pickaxe.alembic_version")).scalar()
    return int(found) if found else 0


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_HERE))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
