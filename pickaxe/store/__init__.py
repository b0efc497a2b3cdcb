"""Everything Pickaxe knows, in Postgres. The only place with SQL.

Each file of `queries/` is one statement; each runs on an autocommit connection, so one call is one round
trip and one commit.
"""

from pickaxe.store._aside import AsideStore
from pickaxe.store._database import Database
from pickaxe.store._events import EventStore
from pickaxe.store._fleet import BATCH, FOUND_AGAIN, FleetStore
from pickaxe.store._runs import Claim, Commit, Log, NewRun, News, Outcome, RunRow, RunStore, Settled, StepDue
from pickaxe.store._schema import SCHEMA_RANGE, check_schema, migrate, schema_version
from pickaxe.store._transactions import ToolTransaction
from pickaxe.store._views import RunView, StepView, Views


class Store(RunStore, EventStore, FleetStore, AsideStore, Views):
    """All statements over one database."""


__all__ = [
    "BATCH",
    "FOUND_AGAIN",
    "SCHEMA_RANGE",
    "Claim",
    "Commit",
    "Database",
    "Log",
    "NewRun",
    "News",
    "Outcome",
    "RunRow",
    "RunView",
    "Settled",
    "StepDue",
    "StepView",
    "Store",
    "ToolTransaction",
    "check_schema",
    "migrate",
    "schema_version",
]
