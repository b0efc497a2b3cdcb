"""What is sent to Anthropic Messages."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pickaxe.models import _anthropic_data as data
from pickaxe.models._http import Json, dumps, sdk, sendable
from pickaxe.models._messages import (
    AssistantMessage,
    Content,
    File,
    Message,
    ProviderToolCall,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    ToolResult,
    UserMessage,
    arguments_of,
)
from pickaxe.models._request import ModelRequest, NamedTool, ProviderTool, ToolDefinition

DIALECT = "anthropic"


class UnsupportedError(Exception):
    """Asked for something that cannot be asked of this provider; the adapter says so in its own error."""


def body_of(request: ModelRequest, *, max_tokens: int, provider_tools: Mapping[str, str]) -> Json:
    """The JSON object of the request. Raises `UnsupportedError`."""
    options = request.options
    tools = [*map(_tool, request.tools), *(_provider_tool(tool, provider_tools) for tool in request.provider_tools)]
    thinking, effort, needed = _thinking(request)
    body: Json = {
        "model": request.model,
        "max_tokens": options.max_tokens or max_tokens + needed,
        "system": request.system or None,
        "messages": list(_messages(request.messages)),
        "tools": tools or None,
        "tool_choice": _tool_choice(request, bool(tools), thinking),
        "stop_sequences": list(options.stop) or None,
        "thinking": thinking,
        "output_config": _output_config(request, effort),
        "cache_control": {"type": "ephemeral", "ttl": options.cache} if options.cache else None,
    }
    if thinking and thinking.get("budget_tokens", 0) >= body["max_tokens"]:
        raise UnsupportedError(
            f"effort {options.effort!r} is {needed} tokens of thinking on {request.model}, and max_tokens="
            f"{options.max_tokens} has to be more than that: raise it, or ask for less effort"
        )
    sent: Json = sendable({key: value for key, value in body.items() if value is not None} | options.extra)
    return sent


def _thinking(request: ModelRequest) -> tuple[Json | None, str | None, int]:
    """The thinking, the effort, and how many tokens have to be allowed for it beside the answer."""
    effort, model = request.options.effort, request.model
    if effort is None:
        return None, None, 0
    if effort == "none":
        return (None if data.UNTHINKING.match(model) else {"type": "disabled"}), None, 0
    if data.UNTHINKING.match(model):
        raise UnsupportedError(f"{model} does not think: leave out effort={effort!r}")
    if data.BUDGETED.match(model):
        budget = data.BUDGETS[effort]
        return {"type": "enabled", "budget_tokens": budget}, None, budget
    return {"type": "adaptive"}, data.EFFORTS[effort], 0


def _output_config(request: ModelRequest, effort: str | None) -> Json | None:
    config: Json = {"effort": effort} if effort else {}
    if request.output is not None:
        if data.UNSTRUCTURED.match(request.model):
            raise UnsupportedError(f"{request.model} cannot be held to a JSON schema: ask by a tool, or in the prompt")
        schema = _strict(request.output.json_schema, f"output {request.output.name!r}")
        config["format"] = {"type": "json_schema", "schema": schema}
    return config or None


def _tool_choice(request: ModelRequest, tools: bool, thinking: Json | None) -> Json | None:
    wanted, parallel = request.options.tool_choice, request.options.parallel_tool_calls
    if not tools:
        if wanted == "required" or isinstance(wanted, NamedTool):
            raise UnsupportedError(f"tool_choice={wanted!r} without any tool")
        return None
    match wanted:
        case NamedTool(name=name):
            choice: Json = {"type": "tool", "name": name}
        case "required":
            choice = {"type": "any"}
        case "none":
            return {"type": "none"}
        case _ if wanted is None and parallel is None:
            return None
        case _:
            choice = {"type": "auto"}
    if choice["type"] != "auto" and thinking and thinking["type"] == "enabled":
        raise UnsupportedError(
            f"{request.model} cannot be made to call a tool while it thinks: leave out tool_choice={wanted!r}, or "
            f"effort={request.options.effort!r}"
        )
    return choice if parallel is None else choice | {"disable_parallel_tool_use": not parallel}


def _tool(tool: ToolDefinition) -> Json:
    told: Json = {"name": tool.name}
    if tool.description:
        told["description"] = tool.description
    if not tool.strict:
        return told | {"input_schema": tool.parameters}
    return told | {"input_schema": _strict(tool.parameters, f"tool {tool.name!r}"), "strict": True}


def _provider_tool(tool: ProviderTool, known: Mapping[str, str]) -> Json:
    kind = known.get(tool.name, tool.name)
    if not data.OWN_TYPE.fullmatch(kind):
        raise UnsupportedError(
            f"the provider has no tool {tool.name!r}: it has {', '.join(sorted(known))}, and its own types by their "
            f'dated names, such as "web_search_20260318"'
        )
    if "_toolset_" in kind:
        return {"type": kind, **tool.config}
    return {"type": kind, "name": data.TYPE_NAMES.get(kind, kind[:-9]), **tool.config}


def _strict(schema: Json, where: str) -> Json:
    """The schema as the provider enforces it: what it cannot is told in descriptions, for the caller to check again."""
    if path := _open_object(schema, ""):
        raise UnsupportedError(
            f"{where}: {path} is an object with any keys, which the provider would take for one without any: "
            f"name its properties, or do not ask the provider to enforce the schema"
        )
    try:
        strict: Json = sdk("anthropic").transform_schema(schema)
    except (ValueError, AssertionError) as error:
        raise UnsupportedError(f"{where}: the provider cannot enforce this schema: {error}") from error
    return strict


def _open_object(schema: object, path: str) -> str | None:
    if isinstance(schema, list):
        return next((found for at, inner in enumerate(schema) if (found := _open_object(inner, f"{path}/{at}"))), None)
    if not isinstance(schema, dict):
        return None
    if (
        schema.get("type") == "object"
        and not schema.get("properties")
        and schema.get("additionalProperties") is not False
    ):
        return path or "/"
    plain = ("default", "examples", "enum", "const")
    inner = ((f"{path}/{key}", value) for key, value in schema.items() if key not in plain)
    return next((found for at, value in inner if (found := _open_object(value, at))), None)


def _messages(messages: Iterable[Message]) -> Iterator[Json]:
    for message in messages:
        match message:
            case UserMessage():
                told: Json = {"role": "user", "content": _content(message.content)}
            case ToolMessage():
                told = {"role": "user", "content": [_result(result) for result in message.results]}
            case AssistantMessage():
                told = {"role": "assistant", "content": _answer(message)}
        if told["content"]:
            yield told


def _content(parts: tuple[Content, ...]) -> str | list[Json]:
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return [block for part in parts if (block := _block(part))]


def _block(part: Content) -> Json | None:
    if isinstance(part, File):
        return _file(part)
    return {"type": "text", "text": part.text} if part.text else None  # an empty text is refused


def _file(file: File) -> Json:
    what = f"{file.name or 'a file'} ({file.media_type})"
    if file.data is None and file.url is None:
        raise UnsupportedError(f"{what} has neither data nor a URL: its ref {file.ref!r} has to be resolved before")
    if file.media_type.startswith("text/") and file.data is not None:
        return _document(file, {"type": "text", "media_type": "text/plain", "data": _text_of(file.data, what)})
    if not file.media_type.startswith("image/") and file.media_type != "application/pdf":
        raise UnsupportedError(f"{what}: only images, PDF documents and text with its data can be sent")
    source: Json = {"type": "url", "url": file.url}
    if file.data is not None:
        source = {"type": "base64", "media_type": file.media_type, "data": file.data}
    return {"type": "image", "source": source} if file.media_type.startswith("image/") else _document(file, source)


def _document(file: File, source: Json) -> Json:
    return {"type": "document", "source": source, **({"title": file.name} if file.name else {})}


def _text_of(data_: str, what: str) -> str:
    try:
        return base64.b64decode(data_, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise UnsupportedError(f"{what} is not text in UTF-8, as base64: {error}") from error


def _result(result: ToolResult) -> Json:
    told: Json = {"type": "tool_result", "tool_use_id": _id(result.call)}
    if content := _content(result.content):
        told["content"] = content
    return told | {"is_error": True} if result.error else told


def _id(call: str) -> str:
    """Ids of other providers may have characters that are refused here."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", call)


def _answer(message: AssistantMessage) -> list[Json]:
    if message.native is not None and message.native.dialect == DIALECT:
        blocks: list[Json] = json.loads(message.native.payload)["content"]
        # The API sends empty texts, and refuses them.
        return [block for block in blocks if block.get("type") != "text" or block.get("text")]
    return list(_portable(message))


def _portable(message: AssistantMessage) -> Iterator[Json]:
    """What another provider's model has said, as far as it can be told: its thinking means nothing to this one."""
    for part in message.content:
        match part:
            case Text() | Refusal() if part.text:
                yield {"type": "text", "text": part.text}
            case ToolCall():
                arguments = arguments_of(part.arguments)
                given = {"arguments": part.arguments} if arguments is None else arguments
                yield {"type": "tool_use", "id": _id(part.id), "name": part.name, "input": given}
            case ProviderToolCall():
                ended = f"failed: {part.error}" if part.error else f"returned: {_short(part.result)}"
                yield {"type": "text", "text": f"[{part.name} {part.arguments} {ended}]"}
            case File():
                yield {"type": "text", "text": f"[{part.name or 'a file'}, {part.media_type}]"}
            case Text() | Refusal() | Thinking():
                continue


def _short(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)
