"""The gate that no malformed message passes."""

from __future__ import annotations

import base64
import json

from hypothesis import given
from hypothesis import strategies as st

from pickaxe.broker._wire import (
    MALFORMED_HEADER,
    envelope_fault,
    header_fault,
    payload_fault,
    read_envelope,
    task_name_fault,
)

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=200))
def test_whatever_is_popped_comes_back_as_an_envelope_with_nothing_lost(item: bytes) -> None:
    envelope = read_envelope(item, "q")
    assert envelope_fault(envelope) is None
    if MALFORMED_HEADER in envelope["headers"]:
        assert base64.b64decode(envelope["body"]) == item
        assert envelope["properties"]["delivery_info"] == {"exchange": "", "routing_key": "q"}


@given(ANY_JSON)
def test_any_json_is_judged_without_an_error(value: object) -> None:
    assert envelope_fault(read_envelope(json.dumps(value).encode(), "q")) is None
    payload_fault(value)
    payload_fault([[], {}, value])
    if isinstance(value, dict):
        task_name_fault(value)
        header_fault(value)


@given(st.sampled_from(["shadow", "eta", "expires", "retries", "timelimit", "stamps", "task", "id"]), ANY_JSON)
def test_any_header_is_judged_without_an_error(name: str, value: object) -> None:
    task_name_fault({"task": "t", "id": "i", name: value})
    header_fault({name: value})


def test_a_message_above_the_limit_is_not_even_parsed() -> None:
    envelope = read_envelope(b"[" * 101, "q", max_bytes=100)
    assert "101 bytes" in envelope["headers"][MALFORMED_HEADER]


def test_a_wrapped_message_is_read_back_as_it_was_wrapped() -> None:
    wrapped = read_envelope(b"garbage", "q")
    assert read_envelope(json.dumps(wrapped).encode(), "q") == wrapped
