"""What agents can await besides tools, and what they may know: time, chance, signals, each other."""

from __future__ import annotations

import random as _random
import time as _time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, NoReturn, TypeVar, overload

from pickaxe import _values
from pickaxe._durations import Duration, seconds
from pickaxe._states import StepKind
from pickaxe._texts import checked
from pickaxe.authoring._handles import MAX_PAYLOAD
from pickaxe.core._calls import Asked, Call
from pickaxe.core._reduction import Reduction, current
from pickaxe.engine._errors import reraise
from pickaxe.errors import ConfigurationError, InputError, ValidationError

T = TypeVar("T")


@overload
async def wait_for_signal(name: str) -> Any: ...
@overload
async def wait_for_signal(name: str, type: type[T]) -> T: ...
async def wait_for_signal(name: str, type: Any = Any) -> Any:  # noqa: A002
    """Park until a signal of this name comes, and return its payload as a `type`.

    Signals are buffered: one sent before this call is taken at once, and several are taken in the order they
    came. A payload that does not fit `type` raises `ValidationError` here. Put `asyncio.timeout` around it
    for a deadline; days are fine.
    """
    reduction = _required("wait_for_signal")
    checked(name, "the name of the signal")
    decode = _decoder(type, f"the signal {name!r}")
    return await Call(reduction, Asked(StepKind.SIGNAL, name, decode, reraise))


@overload
async def wait_for_event(
    key: str, *, where: Mapping[str, Any] | None = None, within: Duration = 0, scope: str = ""
) -> Any: ...
@overload
async def wait_for_event(
    key: str,
    type: type[T],
    *,
    where: Mapping[str, Any] | None = None,
    within: Duration = 0,
    scope: str = "",
) -> T: ...
async def wait_for_event(
    key: str,
    type: Any = Any,  # noqa: A002
    *,
    where: Mapping[str, Any] | None = None,
    within: Duration = 0,
    scope: str = "",
) -> Any:
    """Park until an event with this key is published, and return its payload as a `type`.

    `where` must be contained in the payload: equal values, nested mappings as subsets. `within` also accepts
    an event published up to so long before this call (the oldest such). `scope` keeps tenants apart: only
    events published with the same scope are seen.
    """
    reduction = _required("wait_for_event")
    checked(key, "the key of the event"), checked(scope, "the scope of the event", empty=True)
    wanted = {"where": dict(where or {}), "within": seconds(within), "scope": scope}
    try:
        text = _values.dump(wanted)
    except (TypeError, ValueError) as error:
        raise InputError(f"wait_for_event({key!r}): `where` must be plain JSON: {error}") from error
    decode = _decoder(type, f"the event {key!r}")
    asked = Asked(StepKind.EVENT, key, decode, reraise, text, _values.digest(text))
    return await Call(reduction, asked)


def now() -> datetime:
    """The time, as the log tells it: the same in every replay. It stands still between two awaits."""
    reduction = current()
    return datetime.fromtimestamp(_time.time() if reduction is None else reduction.loop.now, UTC)


def uuid4() -> uuid.UUID:
    """A random UUID, the same in every replay."""
    reduction = current()
    return uuid.uuid4() if reduction is None else reduction.uuid4()


def random() -> _random.Random:
    """A random generator, seeded by the run: the same numbers in every replay."""
    reduction = current()
    return _random.Random() if reduction is None else reduction.random


def set_state(value: Any) -> None:
    """Publish `value` (anything JSON can hold) as the run's state, for `run.state()` to read meanwhile."""
    reduction = current()
    text = _values.encode(_values.ANYTHING, value, what="the published state", cap=MAX_PAYLOAD)
    if reduction is not None:
        reduction.publish(text)


def continue_as(*args: Any, **kwargs: Any) -> NoReturn:
    """Go on as a new chapter of the same run, with a fresh log and these arguments.

    For agents that run for ever: what they carry over, they pass on. The run keeps its id, its handle, and
    the signals it has not taken yet; calls still open are cancelled. It leaves the agent as an exception,
    so that `finally` blocks run; an `except` that swallows it does not keep the chapter from ending.
    """
    _required("continue_as").continue_as(args, kwargs)


def _required(what: str) -> Reduction:
    reduction = current()
    if reduction is None:
        raise ConfigurationError(
            f"{what} only means something inside an agent on the fleet. In a test, run the agent with "
            f"pickaxe.testing.simulate, which can send it signals and events."
        )
    return reduction


@cache
def _adapter(annotation: Any) -> Any:
    return _values.adapter(annotation)


def _decoder(annotation: Any, what: str) -> Any:
    return lambda text: _values.decode(_adapter(annotation), text, what=what, error=ValidationError)
