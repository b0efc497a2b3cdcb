"""OpenAI's Responses, through the real SDK: what is asked, what comes back, and how that goes back again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pickaxe.models import (
    AssistantMessage,
    Citation,
    Cited,
    Failure,
    File,
    Finished,
    ModelError,
    NamedTool,
    Native,
    OpenAIResponses,
    OutputSchema,
    ProviderTool,
    ProviderToolCall,
    ProviderToolEnded,
    ProviderToolStarted,
    Refusal,
    RefusalDelta,
    RequestOptions,
    Stop,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolArgumentsDelta,
    ToolCall,
    ToolCallStarted,
    ToolDefinition,
    Usage,
    UserMessage,
    provider_of,
)
from pickaxe.testing.providers import ErrorReply, FakeProvider, RawReply, Reply, _responses
from tests.unit.models.asking import answer, converse, events_of, failure, request, result, results, stream, user

TOOL = ToolDefinition(name="f", description="does it", parameters={"type": "object", "properties": {}})


def responses(fake: FakeProvider, **more: Any) -> OpenAIResponses:
    return OpenAIResponses(api_key="key", base_url=f"{fake.url}/v1", **more)


def frames(*events: dict[str, Any]) -> bytes:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def wire(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def test_reasoning_text_and_calls_come_piece_by_piece_and_the_whole_at_the_end() -> None:
    call = ToolCall(id="call_1", name="f", arguments='{"a": 1}')
    with FakeProvider(Reply([Thinking(text="I think"), "Hello", call], chunk=5)) as fake:
        *pieces, last = stream(responses(fake), request(model="gpt-5"))
        assert fake.requests[0].path == "/v1/responses"
    assert pieces == [
        ThinkingDelta(part=0, text="I thi"),
        ThinkingDelta(part=0, text="nk"),
        TextDelta(part=1, text="Hello"),
        ToolCallStarted(part=2, id="call_1", name="f"),
        ToolArgumentsDelta(part=2, text='{"a":'),
        ToolArgumentsDelta(part=2, text=" 1}"),
    ]
    assert isinstance(last, Finished)
    response = last.response
    assert response.message.content == (Thinking(text="I think"), Text(text="Hello"), call)
    assert (response.stop, response.calls) == (Stop.TOOL_CALLS, (call,))
    assert (response.id, response.model, response.provider) == ("resp_1", "gpt-5", "openai")
    assert response.request_id == "req_1"
    assert response.first_token is not None
    assert response.first_token <= response.latency


def test_every_item_goes_back_byte_for_byte_and_in_its_place() -> None:
    items = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "z": [1.5], "encrypted_content": _responses.encrypted("")},
        {"id": "fc_1", "type": "function_call", "arguments": '{ "b":1.0,"a":"ü"}', "call_id": "call_1", "name": "f"},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": _responses.encrypted("")},
        {"id": "fc_2", "type": "function_call", "arguments": "{}", "call_id": "call_2", "name": "f", "status": "x"},
        {"id": "x_1", "type": "something_new", "b": {"z": None, "a": "\u0000"}},
    ]  # fmt: skip
    outputs = results(result("call_1", "one"), result("call_2", "broken", error=True))
    with FakeProvider(Reply(items), "Done", "Done") as fake:
        first, second, _ = converse(responses(fake), request("Go", model="gpt-5"), [outputs], [user("And?")])
        sent = [one.body for one in fake.requests]
        assert fake.requests[1].json["input"] == [
            {"role": "user", "content": "Go"},
            *items,
            {"type": "function_call_output", "call_id": "call_1", "output": "one"},
            {"type": "function_call_output", "call_id": "call_2", "output": "Error: broken"},
        ]
    assert [part.id for part in first.content if isinstance(part, ToolCall)] == ["call_1", "call_2"]
    assert second.content == (Text(text="Done"),)
    own = wire(items)[1:-1]
    assert own in sent[1]
    assert sent[1][: sent[1].index(own) + len(own)] == sent[2][: sent[2].index(own) + len(own)]


def test_nothing_is_stored_there_and_reasoning_is_asked_for_encrypted() -> None:
    body = OpenAIResponses().body(request("Hi", model="gpt-5", system="Be brief"))
    assert body == {
        "model": "gpt-5", "input": [{"role": "user", "content": "Hi"}], "stream": True, "store": False,
        "instructions": "Be brief", "include": ["reasoning.encrypted_content"],
    }  # fmt: skip


def test_a_model_that_does_not_reason_is_not_asked_to(caplog: pytest.LogCaptureFixture) -> None:
    provider = OpenAIResponses()
    for _ in range(2):
        body = provider.body(request(model="gpt-4.1-mini", options=RequestOptions(effort="low")))
        assert not {"include", "reasoning"} & body.keys()
    assert caplog.messages == ["openai takes no effort for gpt-4.1-mini: it is left out"]


def test_reasoning_that_did_not_come_encrypted_is_left_out_with_the_ids_that_would_ask_for_it() -> None:
    items = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"id": "fc_1", "type": "function_call", "arguments": "{}", "call_id": "call_1", "name": "f"},
    ]
    with FakeProvider(Reply(items), "Done") as fake:
        converse(responses(fake), request("Go", model="gpt-5"), [results(result("call_1", "ok"))])
        sent = fake.requests[1].json["input"]
    assert sent[1] == {"type": "function_call", "arguments": "{}", "call_id": "call_1", "name": "f"}
    assert [item.get("type") for item in sent] == [None, "function_call", "function_call_output"]


def test_reasoning_that_was_cut_off_before_anything_came_of_it_is_left_out() -> None:
    with FakeProvider(Reply(Thinking(text="Hm"), stop=Stop.MAX_TOKENS), "Done") as fake:
        first, second = converse(responses(fake), request("Go", model="gpt-5"), [user("Go on")])
        assert fake.requests[1].json["input"] == [{"role": "user", "content": text} for text in ("Go", "Go on")]
    assert first.content == (Thinking(text="Hm"),)
    assert second.content == (Text(text="Done"),)


@pytest.mark.parametrize(("status", "kind"), [("complete", Stop.END), ("incomplete", Stop.MAX_TOKENS)])
def test_a_gateway_may_have_a_word_of_its_own_for_the_end(status: str, kind: Stop) -> None:
    whole = json.loads(_responses.whole(Reply("Hi", id="1"), {"model": "gpt-5"})) | {"status": status}
    with FakeProvider(RawReply(wire(whole), content_type="application/json")) as fake:
        assert answer(responses(fake), request(model="gpt-5")).stop is kind


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_a_response_that_is_still_being_made_is_no_answer(status: str) -> None:
    with FakeProvider(RawReply(wire(FAILED | {"status": status}), content_type="application/json")) as fake:
        assert failure(responses(fake), request(model="gpt-5")).failure is Failure.TRUNCATED


def test_the_fake_provider_refuses_what_the_real_one_does() -> None:
    lost = Native(
        dialect="openai-responses", payload='[{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}]'
    )
    with FakeProvider("Hi") as fake:
        record = failure(
            responses(fake), request("Go", AssistantMessage(content=(), native=lost), "And?", model="gpt-5")
        )
    assert (record.failure, record.message) == (Failure.BAD_REQUEST, "No tool output found for function call c.")


def test_every_option_is_asked_in_its_words() -> None:
    options = RequestOptions(
        max_tokens=100, temperature=0.5, top_p=0.9, effort="max", tool_choice=NamedTool(name="f"),
        parallel_tool_calls=False, extra={"service_tier": "flex"},
    )  # fmt: skip
    schema = OutputSchema(name="x", json_schema={"type": "object"}, strict=False)
    with FakeProvider('{"n":3}') as fake:
        asked = request("Hi", model="gpt-5", tools=(TOOL,), output=schema, options=options)
        said = answer(responses(fake), asked)
        body = fake.requests[0].json
    assert said.message.content == (Text(text='{"n":3}'),)
    told = {"name": "f", "description": "does it", "parameters": TOOL.parameters, "strict": False}
    assert body | {
        "max_output_tokens": 100, "temperature": 0.5, "top_p": 0.9, "reasoning": {"effort": "xhigh"},
        "tools": [{"type": "function", **told}], "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False, "service_tier": "flex",
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": False}},
    } == body  # fmt: skip


def test_openais_own_tools_have_portable_names_and_tell_what_they_did() -> None:
    source = Citation(url="https://a.example/", title="A", start=0, end=5)
    found = [{"type": "url", "url": "https://a.example/"}]
    search = ProviderToolCall(
        id="ws_1", name="web_search", arguments='{"type": "search", "query": "rust"}', result=found
    )
    outputs = [{"type": "logs", "logs": "3"}]
    code = ProviderToolCall(id="ci_1", name="code_execution", arguments='{"code": "1+2"}', result=outputs)
    text = Text(text="Rust.", citations=(source,))
    tools = (
        ProviderTool(name="web_search", config={"search_context_size": "low"}),
        ProviderTool(name="code_execution"),
    )
    with FakeProvider(Reply([search, code, text]), "Done") as fake:
        provider = responses(fake)
        *pieces, last = stream(provider, request("Go", model="gpt-5", provider_tools=tools))
        assert isinstance(last, Finished)
        assert fake.requests[0].json["tools"] == [
            {"type": "web_search", "search_context_size": "low"},
            {"type": "code_interpreter", "container": {"type": "auto"}},
        ]
        assert fake.requests[0].json["include"] == [
            "reasoning.encrypted_content", "web_search_call.action.sources", "code_interpreter_call.outputs",
        ]  # fmt: skip
        said = last.response.message
        answer(provider, request("Go", said, "And?", model="gpt-5"))
        assert said.native is not None
        assert said.native.payload.encode()[1:-1] in fake.requests[1].body
    assert pieces == [
        ProviderToolStarted(part=0, id="ws_1", name="web_search"),
        ProviderToolEnded(part=0, id="ws_1"),
        ProviderToolStarted(part=1, id="ci_1", name="code_execution"),
        ProviderToolEnded(part=1, id="ci_1"),
        TextDelta(part=2, text="Rust."),
        Cited(part=2, citation=source),
    ]
    assert said.content == (search, code, text)
    assert (last.response.stop, last.response.usage.web_searches) == (Stop.END, 1)


def test_a_tool_of_openais_that_failed_says_so() -> None:
    with FakeProvider(Reply([ProviderToolCall(id="ws_1", name="web_search", error="failed"), "Sorry"])) as fake:
        *pieces, last = stream(responses(fake), request(model="gpt-5"))
    assert ProviderToolEnded(part=0, id="ws_1", error="failed") in pieces
    assert isinstance(last, Finished)
    first = last.response.message.content[0]
    assert isinstance(first, ProviderToolCall)
    assert first.error == "failed"


def test_a_picture_that_the_model_makes_is_a_file() -> None:
    picture = File(media_type="image/webp", data="AA==")
    with FakeProvider(Reply([picture, "There"])) as fake:
        said = answer(responses(fake), request(model="gpt-5", provider_tools=(ProviderTool(name="image_generation"),)))
    assert said.message.content == (picture, Text(text="There"))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"provider_tools": (ProviderTool(name="web_fetch"),)}, "'web_fetch'"),
        ({"provider_tools": (ProviderTool(name="computer"),)}, "'computer'"),
        ({"options": RequestOptions(stop=("END",))}, "stop sequences"),
        ({"messages": (UserMessage(content=(File(media_type="audio/wav", data="AA=="),)),)}, "audio/wav"),
        ({"messages": (UserMessage(content=(File(media_type="image/png", ref="x"),)),)}, "ref"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_and_nothing_is_sent(asked: dict[str, Any], told: str) -> None:
    with FakeProvider() as fake:
        record = failure(responses(fake), request(model="gpt-5").model_copy(update=asked))
        assert fake.requests == []
    assert record.failure is Failure.UNSUPPORTED
    assert told in record.message


def test_a_type_of_openais_own_is_taken_as_it_is() -> None:
    body = OpenAIResponses().body(request(model="gpt-5", provider_tools=(ProviderTool(name="web_search_2025_08_26"),)))
    assert body["tools"] == [{"type": "web_search_2025_08_26"}]


def test_half_a_character_spoils_no_answer() -> None:
    half = "A\ud83e"
    source = {"type": "url_citation", "url": "https://a.example/", "title": half}
    text = {"type": "output_text", "text": half, "annotations": [source]}
    items = [
        {"type": "web_search_call", "id": "ws_1", "action": {"query": half, "sources": [half]}},
        {"type": "reasoning", "id": "rs_1", "summary": [{"text": half}], "encrypted_content": "x"},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [text]},
    ]
    events = [{"type": "response.output_item.done", "output_index": n, "item": item} for n, item in enumerate(items)]
    body = frames(*events, {"type": "response.completed", "response": {"id": "resp_1"}})
    with FakeProvider(RawReply(body), "Done", strict=False) as fake:
        first, _ = converse(responses(fake), request("Go", model="gpt-5"), [user("And?")])
    assert first.content == (
        ProviderToolCall(id="ws_1", name="web_search", arguments='{"query": "A\ufffd"}', result=["A\ufffd"]),
        Thinking(text="A\ufffd"),
        Text(text="A\ufffd", citations=(Citation(url="https://a.example/", title="A\ufffd"),)),
    )


def test_a_refusal_is_no_text() -> None:
    with FakeProvider(Reply(Refusal(text="I will not"))) as fake:
        *pieces, last = stream(responses(fake), request(model="gpt-5"))
    assert pieces == [RefusalDelta(part=0, text="I will n"), RefusalDelta(part=0, text="ot")]
    assert isinstance(last, Finished)
    assert (last.response.stop, last.response.message.content) == (Stop.REFUSAL, (Refusal(text="I will not"),))


@pytest.mark.parametrize("stop", [Stop.MAX_TOKENS, Stop.CONTENT_FILTER])
@pytest.mark.parametrize("arguments", ['{"a":1,"b":[1,2', '{"a":1}'])
def test_a_call_of_an_answer_that_is_incomplete_is_not_to_be_run(arguments: str, stop: Stop) -> None:
    call = ToolCall(id="call_1", name="f", arguments=arguments)
    with FakeProvider(Reply(["Hm", call], stop=stop)) as fake:
        said = answer(responses(fake), request(model="gpt-5"))
    assert (said.stop, said.calls) == (stop, ())
    assert said.message.content == (Text(text="Hm"), call)


def test_usage_is_counted_as_everywhere() -> None:
    used = Usage(input=100, cache_read=80, cache_write=10, output=20, reasoning=12)
    with FakeProvider(Reply("Hi", usage=used)) as fake:
        told = answer(responses(fake), request(model="gpt-5")).usage
    assert told.model_copy(update={"raw": {}}) == used
    assert told.raw["total_tokens"] == 120


def test_what_another_provider_said_goes_in_its_portable_parts() -> None:
    own = "toolu_" + "x" * 70
    elsewhere = AssistantMessage(
        content=(Thinking(text="secret"), Text(text="I look."), ToolCall(id=own, name="f", arguments='{"a": 1}')),
        native=Native(dialect="openai-chat:openai", payload='{"role":"assistant","content":"I look."}'),
    )
    with FakeProvider("Done") as fake:
        answer(responses(fake), request("Go", elsewhere, results(result(own, "one")), model="gpt-5"))
        _, said, call, output = fake.requests[0].json["input"]
    assert said == {"role": "assistant", "content": "I look."}
    assert call == {"type": "function_call", "call_id": output["call_id"], "name": "f", "arguments": '{"a": 1}'}
    assert len(call["call_id"]) <= 64


def test_files_go_as_each_kind_has_to() -> None:
    pdf = File(media_type="application/pdf", name="a.pdf", data="UEQ=")
    there = File(media_type="application/pdf", url="https://a.example/a.pdf")
    picture = File(media_type="image/png", data="AA==")
    text = File(media_type="text/plain", name="a.txt", data="SGk=")
    call = AssistantMessage(content=(ToolCall(id="c", name="f", arguments="{}"),))
    tool = results(result("c", "").model_copy(update={"content": (picture,), "error": True}))
    asked = request(UserMessage(content=(Text(text="See"), pdf, there, picture, text)), call, tool, model="gpt-5")
    told: Any = OpenAIResponses().body(asked)["input"]
    shown = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    assert told[0]["content"] == [
        {"type": "input_text", "text": "See"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,UEQ="},
        {"type": "input_file", "file_url": "https://a.example/a.pdf"},
        shown,
        {"type": "input_text", "text": '<file name="a.txt">\nHi\n</file>'},
    ]
    assert told[2]["output"] == [{"type": "input_text", "text": "Error:"}, shown]


@pytest.mark.parametrize("streamed", [True, False])
def test_what_came_without_pieces_is_told_at_the_end(streamed: bool) -> None:
    parts = [Thinking(text="Hm"), Text(text="Hi"), ToolCall(id="call_1", name="f", arguments='{"a":1}')]
    whole = json.loads(_responses.whole(Reply(parts, id="1"), {"model": "gpt-5"}))
    body = frames({"type": "response.completed", "response": whole}) if streamed else wire(whole)
    kind = "text/event-stream" if streamed else "application/json"
    with FakeProvider(RawReply(body, content_type=kind)) as fake:
        *pieces, last = stream(responses(fake), request(model="gpt-5"))
    assert isinstance(last, Finished)
    assert last.response.message.content == tuple(parts)
    assert pieces == [
        ThinkingDelta(part=0, text="Hm"),
        TextDelta(part=1, text="Hi"),
        ToolCallStarted(part=2, id="call_1", name="f"),
        ToolArgumentsDelta(part=2, text='{"a":1}'),
    ]


def test_parts_of_a_summary_are_paragraphs() -> None:
    summary = [{"type": "summary_text", "text": "One"}, {"type": "summary_text", "text": "Two"}]
    item = {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": "x"}
    with FakeProvider(Reply([item, "Hi"])) as fake:
        *pieces, last = stream(responses(fake), request(model="gpt-5"))
    assert isinstance(last, Finished)
    assert last.response.message.content[0] == Thinking(text="One\n\nTwo")
    assert "".join(piece.text for piece in pieces if isinstance(piece, ThinkingDelta)) == "One\n\nTwo"


def test_events_that_nobody_here_knows_mean_nothing() -> None:
    new = frames({"type": "response.dreaming", "item_id": "x"}, {"type": "keepalive"})
    body = new + b"".join(_responses.stream(Reply("Hi", id="1"), {"model": "gpt-5"}))
    with FakeProvider(RawReply(body)) as fake:
        assert answer(responses(fake), request(model="gpt-5")).message.content == (Text(text="Hi"),)


@pytest.fixture(scope="module")
def connected() -> Iterator[tuple[FakeProvider, OpenAIResponses, asyncio.Runner]]:
    with FakeProvider() as fake, asyncio.Runner() as runner:
        provider = responses(fake)
        yield fake, provider, runner
        runner.run(provider.close())


@settings(max_examples=60, deadline=None)
@given(
    said=st.lists(
        st.one_of(
            st.builds(Text, text=st.text(min_size=1, max_size=30)),
            st.builds(Thinking, text=st.text(min_size=1, max_size=30)),
        ),
        min_size=1,
        max_size=4,
    ),
    arguments=st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=3),
    chunk=st.integers(1, 9),
)
def test_whatever_is_said_in_whatever_pieces_comes_out_whole(
    connected: tuple[FakeProvider, OpenAIResponses, asyncio.Runner],
    said: list[Text | Thinking],
    arguments: dict[str, Any],
    chunk: int,
) -> None:
    fake, provider, runner = connected
    parts = [*said, ToolCall(id="call_1", name="f", arguments=json.dumps(arguments))]
    fake.add(Reply(parts, chunk=chunk))
    *pieces, last = runner.run(events_of(provider, request(model="gpt-5")))
    assert isinstance(last, Finished)
    assert last.response.message.content == tuple(parts)
    for number, part in enumerate(said):
        shown = [piece.text for piece in pieces if not isinstance(piece, ToolCallStarted) and piece.part == number]
        assert "".join(shown) == part.text


# Failures

FAILED = {"id": "resp_1", "object": "response", "status": "failed", "output": []}


@pytest.mark.parametrize(
    ("event", "kind", "code"),
    [
        ({"type": "error", "code": "server_error", "message": "it broke"}, Failure.SERVER, "server_error"),
        ({"type": "error", "code": None, "message": "it broke"}, Failure.SERVER, "error"),
        ({"type": "error", "error": {"type": "tokens", "code": "rate_limit_exceeded", "message": "it broke"}},
         Failure.RATE_LIMITED, "rate_limit_exceeded"),
        ({"type": "error", "error": {"type": "insufficient_quota", "message": "it broke"}}, Failure.QUOTA,
         "insufficient_quota"),
        ({"type": "response.failed", "response": FAILED | {"error": {"code": "server_error", "message": "it broke"}}},
         Failure.SERVER, "server_error"),
        ({"type": "response.failed",
          "response": FAILED | {"error": {"code": "rate_limit_exceeded", "message": "it broke"}}},
         Failure.RATE_LIMITED, "rate_limit_exceeded"),
        ({"type": "response.failed",
          "response": FAILED | {"error": {"code": "context_length_exceeded", "message": "it broke"}}},
         Failure.TOO_LARGE, "context_length_exceeded"),
    ],
)  # fmt: skip
def test_an_error_within_a_stream_is_no_answer(event: dict[str, Any], kind: Failure, code: str) -> None:
    first, *_ = _responses.stream(Reply("Hi", id="1"), {"model": "gpt-5"})
    with FakeProvider(RawReply(first + frames(event))) as fake:
        record = failure(responses(fake), request(model="gpt-5"))
    assert (record.failure, record.code, record.message) == (kind, code, "it broke")
    assert record.request_id == "req_1"


def test_a_whole_response_that_failed_is_no_answer() -> None:
    body = FAILED | {"error": {"code": "server_error", "message": "it broke"}}
    with FakeProvider(RawReply(wire(body), content_type="application/json")) as fake:
        assert failure(responses(fake), request(model="gpt-5")).failure is Failure.SERVER


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, None, Failure.BAD_REQUEST), (401, None, Failure.AUTHENTICATION), (403, None, Failure.PERMISSION),
        (404, None, Failure.NOT_FOUND), (413, None, Failure.TOO_LARGE), (429, None, Failure.RATE_LIMITED),
        (429, "insufficient_quota", Failure.QUOTA), (400, "context_length_exceeded", Failure.TOO_LARGE),
        (500, None, Failure.SERVER), (503, None, Failure.OVERLOADED), (529, "overloaded", Failure.OVERLOADED),
    ],
)  # fmt: skip
def test_an_error_is_told_by_its_code_and_else_by_its_status(status: int, kind: str | None, expected: Failure) -> None:
    with FakeProvider(ErrorReply(status, kind=kind, retry_after=3)) as fake:
        record = failure(responses(fake), request(model="gpt-5"))
        assert len(fake.requests) == 1
    assert (record.failure, record.status, record.retry_after) == (expected, status, 3.0)


@pytest.mark.parametrize("clean", [True, False], ids=["ended", "dropped"])
def test_a_stream_that_is_cut_after_any_byte_is_no_answer(clean: bool) -> None:
    reply = Reply(ToolCall(id="call_1", name="f", arguments='{"é":1}'), id="1")
    size = len(b"".join(_responses.stream(reply, {"model": "m", "store": False})))

    async def cut_everywhere(provider: OpenAIResponses, fake: FakeProvider) -> None:
        for cut in range(0, size, 1 if clean else 17):
            fake.add(Reply(reply.parts, id="1", cut=cut, clean=clean, headers={"connection": "close"}))
            with pytest.raises(ModelError) as raised:
                await events_of(provider, request(model="m"))
            assert raised.value.record.failure is Failure.TRUNCATED, f"cut after {cut} bytes"
        await provider.close()

    with FakeProvider() as fake:
        asyncio.run(cut_everywhere(responses(fake), fake))


@pytest.mark.parametrize(
    "body",
    [
        b"data: {not json}\n\n", b"data: 3\n\n", frames({"type": "response.output_text.delta", "delta": 3}),
        frames({"type": "response.output_item.done", "output_index": 0, "item": {}}),
        frames({"type": "response.completed", "response": {"output": [], "usage": {"input_tokens": "x"}}}),
    ],
)  # fmt: skip
def test_what_the_protocol_does_not_have_is_malformed(body: bytes) -> None:
    with FakeProvider(RawReply(body)) as fake:
        assert failure(responses(fake), request(model="gpt-5")).failure is Failure.MALFORMED


def test_silence_ends_a_call() -> None:
    with FakeProvider(Reply("Hello there", stall=900)) as fake:
        assert failure(responses(fake, timeout=0.3), request(model="gpt-5")).failure is Failure.TIMEOUT


def test_cancelling_whoever_waits_ends_the_request() -> None:
    async def cancel(provider: OpenAIResponses, fake: FakeProvider) -> None:
        task = asyncio.create_task(events_of(provider, request(model="gpt-5")))
        await asyncio.to_thread(fake.wait, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with FakeProvider(Reply("Hello there", stall=900)) as fake:
        asyncio.run(cancel(responses(fake), fake))
        assert fake.requests[0].gone.wait(30)


def test_it_is_a_provider_by_its_name() -> None:
    provider, model = provider_of("openai-responses:gpt-5")
    assert isinstance(provider, OpenAIResponses)
    assert (provider.name, model) == ("openai", "gpt-5")
