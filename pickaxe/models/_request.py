"""What a model is asked."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pickaxe.models._messages import Message, Record


class ToolDefinition(Record):
    """A tool that a model may call. `parameters` is a JSON schema of an object. `strict`: the provider enforces it."""

    name: str
    description: str = ""
    parameters: dict[str, Any]
    strict: bool | None = None


class ProviderTool(Record):
    """A tool that the provider runs: a portable name (`web_search`, `code_execution`) or one of its own types."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)


class NamedTool(Record):
    """The tool that has to be called."""

    name: str


class OutputSchema(Record):
    """The JSON schema that the answer must have, where the provider can see to that itself."""

    name: str
    json_schema: dict[str, Any]
    strict: bool = True


class RequestOptions(Record):
    """How to answer. None leaves it to the provider.

    `effort` is how much a reasoning model thinks; `cache` marks the prompt for the provider's cache where that must be
    asked for; `extra` are fields of the provider's own, which win over all others.
    """

    max_tokens: int | None = Field(None, gt=0)
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    effort: Literal["none", "minimal", "low", "medium", "high", "max"] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    cache: Literal["5m", "1h"] | None = None
    extra: dict[str, Any] = Field(default_factory=dict)


class ModelRequest(Record):
    """One call of a model. `model` is its name alone, without its provider's."""

    model: str
    system: str | None = None
    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    provider_tools: tuple[ProviderTool, ...] = ()
    output: OutputSchema | None = None
    options: RequestOptions = RequestOptions()
