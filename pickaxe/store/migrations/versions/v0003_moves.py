"""The moves of a run and a step, with what a worker needs to go on from them."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"

_HERE = Path(__file__).parent


def upgrade() -> None:
    """Put functions in the place of those that told a worker less, or let a gather's freed place go to nobody."""
    # The driver's own cursor: SQLAlchemy would read plpgsql's % and : as parameters.
    op.get_bind().connection.cursor().execute((_HERE / "0003_moves.sql").read_text("utf-8"))
