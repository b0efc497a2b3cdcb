"""How a call in the Chat dialect fails: in one way each time, and never as an answer."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from email.utils import formatdate
from time import time
from typing import Any

import pytest

from pickaxe.errors import ConfigurationError
from pickaxe.models import (
    Failure,
    FailureRecord,
    Finished,
    ModelError,
    OpenAIChat,
    ProviderTool,
    ToolCall,
)
from pickaxe.testing.providers import ErrorReply, FakeProvider, RawReply, Reply, _chat
from tests.unit.models.asking import events_of, failure, request
from tests.unit.models.chatting import USAGE, call, chat, frames, streamed

GROQ = {"error": {"message": "Failed to call a function.", "type": "invalid_request_error", "code": "tool_use_failed",
                  "failed_generation": "<function=f{"}}  # fmt: skip
GEMINI = [{"error": {"code": 429, "message": "You exceeded your current quota", "status": "RESOURCE_EXHAUSTED",
                     "details": [{"@type": "type.googleapis.com/RetryInfo", "retryDelay": "31.5s"}]}}]  # fmt: skip
GEMINI_KEY = [{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT",
                         "details": [{"reason": "API_KEY_INVALID"}]}}]  # fmt: skip

TOLD = [
    (400, {"error": {"message": "no", "type": "invalid_request_error", "code": None}}, Failure.BAD_REQUEST),
    (400, {"error": {"message": "long", "code": "context_length_exceeded"}}, Failure.TOO_LARGE),
    (400, {"object": "error", "message": "This model's maximum context length is 8 tokens", "code": 400},
     Failure.TOO_LARGE),
    (400, GROQ, Failure.BAD_TOOL_CALL),
    (400, GEMINI_KEY, Failure.AUTHENTICATION),
    (401, {"error": {"message": "no key", "code": "invalid_api_key"}}, Failure.AUTHENTICATION),
    (401, {"detail": "Unauthorized"}, Failure.AUTHENTICATION),
    (402, {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}}, Failure.QUOTA),
    (403, {"error": {"message": "not here"}}, Failure.PERMISSION),
    (404, {"error": {"message": "no such model", "code": "model_not_found"}}, Failure.NOT_FOUND),
    (404, {"error": "model 'm' not found"}, Failure.NOT_FOUND),
    (408, {"error": {"message": "slow"}}, Failure.TIMEOUT),
    (413, {"error": {"message": "big"}}, Failure.TOO_LARGE),
    (422, {"object": "error", "message": {"detail": [{"loc": ["body"]}]}, "type": "invalid_request_error"},
     Failure.BAD_REQUEST),
    (429, {"error": {"message": "slow down", "type": "tokens", "code": "rate_limit_exceeded"}}, Failure.RATE_LIMITED),
    (429, {"error": {"message": "pay", "type": "insufficient_quota", "code": "insufficient_quota"}}, Failure.QUOTA),
    (429, {"error": {"message": "pay", "type": "insufficient_quota", "code": None}}, Failure.QUOTA),
    (429, {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": "busy upstream"}}},
     Failure.RATE_LIMITED),
    (429, GEMINI, Failure.RATE_LIMITED),
    (498, {"error": {"message": "capacity", "code": "capacity_exceeded"}}, Failure.OVERLOADED),
    (500, {"error": {"message": "oops", "type": "server_error"}}, Failure.SERVER),
    (502, "<html>Bad gateway</html>", Failure.SERVER),
    (503, {"error": {"message": "later"}}, Failure.OVERLOADED),
    (504, "", Failure.TIMEOUT),
    (529, {"error": {"message": "later"}}, Failure.OVERLOADED),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind"), TOLD)
def test_an_error_is_told_by_its_code_and_else_by_its_status(status: int, body: Any, kind: Failure) -> None:
    told = (body if isinstance(body, str) else json.dumps(body)).encode()
    with FakeProvider(RawReply(told, status, "application/json", headers={"x-request-id": "req_x"})) as fake:
        record = failure(chat(fake), request(model="m"))
    assert (record.failure, record.status, record.request_id) == (kind, status, "req_x")
    assert (record.provider, record.model) == ("openai", "m")
    assert record.message
    assert FailureRecord.model_validate_json(record.model_dump_json()) == record


def test_what_the_model_wrote_is_told_where_the_provider_could_not_read_it() -> None:
    with FakeProvider(RawReply(json.dumps(GROQ).encode(), 400, "application/json")) as fake:
        record = failure(chat(fake, "groq"), request(model="m"))
    assert record.code == "tool_use_failed"
    assert record.message == "Failed to call a function. (failed generation: <function=f{)"


def test_what_is_behind_openrouter_is_told_too() -> None:
    body = {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": "busy upstream"}}}
    with FakeProvider(RawReply(json.dumps(body).encode(), 429, "application/json")) as fake:
        record = failure(chat(fake, "openrouter"), request(model="m"))
    assert (record.code, record.message) == ("429", "Provider returned error (raw: busy upstream)")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry-after": "7"}, 7.0), ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5), ({"retry-after": "-"}, None)],
)  # fmt: skip
def test_the_time_to_be_left_alone_is_read(headers: dict[str, str], seconds: float | None) -> None:
    with FakeProvider(ErrorReply(429, headers=headers)) as fake:
        assert failure(chat(fake), request(model="m")).retry_after == seconds


def test_the_time_to_be_left_alone_can_be_a_date() -> None:
    with FakeProvider(ErrorReply(429, headers={"retry-after": formatdate(time() + 3600, usegmt=True)})) as fake:
        after = failure(chat(fake), request(model="m")).retry_after
    assert after is not None
    assert 3000 < after <= 3600


def test_gemini_says_in_the_body_how_long_to_wait() -> None:
    with FakeProvider(RawReply(json.dumps(GEMINI).encode(), 429, "application/json")) as fake:
        assert failure(chat(fake, "gemini"), request(model="m")).retry_after == 31.5


def test_nothing_is_tried_again_by_the_sdk() -> None:
    with FakeProvider(then=ErrorReply(500)) as fake:
        failure(chat(fake), request(model="m"))
        assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("chunk", "kind", "status"),
    [
        ({"error": {"message": "Upstream idle timeout", "code": 502}}, Failure.SERVER, 502),
        ({"error": {"message": "no", "code": "tool_use_failed", "status_code": 400}}, Failure.BAD_TOOL_CALL, 400),
        ({"error": {"message": "pay", "code": 402}, "choices": []}, Failure.QUOTA, 402),
        ({"object": "error", "message": "CUDA is out of memory", "type": "InternalServerError", "code": 500},
         Failure.SERVER, 500),
        ({"error": "something"}, Failure.SERVER, None),
    ],
)  # fmt: skip
def test_an_error_within_a_stream_is_no_answer(chunk: dict[str, Any], kind: Failure, status: int | None) -> None:
    body = frames({"choices": [{"index": 0, "delta": {"content": "Hi"}}]}, chunk, "data: [DONE]")
    with FakeProvider(RawReply(body)) as fake:
        record = failure(chat(fake, "openrouter"), request(model="m"))
    assert (record.failure, record.status, record.request_id) == (kind, status, "req_1")


def test_a_stream_that_breaks_off_with_an_error_is_no_answer() -> None:
    with FakeProvider(Reply("Hello there", error=("server_error", "it broke"))) as fake:
        record = failure(chat(fake), request(model="m"))
    assert (record.failure, record.message) == (Failure.SERVER, "it broke")


@pytest.mark.parametrize(
    ("finish", "kind"),
    [
        ("error", Failure.SERVER),
        ("insufficient_system_resource", Failure.OVERLOADED),
        ("function_call_filter: MALFORMED_FUNCTION_CALL", Failure.BAD_TOOL_CALL),
        ("tool_calls", Failure.MALFORMED),
    ],
)
def test_a_reason_to_stop_that_is_none_is_a_failure(finish: str, kind: Failure) -> None:
    with FakeProvider(streamed({"role": "assistant"}, finish=finish)) as fake:
        assert failure(chat(fake), request(model="m")).failure is kind


@pytest.mark.parametrize("clean", [True, False], ids=["ended", "dropped"])
def test_a_stream_that_is_cut_after_any_byte_is_no_answer(clean: bool) -> None:
    reply = Reply(["Hé", ToolCall(id="call_1", name="f", arguments='{"a":1}')], id="1")
    asked = {"model": "m", "stream_options": {"include_usage": True}}
    *before, done = _chat.stream(reply, asked)
    complete = len(b"".join(before))

    async def cut_everywhere(provider: OpenAIChat, fake: FakeProvider) -> None:
        for cut in range(0, complete + len(done), 1 if clean else 5):
            fake.add(Reply(reply.parts, id="1", cut=cut, clean=clean, headers={"connection": "close"}))
            if cut < complete:
                with pytest.raises(ModelError) as raised:
                    await events_of(provider, request(model="m"))
                assert raised.value.record.failure is Failure.TRUNCATED, f"cut after {cut} bytes"
                assert raised.value.retryable
            else:
                events = await events_of(provider, request(model="m"))
                assert isinstance(events[-1], Finished), f"cut after {cut} bytes"
        await provider.close()

    with FakeProvider() as fake:
        asyncio.run(cut_everywhere(chat(fake), fake))


@pytest.mark.parametrize(
    "body",
    [
        streamed({"content": "Hi"}, finish=None, done=False),
        streamed({"content": "Hi"}, finish="stop", usage=None, done=False),
        streamed(call(0, "call_1", "f", '{"a":'), finish=None),
        streamed({"role": "assistant"}, finish=None),
        RawReply(b""),
    ],
    ids=["no end", "no usage and no [DONE]", "in the middle of a call", "nothing", "empty"],
)  # fmt: skip
def test_what_ends_too_early_was_cut_off(body: RawReply) -> None:
    with FakeProvider(body) as fake:
        assert failure(chat(fake), request(model="m")).failure is Failure.TRUNCATED


def test_a_server_that_neither_counts_nor_says_done_can_be_used_by_the_generic_dialect() -> None:
    body = streamed({"content": "Hi"}, finish="stop", usage=None, done=False)
    with FakeProvider(body) as fake:
        events = asyncio.run(events_of(chat(fake, "generic"), request(model="m")))
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize(
    "body",
    [
        b"data: {not json}\n\n", b"data: [1]\n\n", b'data: "x"\n\n', b"data: \xff\xfe\n\n",
        frames({"choices": [{"index": 0, "delta": "x"}]}), frames({"choices": 3}),
        frames({"choices": [{"index": 0, "delta": {"tool_calls": ["x"]}}]}),
        frames({"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": "x"}}),
    ],
)  # fmt: skip
def test_what_the_protocol_does_not_have_is_malformed(body: bytes) -> None:
    with FakeProvider(RawReply(body)) as fake:
        assert failure(chat(fake), request(model="m")).failure is Failure.MALFORMED


def test_a_page_for_people_is_no_answer() -> None:
    with FakeProvider(RawReply(b"<html>Welcome</html>", content_type="text/html")) as fake:
        record = failure(chat(fake), request(model="m"))
    assert record.failure is Failure.MALFORMED
    assert "base_url" in record.message


@pytest.mark.parametrize("reply", [Reply("Hello there", stall=300), Reply("Hello", delay=20)], ids=["within", "before"])
def test_silence_ends_a_call(reply: Reply) -> None:
    with FakeProvider(reply) as fake:
        assert failure(chat(fake, timeout=0.3), request(model="m")).failure is Failure.TIMEOUT


def test_nobody_at_the_address_is_a_failure_to_connect() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        provider = OpenAIChat("generic", base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        assert failure(provider, request(model="m")).failure is Failure.CONNECTION


def test_a_connection_that_is_lost_before_the_answer_is_a_failure_to_connect() -> None:
    def lost(_: Any) -> Reply:
        raise ConnectionError

    with FakeProvider(lost) as fake:
        assert failure(chat(fake), request(model="m")).failure is Failure.CONNECTION


def test_without_a_key_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    with FakeProvider() as fake:
        record = failure(OpenAIChat("groq", base_url=fake.url), request(model="m"))
        assert fake.requests == []
    assert record.failure is Failure.AUTHENTICATION
    assert "GROQ_API_KEY" in record.message


def test_the_key_is_read_from_the_environment_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeProvider("Hi") as fake:
        provider = OpenAIChat("groq", base_url=fake.url)
        monkeypatch.setenv("GROQ_API_KEY", "secret")
        asyncio.run(events_of(provider, request(model="m")))
        assert fake.requests[0].headers["authorization"] == "Bearer secret"


def test_what_the_environment_says_of_openai_is_not_told_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "openai-only")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer openai-only")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with FakeProvider("Hi") as fake:
        asyncio.run(events_of(chat(fake, "mistral"), request(model="m")))
        assert "openai-only" not in str(fake.requests[0].headers)
        assert fake.requests[0].headers["authorization"] == "Bearer key"


def test_a_provider_without_an_address_or_a_known_dialect_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        OpenAIChat("generic")
    with pytest.raises(ConfigurationError, match="'opnai'"):
        OpenAIChat("opnai")


def test_without_the_sdk_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    provider = OpenAIChat("ollama")
    assert provider.body(request(model="m"))["model"] == "m"
    with pytest.raises(ConfigurationError, match=r"pip install 'pickaxe\[openai\]'"):
        failure(provider, request(model="m"))


def test_the_sdk_is_loaded_when_it_is_first_used() -> None:
    code = "import sys, pickaxe.models as m; m.OpenAIChat(), m.OpenAIResponses(); assert 'openai' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_cannot_be_sent_as_json_is_refused() -> None:
    asked = request(model="m", provider_tools=(ProviderTool(name="web_search", config={"x": float("nan")}),))
    with FakeProvider() as fake:
        assert failure(chat(fake), asked).failure is Failure.BAD_REQUEST
        assert fake.requests == []


def test_a_complete_answer_stands_though_its_connection_is_lost_afterwards() -> None:
    body = streamed({"content": "Hi"}, usage=USAGE, done=False).body
    with FakeProvider(RawReply(body + b": still here\n\n" * 9, cut=len(body) + 20)) as fake:
        events = asyncio.run(events_of(chat(fake), request(model="m")))
    assert isinstance(events[-1], Finished)
