"""What an app knows about its agents and tools: the function, and how it wants to be run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pickaxe._effects import Effect
from pickaxe._rates import Rate
from pickaxe._retry import Retry
from pickaxe._signatures import Signature
from pickaxe._texts import shortened
from pickaxe.errors import ConfigurationError

AGENT_QUEUE = "agents"
TOOL_QUEUE = "tools"


def check_queue(queue: str, what: str) -> None:
    """Raises `ConfigurationError` for a name that no worker could be told."""
    if not queue.strip() or "," in queue or queue != queue.strip():
        raise ConfigurationError(
            f"{what}: {queue!r} cannot be the name of a queue: workers are told theirs as `-Q agents,tools`, so it may "
            f"hold no comma, and neither be empty nor begin or end with a space"
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """A fleet-wide rate on a key. `key` and `units` are fixed, or computed from the call's arguments."""

    rates: tuple[Rate, ...]
    key: str | Callable[..., str]
    units: int | Callable[..., int] = 1

    def claims(self, arguments: dict[str, Any]) -> list[tuple[str, str, int]]:
        """What a call with these arguments uses, as (key, rate, units)."""
        key = self.key(**arguments) if callable(self.key) else self.key
        units = self.units(**arguments) if callable(self.units) else self.units
        return [(shortened(str(key)), str(rate), int(units)) for rate in self.rates]


@dataclass(frozen=True, eq=False)
class Spec:
    """What agents and tools have in common."""

    function: Callable[..., Any]
    name: str
    queue: str
    description: str = ""
    priority: int | None = None
    timeout: float | None = None

    @cached_property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)

    @property
    def what(self) -> str:
        """The name of this handle in messages."""
        raise NotImplementedError

    @cached_property
    def signature(self) -> Signature:
        return Signature(self.function, what=self.what)


@dataclass(frozen=True, eq=False)
class ToolSpec(Spec):
    """A tool. Times in seconds; `timeout` is for one attempt. `reconcile` tells whether a lost call has happened."""

    retry: Retry = field(default_factory=lambda: Retry(attempts=1))
    schedule_timeout: float | None = None
    total_timeout: float | None = None
    limits: tuple[Limit, ...] = ()
    inline: bool = False
    effect: Effect = Effect.IDEMPOTENT
    reconcile: Callable[..., Any] | None = None

    @property
    def what(self) -> str:
        return f"tool {self.name!r}"

    @cached_property
    def reconciler(self) -> Signature:
        """What `reconcile` takes. Raises `ConfigurationError` when that is not some of what the tool takes."""
        assert self.reconcile is not None
        return Signature(self.reconcile, what=f"reconcile of {self.what}")


@dataclass(frozen=True, eq=False)
class AgentSpec(Spec):
    """An agent. `timeout` (seconds) is for the whole run."""

    version: str = "1"

    @property
    def what(self) -> str:
        return f"agent {self.name!r}"
