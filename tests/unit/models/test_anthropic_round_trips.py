"""What Anthropic's models said goes back to them byte for byte."""

import json
from itertools import pairwise

import pytest

from pickaxe.models import (
    Anthropic,
    AssistantMessage,
    Citation,
    Native,
    ProviderToolCall,
    Text,
    Thinking,
    ToolCall,
)
from pickaxe.testing import FakeProvider, RawReply, Reply
from pickaxe.testing.providers import _anthropic
from tests.unit.models.asking import answer, converse, failure, request, result, results, user

PAY = ToolCall(id="toolu_1", name="pay", arguments='{"z":1,"a":{"y":[1.0,2e-7,12345678901234567890],"b":null}}')
LOOK = ToolCall(id="toolu_2", name="look", arguments='{"q":"na\u2028ïve \U0001f600 \\"x\\" \\u0000"}')
SEARCHED = ProviderToolCall(
    id="srvtoolu_1", name="web_search", arguments='{"query":"q"}',
    result=[{"type": "web_search_result", "url": "https://a", "encrypted_content": "Eq8=="}],
)  # fmt: skip
CITED = Text(text="So it is.", citations=(Citation(url="https://a", title="A", quote="so"),))
TURNS = (
    Reply([Thinking(text="Both, then."), "Two calls.", PAY, LOOK], chunk=5),
    Reply([Thinking(text="And now"), SEARCHED, CITED, ToolCall(id="toolu_3", name="look", arguments='{"q":"b"}')]),
    Reply("Done."),
)
THEN = (
    [results(result("toolu_1", "paid"), result("toolu_2", "broken", error=True))],
    [results(result("toolu_3", "b"))],
)


def content(reply: Reply) -> bytes:
    blocks = json.loads(_anthropic.whole(reply, {}))["content"]
    return b'"content":' + json.dumps(blocks, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "in one piece"])
def test_a_conversation_with_tools_sends_back_the_bytes_that_came(streamed: bool):
    pieces = [RawReply(_anthropic.whole(turn, {}), content_type="application/json") for turn in TURNS]
    with FakeProvider(*(TURNS if streamed else pieces)) as fake:
        converse(Anthropic(api_key="key", base_url=fake.url), request("Go."), *THEN)
        _, second, third = (received.body for received in fake.requests)
    for turn in TURNS[:2]:
        assert content(turn) in third
    assert content(TURNS[0]) in second
    assert content(TURNS[1]) not in second


def test_each_request_begins_with_the_bytes_of_the_one_before():
    with FakeProvider(*TURNS) as fake:
        converse(Anthropic(api_key="key", base_url=fake.url), request("Go."), *THEN)
        bodies = [received.body for received in fake.requests]
    for body, longer in pairwise(bodies):
        messages = json.dumps(json.loads(body)["messages"], separators=(",", ":"), ensure_ascii=False).encode()
        assert messages in body
        assert messages.removesuffix(b"]") + b"," in longer


RECORDED = b"".join(
    b"event: x\ndata: " + data + b"\n\n"
    for data in (
        (
            b'{"type":"message_start","message":{"model":"claude-sonnet-5-5","id":"msg_01","type":"message","role":"assistant"'
            b',"content":[],"stop_reason":null,"usage":{"input_tokens":5,"output_tokens":1}}}'
        ),
        b'{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"I \\u00fcse"}}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQBCkgIBxABGAI="}}',
        b'{"type":"content_block_stop","index":0}',
        b'{"type":"content_block_start","index":1,"content_block":{"type":"redacted_thinking","data":"EmwKAhgB"}}',
        b'{"type":"content_block_stop","index":1}',
        b'{"type":"content_block_start","index":2,"content_block":{"citations":[],"type":"text","text":""}}',
        (
            b'{"type":"content_block_delta","index":2,"delta":{"type":"citations_delta","citation":{"zz":1,"type":'
            b'"web_search_result_location","cited_text":"c","url":"https://a","title":null,"encrypted_index":"Eo8="}}}'
        ),
        b'{"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":"Yes"}}',
        b'{"type":"content_block_stop","index":2}',
        (
            b'{"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"toolu_01","name":"f",'
            b'"input":{},"caller":{"type":"direct"}}}'
        ),
        b'{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":""}}',
        b'{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"{\\"b\\": 1"}}',
        b'{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":", \\"a\\": 2}"}}',
        b'{"type":"content_block_stop","index":3}',
        b'{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":30}}',
        b'{"type":"message_stop"}',
    )
)
ECHOED = (
    '{"role":"assistant","content":[{"type":"thinking","thinking":"I üse","signature":"EqQBCkgIBxABGAI="},'
    '{"type":"redacted_thinking","data":"EmwKAhgB"},{"citations":[{"zz":1,"type":"web_search_result_location",'
    '"cited_text":"c","url":"https://a","title":null,"encrypted_index":"Eo8="}],"type":"text","text":"Yes"},'
    '{"type":"tool_use","id":"toolu_01","name":"f","input":{"b":1,"a":2},"caller":{"type":"direct"}}]}'
)


def test_a_recorded_stream_goes_back_with_its_keys_in_order_and_its_unknown_fields():
    with FakeProvider(RawReply(RECORDED), "Done.") as fake:
        (first, _) = converse(
            Anthropic(api_key="key", base_url=fake.url), request("Go."), [results(result("toolu_01", "3"))]
        )
        body = fake.requests[1].body
    assert first.native == Native(dialect="anthropic", payload=ECHOED)
    assert ECHOED.encode() in body
    assert first.content[3] == ToolCall(id="toolu_01", name="f", arguments='{"b": 1, "a": 2}')


def test_a_message_survives_being_stored():
    with FakeProvider(RawReply(RECORDED)) as fake:
        message = answer(Anthropic(api_key="key", base_url=fake.url), request()).message
    assert AssistantMessage.model_validate_json(message.model_dump_json()) == message


def test_an_empty_text_that_the_model_sent_does_not_go_back_and_the_record_keeps_it():
    said = Reply([Thinking(text="Hm."), "", ToolCall(id="toolu_1", name="f", arguments="{}")])
    with FakeProvider(said, "Done.") as fake:
        (first, _) = converse(
            Anthropic(api_key="key", base_url=fake.url), request("Go."), [results(result("toolu_1", "3"))]
        )
        kinds = [block["type"] for block in fake.requests[1].json["messages"][1]["content"]]
    assert kinds == ["thinking", "tool_use"]
    assert len(json.loads(first.native.payload)["content"]) == 3


def test_half_a_character_in_an_answer_is_kept_in_the_record_and_sent_back_as_can_be():
    call = ToolCall(id="toolu_1", name="f", arguments='{"t":"\\ud83d"}')
    with FakeProvider(Reply(call), "Done.") as fake:
        (first, _) = converse(
            Anthropic(api_key="key", base_url=fake.url), request("Go."), [results(result("toolu_1", "3"))]
        )
        assert fake.requests[1].json["messages"][1]["content"][0]["input"] == {"t": "\ufffd"}
    assert "\\ud83d" in first.native.payload
    first.native.payload.encode()


def test_another_dialects_message_goes_by_its_parts():
    other = AssistantMessage(
        content=(Text(text="Yes."),), native=Native(dialect="chat", payload='{"role":"assistant","content":"raw"}')
    )
    with FakeProvider("Done.") as fake:
        answer(Anthropic(api_key="key", base_url=fake.url), request(user("Go."), other, user("On.")))
        assert fake.requests[0].json["messages"][1]["content"] == [{"type": "text", "text": "Yes."}]


@pytest.mark.parametrize(
    "answered", [[], ["toolu_1"], ["toolu_1", "toolu_2", "toolu_9"], ["toolu_1"] * 2 + ["toolu_2"]]
)
def test_the_fake_provider_refuses_a_transcript_that_the_real_one_refuses(answered: list[str]):
    with FakeProvider(TURNS[0]) as fake:
        provider = Anthropic(api_key="key", base_url=fake.url)
        first = answer(provider, request()).message
        bad = request(user("Go."), first, results(*(result(call, "x") for call in answered)))
        assert failure(provider, bad).status == 400


def test_the_fake_provider_refuses_thinking_that_was_changed():
    with FakeProvider(Reply([Thinking(text="Hm."), "Yes."])) as fake:
        provider = Anthropic(api_key="key", base_url=fake.url)
        first = answer(provider, request()).message
        forged = first.native.payload.replace("Hm.", "Ha.")
        changed = first.model_copy(update={"native": Native(dialect="anthropic", payload=forged)})
        assert "signature" in failure(provider, request(user("Go."), changed, user("On."))).message
