"""Anthropic's models, over Anthropic Messages."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

from pickaxe.models import _anthropic_data as data
from pickaxe.models._anthropic_answer import Answer
from pickaxe.models._anthropic_request import DIALECT, UnsupportedError, body_of
from pickaxe.models._errors import Failure, FailureRecord, ModelError
from pickaxe.models._http import Json, ServerEvents, drain, failure_of, retry_after, sdk
from pickaxe.models._request import ModelRequest
from pickaxe.models._response import Finished, ModelEvent, ModelResponse

logger = logging.getLogger("pickaxe.models")


class Anthropic:
    """Anthropic's models.

    - `api_key`: None is the environment's `ANTHROPIC_API_KEY`, looked up when it is first needed.
    - `base_url`: None is the environment's `ANTHROPIC_BASE_URL`, else Anthropic itself.
    - `timeout`: seconds of silence after which a call has failed; 600 is what Anthropic's own SDK has.
    - `max_tokens`: how long an answer may be if a request does not say; what thinking may take is added.
    - `headers`: more headers of every request, such as `anthropic-beta`.
    - `provider_tools`: portable names of provider tools and the provider's types for them, over those known here.
    - `name`: what prices and records call this provider, for others that speak the same protocol.

    `temperature` and `top_p` are refused by the API: they are left out, with one warning.
    """

    dialect = DIALECT

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float = 600.0,
        max_tokens: int = 16_384,
        headers: Mapping[str, str] = MappingProxyType({}),
        provider_tools: Mapping[str, str] = MappingProxyType({}),
        name: str = "anthropic",
    ) -> None:
        self.name = name
        self._api_key = api_key
        self._base_url = base_url
        self._timeout = timeout
        self._max_tokens = max_tokens
        self._headers = dict(headers)
        self._provider_tools = data.PROVIDER_TOOLS | dict(provider_tools)
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()
        self._warned = False

    def body(self, request: ModelRequest) -> dict[str, object]:
        """What would be sent, but for `stream`. Raises `ModelError` (`unsupported`)."""
        self._warn(request)
        try:
            return body_of(request, max_tokens=self._max_tokens, provider_tools=self._provider_tools)
        except UnsupportedError as error:
            raise self._error(request, Failure.UNSUPPORTED, str(error)) from error

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The pieces of an answer, `Finished` last. Raises `ModelError`.

        Closing the iterator, or cancelling whoever waits for it, ends the request.
        """
        body = self.body(request)
        call = _Call(self, request)
        client = self._client(request)
        anthropic, http = sdk("anthropic"), sdk("httpx2")
        try:
            async with client.messages.with_streaming_response.create(
                model=request.model, max_tokens=body["max_tokens"], messages=[], stream=True, extra_body=body
            ) as response:
                call.request_id = response.headers.get("request-id")
                call.answering = True
                async with aclosing(_events(response, call.answer)) as events:
                    async for event in events:
                        call.began()
                        yield event
            finished = Finished(response=call.response())
        except _TellsError as error:
            raise call.refused(error.body, None, {}) from error
        except anthropic.APIStatusError as error:
            raise call.refused(error.body, error.status_code, error.response.headers) from error
        except (anthropic.AnthropicError, http.HTTPError) as error:
            raise call.broken(error, anthropic, http) from error
        except ValueError as error:
            failure = Failure.MALFORMED if call.answering else Failure.BAD_REQUEST  # what JSON lacks cannot be sent
            raise call.error(failure, str(error)) from error
        yield finished

    async def close(self) -> None:
        """Let go of this event loop's connections. The next call makes new ones."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _client(self, request: ModelRequest) -> Any:
        """The running event loop's own: connections cannot be used by another."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            key = self._api_key or os.environ.get("ANTHROPIC_API_KEY")
            if not key:
                raise self._error(
                    request,
                    Failure.AUTHENTICATION,
                    "there is no key: set ANTHROPIC_API_KEY, or give Anthropic(api_key=…)",
                )
            self._clients[loop] = sdk("anthropic").AsyncAnthropic(
                api_key=key,
                base_url=self._base_url or os.environ.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com",
                max_retries=0,  # retries wait in the database, where they hold no slot
                timeout=sdk("httpx2").Timeout(self._timeout, connect=min(self._timeout, 30.0)),
                default_headers=self._headers,
                open_telemetry=False,  # the spans are Pickaxe's, and trace ids are nobody else's business
            )
        return self._clients[loop]

    def _warn(self, request: ModelRequest) -> None:
        options = request.options
        if not self._warned and (options.temperature is not None or options.top_p is not None):
            self._warned = True
            logger.warning("%s refuses temperature and top_p: they are left out of every request", self.name)

    def _error(self, request: ModelRequest, failure: Failure, message: str, **more: Any) -> ModelError:
        record = FailureRecord(failure=failure, provider=self.name, model=request.model, message=message, **more)
        return ModelError(record)


class _TellsError(Exception):
    """The provider broke its stream off with an error."""

    def __init__(self, body: Json) -> None:
        super().__init__(str(body))
        self.body = body


class _Call:
    """One call, while it lasts."""

    def __init__(self, provider: Anthropic, request: ModelRequest) -> None:
        self.provider = provider
        self.request = request
        self.answer = Answer()
        self.answering = False
        self.request_id: str | None = None
        self._sent = time.monotonic()
        self._first: float | None = None

    def began(self) -> None:
        """A piece of the answer is here."""
        if self._first is None:
            self._first = time.monotonic() - self._sent

    def response(self) -> ModelResponse:
        """The complete answer. Raises `ModelError` (`truncated`) if it is not."""
        answer = self.answer
        if not answer.complete or answer.stop is None:
            raise self.error(Failure.TRUNCATED, "the stream ended before the answer did")
        with _malformed():
            return ModelResponse(
                message=answer.message(),
                stop=answer.stop,
                usage=answer.counted(),
                model=answer.head.get("model") or self.request.model,
                provider=self.provider.name,
                id=answer.head.get("id") or "",
                request_id=self.request_id,
                first_token=self._first,
                latency=time.monotonic() - self._sent,
                details=answer.details(),
            )

    def error(self, failure: Failure, message: str, **more: Any) -> ModelError:
        """This call has failed."""
        return self.provider._error(self.request, failure, message, **{"request_id": self.request_id} | more)

    def refused(self, body: object, status: int | None, headers: Mapping[str, str]) -> ModelError:
        """The provider has answered with an error: its code tells more than its type, and that more than the status."""
        outer = _object(body)
        inner = _object(outer.get("error"))
        code, kind = _text(_object(inner.get("details")).get("error_code")), _text(inner.get("type"))
        message = _text(inner.get("message")) or str(body)[:500]
        fallback = Failure.SERVER if status is None else failure_of(status)
        failure = data.CODES.get(code or "") or data.KINDS.get(kind or "") or fallback
        if failure is Failure.BAD_REQUEST:
            failure = next((meant for words, meant in data.PHRASES if words.search(message)), failure)
        return self.error(
            failure,
            message,
            status=status,
            code=code or kind,
            retry_after=retry_after(headers),
            request_id=headers.get("request-id") or _text(outer.get("request_id")) or self.request_id,
        )

    def broken(self, error: Exception, anthropic: Any, http: Any) -> ModelError:
        """The connection has failed, or the SDK could make nothing of what came over it."""
        cause = error.__cause__ if isinstance(error, anthropic.APIConnectionError) else None
        message = f"{type(cause or error).__name__}: {cause or error}"
        if isinstance(error, anthropic.APITimeoutError | http.TimeoutException):
            return self.error(Failure.TIMEOUT, f"no word for {self.provider._timeout:g} s ({message})")
        if isinstance(error, http.TransportError) and self.answering:
            return self.error(Failure.TRUNCATED, f"the connection was lost before the answer was complete: {message}")
        if isinstance(error, anthropic.APIConnectionError | http.TransportError):
            return self.error(Failure.CONNECTION, message)
        return self.error(Failure.MALFORMED, message)


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


@contextmanager
def _malformed() -> Iterator[None]:
    """Whatever is wrong in here is wrong with what the provider sent: `ValueError`."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not what the protocol says: {error!r}") from error


async def _events(response: Any, answer: Answer) -> AsyncGenerator[ModelEvent, None]:
    """Feed an answer with what the provider sends. Raises `ValueError` for what its protocol does not allow."""
    if response.headers.get("content-type", "").startswith("application/json"):
        for event in _fed(answer.feed_whole, await response.text()):
            yield event
        return
    decoder = ServerEvents()
    async with aclosing(response.iter_bytes()) as chunks:
        async for chunk in chunks:
            for told in decoder.feed(chunk):
                for event in _fed(answer.feed, told.data):
                    yield event
            if answer.complete:
                await drain(chunks)


def _fed(feed: Callable[[Json], Iterator[ModelEvent]], text: str) -> list[ModelEvent]:
    with _malformed():
        told = json.loads(text)
        if told.get("type") != "error":
            return list(feed(told))
    raise _TellsError(told)
