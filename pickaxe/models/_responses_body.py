"""A request in OpenAI's Responses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from pickaxe.models._http import Json
from pickaxe.models._messages import AssistantMessage, Content, File, Text, ToolCall, ToolMessage, UserMessage
from pickaxe.models._portable import Refuser, call_id, data_url, kind_of, name_of, plain, said, text_of
from pickaxe.models._request import ModelRequest, NamedTool, ProviderTool, ToolDefinition

DIALECT = "openai-responses"
CALL_ID = r"[A-Za-z0-9_-]{1,64}"

PROVIDER_TOOLS: dict[str, Json] = {
    "web_search": {"type": "web_search"},
    "code_execution": {"type": "code_interpreter", "container": {"type": "auto"}},
    "image_generation": {"type": "image_generation"},
    "file_search": {"type": "file_search"},
    "mcp": {"type": "mcp"},
    "tool_search": {"type": "tool_search"},
}
"""By portable name. What waits for an answer of ours, as a computer or a shell does, is none of the provider's."""

TYPES = re.compile(r"web_search(_preview)?(_\d{4}_\d\d_\d\d)?|code_interpreter")
"""Types of OpenAI's own that are understood besides."""

INCLUDE = {"web_search": "web_search_call.action.sources", "code_interpreter": "code_interpreter_call.outputs"}
"""What is told of a tool only if it is asked for."""

THOUGHTLESS = re.compile(r"(ft:)?(gpt-3|gpt-4|chatgpt-4o)")
"""Models that do not reason, and refuse to be asked for it."""

EFFORTS = {"max": "xhigh"}


class ResponsesBody(Refuser):
    """Makes the body of one request. `dropped` is told what was asked for and is left out."""

    def __init__(self, provider: str, request: ModelRequest, dropped: Callable[[str], None]) -> None:
        super().__init__(provider, request.model)
        self._request, self._dropped = request, dropped

    def made(self) -> Json:
        """The whole. Raises `ModelError` (`unsupported`)."""
        request = self._request
        body: Json = {"model": request.model, "input": list(self._input()), "stream": True, "store": False}
        if request.system is not None:
            body["instructions"] = request.system
        provided = [self._provider_tool(tool) for tool in request.provider_tools]
        include = [INCLUDE[kind] for kind in INCLUDE if any(tool["type"] == kind for tool in provided)]
        if not THOUGHTLESS.match(request.model):
            include.insert(0, "reasoning.encrypted_content")
        if include:
            body["include"] = include
        if request.tools or provided:
            body["tools"] = [*map(self._tool, request.tools), *provided]
        self._options(body)
        if (output := request.output) is not None:
            form = {"name": output.name, "schema": output.json_schema, "strict": output.strict}
            body["text"] = {"format": {"type": "json_schema", **form}}
        return body | request.options.extra

    # What is said

    def _input(self) -> Iterator[Json]:
        for message in self._request.messages:
            match message:
                case UserMessage():
                    yield {"role": "user", "content": self._content(message.content)}
                case AssistantMessage():
                    yield from self._assistant(message)
                case ToolMessage():
                    for result in message.results:
                        told = self._content(result.content)
                        if result.error:
                            told = f"Error: {told}" if isinstance(told, str) else [_text("Error:"), *told]
                        yield {
                            "type": "function_call_output",
                            "call_id": call_id(result.call, CALL_ID),
                            "output": told,
                        }

    def _assistant(self, message: AssistantMessage) -> Iterator[Json]:
        if message.native is not None and message.native.dialect == DIALECT:
            yield from _kept(json.loads(message.native.payload))
            return
        if text := said(message):
            yield {"role": "assistant", "content": text}
        for part in message.content:
            if isinstance(part, ToolCall):
                own = call_id(part.id, CALL_ID)
                yield {"type": "function_call", "call_id": own, "name": part.name, "arguments": part.arguments}

    def _content(self, content: tuple[Content, ...]) -> str | list[Json]:
        if all(isinstance(part, Text) for part in content):
            return plain(content)
        return [_text(part.text) if isinstance(part, Text) else self._file(part) for part in content]

    def _file(self, file: File) -> Json:
        kind = kind_of(file)
        if (text := text_of(file)) is not None:
            return _text(text)
        if file.data is None and file.url is None:
            self.refuse(f"file {name_of(file)!r} has neither data nor an address: its `ref` has to be resolved before")
        if kind in ("image", "image_url"):
            return {"type": "input_image", "image_url": data_url(file)}
        if kind not in ("pdf", "pdf_url"):
            self.refuse(f"takes no {file.media_type} (file {name_of(file)!r})")
        told = {"filename": name_of(file), "file_data": data_url(file)} if kind == "pdf" else {"file_url": file.url}
        return {"type": "input_file", **told}

    # What is asked

    def _tool(self, tool: ToolDefinition) -> Json:
        told = {"type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters}
        # Without the word this API makes a schema strict by itself, and changes what its fields mean.
        return told | {"strict": bool(tool.strict)}

    def _provider_tool(self, tool: ProviderTool) -> Json:
        if tool.name in PROVIDER_TOOLS:
            return PROVIDER_TOOLS[tool.name] | tool.config
        if not TYPES.fullmatch(tool.name):
            self.refuse(f"has no tool {tool.name!r} of its own (it has: {', '.join(sorted(PROVIDER_TOOLS))})")
        return {"type": tool.name} | tool.config

    def _options(self, body: Json) -> None:
        options = self._request.options
        if options.stop:
            self.refuse("takes no stop sequences: Chat Completions does")
        named = {"max_output_tokens": options.max_tokens, "temperature": options.temperature, "top_p": options.top_p}
        body |= {name: value for name, value in named.items() if value is not None}
        if options.effort is not None and THOUGHTLESS.match(self.model):
            self._dropped(f"effort for {self.model}")
        elif options.effort is not None:
            body["reasoning"] = {"effort": EFFORTS.get(options.effort, options.effort)}
        if "tools" in body and isinstance(options.tool_choice, NamedTool):
            body["tool_choice"] = {"type": "function", "name": options.tool_choice.name}
        elif "tools" in body and options.tool_choice is not None:
            body["tool_choice"] = options.tool_choice
        if "tools" in body and options.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = options.parallel_tool_calls


def _text(text: str) -> Json:
    return {"type": "input_text", "text": text}


def _kept(items: list[Json]) -> Iterator[Json]:
    """The items as they came, but for what would be refused.

    Nothing is stored, so reasoning without its encrypted form cannot be found again: then it is left out, and with it
    the ids by which the other items would ask for it. So is reasoning that was cut off before anything came of it.
    """
    while items and items[-1].get("type") == "reasoning":
        items = items[:-1]
    if all(item.get("encrypted_content") for item in items if item.get("type") == "reasoning"):
        yield from items
        return
    for item in items:
        if item.get("type") != "reasoning":
            yield {key: value for key, value in item.items() if key != "id"}
