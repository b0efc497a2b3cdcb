"""Alembic's entry: migrations run on the connection, and in the transaction, they are given."""

from alembic import context

from pickaxe.store.models import SCHEMA, metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
with context.begin_transaction():
    context.run_migrations()
