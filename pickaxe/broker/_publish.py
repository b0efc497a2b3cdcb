"""Sending messages: one producer, batched, bounded in time, one error."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from uuid import uuid4

from celery.backends.redis import RedisBackend
from celery.utils.nodenames import anon_nodename
from kombu import pools
from kombu.exceptions import BatchPublishError, OperationalError
from kombu.exceptions import LimitExceeded as PoolExhausted
from kombu.transport.pyamqp import Transport as AmqpTransport
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pickaxe.broker._transport import IN_LOG, REDIS, Channel, Command
from pickaxe.errors import ConfigurationError, ServiceUnavailableError

#: Fewer messages than this go out one by one: a pipeline does not pay for itself.
BATCH_FROM = 4
BATCH_SIZE = 200

#: How long to wait for one of the pool's connections.
ACQUIRE_TIMEOUT = 2.0

BROKER_ERRORS: tuple[type[Exception], ...] = (
    RedisError,
    OperationalError,
    BatchPublishError,
    PoolExhausted,
    *AmqpTransport.connection_errors,  # includes OSError
    *AmqpTransport.channel_errors,
)


class PublishError(ServiceUnavailableError):
    """The broker did not take the messages, or did not say so. Publishing them again is safe."""


@dataclass(frozen=True, slots=True)
class ChordPart:
    """A message's place in a chord: Celery's counters are kept under `group`."""

    group: str
    index: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One task to run. `priority` is 0 to 9, and 9 is the most urgent."""

    task: str
    id: str
    kwargs: Mapping[str, Any]
    queue: str
    priority: int = 5
    argsrepr: str = ""
    root: str | None = None
    headers: Mapping[str, Any] | None = None
    shadow: str | None = None
    chord: ChordPart | None = None


class Publisher:
    """Publishes over an app's connection pool. Safe in threads and after a fork.

    `redis_url` is where commands that go along with messages are meant for.
    """

    def __init__(self, app: Any, *, redis_url: str | None = None) -> None:
        self._app = app
        self._redis_url = redis_url
        self._origin = anon_nodename()
        self._highest_is_zero: bool | None = None
        self._pid = os.getpid()
        self._parents: list[Any] = []

    def takes_along(self, messages: Sequence[Message]) -> bool:
        """Whether these messages can have Redis commands for `Settings.redis_url` sent along with them."""
        return self._one_redis and len(messages) < BATCH_FROM

    def publish(self, messages: Sequence[Message], *, along: Sequence[Command] = ()) -> None:
        """Send all messages, in order, or raise `PublishError`; then any of them may have been sent.

        `along` are Redis commands that go before the first message, in the same round trip. They are not sent again
        when the message is.
        """
        once = [along]
        if messages:
            self._retrying(lambda: self._send(messages, once.pop() if once else ()))

    def publish_chord(self, header: Sequence[Message], body: Message) -> None:
        """Send `header`, and have `body` sent when all of them have ended well.

        Like every chord it can be lost: on a flush, or when a header task's message is. The body gets no
        results: it says "look now" and no more.
        """
        backend = self._app.backend
        if not isinstance(backend, RedisBackend):
            raise ConfigurationError("chords need a Redis result backend: set result_backend to a redis:// URL")
        if not header:
            self.publish([body])
            return
        group, signature = str(uuid4()), self._signature(body)
        parts = [replace(message, chord=ChordPart(group, index, signature)) for index, message in enumerate(header)]

        def send() -> None:
            # Before the first header: one that ends early must find the size. Not by `set_chord_size`, which
            # retries for longer than publishing may take.
            size_key = backend.get_key_for_group(group, ".s")
            backend.client.set(size_key, len(parts), ex=backend.chord_expires or None)
            self._send(parts)

        self._retrying(send)

    def waiting(self, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], list[str]]:
        """The ids of some messages that wait in each queue at each priority, among them that which waits longest.

        Empty where nothing waits, and for brokers that cannot tell. Raises `PublishError`.
        """
        self._leave_parent()
        with _as_publish_error(), self._app.producer_pool.acquire(block=True, timeout=ACQUIRE_TIMEOUT) as producer:
            channel = producer.channel
            if not isinstance(channel, Channel):
                return {}
            found = channel.waiting([(queue, self._broker_priority(priority)) for queue, priority in places])
            return dict(zip(places, found, strict=True))

    def publish_again(self, kept: str) -> None:
        """Send a message that was set aside once more, to its queue, as it was. Raises `PublishError`."""
        message = json.loads(kept)
        options = {name: message[name] for name in ("priority", "correlation_id", "reply_to") if message[name]}
        body = base64.b64decode(message["body"])

        def send() -> None:
            with self._app.producer_pool.acquire(block=True, timeout=ACQUIRE_TIMEOUT) as producer:
                producer.publish(
                    body,
                    routing_key=message["queue"],
                    exchange="",
                    headers=message["headers"],
                    content_type=message["content_type"],
                    content_encoding=message["content_encoding"],
                    retry=False,
                    **options,
                )

        self._retrying(send)

    def _retrying(self, send: Callable[[], None]) -> None:
        """Once more after a lost connection: pooled ones go stale when the broker restarts.

        Sending something twice is harmless, by design. Not after a timeout, which has cost its time.
        """
        self._leave_parent()
        with _as_publish_error():
            try:
                send()
            except BROKER_ERRORS as error:
                if _was_timeout(error):
                    raise
                send()

    def _leave_parent(self) -> None:
        """After a fork: open connections of our own. Celery sees to it in its workers, not in web servers."""
        if os.getpid() == self._pid:
            return
        self._pid = os.getpid()
        # Kept, so that nothing closes them: the sockets are the parent's.
        self._parents += [*pools.connections.values(), *pools.producers.values(), self._app.producer_pool]
        pools.connections.clear()
        pools.producers.clear()
        self._app._after_fork()

    def _send(self, messages: Sequence[Message], along: Sequence[Command] = ()) -> None:
        with self._app.producer_pool.acquire(block=True, timeout=ACQUIRE_TIMEOUT) as producer:
            if len(messages) >= BATCH_FROM:
                with producer.batch(BATCH_SIZE):
                    for message in messages:
                        self._send_one(producer, message)
                return
            channel = producer.channel
            try:
                channel.along = along
                for message in messages:
                    self._send_one(producer, message)
            finally:
                channel.along = ()

    def _send_one(self, producer: Any, message: Message) -> None:
        amqp = self._app.amqp
        chord = message.chord
        task_message = amqp.as_task_v2(
            message.id,
            message.task,
            kwargs=message.kwargs,
            root_id=message.root,
            argsrepr=message.argsrepr,
            kwargsrepr="",
            shadow=message.shadow,
            origin=self._origin,
            ignore_result=True,
            group_id=chord.group if chord else None,
            group_index=chord.index if chord else None,
            chord=chord.body if chord else None,
            create_sent_event=self._app.conf.task_send_sent_event,
        )
        amqp.send_task_message(
            producer,
            message.task,
            task_message,
            queue=message.queue,
            headers={**(message.headers or {}), IN_LOG: True},
            priority=self._broker_priority(message.priority),
            retry=False,
        )

    @cached_property
    def _one_redis(self) -> bool:
        conf, url = self._app.conf, self._redis_url
        return url is not None and url.startswith(REDIS) and url == (conf.broker_write_url or conf.broker_url)

    def _broker_priority(self, priority: int) -> int:
        if self._highest_is_zero is None:
            transport = self._app.connection_for_write().transport
            self._highest_is_zero = transport.driver_type == "redis"
        return 9 - priority if self._highest_is_zero else priority

    def _signature(self, body: Message) -> dict[str, Any]:
        options: dict[str, Any] = {
            "task_id": body.id,
            "root_id": body.root or body.id,
            "queue": body.queue,
            "priority": self._broker_priority(body.priority),
            "argsrepr": body.argsrepr,
            "kwargsrepr": "",
            "shadow": body.shadow,
            "headers": {**(body.headers or {}), IN_LOG: True},
            "ignore_result": True,
        }
        return dict(self._app.signature(body.task, kwargs=dict(body.kwargs), immutable=True, options=options))


@contextmanager
def _as_publish_error() -> Iterator[None]:
    try:
        yield
    except BROKER_ERRORS as error:
        cause = error.__cause__ if isinstance(error, BatchPublishError) and error.__cause__ else error
        raise PublishError(
            f"the broker did not take the messages: {str(cause).rstrip('.') or type(cause).__name__}. "
            f"Check that it runs and can be reached; whatever is recorded will be published again."
        ) from error


def _was_timeout(error: BaseException) -> bool:
    causes = (error, error.__cause__, error.__context__)
    return any(isinstance(cause, (RedisTimeoutError, TimeoutError, PoolExhausted)) for cause in causes)
