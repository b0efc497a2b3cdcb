"""The reduction: an agent's coroutine, brought to where its log has got to.

A run's log is one ordered stream of *arrivals*: outcomes of steps, signals, and a cancellation, each with
a sequence number given by the transaction that recorded it. `resume` feeds them in, one at a time, and lets
the agent run until it waits again. So what the agent sees depends on the stream alone, never on how many
arrivals came at once, on which worker, or after how many crashes.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from pickaxe._states import ChildPolicy, RunState, StepKind, StepState
from pickaxe.core import _purity
from pickaxe.core._calls import Asked, Call
from pickaxe.core._loop import Discarded, Future, Loop, Task, Timer, running
from pickaxe.core._records import Arrival, CancelRecord, Decision, Request, SignalRecord, StepRecord
from pickaxe.errors import ConfigurationError, MismatchError, PickaxeError


class ContinueAs(BaseException):
    """Ends this chapter of the run; `call_input` is the input of the next (JSON text)."""

    def __init__(self, call_input: str) -> None:
        super().__init__("continue_as")
        self.call_input = call_input


def _no_input(_args: tuple[Any, ...], _kwargs: dict[str, Any]) -> str:
    raise ConfigurationError("this reduction has no next chapter")


class StepFuture(Future):
    """What an agent waits on for one step. Cancelling it takes the step back."""

    request: Request
    reduction: Reduction
    stopping = False

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        if self.request.policy is ChildPolicy.WAIT and self.reduction.abandon(self.request.key):
            self.stopping = True  # the child run is told; its own end will end this wait
            return True
        self.reduction.abandon(self.request.key)
        return super().cancel(msg)

    def arrive(self, record: StepRecord) -> None:
        if self.done():
            return
        if self.stopping and record.state is StepState.CANCELLED:
            super().cancel()
        else:
            self.set_result(record)


class Reduction:
    """One run's coroutine between arrivals. Not thread-safe; keep it, or drop it with `close` and start over.

    `main` makes the agent's coroutine, `encode_input` the input of the chapter after this `chapter`;
    `seed` fixes `random` and `uuid4`; `started_at` (epoch seconds) is
    the time the agent sees until the first arrival.
    """

    def __init__(
        self,
        main: Callable[[], Coroutine[Any, Any, Any]],
        *,
        seed: str,
        started_at: float,
        chapter: int = 0,
        encode_input: Callable[[tuple[Any, ...], dict[str, Any]], str] = _no_input,
    ) -> None:
        self.encode_input = encode_input
        self.loop = Loop(started_at, self, f"{chapter}:" if chapter else "")  # type: ignore[abstract]  # the rest is refused, see _loop
        self.random = random.Random(seed)
        self.head = 0
        self.closed = False
        self._main_body = main
        self._main: Task | None = None
        self._log: dict[str, StepRecord] = {}
        self._keys: set[str] = set()
        self._waiting: dict[str, StepFuture] = {}
        self._timers: dict[str, Timer] = {}
        self._buffered: defaultdict[str, deque[SignalRecord]] = defaultdict(deque)
        self._signal_waits: defaultdict[str, deque[StepFuture]] = defaultdict(deque)
        self._requests: dict[str, Request] = {}
        self._inline: dict[str, Request] = {}
        self._cancels: dict[str, None] = {}
        self._settled: list[tuple[str, int]] = []
        self._groups: dict[str, list[str]] = {}
        self._cancelled: CancelRecord | None = None
        self._mismatch: MismatchError | None = None
        self._published: tuple[Any] | None = None

    # The outside: feed, decide, drop.

    def resume(self, news: Iterable[StepRecord], arrivals: Iterable[Arrival] = ()) -> Decision:
        """Take in what is new in the log and run until the agent waits, ends, or no longer fits.

        `news` are new or changed steps; those with a `seq` above `head` arrive, in that order, together
        with `arrivals` (signals and a cancellation).
        """
        news = list(news)
        self._log.update((record.key, record) for record in news)
        with _purity.guarded():
            if self._main is None:
                self._main = self.loop.create_task(self._main_body(), name="main")
                self._main.path = ""
                self._run()
            for arrival in self._in_order(news, arrivals):
                self._advance(arrival)
                if self._mismatch or self._finished():
                    break
        return self._decide()

    def close(self) -> None:
        """Drop the coroutine. What its `finally` blocks ask for is refused."""
        self.closed = True
        with _purity.guarded():
            self.loop.close()

    def _in_order(self, news: Sequence[StepRecord], arrivals: Iterable[Arrival]) -> list[Arrival]:
        arrived: list[Arrival] = [record for record in news if record.seq is not None]
        arrived += arrivals
        return sorted((a for a in arrived if (a.seq or 0) > self.head), key=lambda a: a.seq or 0)

    def _advance(self, arrival: Arrival) -> None:
        self.head = arrival.seq or self.head
        # The database's clock can step back; an agent's time does not.
        self.loop.now = max(self.loop.now, arrival.at)
        match arrival:
            case SignalRecord():
                self._signal(arrival)
            case CancelRecord():
                self._cancel(arrival)
            case StepRecord():
                self._outcome(arrival)
        self._run()

    def _run(self) -> None:
        self.loop.run_until_idle()
        if self._main is not None and self._main.done() and self.loop.tasks and not self._mismatch:
            # As asyncio.run does: what the agent left running is cancelled, and may clean up.
            with running(self.loop):
                for task in list(self.loop.tasks):
                    task.cancel()
            self.loop.run_until_idle()

    def _outcome(self, record: StepRecord) -> None:
        if timer := self._timers.pop(record.key, None):
            self.loop.call_soon(timer._callback, *timer._args, context=timer._context)  # type: ignore[attr-defined]
        elif future := self._waiting.pop(record.key, None):
            self._inline.pop(record.key, None)
            for key in self._groups.pop(record.key, ()):
                if self._log[key].order is None:
                    self.abandon(key)
            with running(self.loop):
                future.arrive(record)

    def _signal(self, signal: SignalRecord) -> None:
        waits = self._signal_waits[signal.name]
        while waits:
            future = waits.popleft()
            if not future.done():
                self._take(future, signal)
                return
        self._buffered[signal.name].append(signal)

    def _take(self, future: StepFuture, signal: SignalRecord) -> None:
        request = future.request
        self._waiting.pop(request.key, None)
        self._settled.append((request.key, signal.seq))
        record = StepRecord(
            request.key, request.kind, request.name, request.digest, StepState.SUCCEEDED,
            signal.seq, signal.at, signal.payload,
        )  # fmt: skip
        with running(self.loop):
            future.set_result(record)

    def _cancel(self, record: CancelRecord) -> None:
        if self._main is not None and not self._main.done():
            self._cancelled = record
            with running(self.loop):
                self._main.cancel()

    # The inside: what the agent's calls come to.

    def claim_key(self, asked: Asked) -> str:
        """The key of a call made now. An explicit key must be new in this run."""
        if self.closed:
            raise Discarded
        key = self.loop.prefix + (asked.key or self.loop.next_key(asked.name))
        if key in self._keys:
            raise ConfigurationError(f"the step key {key!r} is used twice in this run: give each call its own")
        self._keys.add(key)
        return key

    def ask(self, request: Request) -> StepFuture:
        """A future for one step: from the log if it is there, else requested."""
        future = StepFuture(loop=self.loop)
        future.serial = self.loop._born()
        future.request, future.reduction = request, self
        self._waiting[request.key] = future
        self._want(request)
        record = self._log.get(request.key)
        if request.kind is StepKind.SIGNAL:
            if buffered := self._buffered[request.name]:
                self._take(future, buffered.popleft())
            else:
                self._signal_waits[request.name].append(future)
        elif record is not None and record.seq is not None and record.seq <= self.head:
            # It arrived before the agent asked: the code has changed around it, but not the call itself.
            del self._waiting[request.key]
            future.set_result(record)
        return future

    def ask_group(self, group: Request, calls: Sequence[Call]) -> StepFuture:
        """A future for a gather: its calls are requested with it and arrive with it."""
        self._groups[group.key] = [call.key for call in calls]
        for index, call in enumerate(calls):
            self._want(call.request(group=group.key, index=index))
        return self.ask(group)

    def members(self, calls: Sequence[Call]) -> list[StepRecord | None]:
        """The log's records of a gather's calls."""
        return [self._log.get(call.key) for call in calls]

    def abandon(self, key: str) -> bool:
        """The agent no longer wants this step. True if the log knows it, so that somebody must be told."""
        for member in self._groups.pop(key, ()):
            self.abandon(member)
        self._waiting.pop(key, None)
        self._inline.pop(key, None)
        if self._requests.pop(key, None) is not None:
            return False
        record = self._log.get(key)
        if record is None or not record.state.terminal:
            self._cancels[key] = None
        return True

    def publish(self, value: Any) -> None:
        """Make `value` the run's published state."""
        self._published = (value,)

    def uuid4(self) -> uuid.UUID:
        """A random UUID, the same in every replay."""
        return uuid.UUID(int=self.random.getrandbits(128), version=4)

    def _want(self, request: Request) -> None:
        record = self._log.get(request.key)
        if record is None:
            self._requests[request.key] = request
        elif (record.kind, record.name, record.digest) != (request.kind, request.name, request.digest):
            self._mismatched(record, request)
        if request.body is not None and (record is None or not record.state.terminal):
            self._inline[request.key] = request

    def _mismatched(self, record: StepRecord, request: Request) -> None:
        self._mismatch = MismatchError(
            request.key,
            f"{record.kind} {record.name!r} with arguments of digest {record.digest or '-'}",
            f"{request.kind} {request.name!r} with {request.input[:200]} (digest {request.digest or '-'})",
        )
        self.loop.stop()

    # The loop's timers.

    def start(self, timer: Timer) -> None:
        request = Request(timer.key, StepKind.TIMER, "timer", due=timer.when())
        record = self._log.get(timer.key)
        self._timers[timer.key] = timer
        if record is None:
            self._requests[timer.key] = request
        elif record.kind is not StepKind.TIMER:
            self._mismatched(record, request)
        elif record.seq is not None and record.seq <= self.head:
            self._outcome(record)

    def stop(self, timer: Timer) -> None:
        if self._timers.pop(timer.key, None) is not None:
            self.abandon(timer.key)

    # The end of a reduction.

    def _finished(self) -> bool:
        return self._main is not None and self._main.done() and not self.loop.tasks

    def _decide(self) -> Decision:
        requests, self._requests = tuple(self._requests.values()), {}
        cancels, self._cancels = tuple(self._cancels), {}
        settled, self._settled = tuple(self._settled), []
        published, self._published = self._published, None
        if self._mismatch is not None:
            return Decision(RunState.PAUSED, self.head, mismatch=self._mismatch, error=self._mismatch)
        for request in requests:
            self._log[request.key] = _born(request)
        state, output, error = self._ending()
        return Decision(
            state, self.head, requests, cancels, settled,
            tuple(self._inline.values()) if state is RunState.WAITING else (),
            output, error,
            published[0] if published else None, published is not None,
            tuple(sorted(s.seq for q in self._buffered.values() for s in q)) if state is RunState.READY else (),
        )  # fmt: skip

    def _ending(self) -> tuple[RunState, Any, BaseException | None]:
        if not self._finished() or self._main is None:
            return RunState.WAITING, None, None
        if self._main.cancelled():
            return self._ended_cancelled()
        error = self._main.exception()
        if isinstance(error, ContinueAs):
            return RunState.READY, error.call_input, None
        if error is not None:
            return RunState.FAILED, None, error
        return RunState.SUCCEEDED, self._main.result(), None

    def _ended_cancelled(self) -> tuple[RunState, Any, BaseException | None]:
        if self._cancelled is None:
            return RunState.FAILED, None, asyncio.CancelledError("the agent cancelled itself")
        if self._cancelled.timed_out:
            return RunState.FAILED, None, RunTimeoutError(self._cancelled.reason)
        return RunState.CANCELLED, None, PickaxeError(self._cancelled.reason or "cancelled")


class RunTimeoutError(PickaxeError, TimeoutError):
    """A run did not end within its agent's `timeout`."""


def _born(request: Request) -> StepRecord:
    return StepRecord(request.key, request.kind, request.name, request.digest, StepState.WAITING, group=request.group)


def current() -> Reduction | None:
    """The reduction whose agent is running in this thread, or None outside of agents."""
    loop = asyncio._get_running_loop()
    if isinstance(loop, Loop):
        reduction = loop.timers
        assert isinstance(reduction, Reduction)
        return reduction
    return None
