"""Working off a call, and what its run comes to next: run, record, go on, as far as the stint allows."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pickaxe._effects import Effect
from pickaxe._specs import ToolSpec
from pickaxe._states import StepState
from pickaxe.engine import _attempts, _claims, _effects
from pickaxe.engine._claims import Attempt
from pickaxe.engine._dispatch import agent_message, publish
from pickaxe.engine._engine import Engine
from pickaxe.engine._executor import execute, go_on
from pickaxe.engine._stint import Stint
from pickaxe.store import Outcome, Settled


def reduce(engine: Engine, run: uuid.UUID) -> None:
    """What an agent's message asks for."""
    stint = Stint(engine)
    work_off(execute(engine, run, stint), stint)


def call(engine: Engine, spec: ToolSpec, message: dict[str, Any], *, chord: bool) -> None:
    """What a tool's message asks for. `chord`: the agent's message comes after that of the last call."""
    stint = Stint(engine)
    work_off(_claimed(engine, spec, message), stint, chord=chord)


async def call_async(engine: Engine, spec: ToolSpec, message: dict[str, Any], *, chord: bool) -> None:
    """`call` on an event loop: async bodies run on it, everything else in threads."""
    stint = Stint(engine, awaits=True)
    todo = await _from_thread(partial(_claimed, engine, spec, message))
    try:
        while todo:
            attempt, last = todo.pop(0), not todo
            work = partial(_work, attempt)
            if attempt.is_async:
                try:
                    value, error = await _attempts.run_async(attempt), None
                except asyncio.CancelledError:
                    todo.insert(0, attempt)
                    raise
                except BaseException as raised:  # noqa: BLE001 - whatever a tool raises is recorded
                    value, error = None, raised
                work = partial(_ended, attempt, value, error)
            todo += await _from_thread(partial(_follow, attempt, work, stint, last=last, chord=chord))
    finally:
        if todo:
            # Begun here and now, and shielded: a pool that goes down cancels its tasks more than once.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, _give_back, todo))


def work_off(todo: list[Attempt], stint: Stint, *, chord: bool = False) -> None:
    """Run and record these calls, and those that follow from them."""
    try:
        while todo:
            attempt = todo.pop(0)
            todo += _follow(attempt, partial(_work, attempt), stint, last=not todo, chord=chord)
    finally:
        _give_back(todo)
        stint.end()


def _claimed(engine: Engine, spec: ToolSpec, message: dict[str, Any]) -> list[Attempt]:
    attempt = _claims.claim(engine, spec, message)
    return [] if attempt is None else [attempt]


Ended = tuple[Outcome | None, Settled | None]
"""An attempt's outcome, if it has one, and what recording it has done, if it is recorded."""


def _work(attempt: Attempt) -> Ended:
    if attempt.spec.effect is Effect.TRANSACTIONAL:
        return _effects.in_transaction(attempt)
    value, error = None, None
    try:
        value = _attempts.run_sync(attempt)
    except BaseException as raised:  # noqa: BLE001 - whatever a tool raises is its outcome, and is recorded
        error = raised
    return _ended(attempt, value, error)


def _ended(attempt: Attempt, value: Any, error: BaseException | None) -> Ended:
    return (_attempts.returned(attempt, value) if error is None else _attempts.raised(attempt, error)), None


def _follow(attempt: Attempt, work: Callable[[], Ended], stint: Stint, *, last: bool, chord: bool) -> list[Attempt]:
    """Record how an attempt ended. Returns the calls to be run here next."""
    engine, claim = attempt.engine, attempt.claim
    try:
        outcome, settled = work()
        if outcome is not None and settled is None:
            if last and not stint.woken and stint.resumes(claim):
                following = go_on(engine, outcome, stint)
                if following is not None:
                    return following
            settled = _attempts.settle(engine, outcome)
        stint.wary = stint.wary or claim.strikes > 0
        if outcome is not None and settled is not None and settled.woken:
            _woken(engine, outcome, settled, stint, chord=chord)
    finally:
        # If nothing was recorded, the next beats find that this process owns a call that it does not run.
        engine.running.remove(attempt.token)
    return execute(engine, claim.run, stint) if last and stint.woken else []


def _woken(engine: Engine, outcome: Outcome, settled: Settled, stint: Stint, *, chord: bool) -> None:
    claim = outcome.claim
    if stint.resumes(claim):
        stint.woken = True
    # A chord ends in the agent's message, but only after all of its calls: a failure wakes the agent at once.
    elif not chord or outcome.state is not StepState.SUCCEEDED:
        wake = settled.seq or 0
        publish(engine, [agent_message(claim.run, claim.agent, claim.queue, claim.priority, claim.root, wake)])


def _give_back(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        _attempts.give_back(attempt, "its worker is going down")


async def _from_thread(make: Callable[[], list[Attempt]]) -> list[Attempt]:
    """What `make` returns, made in a thread. If nobody waits for that any more, it is given back there."""
    making = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(_unwanted)
        raise


def _unwanted(making: asyncio.Future[list[Attempt]]) -> None:
    # The thread has gone on, and may have claimed calls that nobody is left to run.
    if not making.cancelled() and making.exception() is None and (attempts := making.result()):
        making.get_loop().run_in_executor(None, _give_back, attempts)
