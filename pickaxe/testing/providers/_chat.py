"""Chat Completions, as OpenAI speaks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pickaxe.models import Citation, File, ProviderToolCall, Refusal, Stop, Text, Thinking, ToolCall, Usage
from pickaxe.testing.providers._frames import frame, pieces
from pickaxe.testing.providers._script import Reply

Json = dict[str, Any]

KINDS = {
    400: ("invalid_request_error", None), 401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "model_not_found"), 413: ("invalid_request_error", "request_too_large"),
    429: ("requests", "rate_limit_exceeded"), 503: ("server_error", "slow_down"),
}  # fmt: skip
REASONS = {
    Stop.MAX_TOKENS: "length", Stop.CONTEXT_WINDOW: "length", Stop.TOOL_CALLS: "tool_calls",
    Stop.CONTENT_FILTER: "content_filter",
}  # fmt: skip


def error(status: int, kind: str | None, message: str) -> bytes:
    """The body of an HTTP error."""
    return json.dumps({"error": _error(status, kind, message)}).encode()


def _error(status: int, kind: str | None, message: str) -> Json:
    type_, code = KINDS.get(status, ("server_error", None)) if kind is None else (kind, kind)
    return {"message": message, "type": type_, "param": None, "code": code}


def error_frame(kind: str, message: str) -> bytes:
    """An error in the middle of a stream."""
    return frame({"error": _error(200, kind, message)})


def whole(reply: Reply, request: Json) -> bytes:
    """The completion as one object. A dict of the reply is fields of the message."""
    message: Json = {"role": "assistant", "content": None, "refusal": None}
    for delta in _deltas(reply, len("".join(map(str, reply.content))) or 1):
        for key, value in delta.items():
            if key == "tool_calls":
                calls = [{name: told for name, told in call.items() if name != "index"} for call in value]
                message[key] = message.get(key, []) + calls
            elif isinstance(value, str) and isinstance(message.get(key), str):
                message[key] += value
            else:
                message[key] = value
    told = _head(reply, request, "chat.completion")
    told["choices"] = [{"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(reply)}]
    return json.dumps(told | {"usage": _usage(reply.usage)}, separators=(",", ":"), ensure_ascii=False).encode()


def stream(reply: Reply, request: Json) -> Iterator[bytes]:
    """The completion as it is streamed. A dict of the reply is one delta."""
    head = _head(reply, request, "chat.completion.chunk")
    counted = (request.get("stream_options") or {}).get("include_usage")
    nothing: Json = {"usage": None} if counted else {}

    def chunk(delta: Json, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return frame(head | {"choices": [choice]} | nothing)

    yield chunk({"role": "assistant", "content": None, "refusal": None})
    for delta in _deltas(reply, reply.chunk):
        yield chunk(delta)
    yield chunk({}, _reason(reply))
    if counted:
        yield frame(head | {"choices": [], "usage": _usage(reply.usage)})
    yield frame("[DONE]")


def complaint(request: Json) -> str | None:
    """What the API answers with 400: calls without results, results without calls, empty messages, options apart."""
    messages = request.get("messages") or []
    if not messages:
        return "Invalid 'messages': empty array"
    if {"max_tokens", "max_completion_tokens"} <= request.keys():
        return "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
    for option in ("tool_choice", "parallel_tool_calls"):
        if option in request and not request.get("tools"):
            return f"'{option}' is only allowed when 'tools' are specified."
    open_: list[str] = []
    for number, message in enumerate(messages):
        if wrong := _misplaced(message, open_):
            return f"Invalid 'messages[{number}]': {wrong}"
        if message["role"] == "tool":
            open_.remove(message["tool_call_id"])
        open_ += [call["id"] for call in message.get("tool_calls") or ()]
    return f"tool_call_ids did not have response messages: {open_}" if open_ else None


def _misplaced(message: Json, open_: list[str]) -> str | None:
    if message["role"] == "tool":
        known = message["tool_call_id"] in open_
        return None if known else f"'tool' must follow 'tool_calls' with its id {message['tool_call_id']!r}"
    if open_:
        return f"'tool_calls' must be followed by tool messages responding to each: {open_}"
    calls = message.get("tool_calls") or ()
    if any(not call.get("id") for call in calls):
        return "a tool call has no id"
    said = message.get("content") or message.get("refusal") or calls
    return None if said or message["role"] != "assistant" else "an assistant's message has neither content nor calls"


def _head(reply: Reply, request: Json, kind: str) -> Json:
    model = reply.model or request.get("model", "")
    return {"id": f"chatcmpl-{reply.id}", "object": kind, "created": 1_790_000_000, "model": model}


def _reason(reply: Reply) -> str:
    return REASONS.get(reply.why, "stop")


def _usage(usage: Usage) -> Json:
    told: Json = {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning, "audio_tokens": 0},
    }
    if usage.cache_write:
        told["prompt_tokens_details"]["cache_write_tokens"] = usage.cache_write
    return told if usage.cost is None else told | {"cost": float(usage.cost)}


def _deltas(reply: Reply, chunk: int) -> Iterator[Json]:
    calls = 0
    for part in reply.content:
        match part:
            case dict():
                yield part
            case Text():
                yield from ({"content": piece} for piece in pieces(part.text, chunk))
                if part.citations:
                    yield {"annotations": [_annotation(citation) for citation in part.citations]}
            case Thinking():
                yield from ({"reasoning": piece} for piece in pieces(part.text, chunk))
            case Refusal():
                yield from ({"refusal": piece} for piece in pieces(part.text, chunk))
            case ToolCall():
                yield from ({"tool_calls": [piece]} for piece in _call(part, calls, chunk))
                calls += 1
            case ProviderToolCall() | File():
                raise ValueError(f"Chat has no {part.type}: put a dict, a delta of the protocol's own, in its place")


def _call(part: ToolCall, index: int, chunk: int) -> Iterator[Json]:
    function = {"name": part.name, "arguments": ""}
    first, *rest = [*pieces(part.arguments, chunk)] or [""]
    if not rest:  # in one piece, as whole answers and some servers have it
        yield {"index": index, "id": part.id, "type": "function", "function": function | {"arguments": first}}
        return
    yield {"index": index, "id": part.id, "type": "function", "function": function}
    for piece in (first, *rest):
        yield {"index": index, "function": {"arguments": piece}}


def _annotation(citation: Citation) -> Json:
    told = {"url": citation.url, "title": citation.title, "start_index": citation.start, "end_index": citation.end}
    return {"type": "url_citation", "url_citation": told}
