"""How these tests ask a model: through an adapter and its real SDK, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pickaxe.models import (
    AssistantMessage,
    FailureRecord,
    Finished,
    Message,
    ModelError,
    ModelEvent,
    ModelRequest,
    ModelResponse,
    Provider,
    Text,
    ToolMessage,
    ToolResult,
    UserMessage,
)


def user(text: str) -> UserMessage:
    return UserMessage(content=(Text(text=text),))


def result(call: str, text: str, error: bool = False) -> ToolResult:
    return ToolResult(call=call, content=(Text(text=text),), error=error)


def results(*told: ToolResult) -> ToolMessage:
    return ToolMessage(results=told)


def request(*messages: Message | str, model: str = "claude-sonnet-5-5", **more: object) -> ModelRequest:
    said = tuple(user(message) if isinstance(message, str) else message for message in messages or ("Hello?",))
    return ModelRequest(model=model, messages=said, **more)


async def events_of(provider: Provider, asked: ModelRequest) -> list[ModelEvent]:
    return [event async for event in provider.stream(asked)]


def stream(provider: Provider, asked: ModelRequest) -> list[ModelEvent]:
    """All events of one call."""

    async def call() -> list[ModelEvent]:
        try:
            return await events_of(provider, asked)
        finally:
            await provider.close()

    return asyncio.run(call())


def answer(provider: Provider, asked: ModelRequest) -> ModelResponse:
    """The answer of one call."""
    last = stream(provider, asked)[-1]
    assert isinstance(last, Finished)
    return last.response


def failure(provider: Provider, asked: ModelRequest) -> FailureRecord:
    """How one call fails: with a `ModelError`, and nothing else."""
    try:
        told = stream(provider, asked)
    except ModelError as error:
        return error.record
    raise AssertionError(f"answered: {told}")


def converse(provider: Provider, asked: ModelRequest, *then: Sequence[Message]) -> list[AssistantMessage]:
    """Several turns, each with what came before; after each answer the next messages are added."""
    said, history = [], asked.messages
    for more in (*then, ()):
        message = answer(provider, asked.model_copy(update={"messages": history})).message
        said.append(message)
        history = (*history, message, *more)
    return said
