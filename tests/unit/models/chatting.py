"""Streams of the Chat dialect, written by hand."""

from __future__ import annotations

import json
from typing import Any

from pickaxe.models import ChatDialect, OpenAIChat
from pickaxe.testing.providers import FakeProvider, RawReply

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def chat(fake: FakeProvider, dialect: ChatDialect | str = "openai", **more: Any) -> OpenAIChat:
    return OpenAIChat(dialect, api_key="key", base_url=f"{fake.url}/v1", **more)


def frames(*chunks: dict[str, Any] | str) -> bytes:
    told = (chunk if isinstance(chunk, str) else f"data: {json.dumps(chunk)}" for chunk in chunks)
    return "".join(f"{line}\n\n" for line in told).encode()


def streamed(*deltas: dict[str, Any], finish: str | None = "stop", usage: Any = USAGE, done: bool = True) -> RawReply:
    """A stream of these deltas."""
    chunks: list[dict[str, Any] | str] = [
        {"id": "c1", "model": "m1", "choices": [{"index": 0, "delta": delta}]} for delta in deltas
    ]
    if finish:
        chunks.append({"id": "c1", "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if usage:
        chunks.append({"id": "c1", "choices": [], "usage": usage})
    return RawReply(frames(*chunks, *(["data: [DONE]"] if done else [])))


def call(
    index: int | None = None, own: str | None = None, name: str | None = None, arguments: str | None = None
) -> Any:
    """A delta of one piece of a call: only what is given is in it."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    item = {key: value for key, value in (("index", index), ("id", own)) if value is not None}
    return {"tool_calls": [item | {"function": function}]}
