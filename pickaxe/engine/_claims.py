"""A claim: who may run a call's next attempt, with what, and for how long."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pickaxe import _values
from pickaxe._effects import idempotency_key
from pickaxe._failpoints import failpoint
from pickaxe._inject import Context
from pickaxe._specs import ToolSpec
from pickaxe.engine import _limiter as limiter
from pickaxe.engine._dispatch import claims_of
from pickaxe.engine._doubt import is_once
from pickaxe.engine._engine import Engine
from pickaxe.engine._gate import may_start
from pickaxe.engine._plan import GRACE
from pickaxe.engine._quarantine import apart
from pickaxe.engine._transitions import step_entry
from pickaxe.errors import StillUnknown
from pickaxe.store import Claim


@dataclass(slots=True)
class Attempt:
    """One claimed attempt of one call, or of its tool's `reconcile`.

    `given` are arguments beyond the call's own. `began`: from here on nobody but this process knows what has been done;
    `interrupted`: the body was stopped because its time was up.
    """

    engine: Engine
    spec: ToolSpec
    claim: Claim
    owner: str
    context: Context
    gate: tuple[limiter.Claim, ...] = ()
    task: asyncio.Task[Any] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    given: dict[str, Any] = field(default_factory=dict)
    began: bool = False
    interrupted: bool = False
    _misses: int = 0

    @property
    def token(self) -> str:
        """How `Store.beat` names this attempt."""
        return token(self.claim.run, self.claim.key, self.claim.attempt)

    @property
    def timeout(self) -> float | None:
        """Seconds this attempt may take: its own timeout, or what the total leaves."""
        own = self.claim.options.get("timeout")
        if self.claim.expires is None:
            return float(own) if own is not None else None
        left = max(0.001, self.claim.expires - self.claim.now)
        return min(float(own), left) if own is not None else left

    @property
    def function(self) -> Callable[..., Any]:
        """What is to be run."""
        return self.spec.reconcile or _no_reconcile if self.claim.reconciling else self.spec.function

    @property
    def is_async(self) -> bool:
        """Whether that is awaited."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def in_doubt(self) -> bool:
        """Whether an end that nobody sees makes its outcome unknown."""
        return self.began and not self.claim.reconciling and is_once(self.claim.options)

    def arguments(self) -> dict[str, Any]:
        """What that is called with."""
        inputs = self.spec.signature.decode_input(self.claim.input)
        if not self.claim.reconciling:
            return inputs | self.spec.signature.inject(self.context, self.given) | self.given
        if self.spec.reconcile is None:
            return {}
        wanted = self.spec.reconciler
        return {name: inputs[name] for name in wanted.inputs & inputs.keys()} | wanted.inject(self.context)

    def begin(self) -> None:
        """Its body runs from now on."""
        self.began = True
        if self.in_doubt:
            self.engine.running.begin(self.token, self)

    def ended(self) -> None:
        """Its outcome is recorded, or is no longer this process's to record."""
        self.engine.running.end(self.token)

    def missed(self) -> bool:
        """Another beat did not find this call. True from the second time on."""
        self._misses += 1
        return self._misses > 1

    def unwanted(self) -> None:
        """The log says this call is over: tell the body."""
        self.context._cancelled.set()
        if self.loop is not None and self.task is not None:
            self.loop.call_soon_threadsafe(self.task.cancel)


def token(run: uuid.UUID, key: str, attempt: int) -> str:
    """How `Store.beat` names an attempt."""
    return f"{run} {attempt} {key}"


def claim(engine: Engine, spec: ToolSpec, message: dict[str, Any]) -> Attempt | None:
    """Own a call's next attempt, if its limits let it start now; else nothing is taken."""
    run, key, attempt = uuid.UUID(message["run"]), str(message["step"]), int(message["attempt"])
    if (running := engine.running.get(token(run, key, attempt))) is not None:
        # It is run here already. Whatever sent its message again, its body must not begin twice.
        hold_on(engine, running.claim, running.owner)
        return None
    queue = engine.current_queue() or spec.queue
    if not may_start(engine, message, spec.name, queue):
        return None
    owner = engine.owner
    with engine.running.expected([token(run, key, attempt)]):
        failpoint("claim.before")
        claimed = engine.store.claim(
            run, key, attempt, owner, grace=GRACE,
            name=spec.name, agents=engine.resumable, seen=engine.sticky.seen(run),
        )  # fmt: skip
        failpoint("claim.after")
        if claimed is None:
            if message.get("suspect"):
                apart(engine, run, key, attempt - 1)
            return None
        gate = claims_of(engine, queue, claimed.options.get("limits") or [])
        return own(engine, spec, claimed, owner, gate)


def hold_on(engine: Engine, claimed: Claim, owner: str) -> bool:
    """Own a call again whose claim Postgres has lost. False: it is not lost, or somebody else owns the call by now.

    The claim of a call that may be repeated is not flushed when it commits, so for some 0.2 s a crash of Postgres can
    undo it, and the call is as it was before, while its body runs here.
    """
    if claimed.options.get("effect"):
        return False
    failpoint("claim.before")
    again = engine.store.claim(claimed.run, claimed.key, claimed.attempt, owner, grace=GRACE)
    failpoint("claim.after")
    return again is not None


def own(engine: Engine, spec: ToolSpec, claimed: Claim, owner: str, gate: tuple[limiter.Claim, ...] = ()) -> Attempt:
    """The attempt of a call that is already claimed. `gate` are the limits to pass right before the body."""
    context = Context(
        run=str(claimed.run), step=claimed.key, tool=spec.name, attempt=claimed.attempt,
        idempotency_key=idempotency_key(claimed.run, claimed.key), root=str(claimed.root),
    )  # fmt: skip
    attempt = Attempt(engine, spec, claimed, owner, context, gate)
    if attempt.timeout is not None:
        context.deadline = datetime.fromtimestamp(claimed.now, UTC) + timedelta(seconds=attempt.timeout)
    context._beat = lambda value: _beat(attempt, value)
    engine.running.add(attempt.token, attempt)
    engine.transitions.tell(
        claimed.run, step_entry(claimed.key, claimed.name, "running", claimed.attempt, worker=engine.process)
    )
    return attempt


def _no_reconcile() -> None:
    raise StillUnknown("its tool has no reconcile any more")


def _beat(attempt: Attempt, value: Any) -> bool:
    text = None if value is None else _values.dump(value)
    wanted = attempt.engine.store.progress(attempt.claim, attempt.owner, progress=text, grace=GRACE)
    if wanted and value is not None:
        claim = attempt.claim
        attempt.engine.transitions.tell(
            claim.run, step_entry(claim.key, claim.name, "progress", claim.attempt, value=value)
        )
    return wanted
