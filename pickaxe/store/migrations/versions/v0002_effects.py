"""Steps that are set aside: outcomes nobody knows, steps and reductions that kill their workers."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"

_HERE = Path(__file__).parent


def upgrade() -> None:
    """Add what a death is judged by, and the functions that set a step aside and let it go on."""
    for name in ("0002_effects.sql", "0002_functions.sql"):
        # The driver's own cursor: SQLAlchemy would read plpgsql's % and : as parameters.
        op.get_bind().connection.cursor().execute((_HERE / name).read_text("utf-8"))
