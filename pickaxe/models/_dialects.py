"""How those differ who speak OpenAI's Chat Completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

EFFORTS = {"none": "none", "minimal": "minimal", "low": "low", "medium": "medium", "high": "high", "max": "high"}
IMAGES = frozenset({"image", "image_url"})
THINKING = ("reasoning", "reasoning_content")
"""The fields that thinking comes in."""


@dataclass(frozen=True, kw_only=True)
class ChatDialect:
    """What a server of the Chat dialect does its own way. Change a preset with `dataclasses.replace`.

    - `name`: also that of the provider. `base_url`: up to and with `/v1`. `key_env`: where its key is, if it has one.
    - `system_role`: who says the system prompt, in one message before all others.
    - `max_tokens`: the field of that limit.
    - `stream_usage`: usage is asked for by `stream_options`. `usage`: it comes, so a stream without it is cut off.
    - `json_schema`: `response_format` takes one. `strict`: so do tools.
    - `tool_choice`: calls can be required. `parallel_tool_calls`: more than one can be forbidden.
    - `efforts`: its words for how much to think, if it can be told; `effort_field`: where they go, by a dotted path.
    - `files`: what it takes in: `image`, `image_url`, `pdf`, `pdf_url`, `audio`.
    - `thinking_back`: when a message goes back with its `reasoning` or `reasoning_content`.
    - `fields_back`: the fields of a message that it takes back, if it refuses others, though it has sent them itself.
    - `call_id`: a regular expression that the ids of calls must match.
    - `user_after_tool`: a user's message may follow a tool's; if not, the model is made to say "OK." in between.
    - `call_extra`: fields of a call that another provider's model has made.
    - `cache_control`: the prompt is cached where it is marked.
    - `provider_tools`: by portable name, the field of the request, and what goes into it (a list takes one more entry).
    """

    name: str
    base_url: str | None = None
    key_env: str | None = None
    system_role: Literal["system", "developer", "user"] = "system"
    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    stream_usage: bool = True
    usage: bool = True
    json_schema: bool = True
    strict: bool = False
    tool_choice: bool = True
    parallel_tool_calls: bool = False
    efforts: Mapping[str, str] = field(default_factory=dict)
    effort_field: str = "reasoning_effort"
    files: frozenset[str] = IMAGES
    thinking_back: Literal["always", "tool_calls", "never"] = "always"
    fields_back: frozenset[str] | None = None
    call_id: str = r"[A-Za-z0-9_-]{1,64}"
    user_after_tool: bool = True
    call_extra: Mapping[str, Any] = field(default_factory=dict)
    cache_control: bool = False
    provider_tools: Mapping[str, tuple[str, Any]] = field(default_factory=dict)


OPENAI = ChatDialect(
    name="openai",
    base_url="https://api.openai.com/v1",
    key_env="OPENAI_API_KEY",
    system_role="developer",
    max_tokens="max_completion_tokens",
    strict=True,
    parallel_tool_calls=True,
    efforts=EFFORTS | {"max": "xhigh"},
    files=IMAGES | {"pdf", "audio"},
    call_id=r"[A-Za-z0-9_-]{1,40}",
    provider_tools={"web_search": ("web_search_options", {})},
)

GEMINI = ChatDialect(
    name="gemini",
    base_url="https://generativelanguage.googleapis.com/v1beta/openai",
    key_env="GEMINI_API_KEY",
    efforts=EFFORTS,
    files=frozenset({"image", "audio"}),
    # Gemini 3 refuses a call without a signature; this one says that it is not its own.
    call_extra={"extra_content": {"google": {"thought_signature": "skip_thought_signature_validator"}}},
)

MISTRAL = ChatDialect(
    name="mistral",
    base_url="https://api.mistral.ai/v1",
    key_env="MISTRAL_API_KEY",
    stream_usage=False,
    parallel_tool_calls=True,
    strict=True,
    files=IMAGES | {"pdf_url"},
    call_id=r"[A-Za-z0-9]{9}",
    user_after_tool=False,
)

OLLAMA = ChatDialect(
    name="ollama",
    base_url="http://localhost:11434/v1",
    tool_choice=False,
    efforts={"none": "none", "low": "low", "medium": "medium", "high": "high", "max": "high", "minimal": "low"},
    files=frozenset({"image"}),
)

VLLM = ChatDialect(name="vllm", base_url="http://localhost:8000/v1", parallel_tool_calls=True, files=IMAGES | {"audio"})

OPENROUTER = ChatDialect(
    name="openrouter",
    base_url="https://openrouter.ai/api/v1",
    key_env="OPENROUTER_API_KEY",
    parallel_tool_calls=True,
    strict=True,
    efforts=EFFORTS | {"max": "xhigh"},
    effort_field="reasoning.effort",
    files=IMAGES | {"pdf", "pdf_url", "audio"},
    cache_control=True,
    provider_tools={"web_search": ("tools", [{"type": "openrouter:web_search", "parameters": {}}])},
)

GROQ = ChatDialect(
    name="groq",
    base_url="https://api.groq.com/openai/v1",
    key_env="GROQ_API_KEY",
    max_tokens="max_completion_tokens",
    strict=True,
    parallel_tool_calls=True,
    efforts={"none": "none", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "max": "high"},
    fields_back=frozenset({"role", "content", "name", "reasoning", "tool_calls", "function_call"}),
    provider_tools={
        "web_search": ("tools", [{"type": "browser_search"}]),
        "code_execution": ("tools", [{"type": "code_interpreter"}]),
    },
)

DEEPSEEK = ChatDialect(
    name="deepseek",
    base_url="https://api.deepseek.com/v1",
    key_env="DEEPSEEK_API_KEY",
    json_schema=False,
    files=frozenset(),
    thinking_back="tool_calls",
)

GENERIC = ChatDialect(name="generic", usage=False, json_schema=False, tool_choice=False)
"""Any other: it is asked for nothing that some do not have. Its `base_url` has to be given."""

PRESETS = {
    dialect.name: dialect for dialect in (OPENAI, GEMINI, MISTRAL, OLLAMA, VLLM, OPENROUTER, GROQ, DEEPSEEK, GENERIC)
}
