"""An answer in OpenAI's Responses, put together from its events."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pickaxe.models._chat_answer import usage_of
from pickaxe.models._http import Json, sendable
from pickaxe.models._merge import payload
from pickaxe.models._messages import (
    AssistantMessage,
    Citation,
    File,
    Native,
    Part,
    ProviderToolCall,
    Refusal,
    Text,
    Thinking,
    ToolCall,
)
from pickaxe.models._prose import Prose, whole
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
from pickaxe.models._responses_body import DIALECT

STATUSES = ("queued", "in_progress", "incomplete", "failed", "cancelled")
TERMINAL = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
PORTABLE = {"code_interpreter": "code_execution"}
STOPS = {"content_filter": Stop.CONTENT_FILTER, "max_output_tokens": Stop.MAX_TOKENS}
DELTAS: dict[str, type[TextDelta | ThinkingDelta | RefusalDelta | ToolArgumentsDelta]] = {
    "text": TextDelta,
    "thinking": ThinkingDelta,
    "refusal": RefusalDelta,
    "arguments": ToolArgumentsDelta,
}
Key = tuple[int, int]
"""Where a part is: the number of its item, and of the content in it."""


class ResponsesAnswer:
    """What has come so far. A part is numbered when its first piece comes; what it holds is what its item ends as."""

    def __init__(self) -> None:
        self._items: dict[int, Json] = {}
        self._numbers: dict[Key, int] = {}
        self._prose: dict[Key, Prose] = {}
        self._summary: dict[int, int] = {}
        self._cited: dict[Key, int] = {}
        self.response: Json = {}
        self.ended: str | None = None
        self._events = {
            "response.output_item.added": self._added,
            "response.output_item.done": self._item,
            "response.output_text.delta": self._text,
            "response.output_text.annotation.added": self._annotation,
            "response.refusal.delta": self._refusal,
            "response.reasoning_summary_text.delta": self._thinking,
            "response.reasoning_text.delta": self._thinking,
            "response.function_call_arguments.delta": self._arguments,
        }

    def add(self, event: Json) -> Iterator[ModelEvent]:
        """Take in an event, or a whole response. Raises `KeyError`, `TypeError` and the like on what is neither.

        Events that did not exist when this was written mean nothing.
        """
        if event.get("object") == "response":
            known = event.get("status") in STATUSES  # some gateways have a word of their own for its end
            event = {"type": f"response.{event['status'] if known else 'completed'}", "response": event}
        kind = event["type"]
        if kind in self._events:
            yield from self._events[kind](event)
        elif isinstance(event.get("response"), dict):
            self.response = event["response"]
            if kind in TERMINAL:
                self.ended = kind.removeprefix("response.")
                yield from self._rest()

    def _rest(self) -> Iterator[ModelEvent]:
        """What the end tells and no event before it has told."""
        for index, item in enumerate(self.response.get("output") or ()):
            if index not in self._items:
                yield from self._item({"output_index": index, "item": item})

    def _number(self, key: Key) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _say(self, kind: str, key: Key, piece: str) -> Iterator[ModelEvent]:
        if piece and (shown := self._prose.setdefault(key, Prose()).add(piece)):
            yield DELTAS[kind](part=self._number(key), text=shown)

    def _catch_up(self, kind: str, key: Key, text: str) -> Iterator[ModelEvent]:
        """The end of a text whose pieces have not all come."""
        told = str(self._prose.get(key, ""))
        if text.startswith(told):
            yield from self._say(kind, key, text[len(told) :])

    # Events

    def _added(self, event: Json) -> Iterator[ModelEvent]:
        item, index = event["item"], event["output_index"]
        key = (index, 0)
        if item["type"] == "function_call" and key not in self._numbers:
            yield ToolCallStarted(part=self._number(key), id=item["call_id"], name=item["name"])
        elif _is_provided(item) and key not in self._numbers:
            yield ProviderToolStarted(part=self._number(key), id=item.get("id") or "", name=_name(item))

    def _text(self, event: Json) -> Iterator[ModelEvent]:
        return self._say("text", (event["output_index"], event["content_index"]), event["delta"])

    def _refusal(self, event: Json) -> Iterator[ModelEvent]:
        return self._say("refusal", (event["output_index"], event["content_index"]), event["delta"])

    def _arguments(self, event: Json) -> Iterator[ModelEvent]:
        return self._say("arguments", (event["output_index"], 0), event["delta"])

    def _thinking(self, event: Json) -> Iterator[ModelEvent]:
        item: int = event["output_index"]
        place: int = event["summary_index"] if "summary_index" in event else event["content_index"]
        before = self._summary.get(item, place)
        self._summary[item] = place
        return self._say("thinking", (item, 0), ("\n\n" if place != before else "") + event["delta"])

    def _annotation(self, event: Json) -> Iterator[ModelEvent]:
        key = (event["output_index"], event["content_index"])
        self._cited[key] = self._cited.get(key, 0) + 1
        if citation := _citation(event["annotation"]):
            yield Cited(part=self._number(key), citation=citation)

    def _item(self, event: Json) -> Iterator[ModelEvent]:
        item, index = event["item"], event["output_index"]
        self._items[index] = item
        yield from self._added(event)
        key = (index, 0)
        match item["type"]:
            case "message":
                for place, content in enumerate(item["content"]):
                    yield from self._content((index, place), content)
            case "reasoning":
                yield from self._catch_up("thinking", key, _thoughts(item))
            case "function_call":
                yield from self._catch_up("arguments", key, item["arguments"])
            case _ if _is_provided(item):
                yield ProviderToolEnded(part=self._number(key), id=item.get("id") or "", error=_error(item))

    def _content(self, key: Key, content: Json) -> Iterator[ModelEvent]:
        if content["type"] == "refusal":
            yield from self._catch_up("refusal", key, content["refusal"])
            return
        yield from self._catch_up("text", key, content.get("text") or "")
        for annotation in (content.get("annotations") or ())[self._cited.get(key, 0) :]:
            if citation := _citation(annotation):
                yield Cited(part=self._number(key), citation=citation)

    # The whole

    @property
    def items(self) -> list[Json]:
        """The items as they ended, in their order."""
        return [item for _, item in sorted(self._items.items())]

    def message(self) -> AssistantMessage:
        """Its parts for people and code, and word for word."""
        parts = {number: part for key, number in self._numbers.items() if (part := self._part(key)) is not None}
        content = tuple(part for _, part in sorted(parts.items()))
        return AssistantMessage(content=content, native=Native(dialect=DIALECT, payload=payload(self.items)))

    def _part(self, key: Key) -> Part | None:
        item = self._items.get(key[0])
        if item is None:
            return None
        match item["type"]:
            case "message":
                return _said(item["content"][key[1]])
            case "reasoning":
                return Thinking(text=whole(_thoughts(item)))
            case "function_call":
                return ToolCall(id=item["call_id"], name=item["name"], arguments=whole(item["arguments"]) or "{}")
        return _provided(item)

    def stop(self) -> Stop:
        """Why it stopped."""
        if self.ended == "incomplete":
            reason = (self.response.get("incomplete_details") or {}).get("reason")
            return STOPS.get(reason or "", Stop.MAX_TOKENS)
        if any(item["type"] == "function_call" for item in self.items):
            return Stop.TOOL_CALLS
        contents = [content for item in self.items if item["type"] == "message" for content in item["content"]]
        return Stop.REFUSAL if any(content["type"] == "refusal" for content in contents) else Stop.END

    def usage(self) -> Usage:
        """What it used, and how often the web was searched."""
        actions = [item.get("action") or {} for item in self.items if item["type"] == "web_search_call"]
        searches = sum(action.get("type", "search") == "search" for action in actions)
        return usage_of(self.response.get("usage") or {}).model_copy(update={"web_searches": searches})


def _is_provided(item: Json) -> bool:
    kind: str = item["type"]
    return kind.endswith("_call") and kind != "function_call"


def _name(item: Json) -> str:
    own = str(item["type"]).removesuffix("_call")
    return PORTABLE.get(own, own)


def _error(item: Json) -> str | None:
    told = item.get("error")
    if told:
        return told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
    return item["status"] if item.get("status") in ("failed", "incomplete") else None


def _thoughts(item: Json) -> str:
    told = item.get("summary") or item.get("content") or ()
    return "\n\n".join(entry.get("text") or "" for entry in told)


def _said(content: Json) -> Part:
    if content["type"] == "refusal":
        return Refusal(text=whole(content["refusal"]))
    citations = (_citation(annotation) for annotation in content.get("annotations") or ())
    return Text(text=whole(content.get("text") or ""), citations=tuple(told for told in citations if told))


def _citation(annotation: Json) -> Citation | None:
    """A source on the web, or a file."""
    annotation = sendable(annotation)
    start, end = annotation.get("start_index"), annotation.get("end_index")
    if annotation.get("type") == "url_citation":
        return Citation(url=annotation.get("url"), title=annotation.get("title"), start=start, end=end)
    if annotation.get("type") in ("file_citation", "container_file_citation"):
        return Citation(title=annotation.get("filename"), start=start, end=end)
    return None


def _provided(item: Json) -> Part:
    """A tool of the provider's. The picture that it has made is a file."""
    if item["type"] == "image_generation_call" and item.get("result"):
        return File(media_type=f"image/{item.get('output_format') or 'png'}", data=item["result"])
    item = sendable(item)
    asked, told = _asked(item), item.get("outputs") or item.get("results") or item.get("output")
    if isinstance(asked, dict):
        told = told or asked.get("sources")
        asked = json.dumps({key: value for key, value in asked.items() if key != "sources"}, ensure_ascii=False)
    return ProviderToolCall(id=item.get("id") or "", name=_name(item), arguments=asked, result=told, error=_error(item))


def _asked(item: Json) -> Json | str:
    """What the model asked of a tool of the provider's: an object, or JSON text as it wrote it."""
    if "arguments" in item:
        return str(item["arguments"] or "{}")
    return item.get("action") or {key: item[key] for key in ("code", "queries", "input") if item.get(key)}
