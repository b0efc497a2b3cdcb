"""Handles: what `@agent` and `@tool` make of a function.

Inside an agent, calling a handle makes a durable step. Anywhere else it is the plain function: in
synchronous code the call itself, in asynchronous code something to await.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from pickaxe._durations import Duration, optional_seconds, time_limit
from pickaxe._effects import Effect
from pickaxe._inject import Context
from pickaxe._rates import Rate
from pickaxe._specs import AgentSpec, Spec, ToolSpec, check_queue
from pickaxe._states import ChildPolicy, StepKind
from pickaxe._texts import checked
from pickaxe._values import digest
from pickaxe.authoring._effects import check_retries
from pickaxe.authoring._gather import gather
from pickaxe.core._calls import Asked, Call
from pickaxe.core._reduction import Reduction, current
from pickaxe.engine._errors import reraise
from pickaxe.errors import ConfigurationError, InputError, UnboundHandleError

if TYPE_CHECKING:
    from pickaxe.client import Run

P = ParamSpec("P")
R = TypeVar("R")

MAX_PAYLOAD = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What one call wants otherwise than its handle. None: as the handle."""

    key: str | None = None
    queue: str | None = None
    priority: int | None = None
    timeout: float | None = None
    attempts: int | None = None
    policy: ChildPolicy = ChildPolicy.CANCEL


@dataclass(frozen=True, slots=True)
class EnqueueOptions:
    """How one run is to be started. `delay` in seconds."""

    idempotency_key: str | None = None
    delay: float = 0.0
    priority: int | None = None
    metadata: Mapping[str, Any] | None = None


ENQUEUE_OPTIONS = frozenset({"idempotency_key", "delay", "priority", "metadata", "connection"})
"""Keywords of `Agent.enqueue`, which an agent's own parameters therefore cannot be called."""


def no_binding() -> Any:
    """Nothing is known of a fleet."""


default_binding: Callable[[], Any] = no_binding
"""Where handles that belong to no app find one. Set by `pickaxe.client`."""


class Handle(Generic[P, R]):
    """What agents and tools have in common. `fn` is the plain function."""

    spec: Spec
    _options: CallOptions
    _binding: Any

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._options = CallOptions()
        self._binding = None
        update_wrapper(self, spec.function)

    @property
    def name(self) -> str:
        """The name of the Celery task, and of the steps."""
        return self.spec.name

    @property
    def fn(self) -> Callable[P, Any]:
        """The plain function."""
        return self.spec.function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """A durable step inside an agent; the plain function elsewhere."""
        reduction = current()
        if reduction is not None:
            return self._call(reduction, args, kwargs)
        return cast("Coroutine[Any, Any, R]", self._plain(args, kwargs))

    def bind(self, binding: Any) -> None:
        """Used by `Pickaxe(...)`: the app this handle is run by."""
        self._binding = binding

    def _max_payload(self) -> int:
        return MAX_PAYLOAD if self._binding is None else int(self._binding.settings.max_payload)

    def _call(self, reduction: Reduction, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        raise NotImplementedError

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        signature = self.spec.signature
        if signature.injected:
            kwargs = signature.inject(Context(tool=self.name), signature.given(args, kwargs)) | kwargs
        result = self.spec.function(*args, **kwargs)
        if inspect.isawaitable(result) or asyncio._get_running_loop() is None:
            return result
        return _Ready(result)

    def _with(self, **changes: Any) -> Any:
        given = {name: value for name, value in changes.items() if value is not None}
        for name in {"key", "queue"} & given.keys():
            checked(given[name], f"using({name}=…)")
        if "queue" in given:
            check_queue(given["queue"], f"{self.spec.what}.using")
            if getattr(self.spec, "inline", False):
                raise ConfigurationError(f"{self.spec.what} is inline: its calls are in no queue, so leave `queue` out")
        priority = given.get("priority", 5)
        if not isinstance(priority, int) or not 0 <= priority <= 9:
            raise InputError(f"using(priority={priority!r}) must be between 0 and 9 (the most urgent)")
        other = copy.copy(self)
        other._options = replace(self._options, **given)
        return other

    def __repr__(self) -> str:
        return f"<{self.spec.what}>"


class _Ready(Coroutine[Any, Any, Any]):
    """A value that can be awaited, so that an agent's body also runs outside of the fleet."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Any:
        return self._value
        yield

    def send(self, value: Any) -> Any:  # noqa: ARG002 - a coroutine's signature
        raise StopIteration(self._value)

    def throw(self, *args: Any) -> Any:
        raise args[0]

    def close(self) -> None:
        """Nothing was begun."""


class Tool(Handle[P, R]):
    """A leaf task. All effects live in tools."""

    spec: ToolSpec

    def __getattr__(self, name: str) -> Any:
        what = self.__dict__["spec"].what if "spec" in self.__dict__ else "a tool"
        if name in ("enqueue", "aenqueue", "enqueue_many", "delay", "apply_async"):
            raise AttributeError(f"{what} has no {name}: await it in an agent, and enqueue that")
        raise AttributeError(f"{what} has no attribute {name!r}")

    def using(
        self,
        *,
        key: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        timeout: Duration | None = None,
        retries: int | None = None,
    ) -> Tool[P, R]:
        """This tool with other options for the calls made through it.

        `key` names the step (it must be unique in the run); `timeout` is for one attempt; `retries` counts
        the tries after the first.
        """
        attempts = None if retries is None else retries + 1
        if attempts is not None and self.spec.effect is Effect.AT_MOST_ONCE:
            check_retries(self.spec, replace(self.spec.retry, attempts=attempts))
        return cast(
            "Tool[P, R]",
            self._with(
                key=key, queue=queue, priority=priority, timeout=time_limit(timeout, "a timeout"), attempts=attempts
            ),
        )

    def map(
        self,
        items: Iterable[Any],
        *,
        limit: int | None = None,
        quorum: int | None = None,
        return_exceptions: bool = False,
    ) -> Coroutine[Any, Any, list[R]]:
        """One call for each item, as one `gather`: see there."""
        call = cast("Callable[[Any], Coroutine[Any, Any, R]]", self)
        return gather(*(call(item) for item in items), limit=limit, quorum=quorum, return_exceptions=return_exceptions)

    def _call(self, reduction: Reduction, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        spec, own = self.spec, self._options
        text = spec.signature.encode_input(args, kwargs, cap=self._max_payload())
        options: dict[str, Any] = {
            "queue": own.queue or spec.queue,
            "priority": own.priority if own.priority is not None else spec.priority,
            "timeout": own.timeout if own.timeout is not None else spec.timeout,
            "schedule_timeout": spec.schedule_timeout,
            "total_timeout": spec.total_timeout,
            "attempts": own.attempts if own.attempts is not None else spec.retry.attempts,
            "inline": spec.inline or None,
            # A sweeper that does not know the tool must know what its death means.
            "effect": None if spec.effect is Effect.IDEMPOTENT else str(spec.effect),
            "reconcile": spec.reconcile is not None or None,
        }
        if spec.limits:
            arguments = spec.signature.decode_input(text)
            options["limits"] = [claim for limit in spec.limits for claim in limit.claims(arguments)]
        call = Call(
            reduction,
            Asked(
                StepKind.TOOL, spec.name, spec.signature.decode_output, reraise, text, digest(text), options,
                key=own.key, body=spec if spec.inline else None, spec=spec,
            ),
        )  # fmt: skip
        self._check_limits(reduction, call)
        return call

    def _check_limits(self, reduction: Reduction, call: Call) -> None:
        if not self.spec.limits or reduction.members([call]) != [None]:
            return  # what the log has was asked for when its rate was another, perhaps
        for key, rate, units in call.asked.options["limits"]:
            if not 1 <= units <= Rate.parse(rate).count:
                call.close()
                raise InputError(
                    f"the call {call.key!r} uses {units} units of the rate limit {rate} on {key!r}, and could never "
                    f"start: make its rate_units 1 to {Rate.parse(rate).count}, or raise its rate_limit"
                )


class Agent(Handle[P, R]):
    """A task that is replayed from its log. Pure: every effect is a tool's."""

    spec: AgentSpec

    def using(
        self,
        *,
        key: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        timeout: Duration | None = None,
        on_cancel: ChildPolicy | str | None = None,
    ) -> Agent[P, R]:
        """This agent with other options for the runs started through it.

        `on_cancel` says what becomes of the child run when its parent no longer wants it: `"cancel"` it (the
        default), `"wait"` for it to clean up after being cancelled, or `"detach"` and let it go on. A
        `gather` that is cancelled does not wait for its child runs, whatever they say here. `key` and
        `on_cancel` only matter for child runs.
        """
        policy = None if on_cancel is None else ChildPolicy(on_cancel)
        return cast(
            "Agent[P, R]",
            self._with(
                key=key, queue=queue, priority=priority, timeout=time_limit(timeout, "a timeout"), policy=policy
            ),
        )

    map = Tool.map

    def enqueue(
        self,
        *args: Any,
        idempotency_key: str | None = None,
        delay: Duration | None = None,
        priority: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        connection: Any = None,
        **kwargs: Any,
    ) -> Run[R]:
        """Start a run on the fleet. Returns as soon as the run is safe in Postgres.

        A second call with the same `idempotency_key` returns the first one's run, whose `is_new` is False then.
        `delay` starts it later; `priority` is 0 to 9, 9 the most urgent; `metadata` is JSON kept with the run.
        With `connection` (a SQLAlchemy connection or session, or a psycopg connection, to the same database) the
        run is part of that transaction: no run if it rolls back, exactly one if it commits.

        Raises `InputError` for arguments that do not fit, `PayloadError` for ones too large,
        `ServiceUnavailableError` when Postgres cannot be reached.
        """
        options = EnqueueOptions(idempotency_key, optional_seconds(delay) or 0.0, priority, metadata)
        return cast("Run[R]", self._bound().enqueue(self, [(args, kwargs)], [options], connection)[0])

    async def aenqueue(self, *args: Any, **kwargs: Any) -> Run[R]:
        """`enqueue` for asynchronous code: the same arguments; the statement runs in a thread."""
        return await asyncio.to_thread(self.enqueue, *args, **kwargs)

    def enqueue_many(
        self,
        inputs: Iterable[Any],
        *,
        idempotency_keys: Sequence[str] | None = None,
        delay: Duration | None = None,
        priority: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        connection: Any = None,
    ) -> list[Run[R]]:
        """Start many runs with one statement. Each input is the agent's argument, or a tuple of them.

        All are accepted, or, when one of them is refused, none.
        """
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            (item if isinstance(item, tuple) else (item,), {}) for item in inputs
        ]
        keys: Sequence[str | None] = idempotency_keys if idempotency_keys is not None else [None] * len(calls)
        if len(keys) != len(calls):
            raise InputError(f"{len(calls)} inputs, but {len(keys)} idempotency keys: there must be one for each")
        wait = optional_seconds(delay) or 0.0
        options = [EnqueueOptions(key, wait, priority, metadata) for key in keys]
        return cast("list[Run[R]]", self._bound().enqueue(self, calls, options, connection))

    def _bound(self) -> Any:
        binding = self._binding or default_binding()
        if binding is None:
            raise UnboundHandleError(
                f"{self.spec.what} belongs to no Pickaxe app here, and PICKAXE_DATABASE_URL is not set: import the "
                f"module that builds your app (such as workers.app), or set the URL (`pickaxe dev` tells its own)"
            )
        return binding

    def _call(self, reduction: Reduction, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        spec, own = self.spec, self._options
        text = spec.signature.encode_input(args, kwargs, cap=self._max_payload())
        options = {
            "queue": own.queue or spec.queue,
            "priority": own.priority if own.priority is not None else spec.priority,
            "timeout": own.timeout if own.timeout is not None else spec.timeout,
            "version": spec.version,
        }
        return Call(
            reduction,
            Asked(
                StepKind.CHILD, spec.name, spec.signature.decode_output, reraise, text, digest(text), options,
                own.policy, own.key, spec=spec,
            ),
        )  # fmt: skip
