"""A run seen from outside: wait for it, talk to it, watch it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pickaxe import _values
from pickaxe._durations import Duration, optional_seconds
from pickaxe._failpoints import failpoint
from pickaxe._states import RunState
from pickaxe._texts import checked
from pickaxe.engine import _cancellation, _resolution
from pickaxe.engine._dispatch import agent_message, publish, publish_run
from pickaxe.errors import (
    NotFoundError,
    ResultTimeoutError,
    RunCancelledError,
    RunFailedError,
    RunPausedError,
)
from pickaxe.store import RunView, StepView
from pickaxe.streams import Transition, follow

if TYPE_CHECKING:
    from pickaxe.client import Client

R = TypeVar("R")


class Run(Generic[R]):
    """One run, from outside. Holds no connection of its own and may be made anew from `id` at any time.

    `is_new`: it was made by the `enqueue` that returned this, and not found under its idempotency key.
    """

    def __init__(self, client: Client, run_id: uuid.UUID, handle: Any = None, *, is_new: bool = False) -> None:
        self._client = client
        self._handle = handle
        self.id = str(run_id)
        self.is_new = is_new

    def __repr__(self) -> str:
        return f"<Run {self.id}>"

    @property
    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(self.id)

    def view(self) -> RunView:
        """The run as it stands. Raises `NotFoundError`."""
        view = self._client.store.view_run(self._uuid)
        if view is None:
            raise NotFoundError(f"there is no run {self.id}: if it was enqueued in a transaction, is that committed?")
        return view

    @property
    def status(self) -> RunState:
        """Where the run is: `ready`, `waiting`, `paused`, `succeeded`, `failed` or `cancelled`."""
        return self.view().state

    def state(self) -> Any:
        """What the agent last published with `set_state`, None before."""
        return self.view().published

    def steps(self) -> list[StepView]:
        """The run's log, in the order the steps were asked for."""
        return self._client.store.view_steps(self._uuid)

    def result(self, timeout: Duration | None = None) -> R:
        """Wait for the run to end and return its typed result.

        Raises `RunFailedError`, `RunCancelledError`, `RunPausedError`, or, after `timeout` (default: never),
        `ResultTimeoutError`; the run goes on then.
        """
        limit = optional_seconds(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        pause = 0.005
        while (view := self.view()).state in (RunState.READY, RunState.WAITING):
            if deadline is not None and time.monotonic() >= deadline:
                raise ResultTimeoutError(
                    f"run {self.id} of agent {view.agent!r} has not ended within {limit:g} s; it goes on: see "
                    f"`pickaxe show {self.id[:13]}`",
                    run_id=self.id,
                )
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(pause * 1.5, 0.25)
        return self._ended(view)

    async def aresult(self, timeout: Duration | None = None) -> R:
        """`result` for asynchronous code."""
        return await asyncio.to_thread(self.result, timeout)

    def _ended(self, view: RunView) -> R:
        error = view.error or {}
        told = ": ".join(filter(None, (error.get("type"), error.get("message"))))
        told += f" (raised at {error['where']})" if error.get("where") else ""
        if view.state is RunState.SUCCEEDED:
            value: R = view.output if self._handle is None else self._typed(view.output)
            return value
        if view.state is RunState.PAUSED:
            raise RunPausedError(f"run {self.id} is paused: {view.reason}", run_id=self.id, error=error)
        if view.state is RunState.CANCELLED:
            raise RunCancelledError(
                f"run {self.id} of agent {view.agent!r} was cancelled: {error.get('message', '')}",
                run_id=self.id, error=error,
            )  # fmt: skip
        raise RunFailedError(f"run {self.id} of agent {view.agent!r} failed: {told}", run_id=self.id, error=error)

    def _typed(self, output: Any) -> R:
        value: R = self._handle.spec.signature.decode_output(_values.dump(output))
        return value

    def signal(self, name: str, payload: Any = None, *, idempotency_key: str | None = None) -> bool:
        """Send the run a signal. It is buffered until the run waits for it.

        A second signal with the same `idempotency_key` changes nothing. False if the run is over.
        """
        client = self._client
        checked(name, "the name of the signal")
        if idempotency_key is not None:
            checked(idempotency_key, "the idempotency key")
        text = _values.encode(_values.ANYTHING, payload, what=f"the signal {name!r}", cap=client.settings.max_payload)
        failpoint("signal.before")
        sent = client.store.send_signal(self._uuid, name, text, idempotency_key)
        failpoint("signal.after")
        if sent.state is None:
            raise NotFoundError(f"there is no run {self.id}")
        if sent.woken:
            message = agent_message(self._uuid, sent.agent, sent.queue, sent.priority, sent.root, sent.wake)
            publish(client.engine, [message])
        return not RunState(sent.state).terminal

    def cancel(self, reason: str = "cancelled by a person", *, force: bool = False) -> bool:
        """Tell the run to stop. False if it is over, or was told before.

        Its agent sees `asyncio.CancelledError` and may clean up; with `force` the run ends at once, without.
        """
        checked(reason, "the reason", longest=4000, empty=True)
        done = _cancellation.cancel(self._client.engine, self._uuid, reason=reason, force=force)
        if done is None:
            raise NotFoundError(f"there is no run {self.id}")
        return done

    def resolve(
        self, step: str, *, result: Any = _resolution.NOTHING, failed: str | None = None, again: bool = False,
        by: str = "",
    ) -> None:  # fmt: skip
        """Say how an unknown or quarantined step goes on: with this `result`, as `failed` (why), or `again`.

        Raises `ResolveError`, `NotFoundError`, or `OutputError` for what its tool does not promise. `by`: who says so.
        """
        known = getattr(self._client._app, "handles", {})
        verdict = _resolution.Verdict(result, failed, again, by)
        _resolution.resolve(self._client.engine, self._uuid, step, verdict, known.get)

    def retry(self, step: str | None = None, *, by: str = "") -> bool:
        """Let a paused run go on, with the code its worker has now. False if it is not paused.

        With `step` that quarantined step runs again. Raises `ResolveError` when it is not quarantined.
        """
        if step is not None:
            _resolution.retry(self._client.engine, self._uuid, step, by=by)
            return True
        version = self._handle.spec.version if self._handle is not None else self.view().version
        failpoint("resume.before")
        resumed = self._client.store.resume_run(self._uuid, version)
        failpoint("resume.after")
        if resumed:
            publish_run(self._client.engine, self._uuid)
        return resumed

    def stream(self, cursor: str | None = None) -> Iterator[Transition]:
        """The run's transitions as they happen, from the beginning or from after `cursor`, until it ends.

        Each transition carries a `cursor` to resume from. After a loss of Redis a `restarted` transition
        comes first and then everything again, as the log has it.
        """
        client = self._client
        return follow(client.store, client.redis, self._uuid, cursor, ttl=client.settings.stream_ttl)

    async def astream(self, cursor: str | None = None) -> AsyncIterator[Transition]:
        """`stream` for asynchronous code."""
        transitions = self.stream(cursor)
        while (item := await asyncio.to_thread(next, transitions, None)) is not None:
            yield item
