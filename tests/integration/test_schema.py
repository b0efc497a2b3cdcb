"""The schema: what migrations make, and what the models say, are the same."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from pickaxe.errors import SchemaError
from pickaxe.store import Database, check_schema, migrate, schema_version
from pickaxe.store.models import metadata
from tests.services import isolated_database, template_database


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
    assert migrate(empty_database) == (0, 2)
    assert migrate(empty_database) == (2, 2)
    assert check_schema(empty_database) == 2


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
