"""The connection to OpenAI and to those who speak like it: its SDK sends, and what comes back is read as it came."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pickaxe.models._errors import Failure, FailureRecord, ModelError
from pickaxe.models._http import Json, ServerEvent, ServerEvents, drain, sdk
from pickaxe.models._openai_errors import failure
from pickaxe.models._response import ModelEvent

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

CONNECT = 30.0
"""Seconds to make a connection in."""


class Connection:
    """An SDK client for each event loop, made when it is first used there.

    The key is read from the environment variable `key_env` if none is given; without such a variable none is needed.
    """

    def __init__(
        self,
        provider: str,
        *,
        base_url: str,
        api_key: str | None,
        key_env: str | None,
        timeout: float,
        headers: Mapping[str, str],
    ) -> None:
        self.provider, self.timeout = provider, timeout
        self._base_url, self._api_key, self._key_env, self._headers = base_url, api_key, key_env, dict(headers)
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncOpenAI] = WeakKeyDictionary()

    def client(self, model: str) -> AsyncOpenAI:
        """The running event loop's own: connections cannot be used by another."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = self._made(model)
        return self._clients[loop]

    def _made(self, model: str) -> AsyncOpenAI:
        key = self._api_key or (os.environ.get(self._key_env) if self._key_env else "none")
        if not key:
            told = f"there is no key: set {self._key_env}, or give `api_key=`"
            raise ModelError(
                FailureRecord(failure=Failure.AUTHENTICATION, provider=self.provider, model=model, message=told)
            )
        client: AsyncOpenAI = sdk("openai").AsyncOpenAI(
            api_key=key,
            base_url=self._base_url,
            max_retries=0,  # retries wait in the database, where they hold no slot
            timeout=sdk("httpx2").Timeout(self.timeout, connect=min(self.timeout, CONNECT)),
            default_headers={"Authorization": f"Bearer {key}"} | self._headers,
        )
        if "api.openai.com" not in self._base_url:
            client.organization = client.project = None  # the SDK has them from the environment; they are OpenAI's
        return client

    async def close(self) -> None:
        """Let go of this event loop's connections. The next call makes new ones."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()


class Call:
    """One call, while it lasts. `done` is whether the server has said that nothing more comes."""

    def __init__(self, connection: Connection, model: str) -> None:
        self._connection, self._model = connection, model
        self.request_id: str | None = None
        self.first: float | None = None
        self.done = False
        self._sent = time.monotonic()

    @property
    def latency(self) -> float:
        """Seconds since the request was sent."""
        return time.monotonic() - self._sent

    def error(self, kind: Failure, message: str) -> ModelError:
        """A failure that the provider has not told of itself."""
        return ModelError(
            FailureRecord(
                failure=kind,
                provider=self._connection.provider,
                model=self._model,
                message=message,
                request_id=self.request_id,
            )
        )

    def refused(self, told: object) -> ModelError:
        """A failure that the provider tells within its answer."""
        return failure(self._connection.provider, self._model, told, headers={"x-request-id": self.request_id or ""})

    def understood(self, data: str, add: Callable[[Json], Iterator[ModelEvent]]) -> Iterator[ModelEvent]:
        """What the data of an event adds to an answer. Raises `ModelError`."""
        try:
            told = json.loads(data)
            kind = told.get("object")
            if kind == "error" or told.get("type") == "error" or (told.get("error") and kind != "response"):
                raise self.refused(told)
            for event in add(told):
                self.first = self.latency if self.first is None else self.first
                yield event
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self.error(Failure.MALFORMED, f"not what the protocol has: {error!r} in {data[:200]}") from error

    @asynccontextmanager
    async def ask(
        self, path: str, body: Json, complete: Callable[[], bool]
    ) -> AsyncIterator[AsyncIterator[ServerEvent]]:
        """Send a request; the events of its answer are read inside. Once that is complete nothing can go wrong.

        A body that came in one piece is one event. Raises `ModelError`.
        """
        response = await self._response(path, body)
        http = sdk("httpx2")
        self.request_id = response.headers.get("x-request-id")
        try:
            async with aclosing(response.aiter_bytes()) as chunks, aclosing(self._events(response, chunks)) as events:
                yield events
                if self.done:
                    await drain(chunks)
        except http.TimeoutException as error:
            if not complete():
                raise self.error(Failure.TIMEOUT, f"no word for {self._connection.timeout:g} s ({error!r})") from error
        except http.HTTPError as error:
            if not complete():
                told = f"the connection was lost before the answer was complete: {error!r}"
                raise self.error(Failure.TRUNCATED, told) from error
        except UnicodeDecodeError as error:
            raise self.error(Failure.MALFORMED, f"not UTF-8: {error}") from error
        finally:
            await response.aclose()

    async def _events(
        self, response: httpx2.Response, chunks: AsyncIterator[bytes]
    ) -> AsyncGenerator[ServerEvent, None]:
        kind = response.headers.get("content-type", "")
        if kind.startswith("application/json"):
            body = b"".join([chunk async for chunk in chunks])
            self.done = True
            yield ServerEvent("", body.decode())
            return
        if kind.startswith("text/html"):
            raise self.error(Failure.MALFORMED, f"{response.url} is a page for people: is `base_url` right?")
        decoder = ServerEvents()
        async for chunk in chunks:
            for event in decoder.feed(chunk):
                yield event

    async def _response(self, path: str, body: Json) -> httpx2.Response:
        """The response, of which only the head has come."""
        client = self._connection.client(self._model)
        openai, http = sdk("openai"), sdk("httpx2")
        self._sent = time.monotonic()
        try:
            sent = client.post(path, cast_to=http.Response, body=body, stream=True, stream_cls=openai.AsyncStream[Any])
            response: httpx2.Response = await sent
        except openai.APITimeoutError as error:
            raise self.error(Failure.TIMEOUT, f"no word for {self._connection.timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise self.error(Failure.CONNECTION, f"{error.message} ({error.__cause__!r})") from error
        except openai.APIStatusError as error:
            raise self._refusal(error.response) from error
        except (openai.OpenAIError, http.HTTPError) as error:
            raise self.error(Failure.CONNECTION, repr(error)) from error
        except (TypeError, ValueError) as error:
            raise self.error(Failure.BAD_REQUEST, f"the request cannot be sent as JSON: {error}") from error
        return response

    def _refusal(self, response: httpx2.Response) -> ModelError:
        told: object = response.text
        with suppress(ValueError):
            told = json.loads(response.text)
        told = told or f"HTTP {response.status_code} {response.reason_phrase}"
        return failure(
            self._connection.provider, self._model, told, status=response.status_code, headers=response.headers
        )
