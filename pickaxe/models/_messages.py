"""What is said between a person, a model and its tools: portable records, as JSON.

A model's own message also keeps what its provider sent, word for word (`Native`): signatures, encrypted reasoning and
citations must go back exactly as they came, or the next request is refused or costs its prompt cache. The portable
parts beside it are what people and code read, and what another provider is told.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Immutable, and refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Citation(Record):
    """Where a passage comes from. `start` and `end` are characters of the text that it is on, where known."""

    url: str | None = None
    title: str | None = None
    quote: str | None = None
    start: int | None = None
    end: int | None = None


class Text(Record):
    """Plain text."""

    type: Literal["text"] = "text"
    text: str
    citations: tuple[Citation, ...] = ()


class File(Record):
    """An image or a document, as base64 `data`, by `url`, or by a `ref` that is resolved for each request."""

    type: Literal["file"] = "file"
    media_type: str
    name: str | None = None
    data: str | None = None
    url: str | None = None
    ref: str | None = None


class Thinking(Record):
    """What a model showed of its reasoning. Its signature, or its encrypted form, is in the message's `native`."""

    type: Literal["thinking"] = "thinking"
    text: str = ""


class ToolCall(Record):
    """A call that a model asks for. `arguments` is JSON text as the model wrote it: not parsed, not repaired."""

    type: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    arguments: str

    def parsed(self) -> dict[str, Any] | None:
        """The arguments. None: they are not one JSON object and nothing else, so the call must not be run."""
        return arguments_of(self.arguments)


class ProviderToolCall(Record):
    """A tool that the provider itself has run, by its portable name where it has one; `result` is for people."""

    type: Literal["provider_tool"] = "provider_tool"
    id: str = ""
    name: str
    arguments: str = "{}"
    result: Any = None
    error: str | None = None


class Refusal(Record):
    """The model declined, in its own words."""

    type: Literal["refusal"] = "refusal"
    text: str = ""


def arguments_of(text: str) -> dict[str, Any] | None:
    """A call's arguments, if the text is one JSON object and nothing else: neither cut off nor with what JSON lacks."""
    try:
        parsed = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


Content = Annotated[Text | File, Field(discriminator="type")]
"""What people and tools say."""

Part = Annotated[Text | File | Thinking | ToolCall | ProviderToolCall | Refusal, Field(discriminator="type")]
"""What models say."""


class Native(Record):
    """A message as its provider sent it: `payload` is JSON text in the wire format `dialect`, byte for byte."""

    dialect: str
    payload: str


class UserMessage(Record):
    """From outside."""

    role: Literal["user"] = "user"
    content: tuple[Content, ...]


class AssistantMessage(Record):
    """From a model."""

    role: Literal["assistant"] = "assistant"
    content: tuple[Part, ...]
    native: Native | None = None


class ToolResult(Record):
    """The answer to one call, by its id. With `error`, what went wrong, for the model to read."""

    call: str
    content: tuple[Content, ...]
    error: bool = False


class ToolMessage(Record):
    """The answers to all calls of the message before it, in the order of the calls."""

    role: Literal["tool"] = "tool"
    results: tuple[ToolResult, ...]


Message = Annotated[UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
"""One entry of a conversation."""
