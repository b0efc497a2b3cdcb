"""What an agent waits on for one step, and how an agent leaves a chapter."""

from __future__ import annotations

from typing import Any, Protocol

from pickaxe._states import ChildPolicy
from pickaxe.core._loop import Future, Loop
from pickaxe.core._records import Request, StepRecord


class Keeper(Protocol):
    """Who knows what becomes of a step: the reduction."""

    closed: bool

    def abandon(self, key: str) -> None: ...
    def stop_child(self, key: str) -> None: ...


class StepFuture(Future):
    """What an agent waits on for one step. Cancelling it takes the step back."""

    request: Request
    keeper: Keeper
    stopping = False

    def cancel(self, msg: Any = None) -> bool:
        """Take the step back; a child run that is to be waited for is told, and its own end ends this wait."""
        if self.done():
            return False
        if self.keeper.closed:
            return super().cancel(msg)
        if self.request.policy is ChildPolicy.WAIT:
            self.stopping = True
            self.keeper.stop_child(self.request.key)
            return True
        self.keeper.abandon(self.request.key)
        return super().cancel(msg)

    def arrive(self, record: StepRecord) -> None:
        """The step has ended. A cancellation that waited for this goes on, whatever the child run came to."""
        if self.done():
            return
        if self.stopping:
            super().cancel()
        else:
            self.set_result(record)


def step_future(loop: Loop, keeper: Keeper, request: Request) -> StepFuture:
    """A future for `request`, born now."""
    future = StepFuture(loop=loop)
    future.serial = loop.born()
    future.request, future.keeper = request, keeper
    return future


class ContinueAs(BaseException):
    """Ends this chapter of the run; `call_input` is the input of the next (JSON text)."""

    def __init__(self, call_input: str) -> None:
        super().__init__("continue_as")
        self.call_input = call_input


def only_continues(error: BaseException | None) -> bool:
    """Whether nothing else is the matter than `ContinueAs`, perhaps wrapped by task groups."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(ContinueAs)[1] is None
    return error is None or isinstance(error, ContinueAs)
