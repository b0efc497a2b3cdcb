"""When messages were sent, and the moves of a run and a step as they are now."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"

_HERE = Path(__file__).parent


def upgrade() -> None:
    """Add what tells a lost message from one that waits its turn, and the functions that keep it."""
    for name in ("0003_sent.sql", "0003_moves.sql"):
        # The driver's own cursor: SQLAlchemy would read plpgsql's % and : as parameters.
        op.get_bind().connection.cursor().execute((_HERE / name).read_text("utf-8"))
