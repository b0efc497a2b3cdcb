"""The one thing a provider has to be able to do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

from pickaxe.models._request import ModelRequest
from pickaxe.models._response import ModelEvent


@runtime_checkable
class Provider(Protocol):
    """Where models are. `name` is what `"name:model"` begins with and what prices go by; `dialect` is the wire format,
    which a message's `native` must have to go back word for word.
    """

    name: str
    dialect: str

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The pieces of an answer, `Finished` last. Raises `ModelError`; never tries again by itself.

        Closing the iterator, or cancelling whoever waits for it, ends the request.
        """
        ...

    def body(self, request: ModelRequest) -> dict[str, object]:
        """What would be sent: every string of it can be looked at. Raises `ModelError` (`unsupported`)."""
        ...

    async def close(self) -> None:
        """Let go of connections. The next call makes new ones."""
        ...
