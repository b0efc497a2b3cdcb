"""What providers have in common on the wire: server-sent events, `Retry-After`, strict JSON, SDKs that are extras."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any, NamedTuple

from pickaxe.errors import ConfigurationError
from pickaxe.models._errors import Failure

Json = dict[str, Any]

STATUSES = {
    400: Failure.BAD_REQUEST, 401: Failure.AUTHENTICATION, 402: Failure.QUOTA, 403: Failure.PERMISSION,
    404: Failure.NOT_FOUND, 408: Failure.TIMEOUT, 409: Failure.SERVER, 413: Failure.TOO_LARGE, 422: Failure.BAD_REQUEST,
    425: Failure.SERVER, 429: Failure.RATE_LIMITED, 503: Failure.OVERLOADED, 504: Failure.TIMEOUT,
    524: Failure.TIMEOUT, 529: Failure.OVERLOADED,
}  # fmt: skip
"""What a status means where the provider says nothing more."""


def failure_of(status: int) -> Failure:
    """What an HTTP status means where the provider says nothing more."""
    return STATUSES.get(status) or (Failure.SERVER if status >= 500 else Failure.BAD_REQUEST)


class ServerEvent(NamedTuple):
    """One server-sent event. `event` is its name, empty where it has none."""

    event: str
    data: str


class ServerEvents:
    """Server-sent events out of bytes, cut anywhere.

    Lines end where the standard says, in bytes. Decoded text must not be split by `str.splitlines`, as HTTP libraries
    do: a U+2028 in a model's answer is none of its ends. An event that its empty line has not ended is not told.
    """

    _end = re.compile(rb"\r\n|\n|\r(?=[\s\S])")

    def __init__(self) -> None:
        self._rest = b""
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """The events that this chunk completes. Raises `UnicodeDecodeError` for what is not UTF-8."""
        *lines, self._rest = self._end.split(self._rest + chunk)
        for line in lines:
            if line:
                self._field(line.decode())
            else:
                event, data = self._event, self._data
                self._event, self._data = "", []
                if data:
                    yield ServerEvent(event, "\n".join(data))

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a provider asks to be left alone: `retry-after-ms`, or `retry-after` as seconds or as a date."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    asked = headers.get("retry-after")
    if asked is None or (seconds := _number(asked)) is not None:
        return seconds if asked is not None else None
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return None  # neither seconds nor a date: as if it had not been sent
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


async def drain(chunks: AsyncIterator[bytes]) -> None:
    """Read what is left of a complete answer, if it comes now, so that its connection can be used again."""
    with suppress(TimeoutError, sdk("httpx2").TransportError):
        async with asyncio.timeout(0.5):
            async for _ in chunks:
                continue


def _number(text: str | None) -> float | None:
    if text is None or not re.fullmatch(r"\s*\d+(\.\d+)?\s*", text):
        return None
    return float(text)


def dumps(value: object) -> str:
    """JSON text as the SDKs write it on the wire. What UTF-8 cannot carry, half of a surrogate pair, is escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


_HALF = re.compile("[\ud800-\udfff]")


def joined(text: str) -> str:
    """The same text, with halves of characters that came in different pieces put together."""
    return (
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass") if _HALF.search(text) else text
    )


def sendable(value: Any) -> Any:
    """The same value, with what UTF-8 cannot carry replaced, for otherwise no request with it could be sent."""
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value) if _HALF.search(value) else value
    if isinstance(value, dict):
        return {sendable(key): sendable(inner) for key, inner in value.items()}
    return [sendable(inner) for inner in value] if isinstance(value, list | tuple) else value


def sdk(name: str) -> Any:
    """A provider's SDK, which is an extra of this package. Raises `ConfigurationError` if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigurationError(
            f"the package {name!r} is not installed: install it with `pip install 'pickaxe[{name}]'`"
        ) from error
