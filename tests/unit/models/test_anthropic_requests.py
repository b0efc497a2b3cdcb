"""What Anthropic is sent, as the server sees it."""

import base64
import json
import logging
import sys

import pytest

from pickaxe.errors import ConfigurationError
from pickaxe.models import (
    Anthropic,
    AssistantMessage,
    Failure,
    File,
    ModelRequest,
    NamedTool,
    OutputSchema,
    ProviderTool,
    ProviderToolCall,
    Refusal,
    RequestOptions,
    Stop,
    Text,
    Thinking,
    ToolCall,
    ToolDefinition,
    ToolResult,
    UserMessage,
)
from pickaxe.testing import FakeProvider, Reply
from tests.unit.models.asking import answer, failure, request, result, results, user

SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
SEARCH = ToolDefinition(name="search", description="Looks it up.", parameters=SCHEMA)
OLD = "claude-haiku-4-5"
ANCIENT = "claude-3-haiku-20240307"


def sent(asked: ModelRequest, **more: object) -> dict[str, object]:
    """The request's body, which is also what `body` says."""
    with FakeProvider("Hi") as fake:
        provider = Anthropic(api_key="key", base_url=fake.url, **more)
        answer(provider, asked)
        (received,) = fake.requests
        assert received.json == {**provider.body(asked), "stream": True}
        return received.json


def refused(asked: ModelRequest, **more: object) -> str:
    """Why nothing was sent."""
    with FakeProvider() as fake:
        record = failure(Anthropic(api_key="key", base_url=fake.url, **more), asked)
        assert not fake.requests
    assert record.failure is Failure.UNSUPPORTED
    return record.message


def options(**more: object) -> dict[str, RequestOptions]:
    return {"options": RequestOptions(**more)}


def test_a_plain_request_has_nothing_but_what_is_needed():
    assert sent(request("Hello?")) == {
        "model": "claude-sonnet-5-5",
        "max_tokens": 16384,
        "messages": [{"role": "user", "content": "Hello?"}],
        "stream": True,
    }


def test_the_key_and_headers_of_ones_own_are_sent():
    with FakeProvider("Hi") as fake:
        answer(Anthropic(api_key="key", base_url=fake.url, headers={"anthropic-beta": "x-1"}), request())
        headers = fake.requests[0].headers
    assert fake.requests[0].path == "/v1/messages"
    assert headers["authorization"] == "Bearer key"
    assert headers["anthropic-beta"] == "x-1"


def test_the_environment_says_where_and_with_which_key(monkeypatch: pytest.MonkeyPatch):
    with FakeProvider("Hi") as fake:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "from-there")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
        answer(Anthropic(), request())
        assert fake.requests[0].headers["authorization"] == "Bearer from-there"


def test_options_have_their_names_here():
    told = sent(
        request(
            system="Be kind.",
            tools=(SEARCH,),
            **options(max_tokens=99, stop=("END",), tool_choice="required", parallel_tool_calls=False, cache="1h"),
        )
    )
    assert (told["system"], told["max_tokens"], told["stop_sequences"]) == ("Be kind.", 99, ["END"])
    assert told["tools"] == [{"name": "search", "description": "Looks it up.", "input_schema": SCHEMA}]
    assert told["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert told["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


@pytest.mark.parametrize(
    ("choice", "parallel", "told"),
    [
        ("auto", None, {"type": "auto"}),
        ("none", True, {"type": "none"}),
        (NamedTool(name="search"), None, {"type": "tool", "name": "search"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (None, None, None),
    ],
)
def test_which_tool_is_to_be_called(choice: object, parallel: bool | None, told: object):
    asked = request(tools=(SEARCH,), **options(tool_choice=choice, parallel_tool_calls=parallel))
    assert sent(asked).get("tool_choice") == told


def test_without_tools_nothing_is_said_about_them_unless_one_must_be_called():
    assert "tool_choice" not in sent(request(**options(tool_choice="auto", parallel_tool_calls=False)))
    assert "without any tool" in refused(request(**options(tool_choice="required")))


def test_sampling_options_are_left_out_with_one_warning(caplog: pytest.LogCaptureFixture):
    asked = request(**options(temperature=0.5, top_p=0.9))
    with FakeProvider("Hi", "Hi") as fake, caplog.at_level(logging.WARNING, "pickaxe.models"):
        provider = Anthropic(api_key="key", base_url=fake.url)
        answer(provider, asked)
        answer(provider, asked)
        assert not {"temperature", "top_p"} & (fake.requests[0].json.keys() | fake.requests[1].json.keys())
    assert len(caplog.records) == 1


def test_fields_of_the_providers_own_win():
    told = sent(request(**options(max_tokens=5, extra={"max_tokens": 7, "service_tier": "auto"})))
    assert (told["max_tokens"], told["service_tier"]) == (7, "auto")


@pytest.mark.parametrize(
    ("effort", "thinking", "level"),
    [
        ("none", "disabled", None),
        ("minimal", "adaptive", "low"),
        ("high", "adaptive", "high"),
        ("max", "adaptive", "max"),
    ],
)
def test_effort_is_told_to_models_that_judge_for_themselves(effort: str, thinking: str, level: str | None):
    told = sent(request(**options(effort=effort)))
    assert told["thinking"] == {"type": thinking}
    assert told.get("output_config") == ({"effort": level} if level else None)
    assert told["max_tokens"] == 16384


def test_effort_is_a_budget_for_older_models_and_the_answer_may_be_as_long_as_before():
    told = sent(request(model=OLD, **options(effort="medium")))
    assert told["thinking"] == {"type": "enabled", "budget_tokens": 8192}
    assert told["max_tokens"] == 16384 + 8192
    assert "output_config" not in told


def test_a_budget_that_leaves_nothing_for_the_answer_is_refused():
    assert "max_tokens=4096" in refused(request(model=OLD, **options(effort="high", max_tokens=4096)))


def test_an_older_model_that_thinks_cannot_be_made_to_call():
    asked = request(model=OLD, tools=(SEARCH,), **options(effort="low", tool_choice="required"))
    assert "cannot be made to call a tool while it thinks" in refused(asked)


def test_what_does_not_think_is_not_asked_to():
    assert "does not think" in refused(request(model=ANCIENT, **options(effort="low")))
    assert "thinking" not in Anthropic(api_key="key").body(request(model=ANCIENT, **options(effort="none")))


def test_an_output_schema_is_sent_as_the_provider_enforces_it():
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
    told = sent(request(output=OutputSchema(name="N", json_schema=schema), **options(effort="low")))
    assert told["output_config"] == {
        "effort": "low",
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {"n": {"type": "integer", "description": "{minimum: 1}"}},
                "additionalProperties": False,
                "required": ["n"],
            },
        },
    }
    assert schema["properties"]["n"] == {"type": "integer", "minimum": 1}


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "/"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object"}}}},
            "/properties/a/items",
        ),
        ({"anyOf": [{"type": "null"}, {"type": "object", "additionalProperties": True}]}, "/anyOf/1"),
        ({"type": "object", "properties": {"a": {}}}, "cannot enforce"),
    ],
)
def test_a_schema_that_the_provider_would_read_otherwise_is_refused(schema: dict[str, object], where: str):
    assert where in refused(request(output=OutputSchema(name="N", json_schema=schema)))
    assert where in refused(request(tools=(ToolDefinition(name="t", parameters=schema, strict=True),)))


def test_a_model_that_cannot_be_held_to_a_schema_is_not_asked_to():
    assert "cannot be held to" in refused(request(model=ANCIENT, output=OutputSchema(name="N", json_schema=SCHEMA)))


def test_a_strict_tool_is_enforced_and_any_other_schema_is_sent_as_it_is():
    free = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}}
    strict, loose = sent(
        request(
            tools=(
                SEARCH.model_copy(update={"strict": True}),
                ToolDefinition(name="free", parameters=free, strict=False),
            )
        )
    )["tools"]
    assert strict["strict"] is True
    assert strict["input_schema"]["additionalProperties"] is False
    assert loose == {"name": "free", "input_schema": free}


@pytest.mark.parametrize(
    ("tool", "told"),
    [
        (ProviderTool(name="web_search", config={"max_uses": 2}),
         {"type": "web_search_20260318", "name": "web_search", "max_uses": 2}),
        (ProviderTool(name="web_fetch"), {"type": "web_fetch_20260318", "name": "web_fetch"}),
        (ProviderTool(name="code_execution"), {"type": "code_execution_20260521", "name": "code_execution"}),
        (ProviderTool(name="web_search_20250305"), {"type": "web_search_20250305", "name": "web_search"}),
        (ProviderTool(name="text_editor_20250728"),
         {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}),
        (ProviderTool(name="computer_toolset_20260801"), {"type": "computer_toolset_20260801"}),
    ],
)  # fmt: skip
def test_provider_tools_go_by_portable_names_or_by_their_own_types(tool: ProviderTool, told: dict[str, object]):
    assert sent(request(provider_tools=(tool,)))["tools"] == [told]


def test_what_a_portable_name_means_can_be_changed():
    asked = request(provider_tools=(ProviderTool(name="web_search"),))
    tools = sent(asked, provider_tools={"web_search": "web_search_20250305"})["tools"]
    assert tools == [{"type": "web_search_20250305", "name": "web_search"}]


def test_a_provider_tool_that_there_is_not_is_refused_with_those_that_there_are():
    message = refused(request(provider_tools=(ProviderTool(name="image_generation"),)))
    assert "'image_generation'" in message
    assert "code_execution, tool_search, web_fetch, web_search" in message


def test_files_become_the_blocks_of_their_kind():
    text = base64.b64encode("naïve".encode()).decode()
    files = (
        File(media_type="image/png", data="aGk="),
        File(media_type="image/jpeg", url="https://a/b.jpg"),
        File(media_type="application/pdf", data="aGk=", name="a.pdf"),
        File(media_type="text/csv", data=text, name="a.csv"),
    )
    (message,) = sent(request(UserMessage(content=(Text(text="See:"), *files))))["messages"]
    assert message["content"] == [
        {"type": "text", "text": "See:"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "image", "source": {"type": "url", "url": "https://a/b.jpg"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
         "title": "a.pdf"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "naïve"}, "title": "a.csv"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (File(media_type="image/png", ref="s3://a"), "has to be resolved"),
        (File(media_type="audio/wav", data="aGk=", name="a.wav"), "a.wav (audio/wav)"),
        (File(media_type="text/plain", url="https://a"), "text with its data"),
        (File(media_type="text/plain", data="%%%"), "not text"),
        (File(media_type="text/plain", data="/w=="), "not text"),
    ],
)
def test_a_file_that_cannot_be_sent_is_refused(file: File, why: str):
    assert why in refused(request(UserMessage(content=(file,))))


CALLS = AssistantMessage(
    content=(
        Thinking(text="secret"),
        Text(text="Let me look."),
        ProviderToolCall(id="p", name="web_search", arguments='{"query":"a"}', result=["A"]),
        ToolCall(id="call:1", name="search", arguments='{"q":"a"}'),
        ToolCall(id="call_2", name="search", arguments='{"q":'),
        Refusal(text="No more."),
        Refusal(),
    )
)


def test_what_another_providers_model_said_is_told_without_its_thinking():
    told = sent(request("Look.", CALLS, results(result("call:1", "hit"), result("call_2", "bad JSON", error=True))))
    assert told["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me look."},
                {"type": "text", "text": '[web_search {"query":"a"} returned: ["A"]]'},
                {"type": "tool_use", "id": "call_1", "name": "search", "input": {"q": "a"}},
                {"type": "tool_use", "id": "call_2", "name": "search", "input": {"arguments": '{"q":'}},
                {"type": "text", "text": "No more."},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "hit"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": "bad JSON", "is_error": True},
            ],
        },
    ]


def test_what_is_empty_is_not_sent_for_the_api_refuses_it():
    nothing = ToolCall(id="toolu_1", name="search", arguments="{}")
    told = sent(
        request(
            "Look.",
            AssistantMessage(content=()),
            UserMessage(content=(Text(text=""), Text(text="Now."))),
            AssistantMessage(content=(Text(text=""), nothing)),
            results(ToolResult(call="toolu_1", content=())),
        )
    )
    assert told["messages"][1:] == [
        {"role": "user", "content": [{"type": "text", "text": "Now."}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "search", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1"}]},
    ]


def test_half_a_character_is_replaced_for_it_could_not_be_sent():
    assert sent(request("a\ud83db \U0001f600"))["messages"][0]["content"] == "a\ufffdb \U0001f600"


def test_what_json_lacks_cannot_be_sent_and_is_not_tried_again():
    tool = ToolDefinition(name="t", parameters={"type": "object", "default": float("nan")})
    with FakeProvider("Hi") as fake:
        record = failure(Anthropic(api_key="key", base_url=fake.url), request(tools=(tool,)))
        assert not fake.requests
    assert record.failure is Failure.BAD_REQUEST


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with FakeProvider() as fake, pytest.raises(ConfigurationError, match=r"pip install 'pickaxe\[anthropic\]'"):
        answer(Anthropic(api_key="key", base_url=fake.url), request())


def test_after_a_pause_the_same_answer_goes_back_and_the_model_goes_on():
    paused = ProviderToolCall(id="srvtoolu_1", name="web_search", arguments='{"query":"a"}')
    with FakeProvider(Reply(["Looking.", paused], stop=Stop.PAUSE), "Found.") as fake:
        provider = Anthropic(api_key="key", base_url=fake.url)
        first = answer(provider, request())
        assert first.stop is Stop.PAUSE
        answer(provider, request(user("Hello?"), first.message))
        assert fake.requests[1].json["messages"][1] == json.loads(first.message.native.payload)
