"""A run about to be reduced: its row, what is new in its log, its coroutine, and what that decides."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pickaxe._specs import AgentSpec
from pickaxe._states import RunState
from pickaxe.core._records import Arrival, Decision, StepRecord
from pickaxe.core._reduction import Reduction
from pickaxe.engine import _errors
from pickaxe.engine._engine import Engine
from pickaxe.engine._sticky import Kept
from pickaxe.errors import ImpureAgentError, InputError, MismatchError, PickaxeError
from pickaxe.store import Claim, Log, Outcome, RunRow


@dataclass(slots=True)
class Turn:
    """See the module. `reduction` is None until the coroutine is made."""

    row: RunRow
    log: Log
    reduction: Reduction | None = None

    def close(self) -> None:
        """Drop the coroutine."""
        if self.reduction is not None:
            self.reduction.close()

    def open_steps(self) -> Iterable[str]:
        """The steps that have not ended, as far as is known here."""
        loaded = [step.key for step in self.log.steps if not step.state.terminal]
        return dict.fromkeys([*(self.reduction.open_steps() if self.reduction else ()), *loaded])


def turn_of(engine: Engine, row: RunRow) -> Turn:
    """The next turn of a run that was just loaded: from memory and what is new, or from the whole log."""
    kept = engine.sticky.take(row.id)
    try:
        # Whether an inline step is due again is not among the news.
        if kept is not None and kept.row.chapter == row.chapter and not kept.reduction.expects_inline:
            return Turn(row, engine.store.load_news(row, head=kept.row.head, epoch=kept.row.epoch), kept.reduction)
    except PickaxeError:
        _drop(kept)
        raise
    _drop(kept)
    return Turn(row, engine.store.load_log(row))


def turn_after(engine: Engine, claim: Claim) -> Turn | None:
    """The turn that follows from the end of a call, or None if it does not follow from that alone.

    If nobody had the run since this process did, nothing needs to be loaded.
    """
    kept = engine.sticky.take(claim.run)
    if kept is not None:
        here = kept.row
        if (here.epoch, here.chapter) == (claim.epoch, claim.chapter) and claim.wake == claim.head:
            row = replace(here, wake=claim.wake, now=claim.clock(), read=time.monotonic())
            return Turn(row, Log([], [], {}), kept.reduction)
        engine.sticky.keep(kept)
    loaded = engine.store.load_run(claim.run)
    if loaded is None or loaded.state not in (RunState.READY, RunState.WAITING) or loaded.chapter != claim.chapter:
        return None
    return turn_of(engine, loaded)


def _drop(kept: Kept | None) -> None:
    if kept is not None:
        kept.reduction.close()


def decide(engine: Engine, turn: Turn, outcome: Outcome | None = None) -> Decision:
    """What the agent does about all that has arrived, an outcome that is not in the log yet last of all."""
    row, log = turn.row, turn.log
    news: list[StepRecord] = [*log.steps, *([outcome.record(row.wake + 1)] if outcome else [])]
    arrivals: list[Arrival] = [*log.signals, *([row.cancel] if row.cancel else [])]
    try:
        if turn.reduction is None:
            turn.reduction = reduction_of(engine, row)
        return _with_both_sides(engine, row, turn.reduction.resume(news, arrivals))
    except InputError as error:
        if row.started is not None:
            # It fitted when the run began: the code has changed since, and may be changed back.
            return Decision(RunState.PAUSED, row.head, error=error)
        return _failed(turn, error)
    except ImpureAgentError as error:
        return _failed(turn, error)
    except SystemExit as error:
        if not _errors.is_own_exit(error):
            raise
        return _failed(turn, RuntimeError(f"the agent raised {error!r}"))


def _with_both_sides(engine: Engine, row: RunRow, decision: Decision) -> Decision:
    """A mismatch with the recorded arguments spelled out: a reduction only knows their digest."""
    if (found := decision.mismatch) is None:
        return decision
    recorded = engine.store.recorded_input(row.id, found.key)
    told = MismatchError(found.key, f"{found.recorded} {recorded[:200]}", found.asked)
    return replace(decision, mismatch=told, error=told)


def _failed(turn: Turn, error: Exception) -> Decision:
    """The end of a run that cannot be reduced, now or ever."""
    return Decision(RunState.FAILED, turn.row.head, cancels=tuple(turn.open_steps()), error=error)


def reduction_of(engine: Engine, row: RunRow) -> Reduction:
    """The run's coroutine, not yet started."""
    spec = engine.agents[row.agent]
    arguments = spec.signature.decode_input(row.input)
    return Reduction(
        lambda: spec.function(**arguments),
        seed=f"{row.id}/{row.chapter}",
        started_at=row.started if row.started is not None else row.now,
        chapter=row.chapter,
        encode_input=lambda args, kwargs: spec.signature.encode_input(args, kwargs, cap=engine.settings.max_payload),
    )


def ending(engine: Engine, spec: AgentSpec, decision: Decision) -> tuple[RunState, str | None, str | None]:
    """A run's state after a decision, its output and its error, as they are stored."""
    match decision.state:
        case RunState.SUCCEEDED:
            try:
                return (
                    decision.state,
                    spec.signature.encode_output(decision.output, cap=engine.settings.max_payload),
                    None,
                )
            except PickaxeError as error:
                return RunState.FAILED, None, _errors.encode(error)
        case RunState.READY:
            return decision.state, decision.output, None
        case RunState.FAILED | RunState.CANCELLED | RunState.PAUSED if decision.error is not None:
            return decision.state, None, _errors.encode(decision.error)
        case _:
            return decision.state, None, None
