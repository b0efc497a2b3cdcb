"""The fake provider's server: a thread for each connection, on a free port of the loopback interface."""

from __future__ import annotations

import dataclasses
import itertools
import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from pickaxe.errors import ConfigurationError
from pickaxe.testing.providers import _anthropic, _chat, _responses
from pickaxe.testing.providers._script import (
    Answer,
    ErrorReply,
    RawReply,
    Received,
    Reply,
    Scripted,
    WireProtocol,
)

PROTOCOLS: dict[str, WireProtocol] = {
    "/messages": _anthropic,
    "/chat/completions": _chat,
    "/responses": _responses,
}
"""Who speaks, by how the path ends."""


class FakeProvider:
    """A provider of models on a free port of this machine, from `with` to its end (or `start` to `close`).

    Each request takes the next entry of the script, in the order in which they come. After the last it gets `then`, or
    an error 400 that says so. With `strict` a request that the real provider is known to refuse is refused with 400,
    and takes no entry. A function of the script that raises ends the connection, and `close` raises its error.
    """

    def __init__(self, *script: Scripted, then: Scripted | None = None, strict: bool = True) -> None:
        self.requests: list[Received] = []
        self.strict = strict
        self._script = deque(script)
        self._then = then
        self._changed = threading.Condition()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Where it is: the `base_url` of a client that adds `/v1/…` itself, as Anthropic's does."""
        if self._server is None:
            raise ConfigurationError(
                "the fake provider has no address yet: use it as `with FakeProvider(...) as provider`"
            )
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def left(self) -> int:
        """How many entries of the script nobody has asked for."""
        return len(self._script)

    def add(self, *script: Scripted) -> None:
        """More entries, after those that are left."""
        with self._changed:
            self._script.extend(script)

    def wait(self, requests: int, seconds: float = 30.0) -> Received:
        """The request of that number, counted from 1, once it has come. Raises `TimeoutError`."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= requests, seconds):
                raise TimeoutError(f"{len(self.requests)} requests in {seconds:g} s, waited for {requests}")
            return self.requests[requests - 1]

    def start(self) -> Self:
        """Listen."""
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fake-provider", daemon=True).start()
        return self

    def close(self) -> None:
        """Drop all connections and stop listening."""
        server, self._server = self._server, None
        if server is not None:
            server.end()
            if server.error is not None:
                raise server.error

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as own:
            if error is None:
                raise
            error.add_note(f"the fake provider's script failed: {own!r}")

    def answer(self, request: Received, protocol: WireProtocol | None) -> Answer:
        """Note the request, and take what is to be said to it."""
        refused = None
        if protocol is None:
            refused = ErrorReply(404, f"no provider answers at {request.path}")
        elif self.strict and (complaint := protocol.complaint(request.json)):
            refused = ErrorReply(400, complaint)
        with self._changed:
            self.requests.append(request)
            number = len(self.requests)
            self._changed.notify_all()
            entry = refused or (self._script.popleft() if self._script else self._then)
        if entry is None:
            return ErrorReply(400, f"the script has no reply left for request number {number}")
        said = entry(request) if callable(entry) else entry
        said = Reply(said) if isinstance(said, str) else said
        return dataclasses.replace(said, id=said.id or str(number)) if isinstance(said, Reply) else said


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, provider: FakeProvider) -> None:
        self.provider = provider
        self.error: BaseException | None = None
        self.ended = False
        self.numbers = itertools.count(1)
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the base class has it so
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            self.error = self.error or error

    def end(self) -> None:
        self.ended = True
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has ended meanwhile


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.number = next(self.server.numbers)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class has it so
        """Tests read `requests`."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.partition("?")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Received(self.command, path, headers, body, self.number)
        protocol = next((speaks for end, speaks in PROTOCOLS.items() if path.endswith(end)), None)
        answer = self.server.provider.answer(request, protocol)
        try:
            if self._waited(answer.delay):
                self._respond(answer, request, protocol or _anthropic)
        except ConnectionError:
            self._left(request)
        else:
            if self.close_connection:
                self._left(request)

    def _left(self, request: Received) -> None:
        self.close_connection = True
        if not self.server.ended and not self._cut:
            request.gone.set()

    _cut = False

    def _respond(self, answer: Answer, request: Received, protocol: WireProtocol) -> None:
        match answer:
            case ErrorReply():
                body = protocol.error(answer.status, answer.kind, answer.message)
                after = {} if answer.retry_after is None else {"retry-after": f"{answer.retry_after:g}"}
                self._whole(answer, body, answer.status, "application/json", after)
            case RawReply():
                if answer.content_type.startswith("text/event-stream"):
                    self._stream(answer, iter([answer.body]), answer.status)
                else:
                    self._whole(answer, answer.body, answer.status, answer.content_type, {})
            case Reply():
                asked = request.json
                if asked.get("stream"):
                    self._stream(answer, _frames(answer, asked, protocol), 200)
                else:
                    self._whole(answer, protocol.whole(answer, asked), 200, "application/json", {})

    def _head(self, answer: Answer, status: int, headers: dict[str, str]) -> None:
        number = str(len(self.server.provider.requests))
        self.send_response(status)
        for name, value in ({"request-id": f"req_{number}", "x-request-id": f"req_{number}"} | headers).items():
            if name not in {given.lower() for given in answer.headers}:
                self.send_header(name, value)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _whole(self, answer: Answer, body: bytes, status: int, content_type: str, headers: dict[str, str]) -> None:
        sent, complete = _until(answer, body)
        length = len(sent) if answer.clean else len(body)
        self._head(answer, status, {"content-type": content_type, "content-length": str(length)} | headers)
        self.wfile.write(sent)
        if not complete:
            self._ends_there(answer)

    def _stream(self, answer: Answer, frames: Iterator[bytes], status: int) -> None:
        kind = answer.content_type if isinstance(answer, RawReply) else "text/event-stream; charset=utf-8"
        self._head(answer, status, {"content-type": kind, "transfer-encoding": "chunked", "cache-control": "no-cache"})
        sent = 0
        for number, frame in enumerate(frames):
            if number and not self._waited(answer.pace):
                return
            part, complete = _until(answer, frame, sent)
            sent += len(part)
            if part:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            if not complete:
                if not self._ends_there(answer):
                    return
                break
        self.wfile.write(b"0\r\n\r\n")

    def _ends_there(self, answer: Answer) -> bool:
        """Hang on until the client goes, or drop the connection. True: neither, the body ends as if complete."""
        if answer.stall is not None:
            self.connection.recv(1)
        elif answer.clean:
            return True
        else:
            self._cut = True
        self.close_connection = True
        return False

    def _waited(self, seconds: float) -> bool:
        """Whether the client is still there after so many seconds."""
        if seconds <= 0 or not select.select([self.connection], [], [], seconds)[0]:
            return True
        self.close_connection = True
        return False


def _until(answer: Answer, piece: bytes, sent: int = 0) -> tuple[bytes, bool]:
    """How much of a piece may be sent after so many bytes, and whether that is not where the answer stops."""
    end = answer.cut if answer.stall is None else answer.stall
    if end is None or sent + len(piece) < end:
        return piece, True
    return piece[: end - sent], False


def _frames(reply: Reply, request: dict[str, Any], protocol: WireProtocol) -> Iterator[bytes]:
    frames = protocol.stream(reply, request)
    if reply.error is None:
        yield from frames
        return
    told = list(frames)
    yield from told[: -1 if reply.error_after is None else reply.error_after]
    yield protocol.error_frame(*reply.error)
