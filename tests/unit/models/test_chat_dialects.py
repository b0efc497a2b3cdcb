"""What is sent in the Chat dialect, and how the presets differ."""

from __future__ import annotations

import base64
import logging
from dataclasses import replace
from typing import Any

import pytest

from pickaxe.models import (
    AssistantMessage,
    Failure,
    File,
    ModelError,
    NamedTool,
    Native,
    OpenAIChat,
    OutputSchema,
    Provider,
    ProviderTool,
    ProviderToolCall,
    Refusal,
    RequestOptions,
    Text,
    Thinking,
    ToolCall,
    ToolDefinition,
    UserMessage,
    provider_of,
)
from pickaxe.models._dialects import GROQ, PRESETS
from pickaxe.testing.providers import FakeProvider
from tests.unit.models.asking import answer, converse, failure, request, result, results, user
from tests.unit.models.chatting import chat, streamed

TOOL = ToolDefinition(name="f", description="does it", parameters={"type": "object", "properties": {}}, strict=True)
ALL = RequestOptions(
    max_tokens=100,
    temperature=0.5,
    top_p=0.9,
    stop=("END",),
    effort="max",
    parallel_tool_calls=False,
    cache="5m",
    extra={"seed": 7},
)
FUNCTION = {"name": "f", "description": "does it", "parameters": TOOL.parameters}
STRICT = {"tools": [{"type": "function", "function": FUNCTION | {"strict": True}}]}
LOOSE = {"tools": [{"type": "function", "function": FUNCTION}]}
COUNTED = {"stream_options": {"include_usage": True}}
SAMPLED = {"temperature": 0.5, "top_p": 0.9, "stop": ["END"], "seed": 7, "model": "m", "stream": True}
SERIAL = {"parallel_tool_calls": False}
MARK = {"cache_control": {"type": "ephemeral"}}

BODIES: dict[str, dict[str, Any]] = {
    "openai": STRICT | COUNTED | SERIAL | {"max_completion_tokens": 100, "reasoning_effort": "xhigh"},
    "gemini": LOOSE | COUNTED | {"max_tokens": 100, "reasoning_effort": "high"},
    "mistral": STRICT | SERIAL | {"max_tokens": 100},
    "ollama": LOOSE | COUNTED | {"max_tokens": 100, "reasoning_effort": "high"},
    "vllm": LOOSE | COUNTED | SERIAL | {"max_tokens": 100},
    "openrouter": STRICT | COUNTED | SERIAL | {"max_tokens": 100, "reasoning": {"effort": "xhigh"}},
    "groq": STRICT | COUNTED | SERIAL | {"max_completion_tokens": 100, "reasoning_effort": "high"},
    "deepseek": LOOSE | COUNTED | {"max_tokens": 100},
    "generic": LOOSE | COUNTED | {"max_tokens": 100},
}


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_asks_in_its_own_words(name: str) -> None:
    with FakeProvider("Hi") as fake:
        answer(chat(fake, name), request("Hello?", model="m", system="Be brief", tools=(TOOL,), options=ALL))
        body = fake.requests[0].json
        assert fake.requests[0].path == "/v1/chat/completions"
    system, user = body.pop("messages")
    assert body == SAMPLED | BODIES[name]
    assert system["role"] == ("developer" if name == "openai" else "system")
    if name == "openrouter":
        assert system["content"] == [{"type": "text", "text": "Be brief"} | MARK]
        assert user["content"] == [{"type": "text", "text": "Hello?"} | MARK]
    else:
        assert (system["content"], user) == ("Be brief", {"role": "user", "content": "Hello?"})


def test_what_is_left_out_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with FakeProvider("Hi", "Hi") as fake, caplog.at_level(logging.WARNING, "pickaxe.models"):
        provider = chat(fake, "deepseek")
        for _ in range(2):
            answer(provider, request(model="m", tools=(TOOL,), options=ALL))
    assert sorted(caplog.messages) == [
        "deepseek takes no effort: it is left out",
        "deepseek takes no parallel_tool_calls: it is left out",
        "deepseek takes no strict on tool f: it is left out",
    ]


PDF = File(media_type="application/pdf", name="a.pdf", data="UEQ=")
OUTPUT = OutputSchema(name="x", json_schema={"type": "object"})
CANNOT = [
    ("generic", {"output": OUTPUT}, "JSON schema"),
    ("deepseek", {"output": OUTPUT}, "JSON schema"),
    ("ollama", {"tools": (TOOL,), "options": RequestOptions(tool_choice="required")}, "tool_choice"),
    ("ollama", {"tools": (TOOL,), "options": RequestOptions(tool_choice=NamedTool(name="f"))}, "tool_choice"),
    ("mistral", {"provider_tools": (ProviderTool(name="web_search"),)}, "'web_search' of its own (it has: none)"),
    ("groq", {"provider_tools": (ProviderTool(name="web_fetch"),)}, "it has: code_execution, web_search"),
    ("vllm", {"messages": (UserMessage(content=(PDF,)),)}, "takes no application/pdf as data (file 'a.pdf')"),
    ("ollama", {"messages": (UserMessage(content=(File(media_type="image/png", url="https://a.example/"),)),)},
     "takes no image/png by its address"),
    ("openai", {"messages": (UserMessage(content=(File(media_type="image/png", ref="x"),)),)}, "ref"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "asked", "told"), CANNOT)
def test_what_a_provider_cannot_do_is_refused_and_nothing_is_sent(name: str, asked: dict[str, Any], told: str) -> None:
    asked = request(model="m").model_copy(update=asked)
    with FakeProvider() as fake:
        provider = chat(fake, name)
        record = failure(provider, asked)
        assert fake.requests == []
        with pytest.raises(ModelError) as raised:
            provider.body(asked)
    assert raised.value.record == record
    assert (record.failure, record.provider, record.model) == (Failure.UNSUPPORTED, name, "m")
    assert told in record.message


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", "auto"), ("none", "none"), ("required", "required"),
        (NamedTool(name="f"), {"type": "function", "function": {"name": "f"}}),
    ],
)  # fmt: skip
def test_which_tool_to_call_can_be_said(choice: Any, sent: Any) -> None:
    asked = request(model="m", tools=(TOOL,), options=RequestOptions(tool_choice=choice))
    assert OpenAIChat("openai").body(asked)["tool_choice"] == sent


def test_where_no_tool_can_be_forbidden_none_is_told() -> None:
    asked = request(model="m", tools=(TOOL,), options=RequestOptions(tool_choice="none"))
    assert "tools" not in OpenAIChat("ollama").body(asked)


@pytest.mark.parametrize(
    ("name", "tool", "sent"),
    [
        ("openai", ProviderTool(name="web_search", config={"search_context_size": "low"}),
         {"web_search_options": {"search_context_size": "low"}}),
        ("openrouter", ProviderTool(name="web_search", config={"max_uses": 3}),
         {"tools": [*LOOSE["tools"], {"type": "openrouter:web_search", "parameters": {"max_uses": 3}}]}),
        ("groq", ProviderTool(name="code_execution"), {"tools": [*LOOSE["tools"], {"type": "code_interpreter"}]}),
    ],
)  # fmt: skip
def test_a_tool_of_the_providers_has_a_portable_name(name: str, tool: ProviderTool, sent: dict[str, Any]) -> None:
    own = TOOL.model_copy(update={"strict": None})
    body = OpenAIChat(name).body(request(model="m", tools=(own,), provider_tools=(tool,)))
    assert body | sent == body


def test_a_preset_can_be_changed() -> None:
    own = replace(GROQ, name="mine", base_url="http://127.0.0.1:1/v1", max_tokens="max_tokens", system_role="user")
    body = OpenAIChat(own).body(request("Hi", model="m", system="Be brief", options=RequestOptions(max_tokens=5)))
    assert body["max_tokens"] == 5
    assert body["messages"] == [{"role": "user", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    assert OpenAIChat(own).name == "mine"


def sent(name: str, *messages: Any) -> Any:
    return OpenAIChat(name).body(request(*messages, model="m"))["messages"]


ELSEWHERE = AssistantMessage(
    content=(
        Thinking(text="secret"),
        Text(text="I look."),
        ProviderToolCall(name="web_search", result=["x"]),
        Refusal(text="But not there."),
        File(media_type="image/png", name="map.png", data="AA=="),
        ToolCall(id="toolu_01ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghij", name="f", arguments='{"a": 1}'),
        ToolCall(id="toolu_02", name="f", arguments="{}"),
    ),
    native=Native(dialect="anthropic-messages", payload='{"role":"assistant","content":[{"type":"thinking"}]}'),
)
ANSWERS = results(result(ELSEWHERE.content[-2].id, "one"), result("toolu_02", "broken", error=True))


@pytest.mark.parametrize("name", ["openai", "mistral", "gemini"])
def test_what_another_provider_said_goes_in_its_portable_parts(name: str) -> None:
    with FakeProvider("Done") as fake:
        answer(chat(fake, name), request("Go", ELSEWHERE, ANSWERS, model="m"))
        _, said, first, second = fake.requests[0].json["messages"]
    calls = said["tool_calls"]
    assert said["content"] == "I look.\n\nBut not there.\n\n[map.png, image/png]"
    assert [call["function"]["arguments"] for call in calls] == ['{"a": 1}', "{}"]
    assert [call["id"] for call in calls] == [first["tool_call_id"], second["tool_call_id"]]
    assert (first["content"], second["content"]) == ("one", "Error: broken")
    ids = [call["id"] for call in calls]
    assert len(set(ids)) == 2
    assert all(len(own) == 9 and own.isalnum() if name == "mistral" else len(own) <= 64 for own in ids)
    if name == "openai":
        assert ids[1] == "toolu_02"
        assert len(ids[0]) <= 40
    signed = {"google": {"thought_signature": "skip_thought_signature_validator"}}
    assert [call.get("extra_content") for call in calls] == ([signed, None] if name == "gemini" else [None, None])


def test_what_one_preset_said_is_not_sent_word_for_word_to_another() -> None:
    native = Native(dialect="openai-chat:gemini", payload='{"role":"assistant","content":"Hi","x":1}')
    said = AssistantMessage(content=(Text(text="Hi"),), native=native)
    asked = request("Go", said, "And?", model="m")
    assert OpenAIChat("gemini").body(asked)["messages"][1] == {"role": "assistant", "content": "Hi", "x": 1}
    assert OpenAIChat("mistral").body(asked)["messages"][1] == {"role": "assistant", "content": "Hi"}


def test_deepseek_gets_its_reasoning_back_with_calls_only() -> None:
    def said(more: str) -> AssistantMessage:
        payload = '{"role":"assistant","content":"Hi","reasoning_content":"hm"' + more + "}"
        return AssistantMessage(content=(), native=Native(dialect="openai-chat:deepseek", payload=payload))

    calls = ',"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]'
    asked = request("Go", said(""), "And?", said(calls), results(result("c", "x")), model="m")
    messages: Any = OpenAIChat("deepseek").body(asked)["messages"]
    assert messages[1] == {"role": "assistant", "content": "Hi"}
    assert messages[3]["reasoning_content"] == "hm"


def test_groq_gets_back_what_it_takes_back_and_the_rest_is_kept_all_the_same() -> None:
    deltas = [{"role": "assistant", "channel": "analysis", "reasoning": "hm"}, {"content": "Hi", "annotations": []}]
    with FakeProvider(streamed(*deltas), "Done") as fake:
        first, _ = converse(chat(fake, "groq"), request("Go", model="m"), [user("And?")])
        assert fake.requests[1].json["messages"][1] == {"role": "assistant", "reasoning": "hm", "content": "Hi"}
    assert first.native is not None
    assert '"channel":"analysis"' in first.native.payload


def test_mistral_hears_no_user_right_after_a_tool() -> None:
    said = AssistantMessage(content=(ToolCall(id="call_1", name="f", arguments="{}"),))
    asked = request("Go", said, results(result("call_1", "x")), "Wait", model="m")
    told: Any = OpenAIChat("mistral").body(asked)["messages"]
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "assistant", "user"]
    other: Any = OpenAIChat("openai").body(asked)["messages"]
    assert [message["role"] for message in other] == ["user", "assistant", "tool", "user"]


def test_files_go_as_each_kind_has_to() -> None:
    text = File(media_type="text/csv", name="a.csv", data=base64.b64encode("ä,1".encode()).decode())
    picture = File(media_type="image/png", data="AA==")
    there = File(media_type="image/jpeg", url="https://a.example/b.jpg")
    sound = File(media_type="audio/mpeg", data="AA==")
    message = UserMessage(content=(Text(text="See"), text, picture, there, sound, PDF))
    assert sent("openai", message)[0]["content"] == [
        {"type": "text", "text": "See"},
        {"type": "text", "text": '<file name="a.csv">\nä,1\n</file>'},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "https://a.example/b.jpg"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,UEQ="}},
    ]
    paper = UserMessage(content=(File(media_type="application/pdf", url="https://a.example/a.pdf"),))
    assert sent("mistral", paper)[0]["content"] == [{"type": "document_url", "document_url": "https://a.example/a.pdf"}]


def test_a_file_that_a_tool_answers_with_follows_in_a_message_of_its_own() -> None:
    said = AssistantMessage(content=(ToolCall(id="call_1", name="f", arguments="{}"),))
    picture = File(media_type="image/png", name="p.png", data="AA==")
    tool = results(result("call_1", "look").model_copy(update={"content": (Text(text="look"), picture)}))
    with FakeProvider("Nice") as fake:
        answer(chat(fake), request("Go", said, tool, model="m"))
        *_, told, follows = fake.requests[0].json["messages"]
    assert told == {"role": "tool", "tool_call_id": "call_1", "content": "look\n\n[p.png follows]"}
    assert follows["role"] == "user"
    assert follows["content"][0] == {"type": "text", "text": "p.png, of call call_1:"}
    assert follows["content"][1]["image_url"] == {"url": "data:image/png;base64,AA=="}


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "generic"])
def test_each_preset_is_a_provider_by_its_name(name: str) -> None:
    provider, model = provider_of(f"{name}:qwen2.5:14b")
    assert isinstance(provider, Provider)
    assert (provider.name, model) == (name, "qwen2.5:14b")
    assert isinstance(provider, OpenAIChat)
    assert provider.spoken is PRESETS[name]
