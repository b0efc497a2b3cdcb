"""The schema: what migrations make, and what the models say, are the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from pickaxe import store as package
from pickaxe._states import StepState
from pickaxe._uuids import uuid7
from pickaxe.errors import SchemaError
from pickaxe.store import Database, Store, check_schema, migrate, schema_version
from pickaxe.store._schema import _config
from pickaxe.store.models import metadata
from tests.services import isolated_database, template_database

RELEASED = {
    "0001_core.sql": "334f717522c123e6fb87781687d70bcba1c1425b64821812c986268e6d92cf90",
    "0001_functions.sql": "3aa6ff266d189f131f463a3879d36db6a6b8879cc1ee0db0fff0ab489f5d5456",
    "0002_effects.sql": "260954d41ac08c5d9a666a4de9a2cf8f58d3b0bb3f2f229ccf738ba60e8fa125",
    "0002_functions.sql": "6c8aef44e1d2c2eecd9e029039095f5addac0f11774cd03df0df02abeed68b0d",
}


@pytest.fixture
def empty_database():
    with isolated_database(template_database("empty", lambda url: None)) as url:
        database = Database(url)
        yield database
        database.close()


def test_migrating_an_empty_database_reaches_the_newest_version_and_doing_it_again_changes_nothing(
    empty_database,
):
    assert schema_version(empty_database) == 0
    assert migrate(empty_database) == (0, 3)
    assert migrate(empty_database) == (3, 3)
    assert check_schema(empty_database) == 3


@pytest.mark.parametrize("name", RELEASED)
def test_a_migration_that_databases_have_behind_them_stays_as_it_was(name):
    text = (Path(package.__file__).parent / "migrations" / "versions" / name).read_bytes()
    assert hashlib.sha256(text).hexdigest() == RELEASED[name], "put what has changed into a new migration"


def test_a_run_that_was_under_way_before_a_migration_goes_on_after_it(empty_database):
    database, store, run = empty_database, Store(empty_database), uuid7()

    def to_the_first_version(connection):
        connection.exec_driver_sql("CREATE SCHEMA pickaxe")
        command.upgrade(_config(connection), "0001")

    database.transaction(to_the_first_version)
    joined = '{"count": 3, "tolerant": true, "limit": 1}'
    with database.engine.connect() as connection:
        connection.exec_driver_sql(
            "INSERT INTO pickaxe.run (id, agent, version, state, queue, priority, input, root, due) "
            "VALUES (%s, 'agent', '1', 'ready', 'agents', 5, '{}', %s, now())",
            (run, run),
        )
        for index, (key, kind, state, group, options) in enumerate([
            ("gather", "gather", "waiting", None, joined), ("first", "tool", "ready", "gather", "{}"),
            ("next", "tool", "blocked", "gather", "{}"), ("last", "tool", "blocked", "gather", "{}"),
        ]):  # fmt: skip
            connection.exec_driver_sql(
                "INSERT INTO pickaxe.step (run_id, key, chapter, born, kind, name, digest, state, queue, priority, "
                "group_key, index, counted, failed, input, options) "
                "VALUES (%s, %s, 0, 1, %s, 'x', '', %s, 'tools', 5, %s, %s, 0, 0, '{}', %s)",
                (run, key, kind, state, group, index, options),
            )
    assert migrate(database) == (1, 3)
    store.register_worker("worker", name="worker", pid=1, handles=[])
    for key, released in (("first", ["next"]), ("next", ["last"]), ("last", [])):
        assert store.claim(run, key, 1, "worker", grace=2) is not None
        settled = store.settle(
            run, key, StepState.SUCCEEDED, origin=[StepState.RUNNING], attempt=1, owner="worker", output="1"
        )
        assert (settled.accepted, settled.released) == (True, released)
    assert {s.key: s.state for s in store.load(run).log.steps} == dict.fromkeys(
        ("gather", "first", "next", "last"), StepState.SUCCEEDED
    )


def test_an_unmigrated_database_is_refused_with_the_command_that_mends_it(empty_database):
    with pytest.raises(SchemaError, match="pickaxe migrate"):
        check_schema(empty_database)


def test_a_newer_schema_is_refused_with_advice_to_upgrade(empty_database):
    migrate(empty_database)
    with empty_database.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE pickaxe.alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="upgrade pickaxe"):
        check_schema(empty_database)
    with pytest.raises(SchemaError, match="upgrade pickaxe"):
        migrate(empty_database)


def test_the_models_and_the_migrations_describe_the_same_tables(database_url):
    database = Database(database_url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "version_table_schema": "pickaxe",
                "include_name": lambda name, kind, _: kind != "schema" or name == "pickaxe",
                # Indexes are written in SQL only: most are partial, which models say badly.
                "include_object": lambda _o, _n, kind, *_: kind != "index",
            },
        )
        assert compare_metadata(context, metadata) == []
    database.close()
