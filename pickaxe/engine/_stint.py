"""What one message lets a process do for a run before it makes way for others."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pickaxe._states import StepKind
from pickaxe.core._records import Decision, Request
from pickaxe.engine._dispatch import claims_of
from pickaxe.engine._engine import Engine
from pickaxe.store import Claim


class Stint:
    """The work that follows from one message. `woken`: it has woken the run, and so must see to its reduction.

    `wary`: the process that ran the call before this one died, perhaps of the reduction that followed.

    How far it goes is the setting `continuation`: `plain`, one call or one reduction; `resume`, a call and the
    reduction that follows from it; `inline`, also the next call, if that is alone, on a queue that this worker takes
    messages from, without a rate limit, and `inline_for` has not passed.

    `awaits`: on an event loop, which is where a pool of coroutines runs async tools. Others it runs on threads of their
    own: the loop's few threads claim and record calls, and must not wait for a body.
    """

    def __init__(self, engine: Engine, *, awaits: bool = False) -> None:
        settings, worker = engine.settings, engine.worker()
        self._queues = worker.queues if worker else ()
        self._awaits = awaits
        self._is_choosy = worker is not None and worker.pool == "coroutines"
        self.woken = False
        self.wary = False
        self._engine = engine
        self._resumes = settings.continuation != "plain"
        self._goes_on = settings.continuation == "inline"
        self._ends = time.monotonic() + settings.inline_for

    @property
    def over(self) -> bool:
        """Whether it is others' turn."""
        return time.monotonic() >= self._ends

    def end(self) -> None:
        """Nothing more follows from this message."""
        self._engine.transitions.flush()

    def resumes(self, claim: Claim) -> bool:
        """Whether the run of a call that has ended goes on here."""
        if claim.agent not in self._engine.agents:
            return False
        return not self.over if claim.options.get("inline") else self._resumes

    def next_call(self, decision: Decision) -> Request | None:
        """The call of a decision that may be run here and now, without a message."""
        if not self._goes_on or decision.inline or self.over:
            return None
        calls = [request for request in decision.requests if request.kind is StepKind.TOOL]
        return calls[0] if len(calls) == 1 and self._may_run(calls[0]) else None

    def _may_run(self, call: Request) -> bool:
        limits: Sequence[Sequence[object]] = call.options.get("limits") or ()
        return (
            call.group is None
            and call.name in self._engine.tools
            and call.options["queue"] in self._queues
            and (not self._is_choosy or self._engine.tools[call.name].is_async == self._awaits)
            and not claims_of(self._engine, call.options["queue"], limits)
        )
