"""Calls: what an agent awaits. Each becomes one step of the log."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from pickaxe._states import ChildPolicy, StepKind, StepState
from pickaxe._values import digest, dump
from pickaxe.core._records import Request, StepRecord
from pickaxe.errors import ConfigurationError, QuorumError

if TYPE_CHECKING:
    from pickaxe.core._reduction import Reduction

Decode = Callable[[str], Any]
Reraise = Callable[[StepRecord], BaseException]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks for, before it has a key. `decode` and `reraise` turn its outcome into Python again."""

    kind: StepKind
    name: str
    decode: Decode
    reraise: Reraise
    input: str = "null"
    digest: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    policy: ChildPolicy = ChildPolicy.CANCEL
    key: str | None = None
    body: Any = None
    spec: Any = None


class Call(Coroutine[Any, Any, Any]):
    """One call of a tool or agent, not yet awaited.

    A coroutine as far as asyncio is concerned, so `gather`, `TaskGroup.create_task` and `wait_for` take it.
    Its key is fixed when the call is made, in the order of the code, not when it is first awaited.
    """

    def __init__(self, reduction: Reduction, asked: Asked) -> None:
        self.asked = asked
        self.step_name = asked.name
        self._started = True
        self._reduction = reduction
        self.key = reduction.claim_key(asked)
        self._serial = reduction.loop.born()
        self._started = False
        self._steps: Generator[Any, None, Any] | None = None

    def request(self, *, group: str | None = None, index: int = 0) -> Request:
        a = self.asked
        return Request(
            self.key, a.kind, a.name, a.input, a.digest, a.options, None, group, index, a.policy, a.body, a.spec
        )

    def result(self, record: StepRecord) -> Any:
        """The value of a finished step. Raises what the step raised."""
        if record.state is StepState.SUCCEEDED:
            return self.asked.decode(record.output or "null")
        raise self.asked.reraise(record)

    def taken(self) -> Call:
        """This call, marked as used by something else than `await`."""
        self._refuse_again()
        self._started = True
        return self

    def _run(self) -> Generator[Any, None, Any]:
        record = yield from self._reduction.ask(self.request()).__await__()
        return self.result(record)

    def __await__(self) -> Generator[Any, None, Any]:
        self._refuse_again()
        self._started = True
        return self._run()

    def _refuse_again(self) -> None:
        if self._started:
            raise RuntimeError(f"the call {self.key!r} was already awaited; call the handle again for another step")

    def send(self, value: Any) -> Any:
        if self._steps is None:
            self._steps = self.__await__()
        return self._steps.send(value)

    def throw(self, *args: Any) -> Any:
        if self._steps is None:
            self._steps = self.__await__()
        return self._steps.throw(*args)

    def close(self) -> None:
        self._started = True
        if self._steps is not None:
            self._steps.close()

    def __del__(self) -> None:
        if not self._started and not self._reduction.closed:
            warnings.warn(f"the call {self.key!r} was never awaited: it did nothing", RuntimeWarning, stacklevel=2)

    def __hash__(self) -> int:
        # By birth, so that sets of calls, which asyncio.as_completed makes, have the same order in every replay.
        return self._serial

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "key" not in self.__dict__:
            raise AttributeError(name)
        raise AttributeError(
            f"{name!r} was asked of the call {self.key!r}, which was not awaited: write `await {self.step_name}(...)`"
        )

    def __repr__(self) -> str:
        return f"<Call {self.key}>"


@dataclass(frozen=True, slots=True)
class Join:
    """How a gather joins: all of them, or the first `quorum` to succeed."""

    quorum: int | None = None
    return_exceptions: bool = False
    limit: int | None = None

    def options(self, count: int) -> dict[str, Any]:
        return {
            "count": count,
            "quorum": self.quorum,
            "tolerant": self.return_exceptions,
            "limit": self.limit,
        }


def check_join(calls: Sequence[Any], join: Join) -> None:
    """Refuses what cannot be gathered. Raises `ConfigurationError`."""
    for call in calls:
        if not isinstance(call, Call):
            advice = "use asyncio.gather for coroutines of your own, or make that function a tool"
            if isinstance(call, list | tuple | Generator):
                advice = "spread them, gather(*calls)"
            raise ConfigurationError(f"gather takes calls of tools and agents, not {type(call).__name__}: {advice}")
    check_bounds(len(calls), join)


def check_bounds(count: int, join: Join) -> None:
    """Refuses a join that `count` calls could never satisfy. Raises `ConfigurationError`."""
    if join.quorum is not None and not 1 <= join.quorum <= count:
        raise ConfigurationError(f"gather(quorum={join.quorum}) of {count} calls can never be reached")
    if join.limit is not None and join.limit < 1:
        raise ConfigurationError(f"gather(limit={join.limit}) would never start a call: it must be at least 1")


async def gather(reduction: Reduction, calls: Sequence[Call], join: Join) -> list[Any]:
    """All of `calls` as one step of the log: one command, one wake-up."""
    check_join(calls, join)
    if not calls:
        return []
    members = [call.taken() for call in calls]
    asked = Asked(
        StepKind.GATHER, "gather", _no_value, _no_error,
        digest=_fingerprint(calls, join), options=join.options(len(calls)),
    )  # fmt: skip
    group = Call(reduction, asked).taken()
    record = await reduction.ask_group(group.request(), members)
    return _joined(record, calls, reduction.members(calls), join)


def _fingerprint(calls: Sequence[Call], join: Join) -> str:
    return digest(dump([join.quorum, join.return_exceptions, [call.key for call in calls]]))


def _joined(group: StepRecord, calls: Sequence[Call], records: Sequence[StepRecord | None], join: Join) -> list[Any]:
    counted = [(c, r) for c, r in zip(calls, records, strict=True) if r is not None and r.order is not None]
    failed = [(c, r) for c, r in counted if r.state is not StepState.SUCCEEDED]
    if group.state is not StepState.SUCCEEDED:
        call, record = min(failed, key=lambda pair: pair[1].order or 0)
        if join.quorum is not None:
            raise QuorumError(
                f"{len(failed)} of {len(calls)} calls failed, so a quorum of {join.quorum} is out of reach",
                step=group.key,
            ) from call.asked.reraise(record)
        call.result(record)
    if join.quorum is not None:
        return [c.result(r) for c, r in counted if r.state is StepState.SUCCEEDED]
    return [_value_or_error(c, r) if join.return_exceptions else c.result(r) for c, r in counted]


def _value_or_error(call: Call, record: StepRecord) -> Any:
    try:
        return call.result(record)
    except Exception as error:  # noqa: BLE001 - this is what was asked for
        return error


def _no_value(_: str) -> NoReturn:
    raise AssertionError("a gather has no value of its own")


def _no_error(_: StepRecord) -> NoReturn:
    raise AssertionError("a gather has no error of its own")
