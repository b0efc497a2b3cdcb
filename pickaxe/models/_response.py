"""What a model answers: pieces while it does, and the whole at the end."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from pickaxe.models._messages import AssistantMessage, Citation, Record, ToolCall


class Stop(StrEnum):
    """Why a model stopped."""

    END = "end"
    TOOL_CALLS = "tool_calls"
    MAX_TOKENS = "max_tokens"
    STOP_SEQUENCE = "stop_sequence"
    REFUSAL = "refusal"
    CONTENT_FILTER = "content_filter"
    CONTEXT_WINDOW = "context_window"
    PAUSE = "pause"
    """The provider's own tools are not done: call again with this message appended."""


class Usage(Record):
    """What a call used, in tokens. `input` includes what was read from and written to the cache; `output` includes
    `reasoning`. `cost` is in US dollars, as far as the provider itself reports it. `raw` is the provider's own record.
    """

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    """Of `cache_write`, what is kept for an hour and costs more."""
    output: int = 0
    reasoning: int = 0
    web_searches: int = 0
    cost: Decimal | None = None
    raw: dict[str, Any] = Field(default_factory=dict)


class ModelResponse(Record):
    """A complete answer. One that was cut off has no record: it is a `ModelError` that may be tried again.

    `model` and `id` are what the provider says; `request_id` is what its support asks for; `first_token` and `latency`
    are seconds from sending the request.
    """

    message: AssistantMessage
    stop: Stop
    usage: Usage
    model: str
    provider: str
    id: str = ""
    request_id: str | None = None
    first_token: float | None = None
    latency: float = 0.0
    details: dict[str, Any] = Field(default_factory=dict)
    """What else the provider says about the stop: which sequence, why it refused."""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls that may be run: those with whole arguments, and none unless the model stopped for them.

        A call of the message that is missing here was cut off, or is spoiled. It is to be answered, but never run.
        """
        if self.stop is not Stop.TOOL_CALLS:
            return ()
        calls = (part for part in self.message.content if isinstance(part, ToolCall))
        return tuple(call for call in calls if call.parsed() is not None)


class TextDelta(Record):
    """More text of part number `part`."""

    type: Literal["text_delta"] = "text_delta"
    part: int
    text: str


class ThinkingDelta(Record):
    """More of the reasoning that a model shows."""

    type: Literal["thinking_delta"] = "thinking_delta"
    part: int
    text: str


class ToolCallStarted(Record):
    """A call begins; its arguments follow."""

    type: Literal["tool_call_started"] = "tool_call_started"
    part: int
    id: str
    name: str


class ToolArgumentsDelta(Record):
    """More JSON text of a call's arguments."""

    type: Literal["tool_arguments_delta"] = "tool_arguments_delta"
    part: int
    text: str


class ProviderToolStarted(Record):
    """The provider runs a tool of its own."""

    type: Literal["provider_tool_started"] = "provider_tool_started"
    part: int
    id: str
    name: str


class ProviderToolEnded(Record):
    """The provider's tool has ended."""

    type: Literal["provider_tool_ended"] = "provider_tool_ended"
    part: int
    id: str
    error: str | None = None


class Cited(Record):
    """The text of part number `part` has a source."""

    type: Literal["cited"] = "cited"
    part: int
    citation: Citation


class RefusalDelta(Record):
    """More of a refusal."""

    type: Literal["refusal_delta"] = "refusal_delta"
    part: int
    text: str


class Finished(Record):
    """The answer is complete: always the last, and without it there was none."""

    type: Literal["finished"] = "finished"
    response: ModelResponse


ModelEvent = (
    TextDelta | ThinkingDelta | ToolCallStarted | ToolArgumentsDelta | ProviderToolStarted | ProviderToolEnded | Cited
    | RefusalDelta | Finished
)  # fmt: skip
"""A piece of an answer. `part` counts the parts of the message from 0, in the order of its content."""
