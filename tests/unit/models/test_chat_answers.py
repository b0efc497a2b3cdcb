"""What comes back in the Chat dialect, and how it goes back again, through the real SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pickaxe.models import (
    Citation,
    Cited,
    Finished,
    OpenAIChat,
    OutputSchema,
    ProviderToolCall,
    ProviderToolEnded,
    ProviderToolStarted,
    Refusal,
    RefusalDelta,
    Stop,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolArgumentsDelta,
    ToolCall,
    ToolCallStarted,
    Usage,
)
from pickaxe.testing.providers import FakeProvider, RawReply, Reply
from tests.unit.models.asking import answer, converse, events_of, request, result, results, stream, user
from tests.unit.models.chatting import USAGE, call, chat, frames, streamed


def told(provider: OpenAIChat, fake: FakeProvider, **more: Any) -> Any:
    return answer(provider, request("Hello?", model="m", **more))


def test_text_and_reasoning_come_piece_by_piece_and_the_whole_at_the_end() -> None:
    with FakeProvider(Reply([Thinking(text="I think"), "Hello there"], chunk=4)) as fake:
        *pieces, last = stream(chat(fake), request("Hello?", model="m"))
    assert pieces == [
        ThinkingDelta(part=0, text="I th"),
        ThinkingDelta(part=0, text="ink"),
        TextDelta(part=1, text="Hell"),
        TextDelta(part=1, text="o th"),
        TextDelta(part=1, text="ere"),
    ]
    assert isinstance(last, Finished)
    response = last.response
    assert response.message.content == (Thinking(text="I think"), Text(text="Hello there"))
    assert (response.stop, response.model, response.provider) == (Stop.END, "m", "openai")
    assert (response.id, response.request_id) == ("chatcmpl-1", "req_1")
    assert response.first_token is not None
    assert 0 < response.first_token <= response.latency


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_has_either_name_and_goes_back_under_its_own(field: str) -> None:
    call_ = call(0, "call_1", "look", "{}")
    with FakeProvider(streamed({"role": "assistant", field: "So "}, {field: "be it"}, call_), "Done") as fake:
        first, _ = converse(chat(fake, "vllm"), request("Go", model="m"), [results(result("call_1", "seen"))])
    assert first.content[0] == Thinking(text="So be it")
    assert fake.requests[1].json["messages"][1] == {
        "role": "assistant",
        field: "So be it",
        "tool_calls": [{"id": "call_1", "function": {"name": "look", "arguments": "{}"}}],
    }


def test_pieces_of_parallel_calls_are_told_apart_by_their_index() -> None:
    interleaved = streamed(
        call(0, "call_a", "first", ""),
        call(1, "call_b", "second", ""),
        call(1, arguments='{"b":'),
        call(0, arguments='{"a":'),
        call(0, arguments="1}"),
        call(1, arguments="2}"),
        finish="tool_calls",
    )
    with FakeProvider(interleaved) as fake:
        *pieces, last = stream(chat(fake), request(model="m"))
    assert isinstance(last, Finished)
    assert last.response.calls == (
        ToolCall(id="call_a", name="first", arguments='{"a":1}'),
        ToolCall(id="call_b", name="second", arguments='{"b":2}'),
    )
    assert pieces == [
        ToolCallStarted(part=0, id="call_a", name="first"),
        ToolCallStarted(part=1, id="call_b", name="second"),
        ToolArgumentsDelta(part=1, text='{"b":'),
        ToolArgumentsDelta(part=0, text='{"a":'),
        ToolArgumentsDelta(part=0, text="1}"),
        ToolArgumentsDelta(part=1, text="2}"),
    ]


def test_a_call_is_shown_once_its_late_name_and_id_are_known() -> None:
    late = streamed(
        call(0, arguments='{"a"'),
        call(0, name="first"),
        call(0, own="call_a", arguments=":1"),
        call(0, own="call_a", name="first", arguments="}"),
        finish="tool_calls",
    )
    with FakeProvider(late) as fake:
        *pieces, last = stream(chat(fake), request(model="m"))
    assert isinstance(last, Finished)
    assert last.response.calls == (ToolCall(id="call_a", name="first", arguments='{"a":1}'),)
    assert pieces == [
        ToolCallStarted(part=0, id="call_a", name="first"),
        ToolArgumentsDelta(part=0, text='{"a":1'),
        ToolArgumentsDelta(part=0, text="}"),
    ]


def test_calls_that_are_all_counted_as_the_first_are_told_apart_by_their_ids() -> None:
    deltas = [call(0, "call_a", "f", '{"a":'), call(0, "call_b", "g", "{}")]
    with FakeProvider(streamed(*deltas, finish="tool_calls")) as fake:
        content = answer(chat(fake, "gemini"), request(model="m")).message.content
    assert content == (
        ToolCall(id="call_a", name="f", arguments='{"a":'),
        ToolCall(id="call_b", name="g", arguments="{}"),
    )


def test_what_is_said_once_is_not_taken_back_by_nothing() -> None:
    again = {"role": None, "zeta": "", "tool_calls": [{"index": 0, "id": "", "type": None, "function": {"name": ""}}]}
    once = {"role": "assistant", "zeta": "z"} | call(0, "call_a", "f", "{}")
    with FakeProvider(streamed(once, again, finish="tool_calls")) as fake:
        message = answer(chat(fake), request(model="m")).message
    assert message.native is not None
    assert json.loads(message.native.payload) == {
        "role": "assistant",
        "zeta": "z",
        "tool_calls": [{"id": "call_a", "type": None, "function": {"name": "f", "arguments": "{}"}}],
    }


SAME = [call(0, "", "add", '{"a":1}'), call(0, "", "add", '{"a":2}')]
UNCOUNTED = [call(None, None, "add", '{"a":1}'), call(None, None, "add", '{"a":'), call(None, arguments="2}")]
TWINS = [call(0, "add", "add", '{"a":1}'), call(1, "add", "add", '{"a":2}')]


@pytest.mark.parametrize("deltas", [SAME, UNCOUNTED, TWINS], ids=["all are number 0", "not counted", "one id for two"])
def test_calls_without_an_id_of_their_own_get_one_that_is_used_from_then_on(deltas: list[Any]) -> None:
    with FakeProvider(streamed(*deltas, finish="stop")) as fake:
        provider = chat(fake, "gemini")
        *pieces, last = stream(provider, request(model="m"))
        assert isinstance(last, Finished)
        calls = last.response.calls
        assert [one.arguments for one in calls] == ['{"a":1}', '{"a":2}']
        ids = [one.id for one in calls]
        assert all(ids)
        assert len(set(ids)) == 2
        assert [piece.id for piece in pieces if isinstance(piece, ToolCallStarted)] == ids
        fake.add("Done")
        answers = results(*(result(own, "3") for own in ids))
        answer(provider, request("Hello?", last.response.message, answers, model="m"))
    _, message, *tools = fake.requests[1].json["messages"]
    assert [one["id"] for one in message["tool_calls"]] == ids == [tool["tool_call_id"] for tool in tools]


def test_gemini_gets_the_signature_of_a_call_back_as_it_came() -> None:
    signed = {"index": 0, "id": "", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    signed["extra_content"] = {"google": {"thought_signature": "Cs8B+/=="}}
    with FakeProvider(streamed({"role": "assistant", "tool_calls": [signed]}), "Done") as fake:
        provider = chat(fake, "gemini")
        said = answer(provider, request("Go", model="m"))
        answer(provider, request("Go", said.message, results(result(said.calls[0].id, "ok")), model="m"))
    sent = fake.requests[1].json["messages"][1]["tool_calls"][0]
    assert sent == {key: value for key, value in signed.items() if key != "index"} | {"id": said.calls[0].id}


def test_a_message_goes_back_byte_for_byte_with_fields_that_nobody_here_knows() -> None:
    message = {
        "role": "assistant",
        "content": "Zwölf \U0001f980   \\ \"q\" \u0000",
        "reasoning": "hm",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "hm", "format": "x-v1", "index": 0, "signature": "s=="},
            {"type": "reasoning.text", "text": "so", "index": 1},
            {"type": "reasoning.encrypted", "data": "e==", "index": 2},
            {"type": "reasoning.encrypted", "data": "f==", "index": 2},
        ],
        "zeta": {"b": 1, "a": [1.5, None, {"y": True, "x": "1"}]},
        "tool_calls": [
            {"type": "function", "id": "call_1", "x": 1, "function": {"arguments": '{ "b":1.0,"a":2}', "name": "f"}}
        ],
    }  # fmt: skip
    pieces = [
        {"role": "assistant", "content": "Zwölf \U0001f980 "},
        {"content": '  \\ "q" \u0000', "reasoning": "h"},
        {"reasoning": "m", "reasoning_details": [message["reasoning_details"][0] | {"text": "h", "signature": None}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "m", "index": 0, "signature": "s=="}]},
        {"reasoning_details": message["reasoning_details"][1:], "zeta": message["zeta"]},
        {"tool_calls": [{"index": 0, **message["tool_calls"][0]}]},
    ]  # fmt: skip
    wire = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    with FakeProvider(streamed(*pieces, finish="tool_calls"), "Done", "Done") as fake:
        provider = chat(fake, "openrouter")
        history = [user("Go"), *converse(provider, request("Go", model="m"))]
        history += [results(result("call_1", "ok"))]
        said = answer(provider, request(*history, model="m")).message
        answer(provider, request(*history, said, "And?", model="m"))
    assert wire in fake.requests[1].body
    assert wire in fake.requests[2].body
    first, second = (one.body[: one.body.index(wire) + len(wire)] for one in fake.requests[1:])
    assert first == second, "what was said before has to begin the next request, or the provider's cache misses"


def test_a_whole_answer_goes_back_as_it_came_too() -> None:
    message = {"content": None, "role": "assistant", "x": [1], "tool_calls": [
        {"function": {"arguments": "{}", "name": "f"}, "id": "call_1", "type": "function", "index": 0}]}  # fmt: skip
    body = {"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": message,
            "finish_reason": "tool_calls"}], "usage": USAGE}  # fmt: skip
    whole = RawReply(json.dumps(body).encode(), content_type="application/json")
    with FakeProvider(whole, "Done") as fake:
        first, _ = converse(chat(fake), request("Go", model="m"), [results(result("call_1", "ok"))])
    assert first.content == (ToolCall(id="call_1", name="f", arguments="{}"),)
    assert json.dumps(message, separators=(",", ":")).encode() in fake.requests[1].body


def test_a_server_that_does_not_stream_is_understood_as_well() -> None:
    with FakeProvider() as fake:
        from pickaxe.testing.providers import _chat

        parts = [Thinking(text="Hm"), Text(text="Hi", citations=(Citation(url="u", start=0, end=2),))]
        body = _chat.whole(Reply([*parts, ToolCall(id="c1", name="f", arguments='{"a":1}')]), {"model": "m"})
        fake.add(RawReply(body, content_type="application/json; charset=utf-8"))
        said = told(chat(fake), fake)
    assert said.message.content == (*parts, ToolCall(id="c1", name="f", arguments='{"a":1}'))
    assert (said.stop, said.usage.input) == (Stop.TOOL_CALLS, 10)


@pytest.fixture(scope="module")
def connected() -> Iterator[tuple[FakeProvider, OpenAIChat, asyncio.Runner]]:
    with FakeProvider() as fake, asyncio.Runner() as runner:
        provider = chat(fake)
        yield fake, provider, runner
        runner.run(provider.close())


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(min_size=1, max_size=60),
    thought=st.text(max_size=30),
    arguments=st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=3),
    chunk=st.integers(1, 9),
)
def test_whatever_is_said_in_whatever_pieces_comes_out_whole(
    connected: tuple[FakeProvider, OpenAIChat, asyncio.Runner],
    text: str,
    thought: str,
    arguments: dict[str, Any],
    chunk: int,
) -> None:
    fake, provider, runner = connected
    parts = [Text(text=text), ToolCall(id="call_1", name="f", arguments=json.dumps(arguments))]
    if thought:
        parts.insert(0, Thinking(text=thought))
    fake.add(Reply(parts, chunk=chunk))
    *pieces, last = runner.run(events_of(provider, request(model="m")))
    assert isinstance(last, Finished)
    assert last.response.message.content == tuple(parts)
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == text


def test_a_character_that_is_cut_in_two_is_one_again() -> None:
    halves = frames(
        r'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"a\ud83e"}}]}',
        r'data: {"choices":[{"index":0,"delta":{"content":"\udd80b"}}]}',
        r'data: {"choices":[{"index":0,"delta":{"content":"\ud83e"},"finish_reason":"stop"}],"usage":{}}',
        "data: [DONE]",
    )
    with FakeProvider(RawReply(halves), "Done") as fake:
        first, _ = converse(chat(fake), request("Go", model="m"), [user("And?")])
    assert first.content == (Text(text="a\U0001f980b\ufffd"),)
    assert fake.requests[1].json["messages"][1]["content"] == "a\U0001f980b\ufffd"


def test_an_answer_that_has_a_schema_is_asked_for_and_comes_as_text() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    with FakeProvider('{"n":3}') as fake:
        said = told(chat(fake), fake, output=OutputSchema(name="number", json_schema=schema))
    assert said.message.content == (Text(text='{"n":3}'),)
    assert fake.requests[0].json["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "number", "schema": schema, "strict": True},
    }


def test_citations_are_told_with_the_text_that_they_are_on() -> None:
    source = Citation(url="https://a.example/", title="A", start=0, end=5)
    with FakeProvider(Reply(Text(text="Rust.", citations=(source,)))) as fake:
        *pieces, last = stream(chat(fake), request(model="m"))
    assert pieces == [TextDelta(part=0, text="Rust."), Cited(part=0, citation=source)]
    assert isinstance(last, Finished)
    assert last.response.message.content == (Text(text="Rust.", citations=(source,)),)


def test_half_a_character_in_a_source_spoils_no_answer() -> None:
    source = {"type": "url_citation", "url_citation": {"url": "https://a.example/", "title": "A\ud83e"}}
    with FakeProvider(streamed({"content": "Hi", "annotations": [source]}), "Done") as fake:
        first, _ = converse(chat(fake), request("Go", model="m"), [user("And?")])
    assert first.content == (Text(text="Hi", citations=(Citation(url="https://a.example/", title="A\ufffd"),)),)


def test_a_refusal_is_no_text() -> None:
    with FakeProvider(Reply(Refusal(text="I will not"))) as fake:
        *pieces, last = stream(chat(fake), request(model="m"))
    assert pieces == [RefusalDelta(part=0, text="I will n"), RefusalDelta(part=0, text="ot")]
    assert isinstance(last, Finished)
    assert (last.response.stop, last.response.message.content) == (Stop.REFUSAL, (Refusal(text="I will not"),))


@pytest.mark.parametrize("arguments", ['{"a":1,"b":[1,2', '{"a":1}'])
def test_a_call_of_a_message_that_was_cut_at_its_length_is_not_to_be_run(arguments: str) -> None:
    cut = Reply(ToolCall(id="call_1", name="f", arguments=arguments), stop=Stop.MAX_TOKENS)
    with FakeProvider(cut) as fake:
        said = told(chat(fake), fake)
    assert (said.stop, said.calls) == (Stop.MAX_TOKENS, ())
    assert said.message.content == (ToolCall(id="call_1", name="f", arguments=arguments),)


def test_a_message_that_was_cut_off_while_the_model_was_thinking_is_left_out() -> None:
    with FakeProvider(Reply(Thinking(text="Hm"), stop=Stop.MAX_TOKENS), "Done") as fake:
        converse(chat(fake), request("Go", model="m"), [user("Go on")])
        assert [message["content"] for message in fake.requests[1].json["messages"]] == ["Go", "Go on"]


@pytest.mark.parametrize("arguments", ['{"a":NaN}', '{"a":1}}', "[1]", '{"a":'])
def test_a_call_whose_arguments_are_not_one_object_is_kept_as_it_is_and_not_to_be_run(arguments: str) -> None:
    good = ToolCall(id="call_2", name="f", arguments="{}")
    with FakeProvider(Reply([ToolCall(id="call_1", name="f", arguments=arguments), good])) as fake:
        said = told(chat(fake), fake)
    assert said.calls == (good,)
    assert said.message.content[0] == ToolCall(id="call_1", name="f", arguments=arguments)


def test_a_call_without_any_arguments_has_none() -> None:
    with FakeProvider(streamed(call(0, "call_1", "f", ""), finish="tool_calls")) as fake:
        assert told(chat(fake), fake).calls == (ToolCall(id="call_1", name="f", arguments="{}"),)


@pytest.mark.parametrize(
    ("finish", "stop"),
    [
        ("stop", Stop.END), ("length", Stop.MAX_TOKENS), ("content_filter", Stop.CONTENT_FILTER),
        ("model_length", Stop.CONTEXT_WINDOW), ("content_filter: RECITATION", Stop.CONTENT_FILTER),
        ("something_new", Stop.END), (None, Stop.END),
    ],
)  # fmt: skip
def test_the_reason_to_stop_is_told(finish: str | None, stop: Stop) -> None:
    with FakeProvider(streamed({"role": "assistant", "content": "Hi"}, finish=finish)) as fake:
        said = told(chat(fake, "generic"), fake)
    assert (said.stop, said.details["finish_reason"]) == (stop, finish)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (
            {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
             "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 10},
             "completion_tokens_details": {"reasoning_tokens": 12}},
            Usage(input=100, cache_read=80, cache_write=10, output=20, reasoning=12),
        ),
        # Gemini: thinking that is in the total alone
        ({"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 109}, Usage(input=35, output=74, reasoning=62)),
        # DeepSeek
        ({"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10, "prompt_cache_hit_tokens": 4},
         Usage(input=9, cache_read=4, output=1)),
        # OpenRouter
        ({"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10, "cost": 0.00014,
          "server_tool_use_details": {"web_search_requests": 2}},
         Usage(input=9, output=1, web_searches=2, cost=Decimal("0.00014"))),
        ({"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10, "prompt_tokens_details": None,
          "completion_tokens_details": None}, Usage(input=9, output=1)),
    ],
    ids=["openai", "gemini", "deepseek", "openrouter", "mistral"],
)  # fmt: skip
def test_usage_is_counted_as_everywhere(usage: dict[str, Any], counted: Usage) -> None:
    with FakeProvider(streamed({"content": "Hi"}, usage=usage)) as fake:
        assert told(chat(fake), fake).usage == counted.model_copy(update={"raw": usage})


def test_groq_tells_usage_in_a_field_of_its_own() -> None:
    body = frames(
        {"choices": [{"index": 0, "delta": {"content": "Hi"}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "x_groq": {"id": "r", "usage": USAGE}},
        "data: [DONE]",
    )
    with FakeProvider(RawReply(body)) as fake:
        assert told(chat(fake, "groq"), fake).usage.output == 5


def test_openrouter_keeps_the_connection_alive_with_comments() -> None:
    body = frames(": OPENROUTER PROCESSING", ": OPENROUTER PROCESSING") + streamed({"content": "Hi"}).body
    with FakeProvider(RawReply(body)) as fake:
        assert told(chat(fake, "openrouter"), fake).message.content == (Text(text="Hi"),)


def test_groq_tells_what_its_own_tools_have_done() -> None:
    asked = {"index": 0, "type": "search", "arguments": '{"query": "rust"}', "search_results": {"results": []}}
    deltas = [
        {"role": "assistant", "reasoning": "I search.", "executed_tools": [asked]},
        {"executed_tools": [asked | {"output": "Title: Rust"}]},
        {"content": "Rust."},
    ]
    with FakeProvider(streamed(*deltas)) as fake:
        *pieces, last = stream(chat(fake, "groq"), request(model="m"))
    assert pieces == [
        ThinkingDelta(part=0, text="I search."),
        ProviderToolStarted(part=1, id="", name="web_search"),
        ProviderToolEnded(part=1, id=""),
        TextDelta(part=2, text="Rust."),
    ]
    assert isinstance(last, Finished)
    assert last.response.message.content == (
        Thinking(text="I search."),
        ProviderToolCall(name="web_search", arguments='{"query": "rust"}', result="Title: Rust"),
        Text(text="Rust."),
    )


def test_mistral_thinks_in_lists_and_gets_them_back() -> None:
    def thinking(text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}

    deltas = [
        {"role": "assistant", "content": ""},
        {"content": [thinking("Let me ")]},
        {"content": [thinking("see")]},
        {"content": [{"type": "text", "text": "It is "}]},
        {"content": "3"},
    ]
    with FakeProvider(streamed(*deltas), "Done") as fake:
        first, _ = converse(chat(fake, "mistral"), request("Go", model="m"), [user("And?")])
    assert first.content == (Thinking(text="Let me see"), Text(text="It is 3"))
    back = [thinking("Let me see"), {"type": "text", "text": "It is 3"}]
    assert fake.requests[1].json["messages"][1] == {"role": "assistant", "content": back}


def test_leaving_the_iterator_ends_the_request() -> None:
    async def leave(provider: OpenAIChat) -> None:
        events = provider.stream(request(model="m"))
        assert isinstance(await anext(events), TextDelta)
        await events.aclose()

    with FakeProvider(Reply("Hello there, and so on", stall=500)) as fake:
        asyncio.run(leave(chat(fake)))
        assert fake.requests[0].gone.wait(30)


def test_cancelling_whoever_waits_ends_the_request() -> None:
    async def cancel(provider: OpenAIChat, fake: FakeProvider) -> None:
        task = asyncio.create_task(events_of(provider, request(model="m")))
        await asyncio.to_thread(fake.wait, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with FakeProvider(Reply("Hello there, and so on", stall=500)) as fake:
        asyncio.run(cancel(chat(fake), fake))
        assert fake.requests[0].gone.wait(30)


def test_one_adapter_serves_many_calls_at_once_and_one_event_loop_after_another() -> None:
    async def all_of(provider: OpenAIChat) -> list[Any]:
        return await asyncio.gather(*(events_of(provider, request(f"{n}", model="m")) for n in range(20)))

    def echo(received: Any) -> Reply:
        return Reply(received.json["messages"][0]["content"])

    with FakeProvider(then=echo) as fake:
        provider = chat(fake)
        for _ in range(2):
            told_ = asyncio.run(all_of(provider))
            assert [events[-1].response.message.content for events in told_] == [
                (Text(text=f"{n}"),) for n in range(20)
            ]
