"""What Anthropic Messages sends back, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pickaxe.models import _anthropic_data as data
from pickaxe.models._anthropic_request import DIALECT
from pickaxe.models._http import Json, dumps, joined, sendable
from pickaxe.models._messages import (
    AssistantMessage,
    Citation,
    Native,
    Part,
    ProviderToolCall,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    arguments_of,
)
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


@dataclass(slots=True)
class _Block:
    """A content block as it grows: as it began, the pieces that it grew by, and the part that it is told as, if any."""

    raw: Json
    part: int | None
    pieces: dict[str, list[str]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    half: str = ""

    def tell(self, piece: str) -> str:
        """What of a piece can be told: the first half of a character waits for the second."""
        text = joined(self.half + piece)
        self.half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        told: str = sendable(text.removesuffix(self.half))
        return told

    def whole(self) -> Json:
        """The block as the provider would have sent it in one piece."""
        grown: Json = {key: joined((self.raw.get(key) or "") + "".join(texts)) for key, texts in self.pieces.items()}
        if self.arguments and (parsed := arguments_of("".join(self.arguments))) is not None:
            grown["input"] = parsed
        return self.raw | grown

    def written(self) -> str:
        """The arguments as the model wrote them; as the block began with them, if it wrote none."""
        text: str = sendable(joined("".join(self.arguments)))
        return text or (dumps(self.raw["input"]) if self.raw.get("input") else "")


class Answer:
    """One answer, fed with the events of its stream; afterwards its message, stop and usage.

    What the protocol does not allow raises `KeyError`, `TypeError`, `AttributeError` or `ValueError`.
    """

    def __init__(self) -> None:
        self.head: Json = {}
        self.tail: Json = {}
        self.usage: Json = {}
        self.complete = False
        self._blocks: dict[int, _Block] = {}
        self._parts = 0
        self._calls: dict[str, int] = {}
        self._feeds = {
            "message_start": self._message_start,
            "content_block_start": self._start,
            "content_block_delta": self._delta,
            "content_block_stop": self._stop,
            "message_delta": self._message_delta,
            "message_stop": self._message_stop,
        }

    def feed(self, event: Json) -> Iterator[ModelEvent]:
        """What this event means; events of a kind that did not exist when this was written mean nothing."""
        feed = self._feeds.get(event["type"])
        return feed(event) if feed else iter(())

    def feed_whole(self, message: Json) -> Iterator[ModelEvent]:
        """The same out of a message that came in one piece."""
        yield from self._message_start({"message": message})
        for index, block in enumerate(message["content"]):
            yield from self._start({"index": index, "content_block": block})
            yield from self._stop({"index": index})
        yield from self._message_delta({"delta": message})
        yield from self._message_stop({})

    @property
    def stop(self) -> Stop | None:
        """Why it ended. None: it did not, or the provider does not say."""
        reason = self.tail.get("stop_reason")
        return None if reason is None else data.STOPS.get(reason, Stop.END)

    def message(self) -> AssistantMessage:
        """Its parts for people and code, and word for word."""
        wholes = [(block, block.whole()) for block in self._blocks.values()]
        payload = {"role": "assistant", "content": [whole for _, whole in wholes]}
        parts: list[Part | None] = [None] * self._parts
        for block, whole in wholes:
            if block.part is not None:
                parts[block.part] = self._part(block, whole, parts[block.part])
        if self.stop is Stop.REFUSAL:
            parts[self._parts - 1] = Refusal(text=self._explanation())
        content = tuple(part for part in parts if part is not None)
        return AssistantMessage(content=content, native=Native(dialect=DIALECT, payload=dumps(payload)))

    def counted(self) -> Usage:
        """What it used. The provider's `input_tokens` are only those that the cache had nothing to do with."""
        told = {key: value for key, value in self.usage.items() if value is not None}
        read, written = told.get("cache_read_input_tokens", 0), told.get("cache_creation_input_tokens", 0)
        return Usage(
            input=told.get("input_tokens", 0) + read + written,
            cache_read=read,
            cache_write=written,
            cache_write_1h=(told.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0,
            output=told.get("output_tokens", 0),
            reasoning=(told.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
            web_searches=(told.get("server_tool_use") or {}).get("web_search_requests") or 0,
            raw=self.usage,
        )

    def details(self) -> Json:
        """What else is said about the stop: an unknown reason, the sequence, why it refused, the container it used."""
        known = self.tail.get("stop_reason") in data.STOPS
        keys = ("stop_sequence", "stop_details", "container", *(() if known else ("stop_reason",)))
        return {key: self.tail[key] for key in keys if self.tail.get(key) is not None}

    def _explanation(self) -> str:
        return (self.tail.get("stop_details") or {}).get("explanation") or ""

    def _message_start(self, event: Json) -> Iterator[ModelEvent]:
        self.head = event["message"]
        self.usage = dict(self.head.get("usage") or {})
        return iter(())

    def _message_delta(self, event: Json) -> Iterator[ModelEvent]:
        told = event["delta"]
        self.tail |= {
            key: told[key] for key in ("stop_reason", "stop_sequence", "stop_details", "container") if key in told
        }
        # Cumulative, so the later count is the count. A count that is left out, or null, stands as it was.
        self.usage |= {key: value for key, value in (event.get("usage") or {}).items() if value is not None}
        return iter(())

    def _message_stop(self, _: Json) -> Iterator[ModelEvent]:
        self.complete = True
        if self.stop is Stop.REFUSAL:
            self._parts += 1
            yield RefusalDelta(part=self._parts - 1, text=self._explanation())

    def _start(self, event: Json) -> Iterator[ModelEvent]:
        raw, index = dict(event["content_block"]), event["index"]
        if index in self._blocks:
            raise ValueError(f"content block {index} begins twice")
        kind: str = raw["type"]
        part = self._place(kind, raw)
        self._blocks[index] = _Block(raw, part)
        if part is None:
            return
        if kind == "text" and raw["text"]:
            yield TextDelta(part=part, text=raw["text"])
        if kind == "thinking" and raw["thinking"]:
            yield ThinkingDelta(part=part, text=raw["thinking"])
        if kind == "text":
            for citation in raw.get("citations") or ():
                yield Cited(part=part, citation=_citation(citation))
        if kind == "tool_use":
            yield ToolCallStarted(part=part, id=raw["id"], name=raw["name"])
        elif kind.endswith("_tool_use"):
            yield ProviderToolStarted(part=part, id=raw["id"], name=_portable_name(raw["name"]))
        elif kind.endswith("_tool_result"):
            yield ProviderToolEnded(part=part, id=raw["tool_use_id"], error=_error_of(raw))

    def _place(self, kind: str, raw: Json) -> int | None:
        """The number of the part that a block is told as. A result is told with its call, if this message has that."""
        if kind.endswith("_tool_result") and raw["tool_use_id"] in self._calls:
            return self._calls[raw["tool_use_id"]]
        if kind not in ("text", "thinking", "redacted_thinking", "tool_use") and not kind.endswith(
            ("_tool_use", "_tool_result")
        ):
            return None
        self._parts += 1
        if kind.endswith("tool_use"):
            self._calls[raw["id"]] = self._parts - 1
        return self._parts - 1

    def _delta(self, event: Json) -> Iterator[ModelEvent]:
        block, delta = self._blocks[event["index"]], event["delta"]
        kind, part = delta["type"], block.part
        match kind:
            case "input_json_delta":
                block.arguments.append(delta["partial_json"])
                told = block.tell(delta["partial_json"])
                if block.raw["type"] == "tool_use" and part is not None and told:
                    yield ToolArgumentsDelta(part=part, text=told)
            case "citations_delta":
                block.raw["citations"] = [*(block.raw.get("citations") or ()), delta["citation"]]
                if part is not None:
                    yield Cited(part=part, citation=_citation(delta["citation"]))
            case "signature_delta":
                block.raw["signature"] = delta["signature"]
            case _:
                for key, text in delta.items():
                    if key != "type":
                        _grow(block, key, text)
                if part is not None and kind == "text_delta":
                    yield TextDelta(part=part, text=block.tell(delta["text"]))
                if part is not None and kind == "thinking_delta":
                    yield ThinkingDelta(part=part, text=block.tell(delta["thinking"]))

    def _stop(self, event: Json) -> Iterator[ModelEvent]:
        block = self._blocks[event["index"]]
        if block.raw["type"] == "tool_use" and block.part is not None and not "".join(block.arguments):
            text = block.written() or "{}"  # a tool without parameters is called with no text at all
            block.arguments = [text]
            yield ToolArgumentsDelta(part=block.part, text=text)

    @staticmethod
    def _part(block: _Block, whole: Json, before: Part | None) -> Part:
        kind = whole["type"]
        match kind:
            case "text":
                citations = tuple(_citation(citation) for citation in whole.get("citations") or ())
                return Text(text=sendable(whole["text"]), citations=citations)
            case "thinking" | "redacted_thinking":
                return Thinking(text=sendable(whole.get("thinking") or ""))
            case "tool_use":
                return ToolCall(id=whole["id"], name=whole["name"], arguments=block.written())
        if kind.endswith("_tool_use"):
            name = _portable_name(whole["name"])
            return ProviderToolCall(id=whole["id"], name=name, arguments=block.written() or "{}")
        name = _portable_name(kind.removesuffix("_tool_result"))
        call = before if isinstance(before, ProviderToolCall) else ProviderToolCall(id=whole["tool_use_id"], name=name)
        error = _error_of(whole)
        return call.model_copy(
            update={"error": error, "result": None if error else sendable(_readable(whole.get("content")))}
        )


def _grow(block: _Block, key: str, piece: Any) -> None:
    """A delta of whatever kind: text is added to, anything else replaces what was there."""
    if isinstance(piece, str):
        block.pieces.setdefault(key, []).append(piece)
    else:
        block.raw[key] = piece


def _portable_name(name: str) -> str:
    return data.PORTABLE.get(name, name)


def _error_of(block: Json) -> str | None:
    content = block.get("content")
    if isinstance(content, dict) and str(content.get("type", "")).endswith("_error"):
        return str(content.get("error_code", "error"))
    return "error" if block.get("is_error") else None


def _readable(content: Any) -> Any:
    """A result without what only its provider can read."""
    if isinstance(content, dict):
        return {key: _readable(value) for key, value in content.items() if not key.startswith("encrypted_")}
    return [_readable(value) for value in content] if isinstance(content, list) else content


def _citation(raw: Json) -> Citation:
    """Of the whole text that it is on; the places that it tells are in the document."""
    raw = sendable(raw)
    return Citation(
        url=raw.get("url") or (raw.get("source") if raw.get("type") == "search_result_location" else None),
        title=raw.get("title") or raw.get("document_title"),
        quote=raw.get("cited_text"),
    )
