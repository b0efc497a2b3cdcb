"""What providers have in common on the wire."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pickaxe.models import Text, Thinking, ToolCall
from pickaxe.models._anthropic_answer import Answer
from pickaxe.models._http import ServerEvent, ServerEvents, dumps, sendable
from pickaxe.testing import Reply
from pickaxe.testing.providers import _anthropic

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
PARTS = st.one_of(
    TEXTS.map(lambda text: Text(text=text)),
    TEXTS.map(lambda text: Thinking(text=text)),
    st.builds(
        lambda given: ToolCall(id="toolu_1", name="f", arguments=json.dumps(given)),
        st.dictionaries(TEXTS, VALUES, max_size=3),
    ),
)


def cut(body: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[start:end] for start, end in pairwise(ends)]


@given(
    st.lists(st.tuples(st.sampled_from(["", "ping", "message"]), TEXTS), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0), max_size=8),
)
def test_events_are_the_same_wherever_their_bytes_are_cut(told: list[tuple[str, str]], end: str, places: list[int]):
    told = [(event, json.dumps(text, ensure_ascii=False)) for event, text in told]
    body = "".join(
        f"{f'event: {event}{end}' if event else ''}: comment{end}id: 7{end}data: {data}{end}{end}"
        for event, data in told
    )
    decoder = ServerEvents()
    # A lone CR at the end may be half of a CRLF: it counts once something follows.
    found = [event for chunk in [*cut(body.encode(), places), b":"] for event in decoder.feed(chunk)]
    assert found == [ServerEvent(event, data) for event, data in told]


def test_several_lines_of_data_are_one_and_an_event_without_any_is_none():
    decoder = ServerEvents()
    body = b"event: a\n\ndata: 1\ndata:2\ndata\n\ndata: not over\n"
    assert list(decoder.feed(body)) == [ServerEvent("", "1\n2\n")]


@given(st.lists(PARTS, max_size=4), st.integers(1, 9), st.lists(st.integers(0), max_size=6))
def test_an_answer_is_what_was_said_and_its_record_is_what_one_piece_would_be(
    parts: list[Text | Thinking | ToolCall], chunk: int, places: list[int]
):
    reply = Reply(parts, chunk=chunk, id="1")
    decoder, answer = ServerEvents(), Answer()
    for piece in cut(b"".join(_anthropic.stream(reply, {})), places):
        for event in decoder.feed(piece):
            list(answer.feed(json.loads(event.data)))
    message = answer.message()
    assert answer.complete
    assert message.content == tuple(parts)
    whole = json.loads(_anthropic.whole(reply, {}))
    assert message.native.payload == dumps({"role": "assistant", "content": whole["content"]})


@given(VALUES)
def test_what_can_be_sent_is_sent_as_it_is(value: object):
    assert sendable(value) == value
    assert json.loads(dumps(value)) == value


@given(st.text(st.characters(min_codepoint=0xD700, max_codepoint=0xDBFF), max_size=5))
def test_any_text_can_be_written_down_and_after_mending_sent(text: str):
    assert json.loads(dumps([text]).encode()) == [text]
    sendable({text: [text]})[sendable(text)][0].encode()


@pytest.mark.parametrize("arguments", ["{}", ' {"a": 1e3} ', '{"a":"\\u0000"}'])
def test_arguments_are_one_json_object(arguments: str):
    assert ToolCall(id="1", name="f", arguments=arguments).parsed() == json.loads(arguments)


@pytest.mark.parametrize("arguments", ["", "{", "{}{}", "[]", "1", '{"a":Infinity}', '{"a":1,}', "[" * 100_000])
def test_anything_else_is_no_arguments(arguments: str):
    assert ToolCall(id="1", name="f", arguments=arguments).parsed() is None
