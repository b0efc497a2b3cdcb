"""OpenAI's Chat Completions, and all who speak like it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType

from pickaxe.errors import ConfigurationError
from pickaxe.models._chat_answer import ChatAnswer
from pickaxe.models._chat_body import ChatBody
from pickaxe.models._dialects import PRESETS, ChatDialect
from pickaxe.models._errors import Failure
from pickaxe.models._http import Json
from pickaxe.models._openai_client import Call, Connection
from pickaxe.models._request import ModelRequest
from pickaxe.models._response import Finished, ModelEvent, ModelResponse

log = logging.getLogger("pickaxe.models")

FAILED = {
    "error": Failure.SERVER,
    "abort": Failure.SERVER,
    "insufficient_system_resource": Failure.OVERLOADED,
}
"""Reasons to finish that are none."""


class OpenAIChat:
    """A provider that speaks Chat Completions.

    - `dialect`: a preset by its name, or a `ChatDialect` of one's own.
    - `api_key`: None reads the dialect's environment variable when the first request is sent.
    - `base_url`: up to and with `/v1`; None is the dialect's.
    - `timeout`: seconds in which nothing comes at all.
    - `headers`: more headers of each request.
    - `name`: what prices go by; None is the dialect's.

    Raises `ConfigurationError` for a dialect that is not known, without an address, and, when it is first used, without
    the SDK (`pickaxe[openai]`).
    """

    def __init__(
        self,
        dialect: ChatDialect | str = "openai",
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float = 600.0,
        headers: Mapping[str, str] = MappingProxyType({}),
        name: str | None = None,
    ) -> None:
        if isinstance(dialect, str):
            if dialect not in PRESETS:
                raise ConfigurationError(f"no Chat dialect {dialect!r}: there are {', '.join(PRESETS)}")
            dialect = PRESETS[dialect]
        if not (base_url or dialect.base_url):
            raise ConfigurationError(f"{name or dialect.name} has no address: give `base_url=`, up to and with its /v1")
        self.spoken = dialect
        self.name = name or dialect.name
        self.dialect = f"openai-chat:{self.name}"
        self._connection = Connection(
            self.name,
            base_url=base_url or dialect.base_url or "",
            api_key=api_key,
            key_env=dialect.key_env,
            timeout=timeout,
            headers=headers,
        )
        self._warned: set[str] = set()

    def body(self, request: ModelRequest) -> dict[str, object]:
        """What would be sent. Raises `ModelError` (`unsupported`)."""
        return ChatBody(self.name, self.spoken, self.dialect, request, self._drop).made()

    def _drop(self, option: str) -> None:
        if option not in self._warned:
            self._warned.add(option)
            log.warning("%s takes no %s: it is left out", self.name, option)

    async def close(self) -> None:
        """Let go of connections. The next call makes new ones."""
        await self._connection.close()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The pieces of an answer, `Finished` last. Raises `ModelError`.

        Closing the iterator, or cancelling whoever waits for it, ends the request.
        """
        body: Json = dict(self.body(request))
        answer, call = ChatAnswer(self.spoken), Call(self._connection, request.model)
        async with call.ask("/chat/completions", body, lambda: answer.complete) as frames:
            async for _, data in frames:
                if data.strip() == "[DONE]":
                    call.done = True
                    break
                for event in call.understood(data, answer.add):
                    yield event
        self._judge(answer, call)
        for event in answer.end():
            yield event
        yield Finished(response=self._response(answer, call, request.model))

    def _response(self, answer: ChatAnswer, call: Call, model: str) -> ModelResponse:
        try:
            return ModelResponse(
                message=answer.message(self.dialect),
                stop=answer.stop(),
                usage=answer.usage(),
                model=answer.model or model,
                provider=self.name,
                id=answer.id,
                request_id=call.request_id,
                first_token=call.first,
                latency=call.latency,
                details=answer.details | {"finish_reason": answer.finish},
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise call.error(Failure.MALFORMED, f"not an answer: {error!r}") from error

    def _judge(self, answer: ChatAnswer, call: Call) -> None:
        """Raises `ModelError` if what has come is no answer."""
        finish = (answer.finish or "").lower()
        if finish in FAILED:
            raise call.error(FAILED[finish], f"the provider gave up: finish_reason {answer.finish!r}")
        if finish.startswith("function_call_filter"):
            raise call.error(Failure.BAD_TOOL_CALL, f"the model wrote no valid call: {answer.finish}")
        if not (call.done or answer.complete):
            raise call.error(Failure.TRUNCATED, "the stream ended before the answer did")
        if answer.finish is None and not answer.ends_well:
            raise call.error(Failure.TRUNCATED, "the answer has no finish_reason, and ends in the middle")
        if finish in ("tool_calls", "function_call") and answer.empty:
            raise call.error(Failure.MALFORMED, "the answer stopped for tool calls and has none")
