"""What a fake provider is told to say, and what it has heard."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pickaxe.models import Part, Stop, Text, ToolCall, Usage

Said = str | Part | dict[str, Any]
"""A part of a reply. A string is text; a dict is a block or item of the protocol's own, sent as it is."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How an answer gets to whoever asked.

    - `delay`: seconds before anything is sent; `pace`: seconds between the frames of a stream.
    - `cut`: the connection is dropped after so many bytes of the body; `clean`: the body ends there, as if complete.
    - `stall`: after so many bytes of the body nothing more comes, until the client closes the connection.
    - `headers`: more headers of the response.
    """

    delay: float = 0.0
    pace: float = 0.0
    cut: int | None = None
    clean: bool = False
    stall: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply(Delivery):
    """An answer of the model's: one part, or several.

    - `stop`: why it stops. None: because of the tool calls in it, if there are any, else because it is done.
    - `chunk`: how many characters a delta of a stream has.
    - `error`: the stream breaks off with an error of this kind and message, after `error_after` frames (None: in place
      of the frame that would end it). A request without streaming gets the whole answer.
    - `model` and `id`: None echoes the request's model and counts the requests.
    - `details`: of the stop, as the protocol has them (`stop_sequence`, `stop_details`).
    """

    parts: Said | Sequence[Said]
    stop: Stop | None = None
    usage: Usage = field(default_factory=lambda: Usage(input=10, output=5))
    chunk: int = 8
    error: tuple[str, str] | None = None
    error_after: int | None = None
    model: str | None = None
    id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> tuple[Part | dict[str, Any], ...]:
        """The parts, strings made texts."""
        several = isinstance(self.parts, Sequence) and not isinstance(self.parts, str)
        parts: Sequence[Said] = self.parts if several else (self.parts,)  # type: ignore[assignment]
        return tuple(Text(text=part) if isinstance(part, str) else part for part in parts)

    @property
    def why(self) -> Stop:
        """Why it stops."""
        called = any(isinstance(part, ToolCall) for part in self.content)
        return self.stop or (Stop.TOOL_CALLS if called else Stop.END)


@dataclass(frozen=True)
class ErrorReply(Delivery):
    """A refusal of the provider's, by its HTTP status.

    `kind` is the protocol's own word; None is what goes with the status. `retry_after` is sent as a header, in seconds.
    """

    status: int
    message: str = "scripted"
    kind: str | None = None
    retry_after: float | None = None


@dataclass(frozen=True)
class RawReply(Delivery):
    """Bytes of one's own, such as a recorded answer."""

    body: bytes
    status: int = 200
    content_type: str = "text/event-stream"


@dataclass(frozen=True, eq=False)
class Received:
    """A request, as it came. `gone` is set once the client has closed the connection before the answer was complete.

    Header names are in lower case; `path` is without the query; `connection` counts the clients' connections from 1.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int = 0
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self) -> dict[str, Any]:
        """The body, parsed."""
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


Answer = Reply | ErrorReply | RawReply
Scripted = str | Answer | Callable[[Received], "str | Answer"]
"""An entry of a script: an answer, text to answer with, or a function that looks at the request first."""


class WireProtocol(Protocol):
    """What a module has to have to speak one protocol."""

    def stream(self, reply: Reply, request: dict[str, Any]) -> Iterator[bytes]:
        """The frames of a streamed answer, each ending in an empty line; the last is the one that ends it."""
        ...

    def whole(self, reply: Reply, request: dict[str, Any]) -> bytes:
        """The same as one JSON object."""
        ...

    def error(self, status: int, kind: str | None, message: str) -> bytes:
        """The JSON object that goes with an HTTP status. `kind` None: what the protocol says with that status."""
        ...

    def error_frame(self, kind: str, message: str) -> bytes:
        """An error in the middle of a stream."""
        ...

    def complaint(self, request: dict[str, Any]) -> str | None:
        """Why the real provider would answer this with 400, as far as that is known here. None: it would not."""
        ...
