"""Storing the messages that cannot be run, without holding up those that can."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from pickaxe.broker._wire import MALFORMED_HEADER

logger = logging.getLogger(__name__)

#: While this many messages wait for a handler that fails, the prefetch window is widened so that the queue
#: goes on. Beyond it the window fills up and the worker stops taking messages: better than hoarding them.
MAX_HELD = 100

#: Bodies above this many bytes are not kept to be sent again.
MAX_KEPT_BYTES = 1024 * 1024

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


def queue_of(message: Any) -> str:
    """The queue that a message came from."""
    return str((message.delivery_info or {}).get("routing_key", ""))


def kept(message: Any, body: bytes) -> str | None:
    """What it takes to send a message again, as JSON; None if it was no message at all, or is too large."""
    if MALFORMED_HEADER in message.headers or len(body) > MAX_KEPT_BYTES:
        return None
    wanted = {
        "queue": queue_of(message),
        "body": base64.b64encode(body).decode("ascii"),
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": message.headers,
        "priority": message.properties.get("priority"),
        "correlation_id": message.properties.get("correlation_id"),
        "reply_to": message.properties.get("reply_to"),
    }
    try:
        return json.dumps(wanted)
    except (TypeError, ValueError):
        return None  # a broker other than Redis may carry headers that JSON cannot


@dataclass(slots=True, eq=False)
class _Item:
    message: Any
    save: Callable[[], object]
    failures: int = 0
    qos: Any = None  # the prefetch window that was widened for it, if one was


class SetAside:
    """Saves messages on a thread of its own; acknowledges on the consumer's loop, once each is saved.

    `put`, and all private methods but `_work`, run on the consumer's loop, so they need no lock.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._held = 0

    def put(self, message: Any, save: Callable[[], object]) -> None:
        """Call `save` until it returns, then acknowledge `message`."""
        if self._thread is None:
            # A daemon: what it does not finish stays with the broker.
            self._thread = threading.Thread(target=self._work, name="pickaxe-set-aside", daemon=True)
            self._thread.start()
        self._queue.put(_Item(message, save))

    def _work(self) -> None:
        while True:
            item = self._queue.get()
            try:
                item.save()
            except Exception as error:  # noqa: BLE001 - whatever it was, the message must not be lost
                self._consumer.call_soon(self._failed, item, error)
            else:
                self._consumer.call_soon(self._saved, item)

    def _saved(self, item: _Item) -> None:
        self._release(item)
        # On a channel that is gone this logs an error, and the message comes again.
        item.message.ack_log_error(logger, self._consumer.connection_errors)

    def _failed(self, item: _Item, error: Exception) -> None:
        pause = min(_FIRST_PAUSE * 2**item.failures, _LONGEST_PAUSE)
        item.failures += 1
        logger.error("could not store a message set aside; trying again in %.1f s: %r", pause, error)
        if item.failures == 1:
            self._hold(item)
        self._consumer.timer.call_after(pause, self._retry, (item,))

    def _retry(self, item: _Item) -> None:
        channel = item.message.channel
        if channel is None or channel.connection is None:
            self._release(item)  # its connection is gone: the broker delivers it again
            return
        self._queue.put(item)

    def _hold(self, item: _Item) -> None:
        self._held += 1
        if self._held <= MAX_HELD:
            item.qos = self._consumer.qos
            item.qos.increment_eventually()

    def _release(self, item: _Item) -> None:
        if item.failures:
            self._held -= 1
        # A new connection starts with a new window, which was never widened for this one.
        if item.qos is not None and item.qos is self._consumer.qos:
            item.qos.decrement_eventually()
