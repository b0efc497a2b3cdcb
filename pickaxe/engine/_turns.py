"""A run about to be reduced: its row, what is new in its log, its coroutine, and what that decides."""

from __future__ import annotations

import time
import uuid
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

LIVE = (RunState.READY, RunState.WAITING)


@dataclass(slots=True)
class Turn:
    """See the module. `kept` is the coroutine as it was kept, `reduction` None until there is one."""

    row: RunRow
    log: Log
    reduction: Reduction | None = None
    kept: Kept | None = None

    def close(self) -> None:
        """Drop the coroutine."""
        if self.reduction is not None:
            self.reduction.close()

    def open_steps(self) -> Iterable[str]:
        """The steps that have not ended, as far as is known here."""
        loaded = [step.key for step in self.log.steps if not step.state.terminal]
        return dict.fromkeys([*(self.reduction.open_steps() if self.reduction else ()), *loaded])


def next_turn(engine: Engine, run: uuid.UUID) -> Turn | None:
    """The next turn of a run, from memory and what is new, or from its whole log. None: there is no such run."""
    turn = _caught_up(engine, engine.sticky.take(run))
    if turn is not None:
        return turn
    found = engine.store.load(run)
    return None if found is None else Turn(found.row, found.log)


def turn_after(engine: Engine, claim: Claim) -> Turn | None:
    """The turn that follows from the end of a call, or None if it does not follow from that alone.

    Nothing needs to be loaded, as a rule: what was new then came with the claim, and whether anything has come since
    the commit will tell.
    """
    kept = engine.sticky.take(claim.run)
    turn = _informed(claim, kept)
    if turn is not None:
        turn.row = replace(turn.row, wake=claim.wake, read=time.monotonic(), now=claim.clock())
        return turn
    if kept is not None:
        engine.sticky.keep(kept)
    turn = next_turn(engine, claim.run)
    if turn is not None and (turn.row.state not in LIVE or turn.row.chapter != claim.chapter):
        turn.close()
        return None
    return turn


def _informed(claim: Claim, kept: Kept | None) -> Turn | None:
    """The turn that needs no more than what is kept and what came with the claim."""
    news = claim.news
    if kept is None:
        return None if news is None or news.seen is not None else Turn(news.row, news.log)
    seen = kept.row
    if (seen.epoch, seen.chapter) == (claim.epoch, claim.chapter) and claim.wake == claim.head:
        return Turn(seen, Log([], [], {}), kept.reduction, kept)
    if news is None or news.seen is not seen or kept.reduction.open_inline:
        return None
    return Turn(news.row, news.log, kept.reduction, kept)


def let_go(engine: Engine, turn: Turn | None) -> None:
    """It is not this run's turn after all: nothing was done, and its coroutine may be needed yet."""
    if turn is None or turn.kept is None:
        return
    if turn.row.state in LIVE:
        engine.sticky.keep(turn.kept)
    else:
        turn.close()


def _caught_up(engine: Engine, kept: Kept | None) -> Turn | None:
    if kept is None:
        return None
    try:
        found = engine.store.catch_up(kept.row, kept.reduction.open_inline)
    except BaseException:
        kept.reduction.close()
        raise
    if found is None:
        kept.reduction.close()
        return None
    return Turn(found.row, found.log, kept.reduction, kept)


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
