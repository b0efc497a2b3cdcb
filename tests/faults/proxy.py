"""A TCP proxy that breaks the network between its clients and one server, as a test tells it to.

```python
with Proxy(services.database_url, seed=seed) as proxy:
    fleet.start("far", environment={"PICKAXE_DATABASE_URL": proxy.url})
    proxy.blackhole()
    ...
    proxy.heal()
    assert proxy.hits["held"]
```

It runs in a thread of its own, with an event loop of its own. A control has taken effect when its call returns.
`hits` counts what was really done to somebody, not what was asked for: it is the evidence that the fault hit.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

Direction = Literal["up", "down"]
"""`up`: from the client to the server. `down`: the answers."""

BOTH: tuple[Direction, Direction] = ("up", "down")

CHUNK = 1 << 16
BACKLOG = 64
"""Chunks that are on their way in one direction of a connection."""

_ATTACH_FILTER, _DETACH_FILTER, _MEMORY_INFO = 26, 27, 55  # Linux: socket options that Python has no names for
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # one BPF instruction: keep 0 bytes
_NO_SSL = {80877103, 80877104}  # what a client asks first: for encryption, by SSL or GSSAPI
_IDLE = b"Z\x00\x00\x00\x05I"  # Postgres: ready for the next query, outside of a transaction


@dataclass
class Weather:
    """What the proxy does to whatever passes in one direction. `chance` of being late by `stall` is burst loss as TCP
    shows it: the bytes come, after a retransmission."""

    held: bool = False
    latency: float = 0.0
    jitter: float = 0.0
    chance: float = 0.0
    stall: float = 0.0


@dataclass
class Trap:
    """Lets the `nth` request that contains `text` through, and cuts the connection instead of giving its answer."""

    text: bytes
    nth: int
    times: int
    seen: int = 0

    def takes(self, request: bytes) -> bool:
        if self.times == 0 or self.text not in request:
            return False
        self.seen += 1
        if self.seen < self.nth:
            return False
        self.times -= 1
        return True


class Proxy:
    """Listens on a free loopback port for one server. `url` is the server's URL by way of the proxy.

    `seed` decides on jitter and stalls.
    """

    def __init__(self, url: str, *, seed: int = 0) -> None:
        self._parts = urlsplit(url)
        assert self._parts.hostname is not None
        assert self._parts.port is not None
        self.target = (self._parts.hostname, self._parts.port)
        self.speaks_postgres = self._parts.scheme.startswith("postgres")
        self.hits: Counter[str] = Counter()
        self.chance = random.Random(seed)
        self.weather: dict[Direction, Weather] = {"up": Weather(), "down": Weather()}
        self.traps: list[Trap] = []
        self.changed = asyncio.Event()
        self._links: set[Link] = set()
        self._counted = 0
        # Bound and never listening: keeps the port while the proxy refuses connections.
        self._place = _bound(0)
        self.port: int = self._place.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._place.close()

    @property
    def url(self) -> str:
        """The server's URL, by way of this proxy."""
        name, _, _ = self._parts.netloc.rpartition("@")
        return self._parts._replace(
            netloc=f"{name}@127.0.0.1:{self.port}" if name else f"127.0.0.1:{self.port}"
        ).geturl()

    # Controls.

    def heal(self) -> None:
        """Everything passes again. What was held comes now, as TCP would bring it."""

        async def heal() -> None:
            self.weather = {"up": Weather(), "down": Weather()}
            self.traps.clear()
            for link in self._links:
                if not link.forgotten:
                    link.deafen(False)
            for listening in self._server.sockets if self._server else ():
                self.hits["held"] += _dropped(listening) - self._counted
                self._counted = _dropped(listening)
                _deafen(listening, False)
            self._wake()
            await self._listen()

        self._do(heal())

    def blackhole(self, *directions: Direction) -> None:
        """Nothing passes, in both directions or in one, not even that a connection was closed; nobody is told.

        With both directions silent, not even an acknowledgement comes from here: TCP itself finds nobody.
        """
        self._set(directions, held=True)
        if set(directions or BOTH) == set(BOTH):
            self._do(self._fall_silent())

    def delay(self, latency: float, jitter: float = 0.0, *directions: Direction) -> None:
        """Everything passes `latency` seconds later, give or take `jitter`."""
        self._set(directions, latency=latency, jitter=jitter)

    def stutter(self, chance: float, stall: float, *directions: Direction) -> None:
        """What is sent is late by `stall` seconds with this probability: lost packets."""
        self._set(directions, chance=chance, stall=stall)

    def refuse(self) -> None:
        """New connections are refused; those there are stay."""
        self._do(self._stop_listening())

    def cut(self, *, reset: bool = True) -> int:
        """End all connections now, on both sides, with RST or FIN. Returns how many there were."""

        async def cut() -> int:
            links = [link for link in self._links if not link.forgotten]
            for link in links:
                self.hits["cut"] += 1
                link.end(reset=reset)
            return len(links)

        return self._do(cut())

    def forget(self) -> int:
        """The connections there are fall silent for ever, and neither side is told: half-open. New ones work."""

        async def forget() -> int:
            links = [link for link in self._links if not link.forgotten]
            for link in links:
                self.hits["forgotten"] += 1
                link.forgotten = True
                link.deafen(True)
            return len(links)

        return self._do(forget())

    def mute(self) -> int:
        """The connections there are are never answered again, though all that is sent to them arrives and is
        acknowledged: a server that was stopped, or a proxy that has lost its own. New ones work."""

        async def mute() -> int:
            links = [link for link in self._links if not link.muted]
            for link in links:
                link.muted = True
            return len(links)

        return self._do(mute())

    def lose_reply(self, text: str, *, nth: int = 1, times: int = 1) -> None:
        """Of requests with this text, carry out the `nth` and lose its answer; so for `times` requests in all.

        For Postgres the text is looked for in the statement, prepared ones included, and the connection is cut only
        after the server has said that it is done: what the statement did is committed.
        """

        async def arm() -> None:
            self.traps.append(Trap(text.encode(), nth, times))

        self._do(arm())

    @property
    def connections(self) -> int:
        """How many connections pass through it now."""

        async def count() -> int:
            return sum(not link.forgotten for link in self._links)

        return self._do(count())

    def await_hit(self, what: str, more: int = 1, within: float = 30) -> None:
        """Wait until the proxy has done this to somebody, once more than now."""
        deadline, wanted = time.monotonic() + within, self.hits[what] + more
        while self.hits[what] < wanted:
            assert time.monotonic() < deadline, f"the proxy has not {what} anything within {within:g} s: {self.hits}"
            time.sleep(0.01)

    # In its thread.

    def _do(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    def _set(self, directions: tuple[Direction, ...], **values: Any) -> None:
        async def change() -> None:
            for direction in directions or BOTH:
                for name, value in values.items():
                    setattr(self.weather[direction], name, value)
            self._wake()

        self._do(change())

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def _listen(self) -> None:
        if self._server is None:
            self._counted = 0
            self._server = await asyncio.start_server(self._connected, sock=_bound(self.port))

    async def _fall_silent(self) -> None:
        for link in self._links:
            link.deafen(True)
        for listening in self._server.sockets if self._server else ():
            _deafen(listening, True)

    async def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def _close(self) -> None:
        await self._stop_listening()
        links = list(self._links)
        for link in links:
            link.end(reset=True)
        await asyncio.gather(*(link.task for link in links), return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hits["connected"] += 1
        while self.weather["up"].held:
            self.hits["held"] += 1
            await self.changed.wait()
        try:
            server = await asyncio.open_connection(*self.target)
        except OSError:
            self.hits["unreachable"] += 1
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        link = Link(self, (reader, writer), server, task)
        self._links.add(link)
        try:
            await link.run()
        except asyncio.CancelledError:
            if not link.ended:
                raise
        finally:
            self._links.discard(link)


@dataclass(eq=False)
class Link:
    """One connection, both of its sides."""

    proxy: Proxy
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    task: asyncio.Task[Any]
    forgotten: bool = False
    muted: bool = False
    trapped: bool = False
    ended: bool = False
    swallowed: bytes = b""
    requests: Requests = field(init=False)

    def __post_init__(self) -> None:
        self.requests = PostgresRequests() if self.proxy.speaks_postgres else Requests()

    async def run(self) -> None:
        up = asyncio.ensure_future(self._pump("up", self.client[0], self.server[1]))
        down = asyncio.ensure_future(self._pump("down", self.server[0], self.client[1]))
        try:
            await asyncio.gather(up, down)
        except OSError:
            self.proxy.hits["broken"] += 1
        finally:
            for half in (up, down):
                half.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for _, writer in (self.client, self.server):
                writer.close()

    def deafen(self, deaf: bool) -> None:
        """Both ends send into the void, and are not even acknowledged; or are heard again."""
        for _, writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            if not deaf:
                self.proxy.hits["held"] += _dropped(sock)
            _deafen(sock, deaf)

    def end(self, *, reset: bool) -> None:
        self.ended = True
        for _, writer in (self.client, self.server):
            if reset:
                sock = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()
        self.task.cancel()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(BACKLOG)
        delivering = asyncio.ensure_future(self._deliver(direction, on_the_way, writer))
        try:
            while data := await reader.read(CHUNK):
                await on_the_way.put((self._arrival(direction), data))
            await on_the_way.put((self._arrival(direction), b""))
            await delivering
        finally:
            delivering.cancel()

    def _arrival(self, direction: Direction) -> float:
        proxy, weather = self.proxy, self.proxy.weather[direction]
        late = weather.latency + proxy.chance.uniform(-weather.jitter, weather.jitter)
        if weather.latency or weather.jitter:
            proxy.hits["delayed"] += 1
        if weather.chance and proxy.chance.random() < weather.chance:
            proxy.hits["stalled"] += 1
            late += weather.stall
        return asyncio.get_running_loop().time() + max(0.0, late)

    async def _deliver(
        self, direction: Direction, on_the_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            arrival, data = await on_the_way.get()
            if arrival > loop.time():
                await asyncio.sleep(arrival - loop.time())
            await self._gate(direction)
            if direction == "down" and self.muted:
                self.proxy.hits["unanswered"] += 1
                continue
            if direction == "down" and self.trapped:
                self._swallow(data)
                continue
            if direction == "up":
                self._look_at(data)
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            self.proxy.hits[f"passed {direction}"] += 1
            writer.write(data)
            await writer.drain()

    async def _gate(self, direction: Direction) -> None:
        while self.forgotten or self.proxy.weather[direction].held:
            self.proxy.hits["held"] += 1
            await self.proxy.changed.wait()

    def _look_at(self, data: bytes) -> None:
        for request in self.requests.of(data):
            for trap in self.proxy.traps:
                self.trapped = self.trapped or trap.takes(request)

    def _swallow(self, data: bytes) -> None:
        self.swallowed = (self.swallowed + data)[-CHUNK:]
        if not self.proxy.speaks_postgres or self.swallowed.endswith(_IDLE) or not data:
            self.proxy.hits["replies lost"] += 1
            self.end(reset=True)


class Requests:
    """What is asked in a stream of bytes: for Redis, whatever is sent at a time."""

    def of(self, data: bytes) -> list[bytes]:
        """The requests that end with these bytes."""
        return [data]


class PostgresRequests(Requests):
    """The statements in a Postgres client's stream, those prepared earlier included."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self._prepared: dict[bytes, bytes] = {}

    def of(self, data: bytes) -> list[bytes]:
        self._rest += data
        found = []
        while (message := self._next()) is not None:
            kind, body = message
            if kind == b"Q":
                found.append(body)
            elif kind == b"P":
                name, text, _ = body.split(b"\0", 2)
                self._prepared[name] = text
            elif kind == b"B":
                _, name, _ = body.split(b"\0", 2)
                found.append(self._prepared.get(name, b""))
        return found

    def _next(self) -> tuple[bytes, bytes] | None:
        head = 1 if self._begun else 0
        if len(self._rest) < head + 4:
            return None
        (size,) = struct.unpack_from("!I", self._rest, head)
        if len(self._rest) < head + size:
            return None
        kind, body = self._rest[:head], self._rest[head + 4 : head + size]
        self._rest = self._rest[head + size :]
        if not self._begun:
            (code,) = struct.unpack_from("!I", body)
            self._begun = code not in _NO_SSL
        return kind, body


def _deafen(sock: Any, deaf: bool) -> None:
    """Have the kernel drop whatever comes in for this socket, before TCP sees it. Linux only; no privilege needed."""
    if sys.platform != "linux" or sock is None:
        return
    with contextlib.suppress(OSError):  # closed meanwhile, or nothing to detach
        if deaf:
            sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(_DROP_ALL)))
        else:
            sock.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


def _dropped(sock: Any) -> int:
    """How many packets the kernel has dropped for this socket."""
    if sys.platform != "linux" or sock is None:
        return 0
    with contextlib.suppress(OSError):
        return int(struct.unpack_from("9I", sock.getsockopt(socket.SOL_SOCKET, _MEMORY_INFO, 36))[8])
    return 0


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


__all__ = ["BOTH", "Direction", "Proxy"]
