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
from dataclasses import replace
from typing import Any, NoReturn

from pickaxe._states import RunState, StepKind, StepState
from pickaxe.core import _purity
from pickaxe.core._calls import Asked, Call
from pickaxe.core._futures import ContinueAs, StepFuture, only_continues, step_future
from pickaxe.core._loop import Loop, Task, Timer, running
from pickaxe.core._mismatch import asked_for, recorded
from pickaxe.core._records import Arrival, CancelRecord, Decision, Request, SignalRecord, StepRecord
from pickaxe.errors import ConfigurationError, ImpureAgentError, MismatchError, PickaxeError, RunTimeoutError

FAREWELLS = 1_000
"""How often what an ended agent left running may start something new as it is cancelled."""


def _no_input(_args: tuple[Any, ...], _kwargs: dict[str, Any]) -> str:
    raise ConfigurationError("this reduction has no next chapter")


class Reduction:
    """One run's coroutine between arrivals. Not thread-safe; keep it, or drop it with `close` and start over.

    `main` makes the agent's coroutine, `encode_input` the input of the chapter after this `chapter`;
    `seed` fixes `random` and `uuid4`; `started_at` (epoch seconds) is the time the agent sees until the
    first arrival.
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
        self.loop = Loop(started_at, self, f"{chapter}:" if chapter else "")
        self.random = random.Random(seed)
        self.head = 0
        self.closed = False
        self._main_body = main
        self._main: Task | None = None
        self._log: dict[str, StepRecord] = {}
        self._keys: set[str] = set()
        self._waiting: dict[str, StepFuture] = {}
        self._timers: dict[str, Timer] = {}
        self._dead: set[str] = set()
        self._buffered: defaultdict[str, deque[SignalRecord]] = defaultdict(deque)
        self._signal_waits: defaultdict[str, deque[StepFuture]] = defaultdict(deque)
        self._unread: list[Arrival] = []
        self._late: list[int] = []
        self._requests: dict[str, Request] = {}
        self._inline: dict[str, Request] = {}
        self._cancels: dict[str, None] = {}
        self._settled: list[tuple[str, int]] = []
        self._groups: dict[str, list[str]] = {}
        self._dismissed: set[Task] = set()
        self._cancelled: CancelRecord | None = None
        self._mismatch: MismatchError | None = None
        self._spinning: ImpureAgentError | None = None
        self._next: ContinueAs | None = None
        self._published: tuple[Any] | None = None

    # The outside: feed, decide, drop.

    def resume(self, news: Iterable[StepRecord], arrivals: Iterable[Arrival] = ()) -> Decision:
        """Take in what is new in the log and run until the agent waits, ends, or no longer fits.

        `news` are new or changed steps; those with a `seq` above `head` arrive, in that order, together
        with `arrivals` (signals and a cancellation).
        """
        news = list(news)
        for record in news:
            self._log[record.key] = record
            if self._inline and record.state.terminal:
                self._inline.pop(record.key, None)
        with _purity.guarded(), running(self.loop):
            try:
                self._feed(deque(self._in_order(news, arrivals)))
            except ImpureAgentError as error:
                self._spinning = error
                self.loop.stop()
        return self._decide()

    @property
    def expects_tools(self) -> bool:
        """Whether a call of a tool is on its way, and so an arrival soon."""
        asked = (future.request for future in self._waiting.values())
        return any(request.kind in (StepKind.TOOL, StepKind.GATHER) for request in asked)

    @property
    def open_inline(self) -> list[str]:
        """The inline steps that have not ended, and so may be due to be run here."""
        return list(self._inline)

    def open_steps(self) -> list[str]:
        """The steps that have not ended, as far as is known here."""
        return [key for key, record in self._log.items() if _is_open(record)]

    def close(self) -> None:
        """Drop the coroutine. Its `finally` blocks run, but nothing they ask for is done."""
        self.closed = True
        with _purity.guarded():
            self.loop.close()

    def _feed(self, arrivals: deque[Arrival]) -> None:
        if self._main is None:
            self._main = self.loop.create_task(self._main_body(), name="main")
            self._main.path = ""
            self._run()
        while arrivals and not (self._mismatch or self._finished()):
            self._advance(arrivals.popleft())
        self._unread = list(arrivals)

    def _in_order(self, news: Sequence[StepRecord], arrivals: Iterable[Arrival]) -> list[Arrival]:
        # A wait for a signal ends by the signal itself; its record only tells people that it did.
        arrived: list[Arrival] = [r for r in news if r.seq is not None and r.kind is not StepKind.SIGNAL]
        arrived += arrivals
        return sorted((a for a in arrived if (a.seq or 0) > self.head), key=lambda a: a.seq or 0)

    def _advance(self, arrival: Arrival) -> None:
        self.head = arrival.seq or self.head
        # The database's clock can step back; an agent's time does not.
        if arrival.at > self.loop.now:
            self.loop.now = arrival.at
        if isinstance(arrival, StepRecord):
            self._outcome(arrival)
        elif isinstance(arrival, SignalRecord):
            self._signal(arrival)
        else:
            self._cancel(arrival)
        self._run()

    def _run(self) -> None:
        self.loop.run_until_idle()
        assert self._main is not None
        if not self._main.done():
            return
        # As asyncio.run does: what the agent left running is cancelled, once, and may clean up. What that
        # starts in turn is let be until those who started it have ended.
        for _ in range(FAREWELLS):
            if self._mismatch or not self.loop.tasks or not self._dismissed.isdisjoint(self.loop.tasks):
                return
            self._dismissed = set(self.loop.tasks)
            for task in list(self.loop.tasks):
                task.cancel()
            self.loop.run_until_idle()
        raise ImpureAgentError("the agent has ended, but what it left running starts something new for ever")

    def _outcome(self, record: StepRecord) -> None:
        if timer := self._timers.pop(record.key, None):
            if timer.when() - self.loop.now < 0.001:  # less than the database's clock can tell
                self.loop.now = max(self.loop.now, timer.when())
            self.loop.fire(timer)
        elif future := self._waiting.pop(record.key, None):
            for key in self._groups.pop(record.key, ()):
                if self._log[key].order is None:
                    self.abandon(key)
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
        known = self._log.get(request.key)
        if known is None or not known.state.terminal:
            self._settled.append((request.key, signal.seq))
        future.set_result(StepRecord(
            request.key, request.kind, request.name, request.digest, StepState.SUCCEEDED,
            signal.seq, signal.at, signal.payload,
        ))  # fmt: skip

    def _cancel(self, record: CancelRecord) -> None:
        if self._main is not None and not self._main.done():
            self._cancelled = record
            self._main.cancel()
        else:
            self._late.append(record.seq)

    # The inside: what the agent's calls come to.

    def claim_key(self, asked: Asked) -> str:
        """The key of a call made now. An explicit key must be new in this run."""
        if self.closed:
            return asked.name
        key = self.loop.prefix + (asked.key or self.loop.next_key(asked.name))
        if key in self._keys:
            raise ConfigurationError(f"the step key {key!r} is used twice in this run: give each call its own")
        self._keys.add(key)
        return key

    def ask(self, request: Request) -> StepFuture:
        """A future for one step: from the log if it is there, else requested."""
        future = step_future(self.loop, self, request)
        if self.closed:
            return future
        self._waiting[request.key] = future
        self._want(request)
        record = self._log.get(request.key)
        if request.kind is StepKind.SIGNAL:
            if buffered := self._buffered[request.name]:
                self._take(future, buffered.popleft())
            else:
                self._signal_waits[request.name].append(future)
        elif record is not None and self._has_arrived(record):
            # It arrived before the agent asked: the code has changed around it, but not the call itself.
            del self._waiting[request.key]
            future.set_result(record)
        return future

    def ask_group(self, group: Request, calls: Sequence[Call]) -> StepFuture:
        """A future for a gather: its calls are requested with it and arrive with it."""
        if not self.closed:
            self._groups[group.key] = [call.key for call in calls]
            for index, call in enumerate(calls):
                self._want(call.request(group=group.key, index=index))
        return self.ask(group)

    def members(self, calls: Sequence[Call]) -> list[StepRecord | None]:
        """The log's records of a gather's calls."""
        return [self._log.get(call.key) for call in calls]

    def abandon(self, key: str) -> None:
        """The agent no longer wants this step."""
        for member in self._groups.pop(key, ()):
            self.abandon(member)
        self._waiting.pop(key, None)
        self._inline.pop(key, None)
        self._dead.discard(key)
        if self._requests.pop(key, None) is None:
            self.stop_child(key)

    def stop_child(self, key: str) -> None:
        """Somebody must be told that this step is no longer wanted, if it is not over."""
        record = self._log.get(key)
        if record is None or _is_open(record):
            self._cancels[key] = None

    def publish(self, value: Any) -> None:
        """Make `value` the run's published state."""
        self._published = (value,)

    def uuid4(self) -> uuid.UUID:
        """A random UUID, the same in every replay."""
        return uuid.UUID(int=self.random.getrandbits(128), version=4)

    def continue_as(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        """End this chapter. Whoever catches this cannot take it back, only fail instead."""
        self._next = ContinueAs(self.encode_input(args, kwargs))
        raise self._next

    def _want(self, request: Request) -> None:
        record = self._log.get(request.key)
        if record is None:
            self._requests[request.key] = request
        elif (record.kind, record.name, record.digest, record.group) != (
            request.kind, request.name, request.digest, request.group,
        ):  # fmt: skip
            self._mismatched(record, asked_for(request))
        if request.body is not None and (record is None or not record.state.terminal):
            self._inline[request.key] = request

    def _has_arrived(self, record: StepRecord) -> bool:
        if record.seq is None and record.state.terminal:
            self._dead.add(record.key)
        return record.seq is not None and record.seq <= self.head

    def _mismatched(self, record: StepRecord, asked: str) -> None:
        if self._mismatch is None:
            self._mismatch = MismatchError(record.key, recorded(record), asked)
        self.loop.stop()

    # The loop's timers.

    def start(self, timer: Timer) -> None:
        """Ask for a timer."""
        if self.closed or timer.never:
            return
        timer.key = self.loop.prefix + self.loop.next_key("timer")
        request = Request(timer.key, StepKind.TIMER, "timer", due=timer.when())
        record = self._log.get(timer.key)
        if record is None:
            self._requests[timer.key] = request
        elif record.kind is not StepKind.TIMER:
            self._mismatched(record, asked_for(request))
        elif self._has_arrived(record):
            self.loop.fire(timer)
            return
        self._timers[timer.key] = timer

    def stop(self, timer: Timer) -> None:
        """A timer is no longer wanted."""
        if self._timers.pop(getattr(timer, "key", ""), None) is not None:
            self.abandon(timer.key)

    # The end of a reduction.

    def _finished(self) -> bool:
        return self._spinning is not None or (self._main is not None and self._main.done() and not self.loop.tasks)

    def _decide(self) -> Decision:
        requests, self._requests = self._requests, {}
        cancels, self._cancels = self._cancels, {}
        settled, self._settled = tuple(self._settled), []
        published, self._published = self._published, None
        self._look_for_dead_waits()
        if self._mismatch is not None:
            return Decision(RunState.PAUSED, self.head, mismatch=self._mismatch, error=self._mismatch)
        state, output, error = self._ending()
        if state is not RunState.WAITING:
            requests = {key: requests[key] for key, _ in settled if key in requests}
            # Also what the code no longer asks for at all.
            taken = dict(settled)
            cancels |= {key: None for key, record in self._log.items() if key not in taken and _is_open(record)}
        for request in requests.values():
            self._log[request.key] = _born(request)
        cancels = {key: None for key in cancels if key in self._log}  # a run that ends asks for nothing more
        for key in cancels:
            self._log[key] = replace(self._log[key], state=StepState.CANCELLING)
        for key, seq in settled:
            self._log[key] = replace(self._log[key], state=StepState.SUCCEEDED, seq=seq)
        return Decision(
            state, self.head, tuple(requests.values()), tuple(cancels), settled,
            tuple(self._inline.values()) if state is RunState.WAITING else (),
            output, error,
            published[0] if published else None, published is not None,
            tuple(sorted(self._untaken())) if state is RunState.READY else (),
        )  # fmt: skip

    def _look_for_dead_waits(self) -> None:
        for key in self._dead:
            if key in self._waiting or key in self._timers:
                self._mismatched(self._log[key], "its outcome")

    def _untaken(self) -> Iterable[int]:
        yield from (signal.seq for buffer in self._buffered.values() for signal in buffer)
        yield from (arrival.seq for arrival in self._unread if not isinstance(arrival, StepRecord))
        yield from self._late

    def _ending(self) -> tuple[RunState, Any, BaseException | None]:
        if not self._finished() or self._main is None:
            return RunState.WAITING, None, None
        if self._spinning is not None:
            return RunState.FAILED, None, self._spinning
        if self._main.cancelled():
            return self._ended_cancelled()
        error = self._main.exception()
        if self._next is not None and only_continues(error):
            return RunState.READY, self._next.call_input, None
        if error is not None:
            return RunState.FAILED, None, error
        return RunState.SUCCEEDED, self._main.result(), None

    def _ended_cancelled(self) -> tuple[RunState, Any, BaseException | None]:
        if self._cancelled is None:
            return RunState.FAILED, None, asyncio.CancelledError("the agent cancelled itself")
        if self._cancelled.timed_out:
            return RunState.FAILED, None, RunTimeoutError(self._cancelled.reason)
        return RunState.CANCELLED, None, PickaxeError(self._cancelled.reason or "cancelled")


def _is_open(record: StepRecord) -> bool:
    return not record.state.terminal and record.state is not StepState.CANCELLING


def _born(request: Request) -> StepRecord:
    return StepRecord(request.key, request.kind, request.name, request.digest, StepState.WAITING, group=request.group)


def current() -> Reduction | None:
    """The reduction whose agent is running in this thread, or None outside of agents."""
    loop = asyncio._get_running_loop()
    reduction = loop.timers if isinstance(loop, Loop) else None
    return reduction if isinstance(reduction, Reduction) else None
