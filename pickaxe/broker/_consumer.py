"""A worker's consumer that drops nothing silently.

Stock Celery logs and discards a message it does not know or cannot read, and some shapes end the worker. Here
every such message goes to a handler that stores it, and is acknowledged once that handler has returned:

* `app.pickaxe_on_unknown(task_name, args, kwargs, headers, again)` for a task that is not registered here,
* `app.pickaxe_on_malformed(body, headers, properties, reason, again)` for anything that is no task message.

`again` is what `Publisher.publish_again` takes to send it once more, or None if that is not possible.

They run in the worker's main process, on a thread of their own. If one raises (Postgres is down), its message
stays unacknowledged and is tried again with a growing pause, while the queue goes on. A worker that stops or
dies meanwhile leaves the message with the broker, so a handler can see the same message twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

from pickaxe.broker._setaside import SetAside, kept, queue_of
from pickaxe.broker._wire import MALFORMED_HEADER, header_fault, payload_fault, task_name_fault

logger = logging.getLogger(__name__)

EVENTS_LINGER = 0.05
"""Seconds for which task events, which Flower shows, are collected: one message then carries many."""

UnknownHandler = Callable[[str, list[Any], dict[str, Any], dict[str, Any], str | None], object]
MalformedHandler = Callable[[bytes, dict[str, Any], dict[str, Any], str, str | None], object]


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Celery's consumer, behind a gate that only lets well-formed messages of known tasks through.

    Chosen by the setting `worker_consumer`, which Celery supports for this.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._set_aside = SetAside(self)
        self._events_due = 0.0
        super().__init__(*args, **kwargs)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """The function the event loop calls for each message."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            fault = self._fault(message)
            if fault is not None:
                self._malformed(message, fault)
            elif message.headers["task"] not in self.strategies:
                self._unknown(message)
            else:
                handle(message)

        return on_task_received

    def on_send_event_buffered(self) -> None:
        """A task event waits to be sent. May be called from any thread; the timers are the event loop's."""
        now = time.monotonic()
        if self.hub and now >= self._events_due:
            # A time and not a flag: timers are forgotten when the connection is lost.
            self._events_due = now + EVENTS_LINGER
            self.hub.call_soon(self.hub.call_later, EVENTS_LINGER, self._flush_events)

    def stop(self) -> None:
        """End, when all task events have been sent."""
        self._flush_events()
        super().stop()

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002 - Celery's
        """Celery's own checks refused it: an expiry that is no date, a content type not accepted."""
        self._malformed(message, str(exc))

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """The body could not be decompressed or decoded."""
        self._malformed(message, f"cannot be decoded: {exc!r}")

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002 - Celery's
        """It is no task message."""
        self._malformed(message, "not a task message")

    def _fault(self, message: Any) -> str | None:
        headers = message.headers
        if MALFORMED_HEADER in headers:
            return str(headers[MALFORMED_HEADER])
        fault = task_name_fault(headers) or header_fault(headers)
        if fault is not None:
            return fault
        try:
            payload = message.payload  # cached: Celery's request needs it anyway
        except Exception as error:  # noqa: BLE001 - decoders raise what they like
            return f"the body cannot be decoded: {error}"
        return payload_fault(payload) or self._argument_fault(headers["task"], payload)

    def _argument_fault(self, name: str, payload: list[Any]) -> str | None:
        """Why the task could not be called like this. The same check that Celery makes when publishing."""
        task = self.app.tasks.get(name)
        fault: Callable[[Any, Any], str | None] | None = getattr(task, "pickaxe_fault", None)
        if fault is not None:
            return fault(payload[0], payload[1])
        check = getattr(task, "__header__", None)
        if task is None or check is None or not task.typing:
            return None
        try:
            check(*payload[0], **payload[1])
        except TypeError as error:
            return f"the arguments do not fit task {name!r}: {error}"
        return None

    def _malformed(self, message: Any, reason: str) -> None:
        save: MalformedHandler | None = getattr(self.app, "pickaxe_on_malformed", None)
        logger.error("set aside a malformed message from queue %r: %s", queue_of(message), reason)
        if save is None:
            message.reject_log_error(logger, self.connection_errors)
            return
        body, headers, properties = _bytes(message.body), dict(message.headers), dict(message.properties)
        again = kept(message, body)
        self._set_aside.put(message, lambda: save(body, headers, properties, reason, again))

    def _unknown(self, message: Any) -> None:
        save: UnknownHandler | None = getattr(self.app, "pickaxe_on_unknown", None)
        if save is None:
            self.on_unknown_task(None, message, KeyError(message.headers["task"]))
            return
        headers = dict(message.headers)
        args, kwargs, _ = message.payload
        logger.error("set aside a message for task %r, which is not registered here", headers["task"])
        again = kept(message, _bytes(message.body))
        self._set_aside.put(message, lambda: save(headers["task"], list(args), dict(kwargs), headers, again))


def _bytes(body: Any) -> bytes:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass")
    return bytes(body)
