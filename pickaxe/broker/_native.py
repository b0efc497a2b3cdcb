"""Running one coroutine task on the loop, with what Celery's tracer would do around it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from billiard.einfo import ExceptionInfo
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from kombu.serialization import loads, prepare_accept_content

from pickaxe.broker._context import _current, context_of

logger = logging.getLogger(__name__)


class Job(Protocol):
    """What this needs to know of the pool's bookkeeping."""

    pid: int
    cancelled: bool


async def run_native(job: Job, task: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Accept, await, report. Raises `CancelledError`, and reports nothing, when the pool cancelled it."""
    _, task_id, request, body, content_type, content_encoding = args
    started = time.monotonic()
    _current.set(context_of(request))  # this coroutine's own: every asyncio task has its own context
    options["accept_callback"](job.pid, started)
    context = Context(request, called_directly=False)
    try:
        accept = prepare_accept_content(task.app.conf.accept_content)  # type: ignore[no-untyped-call]
        payload: Any = loads(body, content_type, content_encoding, accept=accept)  # type: ignore[no-untyped-call]
        call_args, call_kwargs, embed = payload
        context.update(embed or {}, args=call_args, kwargs=call_kwargs)
        value = await _limited(task.run_async(*call_args, **call_kwargs), options)
        await _succeeded(task, task_id, context, value)
    except _HardTimeout:
        options["timeout_callback"](False, options["timeout"])
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and job.cancelled:
            raise
        info = _exception_info(error)
        await _failed(task, task_id, context, error)
        options["callback"]((1, info, time.monotonic() - started))
    else:
        options["callback"]((0, repr(value), time.monotonic() - started))


def _exception_info(error: BaseException) -> Any:
    try:
        if isinstance(error, Exception):
            raise error
        # `SystemExit` would stop the worker, a cancellation of the task's own making would lose its outcome.
        raise RuntimeError(f"the task raised {error!r}") from error
    except Exception:  # noqa: BLE001 - only to have it as the current exception, which Celery's class reads
        return ExceptionInfo()


class _HardTimeout(BaseException):
    """The task's hard time limit has passed. Celery is told by another callback than of a failure."""


async def _limited(awaitable: Any, options: dict[str, Any]) -> Any:
    """Await under the task's time limits, soft and hard, as far as it has them."""
    soft, hard = options.get("soft_timeout"), options.get("timeout")
    if not soft and not hard:
        return await awaitable
    outer, inner = asyncio.timeout(hard or None), asyncio.timeout(soft or None)
    try:
        async with outer:
            try:
                async with inner:
                    return await awaitable
            except TimeoutError:
                if not inner.expired():
                    raise
                options["timeout_callback"](True, soft)
                raise SoftTimeLimitExceeded(soft) from None
    except TimeoutError:
        if not outer.expired():
            raise
        raise _HardTimeout from None


async def _succeeded(task: Any, task_id: str, context: Any, value: Any) -> None:
    if _is_watched(task, context):
        await asyncio.to_thread(_settle, task, task_id, context, value)


def _settle(task: Any, task_id: str, context: Any, value: Any) -> None:
    """Store the result, count in the chord and send the links, in the order Celery's tracer keeps."""
    links: list[tuple[Any, dict[str, Any]]] = [(link, {}) for link in context.callbacks or ()]
    if context.chain:
        links.append((context.chain[-1], {"chain": context.chain[:-1]}))
    for link, extra in links:
        signature = task.app.signature(link)
        signature.apply_async((value,), parent_id=task_id, root_id=context.root_id or task_id, **extra)
    task.backend.mark_as_done(task_id, value, context, not _ignores_result(task, context))


async def _failed(task: Any, task_id: str, context: Any, error: BaseException) -> None:
    if isinstance(error, (Ignore, Reject, Retry)):
        return  # instructions to Celery, not failures: its callback carries them out
    logger.error("task %s[%s] raised %r", task.name, task_id, error, exc_info=error)
    if not _is_watched(task, context):
        return
    mark: Callable[..., Any] = task.backend.mark_as_failure
    fault = error if isinstance(error, Exception) else RuntimeError(f"the task raised {error!r}")
    store = not _ignores_result(task, context) or task.store_errors_even_if_ignored
    try:
        await asyncio.to_thread(mark, task_id, fault, None, context, store)
    except Exception:
        logger.exception("could not record the failure of task %s[%s]", task.name, task_id)


def _is_watched(task: Any, context: Any) -> bool:
    """Whether anybody is to be told. For Pickaxe's own messages nobody is: no backend, no thread."""
    parts = (context.chord, context.callbacks, context.errbacks, context.chain)
    return any(parts) or not _ignores_result(task, context)


def _ignores_result(task: Any, context: Any) -> bool:
    said = context.ignore_result
    return bool(task.ignore_result if said is None else said)
