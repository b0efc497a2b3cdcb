"""Tools in a simulation: the real body or its replacement, between the real validation of both sides."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

from pickaxe._durations import Duration, humanise, seconds
from pickaxe._effects import idempotency_key
from pickaxe._inject import Context
from pickaxe._specs import Spec, ToolSpec
from pickaxe.authoring._handles import MAX_PAYLOAD, Handle
from pickaxe.engine import _attempts, _errors
from pickaxe.errors import ConfigurationError
from pickaxe.testing._rows import SimulatedRun, Step


@dataclass(frozen=True, slots=True)
class Takes:
    """A body that takes some virtual time, or whose worker dies in it, and who may be asked about that."""

    duration: float
    body: Callable[..., Any] | None = None
    deaths: int = 0
    reconcile: Callable[..., Any] | None = None


class WorkerDied(BaseException):
    """Raised in place of a result: the worker process that ran the body is gone."""


class OutOfTimeError(TimeoutError):
    """The body was stopped because its time was up."""


def takes(duration: Duration, body: Callable[..., Any] | None = None) -> Any:
    """A replacement for a tool that takes `duration` of virtual time, so that timeouts and races can be tested.

    `simulate(agent, tools={search: takes("20s", lambda query: [])})`. Without `body` it is the tool itself.
    """
    return Takes(seconds(duration), body)


class Bodies:
    """What runs in place of each tool and child run, by name."""

    def __init__(self, tools: Mapping[Any, Any]) -> None:
        self._given = {_name(key): _body(key, value) for key, value in tools.items()}
        self.names = {key for key in tools if isinstance(key, str)}

    def of(self, name: str) -> Takes | None:
        """The replacement of this name."""
        return self._given.get(name)

    def duration(self, step: Step) -> float:
        """How long an attempt takes, and may take."""
        given, timeout = self.of(step.name), step.options.get("timeout")
        duration = given.duration if given else 0.0
        return duration if timeout is None else min(duration, float(timeout))

    def run(self, run: SimulatedRun, step: Step) -> str:
        """One attempt: its output as JSON text. Raises what the body raises."""
        given, timeout = self.of(step.name), step.options.get("timeout")
        if given is not None and timeout is not None and given.duration > timeout:
            raise OutOfTimeError
        spec: Spec = step.spec
        arguments = spec.signature.decode_input(step.input_json)
        if given is None or given.body is None:
            value = spec.function(**arguments, **spec.signature.inject(_context(run, step)))
        else:
            value = given.body(**arguments)
        output = spec.signature.encode_output(_awaited(value), cap=MAX_PAYLOAD)
        if given is not None and step.died < given.deaths:
            step.died += 1
            raise WorkerDied
        return output

    def reconcile(self, run: SimulatedRun, step: Step) -> str:
        """What a call that was lost has come to, as JSON text. Raises what its `reconcile` raises."""
        spec: ToolSpec = step.spec
        arguments = spec.signature.decode_input(step.input_json)
        given = self.of(step.name)
        if given is not None and given.reconcile is not None:
            value = given.reconcile(**arguments)
        else:
            assert spec.reconcile is not None
            own = {name: arguments[name] for name in spec.reconciler.inputs & arguments.keys()}
            value = spec.reconcile(**own, **spec.reconciler.inject(_context(run, step)))
        return spec.signature.encode_output(_awaited(value), cap=MAX_PAYLOAD)


def retry_in(step: Step, error: Exception, now: float) -> float | None:
    """Seconds until the next attempt, by the tool's own rules without their jitter; None: there is none."""
    if not isinstance(step.spec, ToolSpec):
        return None
    retry = replace(step.spec.retry, jitter=0.0)
    claim = SimpleNamespace(
        options=step.options, attempt=step.attempt, deaths=step.deaths, expires=total_end(step), now=now
    )
    return _attempts._wait_before_retry(
        cast("Any", SimpleNamespace(claim=claim, spec=SimpleNamespace(retry=retry))), error
    )


def total_end(step: Step) -> float | None:
    """When a call's total timeout is over."""
    total = getattr(step.spec, "total_timeout", None)
    return None if total is None else step.created + float(total)


def failure(step: Step, error: Exception) -> str:
    """What is recorded of a failed call."""
    timeout = step.options.get("timeout")
    if isinstance(error, TimeoutError) and timeout is not None and not error.args:
        return _errors.timed_out(f"did not end within {humanise(timeout)}", error)
    return _errors.encode(error)


def _name(key: Any) -> str:
    if isinstance(key, Handle):
        return key.name
    if isinstance(key, str):
        return key
    raise ConfigurationError(f"tools= of simulate takes handles or their names as keys, not {key!r}")


def _body(key: Any, value: Any) -> Takes:
    if isinstance(value, Takes):
        return value if value.body is None else replace(value, body=_body(key, value.body).body)
    if isinstance(value, Handle):
        return Takes(0.0, value.fn)
    if callable(value):
        return Takes(0.0, value)
    raise ConfigurationError(f"the replacement of {_name(key)!r} must be a function, not {value!r}")


def _context(run: SimulatedRun, step: Step) -> Context:
    return Context(
        run=str(run.id), step=step.key, tool=step.name, attempt=step.attempt,
        idempotency_key=idempotency_key(run.id, step.key), root=str(run.root),
    )  # fmt: skip


def _awaited(value: Any) -> Any:
    if not inspect.isawaitable(value):
        return value
    before = asyncio._get_running_loop()
    asyncio._set_running_loop(None)  # the test itself may be running in a loop
    try:
        return asyncio.run(_await(value))
    finally:
        asyncio._set_running_loop(before)


async def _await(value: Any) -> Any:
    return await value
