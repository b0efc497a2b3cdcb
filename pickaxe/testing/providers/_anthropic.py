"""Anthropic Messages, as its provider speaks it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pickaxe.models import (
    Citation,
    File,
    ProviderToolCall,
    Refusal,
    Stop,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from pickaxe.testing.providers._frames import frame, pieces
from pickaxe.testing.providers._script import Reply

Json = dict[str, Any]

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 408: "timeout_error", 409: "conflict_error", 413: "request_too_large",
    422: "invalid_request_error", 429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
REASONS = {
    Stop.END: "end_turn", Stop.TOOL_CALLS: "tool_use", Stop.MAX_TOKENS: "max_tokens",
    Stop.STOP_SEQUENCE: "stop_sequence", Stop.REFUSAL: "refusal", Stop.CONTENT_FILTER: "refusal",
    Stop.CONTEXT_WINDOW: "model_context_window_exceeded", Stop.PAUSE: "pause_turn",
}  # fmt: skip


def error(status: int, kind: str | None, message: str) -> bytes:
    """The body of an HTTP error."""
    told = {"type": "error", "error": {"type": kind or KINDS.get(status, "api_error"), "message": message}}
    return json.dumps(told).encode()


def error_frame(kind: str, message: str) -> bytes:
    """An error in the middle of a stream."""
    return frame({"type": "error", "error": {"type": kind, "message": message}}, "error")


def whole(reply: Reply, request: Json) -> bytes:
    """The message as one object."""
    message = _message(reply, request) | _stop(reply)
    message["content"] = [block for block, _ in _blocks(reply)]
    message["usage"] = _usage(reply.usage)
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def stream(reply: Reply, request: Json) -> Iterator[bytes]:
    """The message as its provider streams it."""
    before = _usage(reply.usage) | {"output_tokens": 1}
    before.pop("output_tokens_details", None)
    message = _message(reply, request) | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": before}
    yield _event("message_start", message=message)
    for index, (block, deltas) in enumerate(_blocks(reply)):
        yield _event("content_block_start", index=index, content_block=_opening(block) if deltas else block)
        if index == 0:
            yield _event("ping")
        for delta in deltas:
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    yield _event("message_delta", delta=_stop(reply), usage=_usage(reply.usage))
    yield _event("message_stop")


def complaint(request: Json) -> str | None:
    """What the API answers with 400: sampling options, calls without results, results without calls, empty texts."""
    for gone in ("temperature", "top_p", "top_k"):
        if gone in request:
            return f"{gone}: Extra inputs are not permitted"
    if not request.get("max_tokens"):
        return "max_tokens: Field required"
    calls: list[str] = []
    for number, message in enumerate(_turns(request.get("messages", []))):
        blocks = message["content"]
        if wrong := _unanswered(blocks, calls) or _refused_block(message["role"], blocks):
            return f"messages.{number}: {wrong}"
        calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
    return f"`tool_use` ids were found without `tool_result` blocks: {calls}" if calls else None


def _unanswered(blocks: list[Json], calls: list[str]) -> str | None:
    answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    if missing := [call for call in calls if call not in answered]:
        return f"`tool_use` ids were found without `tool_result` blocks immediately after: {missing}"
    if unknown := [call for call in answered if call not in calls]:
        return f"unexpected `tool_use_id` found in `tool_result` blocks: {unknown}"
    return "each tool_use must have a single result" if len(set(answered)) < len(answered) else None


def _refused_block(role: str, blocks: list[Json]) -> str | None:
    if any(block["type"] == "text" and not block["text"] for block in blocks):
        return "text content blocks must be non-empty"
    if role == "assistant":
        for block in blocks:
            signed = block.get("signature") or "" if block["type"] == "thinking" else None
            if signed == "" or (signed and signed.startswith(_SIGNED) and signed != signature(block["thinking"])):
                return "Invalid `signature` in `thinking` block"
    return None


_SIGNED = "fake-"


def signature(text: str) -> str:
    """What this provider signs its thinking with: nothing else than the same text has it."""
    return _SIGNED + base64.b64encode(hashlib.sha256(text.encode()).digest() * 3).decode()


def _turns(messages: list[Json]) -> Iterator[Json]:
    """The messages, with neighbours of one role made one."""
    turn: Json | None = None
    for message in messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if turn is not None and turn["role"] == message["role"]:
            turn["content"] += blocks
            continue
        if turn is not None:
            yield turn
        turn = {"role": message["role"], "content": list(blocks)}
    if turn is not None:
        yield turn


def _event(kind: str, **fields: Any) -> bytes:
    return frame({"type": kind, **fields}, kind)


def _message(reply: Reply, request: Json) -> Json:
    model = reply.model or request.get("model", "")
    return {"model": model, "id": f"msg_{reply.id}", "type": "message", "role": "assistant"}


def _stop(reply: Reply) -> Json:
    told: Json = {"stop_reason": REASONS[reply.why], "stop_sequence": None}
    refused = [part.text for part in reply.content if isinstance(part, Refusal)]
    if refused:
        told["stop_details"] = {"type": "refusal", "category": None, "explanation": "".join(refused)}
    return told | dict(reply.details)


def _usage(usage: Usage) -> Json:
    hour = usage.cache_write_1h
    told: Json = {
        "input_tokens": usage.input - usage.cache_read - usage.cache_write,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write - hour,
            "ephemeral_1h_input_tokens": hour,
        },
        "output_tokens": usage.output,
        "service_tier": "standard",
    }
    if usage.reasoning:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    if usage.web_searches:
        told["server_tool_use"] = {"web_search_requests": usage.web_searches, "web_fetch_requests": 0}
    return told


Block = tuple[Json, list[Json]]
"""A content block, and the deltas that it is streamed in: none, if it comes as a whole."""


def _blocks(reply: Reply) -> Iterator[Block]:
    for part in reply.content:
        match part:
            case dict():
                yield part, []
            case Text():
                yield _text(part, reply.chunk)
            case Thinking():
                yield _thinking(part, reply.chunk)
            case ToolCall():
                yield _call(part, reply.chunk)
            case ProviderToolCall():
                yield from _provider_tool(part, reply.chunk)
            case Refusal():
                continue  # told by the stop
            case File():
                raise ValueError("Anthropic's models send no files: put a dict of the protocol's own in its place")


def _opening(block: Json) -> Json:
    """How a block begins, before its deltas."""
    return block | {
        key: type(block[key])() for key in ("text", "thinking", "signature", "input", "citations") if key in block
    }


def _text(part: Text, chunk: int) -> Block:
    block: Json = {"type": "text", "text": part.text}
    deltas: list[Json] = [{"type": "text_delta", "text": piece} for piece in pieces(part.text, chunk)]
    if part.citations:
        block = {"citations": [_citation(citation) for citation in part.citations], **block}
        deltas = [{"type": "citations_delta", "citation": citation} for citation in block["citations"]] + deltas
    return block, deltas


def _citation(citation: Citation) -> Json:
    if citation.url is not None:
        return {
            "type": "web_search_result_location", "cited_text": citation.quote or "", "url": citation.url,
            "title": citation.title, "encrypted_index": signature(citation.url),
        }  # fmt: skip
    return {
        "type": "char_location", "cited_text": citation.quote or "", "document_index": 0,
        "document_title": citation.title, "start_char_index": citation.start or 0, "end_char_index": citation.end or 0,
    }  # fmt: skip


def _thinking(part: Thinking, chunk: int) -> Block:
    block = {"type": "thinking", "thinking": part.text, "signature": signature(part.text)}
    deltas: list[Json] = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(part.text, chunk)]
    return block, [*deltas, {"type": "signature_delta", "signature": block["signature"]}]


def _call(part: ToolCall, chunk: int) -> Block:
    try:
        arguments = json.loads(part.arguments)
    except ValueError:
        arguments = {}  # it was cut off: only a stream can tell
    block = {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments}
    return block, _arguments(part.arguments, chunk)


def _arguments(text: str, chunk: int) -> list[Json]:
    return [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *pieces(text, chunk))]


def _provider_tool(part: ProviderToolCall, chunk: int) -> Iterator[Block]:
    called = {"type": "server_tool_use", "id": part.id, "name": part.name, "input": json.loads(part.arguments)}
    yield called, _arguments(part.arguments, chunk)
    if part.error is None and part.result is None:
        return  # its result comes with the next answer
    kind = f"{part.name}_tool_result"
    content = {"type": f"{kind}_error", "error_code": part.error} if part.error else part.result
    yield {"type": kind, "tool_use_id": part.id, "content": content}, []
