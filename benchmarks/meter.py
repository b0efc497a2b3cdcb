"""Proxies that count what passes: what a step asks of Postgres and Redis, seen from the wire."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

Watch = Callable[[bytes], None]
Watched = Callable[[Counter[str]], tuple[Watch, Watch]]
"""Makes, for one connection, what looks at the bytes sent and at those received."""


class Proxy:
    """A TCP proxy on a loopback port of its own. `counts` is what `watch` finds in the traffic so far."""

    def __init__(self, host: str, port: int, watch: Watched) -> None:
        self.counts: Counter[str] = Counter()
        self._target = (host, port)
        self._watch = watch
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections. Those there are end with their processes."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                sent, received = self._watch(self.counts)
                for source, sink, watch in ((client, server, sent), (server, client, received)):
                    sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=_pump, args=(source, sink, watch), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, watch: Watch) -> None:
    with suppress(OSError):  # a killed worker's sockets just end
        while data := source.recv(65536):
            watch(data)
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def postgres(counts: Counter[str]) -> tuple[Watch, Watch]:
    """Statements by what is sent; round trips and transactions by each "ready for query" that comes back."""

    def sent(kind: bytes, _: bytes) -> None:
        if kind in (b"E", b"Q"):
            counts["statements"] += 1

    def received(kind: bytes, body: bytes) -> None:
        if kind == b"Z":
            counts["round_trips"] += 1
            counts["transactions"] += body == b"I"  # not inside of one: it has just ended

    return _Frames(sent, untyped=1), _Frames(received)


def redis(counts: Counter[str]) -> tuple[Watch, Watch]:
    """A round trip is a burst of commands and the burst of answers to it."""
    asking = False

    def sent(_: bytes) -> None:
        nonlocal asking
        counts["round_trips"] += not asking
        asking = True

    def received(_: bytes) -> None:
        nonlocal asking
        asking = False

    return sent, received


class _Frames:
    """Cuts a stream into Postgres' messages: a letter, a length that counts itself, and a body.

    The first `untyped` messages of a connection have no letter.
    """

    def __init__(self, found: Callable[[bytes, bytes], None], untyped: int = 0) -> None:
        self._found = found
        self._untyped = untyped
        self._buffer = bytearray()

    def __call__(self, data: bytes) -> None:
        self._buffer += data
        while True:
            letter = 0 if self._untyped else 1
            length = int.from_bytes(self._buffer[letter : letter + 4], "big")
            if len(self._buffer) < letter + 4 or len(self._buffer) < letter + length:
                return
            if self._untyped:
                self._untyped -= 1
            else:
                self._found(bytes(self._buffer[:1]), bytes(self._buffer[5 : 1 + length]))
            del self._buffer[: letter + length]
