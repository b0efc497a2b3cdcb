"""An answer in the Chat dialect, put together from its chunks."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Literal

from pickaxe.models._chat_parts import EXECUTED, Call, Executed, Passage
from pickaxe.models._dialects import THINKING, ChatDialect
from pickaxe.models._http import Json, sendable
from pickaxe.models._merge import grow, payload
from pickaxe.models._messages import (
    AssistantMessage,
    Citation,
    Native,
)
from pickaxe.models._portable import call_id
from pickaxe.models._prose import Prose
from pickaxe.models._response import (
    Cited,
    ModelEvent,
    ProviderToolEnded,
    ProviderToolStarted,
    RefusalDelta,
    Stop,
    TextDelta,
    ThinkingDelta,
    ToolArgumentsDelta,
    ToolCallStarted,
    Usage,
)

STOPS = {
    "length": Stop.MAX_TOKENS,
    "max_tokens": Stop.MAX_TOKENS,
    "model_length": Stop.CONTEXT_WINDOW,
    "content_filter": Stop.CONTENT_FILTER,
    "refusal": Stop.REFUSAL,
}
"""What is not an ordinary end."""


DELTAS: dict[str, type[TextDelta | ThinkingDelta | RefusalDelta]] = {
    "text": TextDelta,
    "thinking": ThinkingDelta,
    "refusal": RefusalDelta,
}


class ChatAnswer:
    """What has come so far."""

    def __init__(self, dialect: ChatDialect) -> None:
        self._dialect = dialect
        self._message: Json = {}
        self._parts: list[Passage | Call | Executed] = []
        self._usage: Json | None = None
        self.id, self.model = "", ""
        self.finish: str | None = None
        self.details: Json = {}

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, though the server has not said that it is done."""
        return self.finish is not None and (self._usage is not None or not self._dialect.usage)

    @property
    def ends_well(self) -> bool:
        """Whether it can be all, for those who do not say why they stop."""
        return bool(self._parts) and all(call.parses for call in self.calls)

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not self._parts

    def add(self, chunk: Json) -> Iterator[ModelEvent]:
        """Take in a chunk, or a whole answer. Raises `TypeError`, `AttributeError` and the like on what is neither."""
        self.id = self.id or str(chunk.get("id") or "")
        self.model = self.model or str(chunk.get("model") or "")
        self._usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage") or self._usage
        if chunk.get("citations"):
            self.details["citations"] = chunk["citations"]
        for choice in chunk.get("choices") or ():
            if choice.get("index") in (0, None):
                yield from self._delta(choice.get("delta") or choice.get("message") or {}, whole="message" in choice)
                self.finish = choice.get("finish_reason") or self.finish
                if choice.get("native_finish_reason"):
                    self.details["native_finish_reason"] = choice["native_finish_reason"]

    def _delta(self, delta: Json, *, whole: bool) -> Iterator[ModelEvent]:
        if whole:
            self._message = delta | ({"tool_calls": []} if delta.get("tool_calls") else {})
        else:
            self._keep(delta)
        shown = next((delta[name] for name in THINKING if delta.get(name)), None)
        if isinstance(shown, str):
            yield from self._say("thinking", shown)
        content = delta.get("content")
        for piece in [content] if isinstance(content, str) else content or ():
            yield from self._content(piece)
        if delta.get("refusal"):
            yield from self._say("refusal", delta["refusal"])
        for annotation in delta.get("annotations") or ():
            yield from self._cited(annotation)
        for entry in delta.get("executed_tools") or ():
            yield from self._executed(entry)
        for item in delta.get("tool_calls") or ():
            yield from self._called(item, whole=whole)

    def _keep(self, delta: Json) -> None:
        """What goes back the next time, but for the calls, which are told apart first."""
        content, old = delta.get("content"), self._message.get("content")
        rest = {key: value for key, value in delta.items() if key != "tool_calls"}
        if isinstance(content, list) and isinstance(old, Prose):
            self._message["content"] = [{"type": "text", "text": old}] if old else []
        elif isinstance(content, str) and isinstance(old, list):
            rest["content"] = [{"type": "text", "text": content}] if content else []
        grow(self._message, rest)
        if "tool_calls" in delta:
            self._message.setdefault("tool_calls", delta["tool_calls"] and [])

    def _content(self, piece: str | Json) -> Iterator[ModelEvent]:
        if isinstance(piece, str):
            yield from self._say("text", piece)
        elif piece.get("type") == "thinking":
            inner = piece.get("thinking") or ()
            for entry in [inner] if isinstance(inner, str) else inner:
                yield from self._say("thinking", entry if isinstance(entry, str) else entry.get("text") or "")
        elif piece.get("type") == "text":
            yield from self._say("text", piece.get("text") or "")

    def _say(self, kind: Literal["text", "thinking", "refusal"], piece: str) -> Iterator[ModelEvent]:
        if not piece:
            return
        number, passage = self._passage(kind)
        shown = passage.prose.add(piece)
        if shown:
            yield DELTAS[kind](part=number, text=shown)

    def _passage(self, kind: Literal["text", "thinking", "refusal"]) -> tuple[int, Passage]:
        """The passage that is being written: calls between its pieces do not end it."""
        for number in range(len(self._parts) - 1, -1, -1):
            part = self._parts[number]
            if isinstance(part, Passage):
                if part.kind == kind:
                    return number, part
                break
        self._parts.append(new := Passage(kind))
        return len(self._parts) - 1, new

    def _cited(self, annotation: Json) -> Iterator[ModelEvent]:
        told = sendable(annotation.get("url_citation"))
        if not isinstance(told, dict):
            return
        citation = Citation(
            url=told.get("url"),
            title=told.get("title"),
            quote=told.get("content"),
            start=told.get("start_index"),
            end=told.get("end_index"),
        )
        number, passage = self._passage("text")
        passage.citations.append(citation)
        yield Cited(part=number, citation=citation)

    def _executed(self, entry: Json) -> Iterator[ModelEvent]:
        index = entry.get("index")
        numbers = [n for n, part in enumerate(self._parts) if isinstance(part, Executed) and part.index == index]
        number = numbers[-1] if numbers else len(self._parts)
        if not numbers:
            self._parts.append(Executed(index))
            yield ProviderToolStarted(part=number, id="", name=str(EXECUTED.get(entry["type"], entry["type"])))
        part = self._parts[number]
        assert isinstance(part, Executed)
        part.told |= sendable(entry)
        if part.result and not part.ended:
            part.ended = True
            yield ProviderToolEnded(part=number, id="")

    def _called(self, item: Json, *, whole: bool) -> Iterator[ModelEvent]:
        call = self._call(item)
        said = item.get("function") or {}
        arguments = said.get("arguments")
        piece = json.dumps(arguments) if isinstance(arguments, dict) else arguments or ""
        if whole:
            call.native.update(item)
        else:
            grow(call.native, {key: value for key, value in item.items() if key != "index"})
            if isinstance(arguments, dict):
                call.native["function"]["arguments"] = piece
        shown = call.arguments.add(piece)
        if not call.started and call.name and call.id:
            yield from self._start(call)
        elif call.started and shown:
            yield ToolArgumentsDelta(part=call.number, text=shown)

    def _start(self, call: Call) -> Iterator[ModelEvent]:
        call.started = True
        taken = {other.id for other in self._parts if isinstance(other, Call) and other is not call and other.started}
        if not call.id or call.id in taken:
            call.native["id"] = call_id(f"call_{uuid.uuid4().hex[:24]}", self._dialect.call_id)
        yield ToolCallStarted(part=call.number, id=call.id, name=call.name)
        if call.arguments:
            yield ToolArgumentsDelta(part=call.number, text=str(call.arguments))

    def _call(self, item: Json) -> Call:
        """The call that a piece belongs to. Servers count calls, name them by id, or just begin the next one."""
        calls = [part for part in self._parts if isinstance(part, Call)]
        index, own = item.get("index"), item.get("id")
        same = [call for call in calls if call.index == index] if index is not None else calls[-1:]
        if own and index is None:
            same = [call for call in calls if call.id == own]
        if same and not self._another(same[-1], item):
            return same[-1]
        self._parts.append(call := Call(len(self._parts), index, {}))
        self._message["tool_calls"] = [*(self._message.get("tool_calls") or ()), call.native]
        return call

    @staticmethod
    def _another(call: Call, item: Json) -> bool:
        """Whether a piece begins another call, though it is counted as this one: Gemini counts all of them as 0."""
        said = item.get("function") or {}
        if not said.get("name") or not call.name:
            return False
        if item.get("id") and call.id:
            return bool(item["id"] != call.id)
        return bool(said.get("arguments")) and bool(call.arguments) and call.parses

    def end(self) -> Iterator[ModelEvent]:
        """What was held back: calls that never got an id."""
        for part in self._parts:
            if isinstance(part, Call) and not part.started:
                yield from self._start(part)

    @property
    def calls(self) -> list[Call]:
        """The calls, in the order in which they began."""
        return [part for part in self._parts if isinstance(part, Call)]

    def message(self, dialect: str) -> AssistantMessage:
        """The whole message."""
        content = tuple(part.part() for part in self._parts)
        native = {"role": "assistant"} | self._message if "role" not in self._message else self._message
        return AssistantMessage(content=content, native=Native(dialect=dialect, payload=payload(native)))

    def stop(self) -> Stop:
        """Why it stopped. Some say `stop` though there are calls."""
        reason = (self.finish or "").lower()
        if reason in STOPS:
            return STOPS[reason]
        if reason.startswith("content_filter"):
            return Stop.CONTENT_FILTER
        if self.calls:
            return Stop.TOOL_CALLS
        refused = any(isinstance(part, Passage) and part.kind == "refusal" for part in self._parts)
        return Stop.REFUSAL if refused else Stop.END

    def usage(self) -> Usage:
        """What it used."""
        return usage_of(self._usage or {})


def usage_of(told: Json) -> Usage:
    """Usage, as Chat and Responses name it. What is in the total alone is thinking that was not counted as output."""
    given = told.get("prompt_tokens", told.get("input_tokens")) or 0
    made = told.get("completion_tokens", told.get("output_tokens")) or 0
    into = told.get("prompt_tokens_details") or told.get("input_tokens_details") or {}
    out = told.get("completion_tokens_details") or told.get("output_tokens_details") or {}
    hidden = max(0, (told.get("total_tokens") or 0) - given - made)
    read = into.get("cached_tokens") or told.get("prompt_cache_hit_tokens") or 0
    written = into.get("cache_write_tokens") or 0
    cost, server = told.get("cost"), told.get("server_tool_use_details") or told.get("server_tool_use") or {}
    return Usage(
        input=max(given, read + written),
        cache_read=read,
        cache_write=written,
        output=made + hidden,
        reasoning=min(max(out.get("reasoning_tokens") or 0, hidden), made + hidden),
        web_searches=server.get("web_search_requests") or 0,
        cost=Decimal(str(cost)) if isinstance(cost, int | float) and not isinstance(cost, bool) else None,
        raw=told,
    )
