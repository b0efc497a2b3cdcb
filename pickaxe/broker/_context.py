"""Which message this code runs for: the same answer in a prefork child, a thread and a coroutine."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from celery import current_task


@dataclass(frozen=True, slots=True)
class MessageContext:
    """The message that the running task was started by."""

    id: str
    task: str
    root: str
    queue: str
    redelivered: bool
    hostname: str
    headers: Mapping[str, Any]


#: Set by the coroutine pool. Celery's own request stack is per thread: wrong between two awaits.
_current: ContextVar[MessageContext | None] = ContextVar("pickaxe_message", default=None)


def current_message() -> MessageContext | None:
    """The message being handled, or `None` outside of a task."""
    message = _current.get()
    if message is not None:
        return message
    request = current_task.request if current_task else None
    if request is None or request.id is None:
        return None
    # A nested, direct call of another task pushes an empty request: the worker's one is what counts.
    return context_of(request.__dict__)


def context_of(request: Mapping[str, Any]) -> MessageContext:
    """The context for one request, as Celery's worker describes it."""
    info = request.get("delivery_info") or {}
    return MessageContext(
        id=request["id"],
        task=request["task"],
        root=request.get("root_id") or request["id"],
        queue=info.get("routing_key") or "",
        redelivered=bool(info.get("redelivered")),
        hostname=request.get("hostname") or "",
        headers=request,
    )
