"""kombu's Redis transport, with the three faults mended that end a worker process.

1. **A Redis restart while a message is unacknowledged.** Celery closes the lost connection twice. The first
   close fails half-way, in `Channel.close`, before the channel is marked closed; Celery then drops the
   transport's reference to its connection; the second close tries to put the unacknowledged messages back,
   needs a client for that, and reads `None.hostname`. An `AttributeError` is not a connection error, so the
   worker exits. Here it becomes the connection error that it is. The messages come back by the visibility
   timeout.
2. **Anything on the list that is not an envelope.** kombu decodes with no guard, inside the event loop. Here
   it is wrapped into a valid envelope (`_wire.wrap_malformed`) that Pickaxe's consumer sets aside.
3. **A Redis that answers and takes no writes**: out of memory, or a replica after a failover. kombu counts that
   among errors of the channel, which Celery does not survive: the first acknowledgement ends the worker. Here a
   message that could not be acknowledged is done with all the same (it comes again by the visibility timeout, and
   finds its step taken), and everything else counts as a lost connection: the worker connects until it works.

Written against kombu 5.7; the tests restart a real Redis under a real worker, so a new kombu that changes
either is noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from queue import Empty
from typing import Any

import kombu.transport as transports
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis.exceptions import ClusterDownError, MasterDownError, OutOfMemoryError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError

from pickaxe.broker._wire import MAX_MESSAGE_BYTES, envelope_fault, read_envelope

logger = logging.getLogger(__name__)

_REFUSALS = (OutOfMemoryError, ReadOnlyError, MasterDownError, ClusterDownError)
_ALIASES = ("redis", "rediss")
REDIS = tuple(f"{alias}://" for alias in _ALIASES)
"""How the URLs begin that this transport is for."""

_PATH = "pickaxe.broker._transport:Transport"

Command = tuple[str | int, ...]
"""A Redis command and its arguments."""

IN_LOG = "in_log"
"""The header of a message that can be lost without loss."""


class QoS(kombu_redis.QoS):
    """kombu's bookkeeping of unacknowledged messages, kept in memory for those that the log knows.

    What was delivered and not yet acknowledged is as much as may be prefetched.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        if _is_in_log(message):
            virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]
        else:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge. If that cannot be written down, the message still makes room for another."""
        if self._knows(delivery_tag):
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            return
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except _REFUSALS as error:
            logger.warning("Redis takes no writes: a message was not acknowledged, and will come again: %s", error)
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not self._knows(delivery_tag):
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]
            return
        if requeue:
            self.restore_by_tag(delivery_tag, leftmost=True)
        virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        if not self._knows(tag):
            super().restore_by_tag(tag, client, leftmost)  # type: ignore[no-untyped-call]
            return
        message = self._delivered[tag]
        info = message.delivery_info
        with self.channel.conn_or_acquire(client) as connected:
            self.channel._do_restore_message(message._raw, info["exchange"], info["routing_key"], connected, leftmost)

    def _knows(self, tag: str) -> bool:
        message = self._delivered.get(tag)
        return message is not None and _is_in_log(message)


def _is_in_log(message: Any) -> bool:
    return bool((message.headers or {}).get(IN_LOG))


class Channel(kombu_redis.Channel):
    """A Redis channel that outlives its connection quietly and never chokes on a message."""

    QoS = QoS

    #: Transport option: larger envelopes are set aside unread.
    max_message_bytes = MAX_MESSAGE_BYTES

    _kept: Any = None

    #: Commands for the same Redis, to be sent before the next message, and in the same round trip.
    along: Sequence[Command] = ()

    from_transport_options: tuple[str, ...] = (  # type: ignore[assignment]
        *kombu_redis.Channel.from_transport_options,
        "max_message_bytes",
    )

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """A client for a few commands: always the same, for making one costs more than a command."""
        if client is None:
            self._refuse_when_closed()
            if self._kept is None or self._kept.connection_pool is not self.pool:
                self._kept = self._create_client()
            client = self._kept
        yield client

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Deliver a message, and what goes along with it."""
        along, self.along = self.along, ()
        if not along:
            super()._put(queue, message, **kwargs)  # type: ignore[no-untyped-call]
            return
        priority = self._get_message_priority(message, reverse=False)  # type: ignore[no-untyped-call]
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for command in along:
                pipe.execute_command(*command)
            if queue not in self._expires:
                pipe.lpush(self._q_for_pri(queue, priority), dumps(message))  # type: ignore[no-untyped-call]
            answers = pipe.execute(raise_on_error=False)
        if queue in self._expires:
            super()._put(queue, message, **kwargs)  # type: ignore[no-untyped-call]
        elif isinstance(answers[-1], Exception):
            raise answers[-1]

    def waiting(self, places: Sequence[tuple[str, int]]) -> list[list[str]]:
        """The ids of some tasks that wait at each queue and Redis priority, longest first.

        The few that have waited longest, and then ever fewer: the first may be about what is over, or be over before
        their ids are looked at.
        """
        names = [self._q_for_pri(queue, priority) for queue, priority in places]  # type: ignore[no-untyped-call]
        with self.conn_or_acquire() as client:
            with client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.llen(name)
                lengths = pipe.execute()
            samples = [_sample(length) for length in lengths]
            with client.pipeline(transaction=False) as pipe:
                for name, sample in zip(names, samples, strict=True):
                    for place in sample:
                        pipe.lindex(name, -place)
                items = iter(pipe.execute())
        return [
            [str(self._open(item, queue)["headers"].get("id")) for item in islice(items, len(sample)) if item]
            for (queue, _), sample in zip(places, samples, strict=True)
        ]

    def _create_client(self, asynchronous: bool = False) -> Any:
        self._refuse_when_closed()
        return super()._create_client(asynchronous)  # type: ignore[no-untyped-call]

    def _refuse_when_closed(self) -> None:
        transport = self.connection
        if transport is None or getattr(transport, "client", None) is None:
            raise RedisConnectionError("this broker channel is closed")

    def _brpop_read(self, **options: Any) -> bool:
        try:
            queue, item = self._read_reply(**options)
            self._queue_cycle.rotate(queue)
            self.connection._deliver(self._open(item, queue), queue)
            return True
        finally:
            self._in_poll = None  # type: ignore[assignment]
            # Between two BRPOPs is the only safe moment for it.
            self._flush_brpop_reauth()  # type: ignore[no-untyped-call]

    def _read_reply(self, **options: Any) -> tuple[str, bytes]:
        client = self.client
        try:
            reply = client.parse_response(client.connection, "BRPOP", **options)
        except self.connection_errors:
            client.connection.disconnect()  # so that the next iteration reconnects
            raise
        if not reply:
            raise Empty
        key, item = reply
        return key.decode().rsplit(self.sep, 1)[0], item

    def _open(self, item: bytes, queue: str) -> dict[str, Any]:
        envelope = read_envelope(item, queue, max_bytes=self.max_message_bytes)
        info = envelope["properties"]["delivery_info"]
        if info["exchange"] and info["exchange"] not in self.state.exchanges:
            # A restored message goes by its exchange, and to nowhere if nobody knows that one.
            info.update(exchange="", routing_key=queue)
        return envelope

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool:
        # Broadcasts (remote control) are never stored, so there is nothing to keep of a broken one.
        fault = envelope_fault(message)
        if fault is None and exchange not in self._fanout_to_queue:
            fault = f"nobody here listens to {exchange!r}"
        if fault is not None:
            logger.warning("ignored a broadcast on %r: %s", exchange, fault)
            return False
        return bool(super()._deliver_fanout_message(message, exchange))  # type: ignore[no-untyped-call]


def _sample(length: int) -> list[int]:
    """Places in a list, from its end: 1 to 8, 16, 32, and so on."""
    return [*range(1, min(length, 8) + 1), *(2**n for n in range(4, length.bit_length()))]


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with Pickaxe's channel, and its view of what is a lost connection."""

    Channel = Channel
    connection_errors = (*kombu_redis.Transport.connection_errors, *_REFUSALS)


def install() -> None:
    """Make `redis://` and `rediss://` URLs use this transport in this process. May be called again."""
    for alias in _ALIASES:
        transports.TRANSPORT_ALIASES[alias] = _PATH
        transports._transport_cache.pop(alias, None)  # the stock class, if somebody connected before
