"""The parts of an answer in the Chat dialect, as they grow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pickaxe.models._http import Json
from pickaxe.models._messages import (
    Citation,
    Part,
    ProviderToolCall,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    arguments_of,
)
from pickaxe.models._prose import Prose

EXECUTED = {
    "search": "web_search",
    "browser_search": "web_search",
    "python": "code_execution",
    "code_interpreter": "code_execution",
}
"""Portable names of the tools that Groq runs."""


@dataclass(eq=False)
class Call:
    """A call that comes in pieces. It is shown once its name and its id are known."""

    number: int
    index: int | None
    native: Json
    started: bool = False
    arguments: Prose = field(default_factory=Prose)

    @property
    def id(self) -> str:
        return str(self.native.get("id") or "")

    @property
    def name(self) -> str:
        return str(self.native.get("function", {}).get("name") or "")

    @property
    def parses(self) -> bool:
        return arguments_of(str(self.arguments) or "{}") is not None

    def part(self) -> Part:
        return ToolCall(id=self.id, name=self.name, arguments=str(self.arguments) or "{}")


@dataclass(eq=False)
class Passage:
    """A part of text, of thinking, or of a refusal."""

    kind: Literal["text", "thinking", "refusal"]
    prose: Prose = field(default_factory=Prose)
    citations: list[Citation] = field(default_factory=list)

    def part(self) -> Part:
        text = str(self.prose)
        if self.kind == "thinking":
            return Thinking(text=text)
        return Refusal(text=text) if self.kind == "refusal" else Text(text=text, citations=tuple(self.citations))


@dataclass(eq=False)
class Executed:
    """A tool that the provider has run: what is told of it later is more, or the same again."""

    index: int | None
    told: Json = field(default_factory=dict)
    ended: bool = False

    @property
    def name(self) -> str:
        own = str(self.told.get("type") or "")
        return EXECUTED.get(own, own)

    @property
    def result(self) -> Any:
        return self.told.get("output") or self.told.get("code_results")

    def part(self) -> Part:
        return ProviderToolCall(name=self.name, arguments=str(self.told.get("arguments") or "{}"), result=self.result)
