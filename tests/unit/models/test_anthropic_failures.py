"""How a call of Anthropic's models fails, through the real SDK."""

import asyncio
import dataclasses
import json
import pickle
import socket
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import pytest

from pickaxe.models import (
    Anthropic,
    Failure,
    FailureRecord,
    Finished,
    ModelError,
    TextDelta,
    Thinking,
    ToolCall,
)
from pickaxe.testing import ErrorReply, FakeProvider, RawReply, Reply
from pickaxe.testing.providers import _anthropic
from tests.unit.models.asking import answer, events_of, failure, request, stream

CALL = ToolCall(id="toolu_1", name="pay", arguments='{"euros":1,"to":["a","b"]}')


def of(fake: FakeProvider, **more: object) -> Anthropic:
    return Anthropic(api_key="key", base_url=fake.url, **more)


@pytest.mark.parametrize(
    ("status", "kind", "failure_", "retryable"),
    [
        (400, None, Failure.BAD_REQUEST, False),
        (401, None, Failure.AUTHENTICATION, False),
        (402, None, Failure.QUOTA, False),
        (403, None, Failure.PERMISSION, False),
        (404, None, Failure.NOT_FOUND, False),
        (408, None, Failure.TIMEOUT, True),
        (409, None, Failure.SERVER, True),
        (413, None, Failure.TOO_LARGE, False),
        (422, None, Failure.BAD_REQUEST, False),
        (429, None, Failure.RATE_LIMITED, True),
        (500, None, Failure.SERVER, True),
        (502, None, Failure.SERVER, True),
        (503, "overloaded_error", Failure.OVERLOADED, True),
        (504, None, Failure.TIMEOUT, True),
        (529, None, Failure.OVERLOADED, True),
        (500, "overloaded_error", Failure.OVERLOADED, True),
        (418, "something_new", Failure.BAD_REQUEST, False),
        (520, "something_new", Failure.SERVER, True),
    ],
)
def test_each_error_has_its_kind_and_says_whether_to_try_again(
    status: int, kind: str | None, failure_: Failure, retryable: bool
):
    with FakeProvider(ErrorReply(status, "no luck", kind)) as fake:
        record = failure(of(fake), request())
        assert len(fake.requests) == 1
    assert (record.failure, record.status, record.message) == (failure_, status, "no luck")
    assert record.request_id == "req_1"
    assert ModelError(record).retryable is retryable
    assert record.code == json.loads(_anthropic.error(status, kind, ""))["error"]["type"]


@pytest.mark.parametrize(
    ("message", "meant"),
    [
        ("prompt is too long: 210000 tokens > 200000 maximum", Failure.TOO_LARGE),
        ("input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000", Failure.TOO_LARGE),
        ("Your credit balance is too low to access the Anthropic API", Failure.QUOTA),
        ("messages.1: tool_use ids were found without tool_result blocks", Failure.BAD_REQUEST),
    ],
)
def test_what_the_api_tells_apart_by_words_is_told_apart(message: str, meant: Failure):
    with FakeProvider(ErrorReply(400, message)) as fake:
        assert failure(of(fake), request()).failure is meant


def test_a_spend_limit_is_not_a_rate_limit_that_passes():
    told = {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "message": "spend limit",
            "details": {"error_code": "enforced_spend_limit_reached"},
        },
    }
    with FakeProvider(RawReply(json.dumps(told).encode(), 429, content_type="application/json")) as fake:
        record = failure(of(fake), request())
    assert (record.failure, record.code) == (Failure.QUOTA, "enforced_spend_limit_reached")


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b"[]", b'{"error":"no"}', b'{"error":{"type":[]}}'])
def test_an_error_that_is_not_the_providers_goes_by_its_status(body: bytes):
    with FakeProvider(RawReply(body, 502, content_type="application/json")) as fake:
        record = failure(of(fake), request())
    assert (record.failure, record.status) == (Failure.SERVER, 502)


def test_how_long_to_wait_is_read_in_seconds_and_the_call_does_not_wait():
    with FakeProvider(ErrorReply(429, retry_after=3600)) as fake:
        assert failure(of(fake), request()).retry_after == 3600


def test_how_long_to_wait_is_read_in_milliseconds_first():
    with FakeProvider(ErrorReply(429, retry_after=2, headers={"retry-after-ms": "1500"})) as fake:
        assert failure(of(fake), request()).retry_after == 1.5


def test_how_long_to_wait_is_read_as_a_date():
    until = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    with FakeProvider(ErrorReply(529, headers={"Retry-After": until})) as fake:
        assert 7000 < failure(of(fake), request()).retry_after <= 7200


@pytest.mark.parametrize("said", ["soon", "-5", "1e9999", ""])
def test_how_long_to_wait_may_be_nonsense(said: str):
    with FakeProvider(ErrorReply(429, headers={"retry-after": said})) as fake:
        assert failure(of(fake), request()).retry_after is None


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        ("overloaded_error", Failure.OVERLOADED),
        ("api_error", Failure.SERVER),
        ("rate_limit_error", Failure.RATE_LIMITED),
        ("invalid_request_error", Failure.BAD_REQUEST),
        ("something_new", Failure.SERVER),
    ],
)
@pytest.mark.parametrize("after", [0, 1, 4, None])
def test_an_error_in_the_middle_of_a_stream_is_an_error(kind: str, meant: Failure, after: int | None):
    with FakeProvider(Reply(["Hello", CALL], error=(kind, "stopped"), error_after=after)) as fake:
        record = failure(of(fake), request())
    assert (record.failure, record.code, record.message) == (meant, kind, "stopped")
    assert record.request_id == "req_1"


def attempts(fake: FakeProvider, count: int) -> list[FailureRecord | Finished]:
    """That many calls, a few at a time."""

    async def run() -> list[FailureRecord | Finished]:
        provider, turn = of(fake), asyncio.Semaphore(8)

        async def call() -> FailureRecord | Finished:
            async with turn:
                try:
                    return (await events_of(provider, request()))[-1]
                except ModelError as error:
                    return error.record

        try:
            return await asyncio.gather(*(call() for _ in range(count)))
        finally:
            await provider.close()

    return asyncio.run(run())


@pytest.mark.parametrize("clean", [True, False], ids=["closed as if complete", "dropped"])
def test_a_stream_that_is_cut_after_any_byte_is_truncated_and_may_be_tried_again(clean: bool):
    said = (Thinking(text="Hm"), "Hi", CALL)
    size = sum(map(len, _anthropic.stream(Reply(said, id="100", chunk=100), request().model_dump())))
    with FakeProvider(*(Reply(said, id="100", chunk=100, cut=cut, clean=clean) for cut in range(size))) as fake:
        ends = attempts(fake, size)
    assert {end.failure for end in ends if isinstance(end, FailureRecord)} == {Failure.TRUNCATED}
    assert not [end for end in ends if isinstance(end, Finished)]


def test_a_stream_that_is_dropped_after_its_last_byte_is_complete():
    size = sum(map(len, _anthropic.stream(Reply(CALL, id="1"), request().model_dump())))
    with FakeProvider(Reply(CALL, id="1", cut=size)) as fake:
        assert answer(of(fake), request()).calls == (CALL,)


def test_a_stream_that_hangs_after_its_last_byte_is_complete():
    size = sum(map(len, _anthropic.stream(Reply(CALL, id="1"), request().model_dump())))
    with FakeProvider(Reply(CALL, id="1", stall=size)) as fake:
        assert answer(of(fake), request()).calls == (CALL,)


def test_an_answer_without_a_reason_to_stop_is_truncated():
    with FakeProvider(Reply("Hi", details={"stop_reason": None})) as fake:
        assert failure(of(fake), request()).failure is Failure.TRUNCATED


START = (
    b'data: {"type":"message_start","message":{"id":"m","model":"c","usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
)


@pytest.mark.parametrize(
    "body",
    [
        b"data: {not json}\n\n",
        b"data: []\n\n",
        b'data: "x"\n\n',
        b'data: {"no":"type"}\n\n',
        b"data: \xff\xfe\n\n",
        START + b'data: {"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"x"}}\n\n',
        START + b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text"}}\n\n',
        START + b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":5}}\n\n',
        START + b'data: {"type":"message_delta","delta":{"stop_reason":["x"]}}\n\ndata: {"type":"message_stop"}\n\n',
        START
        + b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":"many"}}\n\n'
        b'data: {"type":"message_stop"}\n\n',
    ],
)
def test_what_the_protocol_does_not_know_is_malformed(body: bytes):
    with FakeProvider(RawReply(body)) as fake:
        assert failure(of(fake), request()).failure is Failure.MALFORMED


def test_a_page_instead_of_a_stream_is_no_answer():
    with FakeProvider(RawReply(b"<html>Log in</html>", content_type="text/html")) as fake:
        assert failure(of(fake), request()).failure in (Failure.MALFORMED, Failure.TRUNCATED)


def test_nobody_there_is_a_failed_connection():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        provider = Anthropic(api_key="key", base_url=f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert failure(provider, request()).failure is Failure.CONNECTION


@pytest.mark.parametrize("reply", [Reply("Hi", delay=20), Reply("Hi", stall=0), Reply("Hi", stall=500)])
def test_silence_is_a_timeout(reply: Reply):
    with FakeProvider(reply) as fake:
        record = failure(of(fake, timeout=0.2), request())
        assert fake.requests[0].gone.wait(30)
    assert record.failure is Failure.TIMEOUT
    assert "0.2 s" in record.message


def test_a_connection_that_is_dropped_before_the_answer_is_a_failed_connection():
    listener = socket.create_server(("127.0.0.1", 0))

    def hang_up() -> None:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.close()

    with listener:
        rude = threading.Thread(target=hang_up)
        rude.start()
        provider = Anthropic(api_key="key", base_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        record = failure(provider, request())
        rude.join()
    assert record.failure is Failure.CONNECTION


def test_without_a_key_nothing_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with FakeProvider("Hi") as fake:
        record = failure(Anthropic(base_url=fake.url), request())
        assert not fake.requests
    assert record.failure is Failure.AUTHENTICATION
    assert "ANTHROPIC_API_KEY" in record.message


def test_a_failure_survives_json_and_pickle():
    with FakeProvider(ErrorReply(429, "slow down", retry_after=7)) as fake, pytest.raises(ModelError) as caught:
        stream(of(fake), request())
    error = caught.value
    assert FailureRecord.model_validate_json(error.record.model_dump_json()) == error.record
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.record, again.retry_after) == (str(error), error.record, 7)
    assert str(error) == "anthropic:claude-sonnet-5-5: rate limited: slow down (request req_1)"


def stalled(reply: Reply, frames: int) -> Reply:
    """The same, but nothing comes after so many frames."""
    told = list(_anthropic.stream(dataclasses.replace(reply, id="1"), request().model_dump()))
    return dataclasses.replace(reply, id="1", stall=sum(map(len, told[:frames])))


LONG = stalled(Reply("Hello, this takes long"), 4)
"""Until its first piece of text is there: the message, the block, a ping and a delta."""


def test_whoever_is_cancelled_while_an_answer_comes_hangs_up():
    async def cancelled(fake: FakeProvider) -> None:
        provider, begun = of(fake), asyncio.Event()

        async def listen() -> None:
            async for event in provider.stream(request()):
                assert isinstance(event, TextDelta)
                begun.set()

        task = asyncio.create_task(listen())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(fake.requests[0].gone.wait, 30)
        await provider.close()

    with FakeProvider(LONG) as fake:
        asyncio.run(cancelled(fake))


def test_whoever_is_cancelled_before_an_answer_comes_hangs_up():
    async def cancelled(fake: FakeProvider) -> None:
        provider = of(fake)
        task = asyncio.create_task(events_of(provider, request()))
        await asyncio.to_thread(fake.wait, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(fake.requests[0].gone.wait, 30)
        await provider.close()

    with FakeProvider(Reply("Hello", delay=60)) as fake:
        asyncio.run(cancelled(fake))


def test_whoever_closes_the_iterator_hangs_up_and_the_adapter_can_be_asked_again():
    async def closed(fake: FakeProvider) -> None:
        provider = of(fake)
        events = provider.stream(request())
        assert isinstance(await anext(events), TextDelta)
        await events.aclose()
        assert await asyncio.to_thread(fake.requests[0].gone.wait, 30)
        assert isinstance((await events_of(provider, request()))[-1], Finished)
        await provider.close()

    with FakeProvider(LONG, "Again") as fake:
        asyncio.run(closed(fake))


def test_calls_after_one_another_share_a_connection_and_another_event_loop_has_its_own():
    async def thrice(provider: Anthropic, between: Callable[[], Awaitable[object]]) -> None:
        await events_of(provider, request())
        await events_of(provider, request())
        await between()
        await events_of(provider, request())
        await provider.close()

    async def nothing() -> None: ...

    with FakeProvider(then="Hi") as fake:
        provider = of(fake)
        other = partial(asyncio.to_thread, lambda: asyncio.run(thrice(provider, nothing)))
        asyncio.run(thrice(provider, other))
        assert [received.connection for received in fake.requests] == [1, 1, 2, 2, 2, 1]
