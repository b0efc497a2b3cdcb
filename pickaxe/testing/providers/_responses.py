"""Responses, as OpenAI speaks it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from pickaxe.models import Citation, File, ProviderToolCall, Refusal, Stop, Text, Thinking, ToolCall, Usage
from pickaxe.testing.providers._chat import error
from pickaxe.testing.providers._frames import frame, pieces
from pickaxe.testing.providers._script import Reply

Json = dict[str, Any]

__all__ = ["complaint", "error", "error_frame", "stream", "whole"]

TYPES = {"code_execution": "code_interpreter"}
REASONS = {Stop.MAX_TOKENS: "max_output_tokens", Stop.CONTENT_FILTER: "content_filter"}


def error_frame(kind: str, message: str) -> bytes:
    """An error in the middle of a stream."""
    return frame({"type": "error", "code": kind, "message": message, "param": None}, "error")


def whole(reply: Reply, request: Json) -> bytes:
    """The response as one object. A dict of the reply is an item."""
    told = _response(reply, request, _ended(reply), list(_items(reply)))
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()


def stream(reply: Reply, request: Json) -> Iterator[bytes]:
    """The response as it is streamed."""
    events = _events(reply, request)
    for number, event in enumerate(events):
        yield frame(event | {"sequence_number": number}, event["type"])


def _events(reply: Reply, request: Json) -> Iterator[Json]:
    begun = _response(reply, request, "in_progress", [])
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    items = list(_items(reply))
    for index, item in enumerate(items):
        yield {"type": "response.output_item.added", "output_index": index, "item": _opening(item)}
        for event in _pieces(item, reply.chunk):
            yield {**event, "output_index": index, "item_id": item.get("id")}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    ended = _ended(reply)
    yield {"type": f"response.{ended}", "response": _response(reply, request, ended, items)}


def complaint(request: Json) -> str | None:
    """What the API answers with 400: calls without results, results without calls, reasoning that it cannot read."""
    if "stop" in request or "max_tokens" in request or "messages" in request:
        return "Unknown parameter"
    items = request.get("input") or []
    if not items:
        return "Missing required parameter: 'input'."
    if isinstance(items, str):
        return None
    calls = [item["call_id"] for item in items if item.get("type") == "function_call"]
    answers = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    if missing := [call for call in calls if call not in answers]:
        return f"No tool output found for function call {missing[0]}."
    if unknown := [call for call in answers if call not in calls]:
        return f"No tool call found for function call output with call_id {unknown[0]}."
    return _unread(items, stored=request.get("store", True))


def _unread(items: list[Json], *, stored: bool) -> str | None:
    """What is wrong with the reasoning among the items."""
    for item, following in zip(items, [*items[1:], {}], strict=True):
        if item.get("type") != "reasoning":
            continue
        if not stored and item.get("encrypted_content") != encrypted(_thoughts(item)):
            return f"Item with id '{item.get('id')}' not found. Items are not persisted when `store` is set to false."
        if following.get("role") == "user" or not following:
            return f"Item '{item.get('id')}' of type 'reasoning' was provided without its required following item."
    return None


def encrypted(text: str) -> str:
    """What only this provider reads."""
    return "gAAAA" + base64.b64encode(text.encode()[::-1]).decode()


def _thoughts(item: Json) -> str:
    return "".join(entry["text"] for entry in item.get("summary") or ())


def _ended(reply: Reply) -> str:
    return "incomplete" if reply.why in REASONS else "completed"


def _response(reply: Reply, request: Json, status: str, output: list[Json]) -> Json:
    incomplete = {"reason": REASONS[reply.why]} if status == "incomplete" else None
    return {
        "id": f"resp_{reply.id}",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": status,
        "error": None,
        "incomplete_details": incomplete,
        "model": reply.model or request.get("model", ""),
        "output": output,
        "store": request.get("store", True),
        "usage": None if status == "in_progress" else _usage(reply.usage),
    }


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output,
    }


def _items(reply: Reply) -> Iterator[Json]:
    """The items. Texts and refusals that follow each other are one message."""
    contents: list[Json] = []
    status = "incomplete" if reply.why in REASONS else "completed"
    for number, part in enumerate(reply.content):
        own = f"{reply.id}_{number}"
        if isinstance(part, Text | Refusal):
            contents.append(_content(part))
            continue
        if contents:
            yield _message(f"msg_{own}", contents, "completed")
            contents = []
        yield _item(part, own, status)
    if contents:
        yield _message(f"msg_{reply.id}", contents, status)


def _message(own: str, contents: list[Json], status: str) -> Json:
    return {"id": own, "type": "message", "status": status, "role": "assistant", "content": contents}


def _content(part: Text | Refusal) -> Json:
    if isinstance(part, Refusal):
        return {"type": "refusal", "refusal": part.text}
    annotations = [_annotation(citation) for citation in part.citations]
    return {"type": "output_text", "text": part.text, "annotations": annotations, "logprobs": []}


def _item(part: Json | Thinking | ToolCall | ProviderToolCall | File, own: str, status: str) -> Json:
    match part:
        case dict():
            return part
        case Thinking():
            summary = [{"type": "summary_text", "text": part.text}] if part.text else []
            return {
                "id": f"rs_{own}",
                "type": "reasoning",
                "summary": summary,
                "encrypted_content": encrypted(part.text),
            }
        case ToolCall():
            told = {"call_id": part.id, "name": part.name, "arguments": part.arguments}
            return {"id": f"fc_{own}", "type": "function_call", "status": status, **told}
        case ProviderToolCall():
            return _provided(part, own)
        case File():
            picture = {"status": "completed", "result": part.data, "output_format": part.media_type.partition("/")[2]}
            return {"id": f"ig_{own}", "type": "image_generation_call", **picture}


def _provided(part: ProviderToolCall, own: str) -> Json:
    kind = TYPES.get(part.name, part.name)
    told: Json = {"id": part.id or f"{kind}_{own}", "type": f"{kind}_call"}
    told["status"] = "completed" if part.error is None else "failed"
    asked = json.loads(part.arguments)
    if part.name == "web_search":
        return {**told, "action": {"type": "search", **asked, "sources": part.result or []}}
    return {**told, **asked, "outputs": part.result}


def _opening(item: Json) -> Json:
    """An item before its pieces have come."""
    empty: Json = {"content": [], "arguments": "", "summary": [], "encrypted_content": "", "result": None}
    return item | {key: value for key, value in empty.items() if key in item} | (
        {"status": "in_progress"} if "status" in item else {}
    )  # fmt: skip


def _pieces(item: Json, chunk: int) -> Iterator[Json]:
    match item["type"]:
        case "message":
            for place, content in enumerate(item["content"]):
                yield from _content_pieces(content, place, chunk)
        case "reasoning":
            for place, entry in enumerate(item.get("summary") or ()):
                kind = "response.reasoning_summary_text.delta"
                yield from ({"type": kind, "summary_index": place, "delta": d} for d in pieces(entry["text"], chunk))
        case "function_call":
            kind = "response.function_call_arguments"
            yield from ({"type": f"{kind}.delta", "delta": piece} for piece in pieces(item["arguments"], chunk))
            yield {"type": f"{kind}.done", "arguments": item["arguments"]}
        case kind if kind.endswith("_call"):
            yield {"type": f"response.{kind}.in_progress"}
            yield {"type": f"response.{kind}.completed"}


def _content_pieces(content: Json, place: int, chunk: int) -> Iterator[Json]:
    refused = content["type"] == "refusal"
    kind, key = ("response.refusal", "refusal") if refused else ("response.output_text", "text")
    at = {"content_index": place}
    yield {"type": "response.content_part.added", "part": content | {key: ""}, **at}
    for piece in pieces(content[key], chunk):
        yield {"type": f"{kind}.delta", "delta": piece, **at}
    for number, annotation in enumerate(content.get("annotations") or ()):
        told = {"annotation_index": number, "annotation": annotation}
        yield {"type": "response.output_text.annotation.added", **told, **at}
    yield {"type": f"{kind}.done", key: content[key], **at}
    yield {"type": "response.content_part.done", "part": content, **at}


def _annotation(citation: Citation) -> Json:
    if citation.url is None:
        return {"type": "file_citation", "file_id": "file_1", "filename": citation.title, "index": citation.start or 0}
    told = {"url": citation.url, "title": citation.title, "start_index": citation.start, "end_index": citation.end}
    return {"type": "url_citation", **told}
