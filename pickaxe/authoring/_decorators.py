"""`@agent` and `@tool`: what makes a function a handle."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar, overload

from pickaxe._durations import Duration, optional_seconds
from pickaxe._effects import Effect
from pickaxe._rates import Rate, parse_rates
from pickaxe._retry import Retry
from pickaxe._specs import AGENT_QUEUE, TOOL_QUEUE, AgentSpec, Limit, ToolSpec
from pickaxe.authoring._effects import check_effect
from pickaxe.authoring._handles import ENQUEUE_OPTIONS, Agent, Tool
from pickaxe.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,199}")


@overload
def tool(function: Callable[P, Coroutine[Any, Any, R]], /) -> Tool[P, R]: ...
@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    queue: str = TOOL_QUEUE,
    retries: Retry | int | None = None,
    timeout: Duration | None = None,
    schedule_timeout: Duration | None = None,
    total_timeout: Duration | None = None,
    rate_limit: str | Rate | Sequence[str | Rate] | None = None,
    rate_key: str | Callable[..., str] | None = None,
    rate_units: int | Callable[..., int] = 1,
    priority: int | None = None,
    inline: bool = False,
    effect: Effect | str = Effect.IDEMPOTENT,
    reconcile: Callable[..., Any] | None = None,
) -> _ToolDecorator: ...
def tool(function: Any = None, /, **options: Any) -> Any:
    """Make a function a tool: a leaf task that agents can call, and where all effects live.

    `retries` is the number of tries after the first, or a `Retry` with rules. Times are durations (seconds,
    `"20s"`, a `timedelta`): `timeout` is for one attempt, `schedule_timeout` from the call to its first
    start, `total_timeout` from the call to its end, all attempts included. `rate_limit` such as `"30/m"` or
    `"50/s,1000/h"` holds for the whole fleet; it counts per tool unless `rate_key` names another key, which
    may be computed from the call's arguments; `rate_units` is what one call uses up. With `inline` the body
    runs in the agent's own process, without a queue or a limit: for quick things that must be remembered.

    `effect` says how what the tool does may be repeated: `"idempotent"` (the default: it may run again, with the
    same `Context.idempotency_key`), `"at_most_once"` (a call whose end nobody saw is *unknown*, and goes on when
    `reconcile` or a person has said whether it happened), or `"transactional"` (it works on an injected connection
    to Pickaxe's database, and commits with its result). `reconcile` is a function of some of the tool's own
    parameters: it returns the tool's result, or raises `DidNotHappen` or `StillUnknown`. See docs/effects.md.

    Raises `ConfigurationError` when the function or an option cannot be used.
    """
    _known(options, _TOOL_OPTIONS, "tool")
    if function is not None:
        return Tool(_tool_spec(function))
    return lambda given: Tool(_tool_spec(given, **options))


@overload
def agent(function: Callable[P, Coroutine[Any, Any, R]], /) -> Agent[P, R]: ...
@overload
def agent(
    *,
    name: str | None = None,
    queue: str = AGENT_QUEUE,
    timeout: Duration | None = None,
    priority: int | None = None,
    version: str = "1",
) -> _AgentDecorator: ...
def agent(function: Any = None, /, **options: Any) -> Any:
    """Make an `async def` an agent: durable, replayed from its log, and therefore free of effects.

    `timeout` is for a whole run; `version` is recorded with every run. Raises `ConfigurationError` when the
    function or an option cannot be used.
    """
    _known(options, _AGENT_OPTIONS, "agent")
    if function is not None:
        return Agent(_agent_spec(function))
    return lambda given: Agent(_agent_spec(given, **options))


class _ToolDecorator:
    """What `tool(...)` returns, as types see it."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Tool[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Tool[P, R]: ...
    def __call__(self, function: Any, /) -> Any:
        """Make the function a tool."""


class _AgentDecorator:
    """What `agent(...)` returns, as types see it."""

    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Agent[P, R]:
        """Make the function an agent."""
        raise NotImplementedError


def _tool_spec(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    queue: str = TOOL_QUEUE,
    retries: Retry | int | None = None,
    timeout: Duration | None = None,
    schedule_timeout: Duration | None = None,
    total_timeout: Duration | None = None,
    rate_limit: Any = None,
    rate_key: str | Callable[..., str] | None = None,
    rate_units: int | Callable[..., int] = 1,
    priority: int | None = None,
    inline: bool = False,
    effect: Effect | str = Effect.IDEMPOTENT,
    reconcile: Callable[..., Any] | None = None,
) -> ToolSpec:
    name = _name_of(function, name, "tool")
    _queue(queue, f"tool {name!r}")
    if inline:
        why = "and is inline: its calls are in no queue and wait for nothing, so leave out one of the two"
        _refuse(name, why, queue=queue != TOOL_QUEUE, rate_limit=rate_limit is not None)
    if rate_limit is None:
        why = "and no rate_limit that it belongs to: add one, or leave it out"
        _refuse(name, why, rate_key=rate_key is not None, rate_units=rate_units != 1)
    limits = () if rate_limit is None else (Limit(parse_rates(rate_limit), rate_key or f"tool:{name}", rate_units),)
    spec = ToolSpec(
        function, name, queue, inspect.getdoc(function) or "", _priority(priority, name), optional_seconds(timeout),
        Retry.of(retries), optional_seconds(schedule_timeout), optional_seconds(total_timeout), limits, inline,
        Effect.of(effect, f"tool {name!r}"), reconcile,
    )  # fmt: skip
    check_effect(spec)  # refuses what cannot be used at the decorator, not at the first call
    return spec


def _agent_spec(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    queue: str = AGENT_QUEUE,
    timeout: Duration | None = None,
    priority: int | None = None,
    version: str = "1",
) -> AgentSpec:
    name = _name_of(function, name, "agent")
    _queue(queue, f"agent {name!r}")
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"agent {name!r} must be an `async def`: agents await their tools")
    spec = AgentSpec(
        function, name, queue, inspect.getdoc(function) or "", _priority(priority, name), optional_seconds(timeout),
        version,
    )  # fmt: skip
    if spec.signature.injected:
        raise ConfigurationError(
            f"agent {name!r} has injected parameters: agents are pure, only tools are given things"
        )
    if taken := ENQUEUE_OPTIONS & set(inspect.signature(function).parameters):
        raise ConfigurationError(
            f"agent {name!r} has a parameter {sorted(taken)[0]!r}, which is an option of enqueue(): rename it"
        )
    return spec


_TOOL_OPTIONS = frozenset(inspect.signature(_tool_spec).parameters) - {"function"}
_AGENT_OPTIONS = frozenset(inspect.signature(_agent_spec).parameters) - {"function"}


def _known(options: Collection[str], known: frozenset[str], kind: str) -> None:
    for name in sorted(set(options) - known):
        [*close] = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(sorted(known))}"
        raise ConfigurationError(f"@{kind} has no option {name!r}: {hint}")


def _name_of(function: Any, name: str | None, kind: str) -> str:
    if not callable(function):
        raise ConfigurationError(f"@{kind} makes a function a {kind}, and {function!r} is none: write @{kind}(name=…)")
    name = name or str(function.__name__)
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a {kind}: use letters, digits, '_', '-' and '.', at most 200, not "
            f"starting with a digit"
        )
    return name


def _queue(queue: str, what: str) -> None:
    if not queue.strip() or "," in queue or queue != queue.strip():
        raise ConfigurationError(
            f"{what}: {queue!r} cannot be the name of a queue: workers are told theirs as `-Q agents,tools`, so it may "
            f"hold no comma, and neither be empty nor begin or end with a space"
        )


def _refuse(name: str, why: str, **given: bool) -> None:
    """Of options that would be ignored, the first that was given."""
    for option, is_given in given.items():
        if is_given:
            raise ConfigurationError(f"tool {name!r} has a {option} {why}")


def _priority(priority: int | None, name: str) -> int | None:
    if priority is not None and not 0 <= priority <= 9:
        raise ConfigurationError(f"{name!r}: priority {priority} must be between 0 and 9 (the most urgent)")
    return priority
