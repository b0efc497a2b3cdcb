"""Whether a tool fits the effect policy that it declares: refused where it is defined, not at its first call."""

from __future__ import annotations

import inspect

from pickaxe._effects import Effect
from pickaxe._retry import Retry
from pickaxe._specs import ToolSpec
from pickaxe.errors import ConfigurationError


def check_effect(spec: ToolSpec) -> None:
    """Raises `ConfigurationError` when a tool cannot keep what its policy promises."""
    _check_connection(spec)
    if spec.effect is Effect.AT_MOST_ONCE:
        check_retries(spec, spec.retry)
    if spec.reconcile is None:
        return
    if spec.effect is not Effect.AT_MOST_ONCE:
        raise ConfigurationError(
            f"{spec.what} has a `reconcile`, which only effect='at_most_once' asks: calls of "
            f"effect='{spec.effect}' are never in doubt"
        )
    _check_reconcile(spec)


def check_retries(spec: ToolSpec, retry: Retry) -> None:
    """Refuses to repeat an `at_most_once` tool after just any exception: the effect may have happened before it."""
    if retry.attempts > 1 and any(issubclass(Exception, kind) for kind in retry.on):
        raise ConfigurationError(
            f"{spec.what} is at_most_once, so a retry needs to know that nothing has happened yet: name the "
            f"exceptions that say so, such as retries=Retry(attempts={retry.attempts}, on=(ConnectionRefusedError,)); "
            f"on=() leaves it to RetryLater alone"
        )


def _check_connection(spec: ToolSpec) -> None:
    wanted = spec.signature.connection
    if spec.effect is not Effect.TRANSACTIONAL:
        if wanted is not None:
            raise ConfigurationError(
                f"{spec.what} has the injected connection {wanted[0]!r}, which needs @tool(effect='transactional')"
            )
        return
    if spec.is_async:
        raise ConfigurationError(
            f"{spec.what} is transactional, so it must be a plain `def`: its connection is a blocking one, and workers "
            f"run it in a thread or process of its own"
        )
    if wanted is None:
        raise ConfigurationError(
            f"{spec.what} is transactional and asks for no connection: give it a parameter such as `connection: "
            f"sqlalchemy.Connection = inject()` (or a psycopg.Connection, or a Session) and do its work on it"
        )
    if "Async" in wanted[1].__name__:
        raise ConfigurationError(
            f"{spec.what}: {wanted[0]!r} is an {wanted[1].__name__}; transactional tools are given blocking "
            f"connections: sqlalchemy.Connection, Session or psycopg.Connection"
        )


def _check_reconcile(spec: ToolSpec) -> None:
    if not inspect.isroutine(spec.reconcile):
        raise ConfigurationError(f"{spec.what}: reconcile must be a function, not {spec.reconcile!r}")
    strange = spec.reconciler.inputs - spec.signature.inputs
    if strange:
        raise ConfigurationError(
            f"{spec.what}: its reconcile asks for {sorted(strange)[0]!r}, which the tool is not called with; it can "
            f"have {', '.join(sorted(spec.signature.inputs)) or 'nothing'}, and what inject() gives"
        )
    if spec.reconciler.connection is not None:
        raise ConfigurationError(
            f"{spec.what}: its reconcile asks for a connection, which only transactional tools have"
        )
