"""The provider of models that tests bring with them."""

import json
import threading
import time
import urllib.error
import urllib.request

import pytest

from pickaxe.errors import ConfigurationError
from pickaxe.models import Stop, ToolCall
from pickaxe.testing import ErrorReply, FakeProvider, RawReply, Received, Reply

ASKED = {"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello?"}]}


def post(fake: FakeProvider, body: dict[str, object] = ASKED, path: str = "/v1/messages") -> tuple[int, bytes]:
    asked = urllib.request.Request(fake.url + path, json.dumps(body).encode(), {"X-Mine": "1"})
    try:
        with urllib.request.urlopen(asked, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_it_answers_from_its_script_in_order_and_then_with_what_it_says_always():
    with FakeProvider("one", ErrorReply(529), then=Reply("more")) as fake:
        fake.add("two")
        told = [post(fake) for _ in range(5)]
        assert fake.left == 0
    assert [status for status, _ in told] == [200, 529, 200, 200, 200]
    texts = [json.loads(body)["content"][0]["text"] for status, body in told if status == 200]
    assert texts == ["one", "two", "more", "more"]


def test_it_keeps_what_it_was_asked_byte_for_byte():
    with FakeProvider("Hi") as fake:
        post(fake, path="/prefix/v1/messages?beta=true")
        (received,) = fake.requests
    assert (received.method, received.path, received.headers["x-mine"]) == ("POST", "/prefix/v1/messages", "1")
    assert received.body == json.dumps(ASKED).encode()


def test_an_entry_may_look_at_the_request():
    def echo(received: Received) -> str:
        return received.json["messages"][0]["content"]

    with FakeProvider(echo) as fake:
        assert json.loads(post(fake)[1])["content"][0]["text"] == "Hello?"


def test_an_entry_that_raises_is_raised_again_at_the_end():
    def broken(_: Received) -> str:
        raise RuntimeError("a mistake in the test")

    fake = FakeProvider(broken).start()
    with pytest.raises(ConnectionError):
        post(fake)
    with pytest.raises(RuntimeError, match="a mistake in the test"):
        fake.close()


def test_what_a_test_itself_raises_is_not_hidden_by_it():
    def broken(_: Received) -> str:
        raise RuntimeError("a mistake in the test")

    with pytest.raises(ConnectionError) as caught, FakeProvider(broken) as fake:
        post(fake)
    assert "a mistake in the test" in caught.value.__notes__[0]


def test_it_refuses_what_the_real_one_refuses_unless_told_otherwise():
    hot = ASKED | {"temperature": 0.5}
    with FakeProvider("Hi") as fake:
        assert post(fake, hot)[0] == 400
        assert fake.left == 1
    with FakeProvider("Hi", strict=False) as fake:
        assert post(fake, hot)[0] == 200


def test_a_path_that_nobody_answers_is_not_found():
    with FakeProvider("Hi") as fake:
        assert post(fake, path="/v2/nothing")[0] == 404
        assert fake.left == 1


def test_a_stream_is_asked_for_by_the_request():
    call = ToolCall(id="toolu_1", name="f", arguments="{}")
    with FakeProvider(Reply(call), Reply(call)) as fake:
        whole, stream = json.loads(post(fake)[1]), post(fake, ASKED | {"stream": True})[1]
    assert whole["stop_reason"] == "tool_use"
    assert [line.split()[1] for line in stream.decode().splitlines() if line.startswith("event")] == [
        "message_start", "content_block_start", "ping", "content_block_delta", "content_block_delta",
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip


def test_an_answer_may_be_late_and_slow():
    with FakeProvider(Reply("Hi", delay=0.2, pace=0.05)) as fake:
        begun = time.monotonic()
        post(fake, ASKED | {"stream": True})
    assert time.monotonic() - begun >= 0.2 + 6 * 0.05


def test_bytes_of_ones_own_are_sent_as_they_are():
    with FakeProvider(RawReply(b"\x00\xff", 203, content_type="x/y", headers={"Request-Id": "mine"})) as fake:
        assert post(fake) == (203, b"\x00\xff")


def test_one_may_wait_for_a_request_that_comes():
    with FakeProvider("Hi") as fake:
        asking = threading.Thread(target=post, args=(fake,))
        asking.start()
        assert fake.wait(1).json == ASKED
        asking.join()
        with pytest.raises(TimeoutError, match="waited for 2"):
            fake.wait(2, seconds=0.01)


def test_it_has_no_address_before_it_has_begun():
    with pytest.raises(ConfigurationError, match="with FakeProvider"):
        _ = FakeProvider().url


def test_a_stop_of_ones_own_and_an_identity_are_told():
    with FakeProvider(Reply("Hi", stop=Stop.MAX_TOKENS, model="other", id="7")) as fake:
        told = json.loads(post(fake)[1])
    assert (told["stop_reason"], told["model"], told["id"]) == ("max_tokens", "other", "msg_7")
