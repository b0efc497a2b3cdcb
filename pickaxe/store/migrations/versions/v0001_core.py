"""Runs, steps, signals, events, workers: the durable core."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None

_HERE = Path(__file__).parent


def upgrade() -> None:
    """Create the tables and the functions that move a run and a step together."""
    for name in ("0001_core.sql", "0001_functions.sql"):
        # The driver's own cursor: SQLAlchemy would read plpgsql's % and : as parameters.
        op.get_bind().connection.cursor().execute((_HERE / name).read_text("utf-8"))
