"""The statements for what is set aside: outcomes nobody knows, and what kills its workers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Row

from pickaxe import _values
from pickaxe._states import StepState
from pickaxe._texts import storable
from pickaxe.store._database import Database
from pickaxe.store._fleet import BATCH
from pickaxe.store._runs import Settled
from pickaxe.store._transactions import ToolTransaction, tool_transaction
from pickaxe.store._views import StepView


class AsideStore:
    """See the module. Wherever an attempt is given, nothing is changed if the step is at another by now."""

    database: Database
    redispatch: float

    def reclaim_steps(self, *, limit: int = 2, together: float = 1.5) -> Sequence[Row[Any]]:
        """Take the steps of dead processes away from them: issue them again, or set them aside.

        `limit` is the number of deaths in a row for which a step is quarantined (0: never), `together` the seconds
        within which processes of one worker that fall silent count as having died together.
        """
        return self.database.rows(
            "reclaim_steps", batch=BATCH, limit=limit, together=together, redispatch=self.redispatch
        )

    def set_step_aside(
        self,
        run: uuid.UUID,
        key: str,
        state: StepState,
        *,
        attempt: int,
        owner: str,
        reason: str,
        due_in: float | None = None,
        spared: int = 0,
        error: str | None = None,
        history: str | None = None,
        overdue: bool = False,
    ) -> Settled:
        """A running attempt has ended without an outcome. With `due_in` its `reconcile` is asked then.

        `spared`: 1 if the attempt costs none of its tries.
        """
        row = self.database.one(
            "set_step_aside", run=run, key=key, attempt=attempt, owner=owner, state=str(state), due_in=due_in,
            spared=spared, error=error, reason=storable(reason), history=history, overdue=overdue,
            redispatch=self.redispatch,
        )  # fmt: skip
        return Settled(row.accepted, False, None, row.released)

    def reissue(
        self,
        run: uuid.UUID,
        key: str,
        *,
        attempt: int,
        reason: str,
        owner: str | None = None,
        wait: float = 0.0,
        history: str | None = None,
        limit: int = 0,
    ) -> StepState | None:
        """Let a step that was set aside run again, by its reconciling `owner` or (None) by a person. Its state then."""
        row = self.database.one(
            "reissue", run=run, key=key, attempt=attempt, owner=owner, wait=wait, reason=storable(reason),
            history=history, limit=limit,
        )  # fmt: skip
        return None if row.outcome is None else StepState(row.outcome)

    def resolve(
        self,
        run: uuid.UUID,
        key: str,
        state: StepState,
        *,
        origin: StepState,
        attempt: int,
        entry: dict[str, Any],
        output: str | None = None,
        error: str | None = None,
    ) -> Settled:
        """A person says how a step that was set aside has ended; `entry` is added to its history."""
        row = self.database.one(
            "resolve", run=run, key=key, origin=[str(origin)], attempt=attempt, state=str(state), output=output,
            error=error, entry=_values.dump(entry), redispatch=self.redispatch,
        )  # fmt: skip
        return Settled(row.accepted, row.woken, row.seq, row.released)

    def list_aside(
        self, *, roots: Sequence[uuid.UUID] | None = None, most: int = 200
    ) -> list[tuple[uuid.UUID, uuid.UUID, str, StepView]]:
        """Steps that are set aside, newest first: run, root run, agent, step. `roots` limits them to these trees."""
        found = self.database.rows("list_aside", roots=None if roots is None else list(roots), most=most)
        return [(row.run_id, row.root, row.agent, StepView.of(row)) for row in found]

    def process_exited(self, family: str, pid: int, how: str) -> bool:
        """A worker's main process has seen its child end. False if that was known, or the child had signed off."""
        return bool(self.database.rows("process_exited", family=family, pid=pid, exit=storable(how)))

    def tool_transaction(self, name: str) -> AbstractContextManager[ToolTransaction]:
        """A transaction for a tool to work in; its name is what `end_transactions` knows it by."""
        return tool_transaction(self.database, name)

    def end_transactions(self, names: Sequence[str]) -> int:
        """End the transactions of attempts that are over, by `LIKE` patterns of their names. Returns how many."""
        return len(self.database.rows("end_transactions", names=list(names)))

    def defer_suspect(self, run: uuid.UUID, key: str, attempt: int) -> bool:
        """Have a step that is charged with deaths wait a little. False if this was not why it could not be claimed."""
        return self.database.row("defer_suspect", run=run, key=key, attempt=attempt) is not None

    def suspect_reduction(
        self, run: uuid.UUID, epoch: int, owner: str, *, limit: int, patience: float, reason: str
    ) -> Row[Any]:
        """Note that `owner` begins a reduction which may kill it. `verdict` says whether it may: see the function."""
        return self.database.one(
            "suspect_reduction", run=run, epoch=epoch, owner=owner, limit=limit, patience=patience, reason=reason
        )

    def clear_reduction(self, run: uuid.UUID, owner: str) -> None:
        """A noted reduction has ended, one way or another, and `owner` is alive."""
        self.database.rows("clear_reduction", run=run, owner=owner)
