"""What Anthropic's models answer, through the real SDK."""

import json
from decimal import Decimal

import pytest

from pickaxe.models import (
    Anthropic,
    Citation,
    Cited,
    Finished,
    ModelResponse,
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
from pickaxe.testing import FakeProvider, RawReply, Reply
from pickaxe.testing.providers import _anthropic
from tests.unit.models.asking import answer, failure, request, stream

ODD = "a\u2028b\u2029c\x85d\r\ne \x00 \U0001f600 naïve"


def of(fake: FakeProvider, **more: object) -> Anthropic:
    return Anthropic(api_key="key", base_url=fake.url, **more)


def whole(reply: Reply) -> RawReply:
    """The same answer in one piece."""
    return RawReply(_anthropic.whole(reply, {"model": "claude-sonnet-5-5"}), content_type="application/json")


def test_text_comes_in_pieces_and_is_whole_at_the_end():
    with FakeProvider(Reply("Hello there", chunk=4)) as fake:
        events = stream(of(fake), request())
    assert events[:-1] == [TextDelta(part=0, text=text) for text in ("Hell", "o th", "ere")]
    response = events[-1].response
    assert response.message.content == (Text(text="Hello there"),)
    assert (response.stop, response.model, response.provider) == (Stop.END, "claude-sonnet-5-5", "anthropic")
    assert (response.id, response.request_id) == ("msg_1", "req_1")
    assert 0 < response.first_token <= response.latency


def test_a_line_separator_in_a_text_ends_no_line_of_the_stream():
    with FakeProvider(Reply(ODD, chunk=3)) as fake:
        assert answer(of(fake), request()).message.content == (Text(text=ODD),)


def test_thinking_is_shown_and_its_signature_is_kept_word_for_word():
    with FakeProvider(Reply([Thinking(text="First, then."), Text(text="Yes.")], chunk=7)) as fake:
        events = stream(of(fake), request())
    assert [event.text for event in events if isinstance(event, ThinkingDelta)] == ["First, ", "then."]
    message = events[-1].response.message
    assert message.content == (Thinking(text="First, then."), Text(text="Yes."))
    thinking = json.loads(message.native.payload)["content"][0]
    assert thinking["signature"] == _anthropic.signature("First, then.")


def test_redacted_and_omitted_thinking_show_nothing_and_are_kept():
    omitted = {"type": "thinking", "thinking": "", "signature": "c2lnbmVk"}
    redacted = {"type": "redacted_thinking", "data": "b3BhcXVl"}
    with FakeProvider(Reply([omitted, redacted, "Done."])) as fake:
        events = stream(of(fake), request())
    message = events[-1].response.message
    assert events[:-1] == [TextDelta(part=2, text="Done.")]
    assert message.content == (Thinking(), Thinking(), Text(text="Done."))
    assert json.loads(message.native.payload)["content"][:2] == [omitted, redacted]


def test_parallel_calls_come_with_their_arguments_as_the_model_wrote_them():
    first = ToolCall(id="toolu_1", name="search", arguments='{"q": "a",  "n":1.0}')
    second = ToolCall(id="toolu_2", name="fetch", arguments='{"u":"é"}')
    with FakeProvider(Reply(["Both:", first, second], chunk=5)) as fake:
        events = stream(of(fake), request())
    response = events[-1].response
    assert response.stop is Stop.TOOL_CALLS
    assert response.calls == (first, second) == response.message.content[1:]
    assert [event for event in events if isinstance(event, ToolCallStarted)] == [
        ToolCallStarted(part=1, id="toolu_1", name="search"),
        ToolCallStarted(part=2, id="toolu_2", name="fetch"),
    ]
    for part, call in ((1, first), (2, second)):
        pieces = [event.text for event in events if isinstance(event, ToolArgumentsDelta) and event.part == part]
        assert "".join(pieces) == call.arguments


def test_a_call_without_parameters_has_an_empty_object_for_arguments():
    with FakeProvider(Reply(ToolCall(id="toolu_1", name="now", arguments=""))) as fake:
        response = answer(of(fake), request())
    assert response.calls == (ToolCall(id="toolu_1", name="now", arguments="{}"),)


@pytest.mark.parametrize("arguments", ['{"a":1,"b":[1,2', "", '{"a":1}'])
def test_a_call_of_an_answer_that_ran_out_of_tokens_is_not_to_be_run(arguments: str):
    call = ToolCall(id="toolu_1", name="pay", arguments=arguments)
    with FakeProvider(Reply(call, stop=Stop.MAX_TOKENS)) as fake:
        response = answer(of(fake), request())
    assert (response.stop, response.calls) == (Stop.MAX_TOKENS, ())
    assert response.message.content[0].arguments == (arguments or "{}")


def test_partial_arguments_are_kept_as_they_came_and_not_repaired():
    call = ToolCall(id="toolu_1", name="pay", arguments='{"a":1,"b":[1,2')
    with FakeProvider(Reply(call, stop=Stop.MAX_TOKENS)) as fake:
        message = answer(of(fake), request()).message
    assert message.content == (call,)
    assert json.loads(message.native.payload)["content"][0]["input"] == {}


@pytest.mark.parametrize("arguments", ['{"a":1', '{"a":NaN}', "[1]", '{"a":1} x', "null"])
def test_a_call_whose_arguments_are_not_one_object_is_not_to_be_run(arguments: str):
    good = ToolCall(id="toolu_2", name="look", arguments='{"b":2}')
    with FakeProvider(Reply([ToolCall(id="toolu_1", name="pay", arguments=arguments), good])) as fake:
        response = answer(of(fake), request())
    assert response.calls == (good,)
    assert response.message.content[0].arguments == arguments


def test_a_provider_tool_is_told_with_its_result_and_what_only_its_provider_can_read_is_kept_for_it():
    found = [{"type": "web_search_result", "url": "https://a", "title": "A", "encrypted_content": "xyz"}]
    said = [
        ProviderToolCall(id="srvtoolu_1", name="web_search", arguments='{"query":"a"}', result=found),
        Text(text="It is A.", citations=(Citation(url="https://a", title="A", quote="is A"),)),
    ]
    usage = Usage(input=100, output=20, web_searches=1)
    with FakeProvider(Reply(said, usage=usage)) as fake:
        events = stream(of(fake), request())
    assert events[0] == ProviderToolStarted(part=0, id="srvtoolu_1", name="web_search")
    assert events[1] == ProviderToolEnded(part=0, id="srvtoolu_1")
    assert Cited(part=1, citation=said[1].citations[0]) in events
    response = events[-1].response
    readable = [{"type": "web_search_result", "url": "https://a", "title": "A"}]
    assert response.message.content == (said[0].model_copy(update={"result": readable}), said[1])
    assert response.usage.web_searches == 1
    kept = json.loads(response.message.native.payload)["content"]
    assert kept[1]["content"] == found
    assert kept[2]["citations"][0]["encrypted_index"]


def test_a_provider_tool_that_failed_says_why():
    said = ProviderToolCall(id="srvtoolu_1", name="web_search", error="max_uses_exceeded")
    with FakeProvider(Reply([said, "Sorry."])) as fake:
        events = stream(of(fake), request())
    assert ProviderToolEnded(part=0, id="srvtoolu_1", error="max_uses_exceeded") in events
    assert events[-1].response.message.content[0] == said


def test_a_result_that_comes_with_the_answer_after_a_pause_is_told_by_its_id():
    late = {"type": "bash_code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": {"stdout": "4"}}
    with FakeProvider(Reply([late, "Four."])) as fake:
        events = stream(of(fake), request())
    assert events[0] == ProviderToolEnded(part=0, id="srvtoolu_1")
    told = ProviderToolCall(id="srvtoolu_1", name="code_execution", result={"stdout": "4"})
    assert events[-1].response.message.content == (told, Text(text="Four."))


def test_citations_of_documents_have_their_title_and_their_quote():
    cited = Text(text="Green.", citations=(Citation(title="Leaves", quote="leaves are green"),))
    with FakeProvider(Reply(cited)) as fake:
        assert answer(of(fake), request()).message.content == (cited,)


def test_input_includes_what_the_cache_had_and_what_it_was_given():
    usage = Usage(
        input=1000, cache_read=700, cache_write=200, cache_write_1h=50, output=90, reasoning=60, web_searches=2
    )
    with FakeProvider(Reply("Hi", usage=usage)) as fake:
        told = answer(of(fake), request()).usage
    assert told.model_copy(update={"raw": {}}) == usage
    assert (told.raw["input_tokens"], told.cost) == (100, None)
    assert not isinstance(told.cost, Decimal)


def test_counts_in_the_middle_of_a_stream_replace_and_never_add():
    usage = b'{"input_tokens":3,"output_tokens":1,"cache_read_input_tokens":7,"service_tier":"standard"}'
    later = b'{"input_tokens":4,"output_tokens":9,"cache_read_input_tokens":null}'
    told = (
        b'{"type":"message_start","message":{"id":"m","model":"c","usage":%b}}' % usage,
        b'{"type":"message_delta","delta":{"stop_reason":null},"usage":{"output_tokens":5}}',
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":%b}' % later,
        b'{"type":"message_stop"}',
    )
    body = b"".join(b"data: " + data + b"\n\n" for data in told)
    with FakeProvider(RawReply(body)) as fake:
        usage = answer(of(fake), request()).usage
    assert (usage.input, usage.cache_read, usage.output) == (11, 7, 9)
    assert usage.raw["service_tier"] == "standard"


@pytest.mark.parametrize(
    ("stop", "details"),
    [
        (Stop.END, {}),
        (Stop.MAX_TOKENS, {}),
        (Stop.STOP_SEQUENCE, {"stop_sequence": "END"}),
        (Stop.CONTEXT_WINDOW, {}),
        (Stop.PAUSE, {}),
    ],
)
def test_each_reason_to_stop_has_its_name(stop: Stop, details: dict[str, str]):
    with FakeProvider(Reply("Well", stop=stop, details=details)) as fake:
        response = answer(of(fake), request())
    assert (response.stop, response.details) == (stop, details)


def test_a_refusal_is_told_in_its_words_after_what_was_said_before():
    with FakeProvider(Reply(["I can", Refusal(text="Not this.")], stop=Stop.REFUSAL)) as fake:
        events = stream(of(fake), request())
    assert events[-2] == RefusalDelta(part=1, text="Not this.")
    response = events[-1].response
    assert response.stop is Stop.REFUSAL
    assert response.message.content == (Text(text="I can"), Refusal(text="Not this."))
    assert response.details["stop_details"]["explanation"] == "Not this."
    assert json.loads(response.message.native.payload)["content"] == [{"type": "text", "text": "I can"}]


def test_a_reason_to_stop_that_is_not_known_runs_no_tool_and_is_told():
    call = ToolCall(id="toolu_1", name="pay", arguments="{}")
    with FakeProvider(Reply(call, details={"stop_reason": "bored"})) as fake:
        response = answer(of(fake), request())
    assert (response.stop, response.calls, response.details) == (Stop.END, (), {"stop_reason": "bored"})


def test_events_blocks_and_deltas_that_are_not_known_change_nothing_and_the_block_is_kept():
    blocks = b"".join(
        b"event: x\ndata: " + data + b"\n\n"
        for data in (
            b'{"type":"message_start","message":{"id":"m","model":"c","usage":{"input_tokens":1,"output_tokens":1}}}',
            b'{"type":"mood","good":true}',
            b'{"type":"content_block_start","index":0,"content_block":{"type":"hologram","z":1,"shape":"a"}}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"shape_delta","shape":"b","depth":3}}',
            b'{"type":"content_block_stop","index":0}',
            b'{"type":"content_block_start","index":1,"content_block":{"type":"text","text":"Hi","new":null}}',
            b'{"type":"content_block_stop","index":1}',
            b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}',
            b'{"type":"message_stop"}',
        )
    )
    with FakeProvider(RawReply(b': hello\n\nevent: ping\ndata: {"type":"ping"}\n\n' + blocks)) as fake:
        events = stream(of(fake), request())
    assert events[0] == TextDelta(part=0, text="Hi")
    message = events[-1].response.message
    assert message.content == (Text(text="Hi"),)
    assert message.native.payload == (
        '{"role":"assistant","content":[{"type":"hologram","z":1,"shape":"ab","depth":3},'
        '{"type":"text","text":"Hi","new":null}]}'
    )


EVERYTHING = Reply(
    [
        Thinking(text="Hm."),
        Text(text=f"See {ODD}", citations=(Citation(url="https://a", title="A", quote="q"),)),
        ProviderToolCall(id="srvtoolu_1", name="web_search", arguments='{"query":"a"}', result=[{"url": "https://a"}]),
        ToolCall(id="toolu_1", name="search", arguments='{"z":1,"a":[1.5,{"k":null}]}'),
    ],
    usage=Usage(input=50, cache_read=30, output=8),
)


def told(response: ModelResponse) -> dict[str, object]:
    return response.model_dump(exclude={"id", "request_id", "first_token", "latency", "usage"})


def test_an_answer_in_one_piece_says_the_same_as_a_stream():
    with FakeProvider(EVERYTHING, whole(EVERYTHING)) as fake:
        streamed, at_once = (stream(of(fake), request())[-1].response for _ in range(2))
    assert told(streamed) == told(at_once)
    assert streamed.message.native.payload == at_once.message.native.payload


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_however_small_the_pieces_are_the_answer_is_the_same(chunk: int):
    with FakeProvider(EVERYTHING, Reply(EVERYTHING.parts, chunk=chunk)) as fake:
        one, other = (answer(of(fake), request()) for _ in range(2))
    assert one.message == other.message


def test_structured_output_is_text_that_parses():
    with FakeProvider('{"name":"Ada","born":1815}') as fake:
        (part,) = answer(of(fake), request()).message.content
    assert json.loads(part.text) == {"name": "Ada", "born": 1815}


def test_finished_comes_once_and_last():
    with FakeProvider(EVERYTHING) as fake:
        events = stream(of(fake), request())
    assert [isinstance(event, Finished) for event in events] == [False] * (len(events) - 1) + [True]


def test_a_call_with_arguments_that_came_at_once_with_its_block_has_them():
    block = {"type": "tool_use", "id": "toolu_1", "name": "search", "input": {"b": 1, "a": 2}}
    with FakeProvider(Reply(block, stop=Stop.TOOL_CALLS)) as fake:
        events = stream(of(fake), request())
    assert ToolArgumentsDelta(part=0, text='{"b":1,"a":2}') in events
    assert events[-1].response.calls == (ToolCall(id="toolu_1", name="search", arguments='{"b":1,"a":2}'),)


def test_a_missing_answer_of_the_script_is_an_error_that_says_so():
    with FakeProvider() as fake:
        assert "no reply left for request number 1" in failure(of(fake), request()).message


def test_a_character_that_comes_in_two_pieces_is_one_and_half_a_one_spoils_nothing():
    data = (
        rb'{"type":"message_start","message":{"id":"m","model":"c","usage":{"input_tokens":1,"output_tokens":1}}}',
        rb'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
        rb'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a\ud83d"}}',
        rb'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\ude00 \ude00b"}}',
        rb'{"type":"content_block_stop","index":0}',
        rb'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}',
        rb'{"type":"message_stop"}',
    )
    with FakeProvider(RawReply(b"".join(b"data: " + line + b"\n\n" for line in data))) as fake:
        events = stream(of(fake), request())
    assert [event.text for event in events[:-1]] == ["a", "\U0001f600 \ufffdb"]
    message = events[-1].response.message
    assert message.content == (Text(text="a\U0001f600 \ufffdb"),)
    assert json.loads(message.native.payload)["content"][0]["text"] == "a\U0001f600 \ude00b"
