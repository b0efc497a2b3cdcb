"""A request in the Chat dialect."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from pickaxe.models._dialects import THINKING, ChatDialect
from pickaxe.models._http import Json
from pickaxe.models._messages import (
    AssistantMessage,
    Content,
    File,
    Text,
    ToolCall,
    ToolMessage,
    ToolResult,
    UserMessage,
)
from pickaxe.models._portable import Refuser, call_id, data_url, kind_of, name_of, plain, said, text_of
from pickaxe.models._request import ModelRequest, NamedTool, ProviderTool, ToolDefinition

SAID = ("content", "tool_calls", "refusal", "function_call", "audio", "images")
"""A message without any of these, cut off while the model was thinking, is refused: it is left out."""


class ChatBody(Refuser):
    """Makes the body of one request. `native` is the format of messages that go back word for word; `dropped` is told
    what was asked for and is left out.
    """

    def __init__(
        self, provider: str, dialect: ChatDialect, native: str, request: ModelRequest, dropped: Callable[[str], None]
    ) -> None:
        super().__init__(provider, request.model)
        self._dialect, self._native, self._request, self._dropped = dialect, native, request, dropped

    def made(self) -> Json:
        """The whole. Raises `ModelError` (`unsupported`)."""
        request = self._request
        body: Json = {"model": request.model, "messages": list(self._messages()), "stream": True}
        if self._dialect.stream_usage:
            body["stream_options"] = {"include_usage": True}
        if request.tools:
            body["tools"] = [self._tool(tool) for tool in request.tools]
        self._options(body)
        for provided in request.provider_tools:
            self._provider_tool(body, provided)
        if request.output is not None:
            body["response_format"] = self._format()
        if request.options.cache and self._dialect.cache_control:
            self._mark(body["messages"])
        return body | request.options.extra

    # What is said

    def _messages(self) -> Iterator[Json]:
        dialect, request = self._dialect, self._request
        if request.system is not None:
            yield {"role": dialect.system_role, "content": request.system}
        before = ""
        for message in request.messages:
            match message:
                case UserMessage():
                    if before == "tool" and not dialect.user_after_tool:
                        yield {"role": "assistant", "content": "OK."}
                    yield {"role": "user", "content": self._content(message.content)}
                case AssistantMessage():
                    yield from self._assistant(message)
                case ToolMessage():
                    yield from self._results(message)
            before = message.role

    def _assistant(self, message: AssistantMessage) -> Iterator[Json]:
        if message.native is not None and message.native.dialect == self._native:
            kept = self._kept(json.loads(message.native.payload))
            if any(kept.get(field) for field in SAID):
                yield kept
            return
        calls = [part for part in message.content if isinstance(part, ToolCall)]
        told: Json = {"role": "assistant", "content": said(message) or None}
        if calls:
            told["tool_calls"] = [self._call(call, first=call is calls[0]) for call in calls]
        if calls or told["content"]:
            yield told

    def _kept(self, message: Json) -> Json:
        """A message of this provider's own, word for word, but for what it does not take back."""
        back, fields = self._dialect.thinking_back, self._dialect.fields_back
        hidden = () if back == "always" or (back == "tool_calls" and message.get("tool_calls")) else THINKING
        return {key: value for key, value in message.items() if key not in hidden and (fields is None or key in fields)}

    def _call(self, call: ToolCall, *, first: bool) -> Json:
        told: Json = {
            "id": self._id(call.id),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        return told | dict(self._dialect.call_extra) if first else told

    def _id(self, own: str) -> str:
        return call_id(own, self._dialect.call_id)

    def _results(self, message: ToolMessage) -> Iterator[Json]:
        files: list[Content] = []
        for result in message.results:
            yield {"role": "tool", "tool_call_id": self._id(result.call), "content": self._result(result, files)}
        if files:
            if not self._dialect.user_after_tool:
                self.refuse(f"a tool's result has files, and {self.provider} takes none after a tool")
            yield {"role": "user", "content": self._content(tuple(files))}

    def _result(self, result: ToolResult, files: list[Content]) -> str:
        texts = []
        for part in result.content:
            text = part.text if isinstance(part, Text) else text_of(part)
            if text is None and isinstance(part, File):
                text = f"[{name_of(part)} follows]"
                files += [Text(text=f"{name_of(part)}, of call {self._id(result.call)}:"), part]
            texts.append(text or "")
        told = "\n\n".join(texts)
        return f"Error: {told}" if result.error else told

    def _content(self, content: tuple[Content, ...]) -> str | list[Json]:
        if all(isinstance(part, Text) for part in content):
            return plain(content)
        return [{"type": "text", "text": part.text} if isinstance(part, Text) else self._file(part) for part in content]

    def _file(self, file: File) -> Json:
        if (text := text_of(file)) is not None:
            return {"type": "text", "text": text}
        kind = kind_of(file)
        if file.data is None and file.url is None:
            self.refuse(f"file {name_of(file)!r} has neither data nor an address: its `ref` has to be resolved before")
        if kind not in self._dialect.files:
            self.refuse(f"takes no {file.media_type} {'by its address' if file.data is None else 'as data'}"
                        f" (file {name_of(file)!r})")  # fmt: skip
        match kind:
            case "image" | "image_url":
                return {"type": "image_url", "image_url": {"url": data_url(file)}}
            case "audio":
                sub = file.media_type.partition("/")[2]
                form = {"mpeg": "mp3", "x-wav": "wav"}.get(sub, sub)
                return {"type": "input_audio", "input_audio": {"data": file.data, "format": form}}
            case "pdf_url" if self._dialect.name == "mistral":
                return {"type": "document_url", "document_url": file.url}
            case _:
                return {"type": "file", "file": {"filename": name_of(file), "file_data": data_url(file)}}

    def _mark(self, messages: list[Json]) -> None:
        """For the provider's cache: the end of the system prompt, and of the last that was said to the model."""
        mark = {"type": "ephemeral"} | ({"ttl": "1h"} if self._request.options.cache == "1h" else {})
        ends = [m for m in messages if m["role"] == "system"] + [m for m in messages if m["role"] == "user"][-1:]
        for message in ends:
            if isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}]
            message["content"][-1] = message["content"][-1] | {"cache_control": mark}

    # What is asked

    def _tool(self, tool: ToolDefinition) -> Json:
        function: Json = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        if tool.strict and not self._dialect.strict:
            self._dropped(f"strict on tool {tool.name}")
        elif tool.strict is not None and self._dialect.strict:
            function["strict"] = tool.strict
        return {"type": "function", "function": function}

    def _provider_tool(self, body: Json, tool: ProviderTool) -> None:
        if tool.name not in self._dialect.provider_tools:
            known = ", ".join(sorted(self._dialect.provider_tools)) or "none"
            self.refuse(f"has no tool {tool.name!r} of its own (it has: {known})")
        field, value = self._dialect.provider_tools[tool.name]
        if isinstance(value, list):
            body[field] = [*body.get(field, []), *(_configured(entry, tool.config) for entry in value)]
        else:
            body[field] = value | tool.config

    def _format(self) -> Json:
        output = self._request.output
        assert output is not None
        if not self._dialect.json_schema:
            self.refuse("cannot be held to a JSON schema: ask for the output by a tool or in the prompt")
        schema = {"name": output.name, "schema": output.json_schema, "strict": output.strict}
        return {"type": "json_schema", "json_schema": schema}

    def _options(self, body: Json) -> None:
        options, dialect = self._request.options, self._dialect
        if options.max_tokens is not None:
            body[dialect.max_tokens] = options.max_tokens
        for name in ("temperature", "top_p"):
            if (value := getattr(options, name)) is not None:
                body[name] = value
        if options.stop:
            body["stop"] = list(options.stop)
        if options.effort is not None:
            self._effort(body, options.effort)
        if self._request.tools:
            self._calls(body)

    def _calls(self, body: Json) -> None:
        options, dialect = self._request.options, self._dialect
        if options.tool_choice is not None:
            self._choice(body)
        if options.parallel_tool_calls is not None and dialect.parallel_tool_calls:
            body["parallel_tool_calls"] = options.parallel_tool_calls
        elif options.parallel_tool_calls is False:
            self._dropped("parallel_tool_calls")

    def _effort(self, body: Json, effort: str) -> None:
        word = self._dialect.efforts.get(effort)
        if word is None:
            self._dropped("effort")
            return
        *path, field = self._dialect.effort_field.split(".")
        for name in path:
            body = body.setdefault(name, {})
        body[field] = word

    def _choice(self, body: Json) -> None:
        choice = self._request.options.tool_choice
        if isinstance(choice, NamedTool):
            body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        else:
            body["tool_choice"] = choice
        if self._dialect.tool_choice:
            return
        del body["tool_choice"]
        if choice == "none":
            del body["tools"]
        elif choice != "auto":
            self.refuse("cannot be made to call a tool (`tool_choice`)")


def _configured(entry: Json, config: Json) -> Json:
    """An entry with what is to be said in it, where it has a place for that in there."""
    return entry | ({"parameters": entry["parameters"] | config} if "parameters" in entry else config)
