"""OpenAI's Responses."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType

from pickaxe.models._errors import Failure
from pickaxe.models._http import Json
from pickaxe.models._openai_client import Call, Connection
from pickaxe.models._request import ModelRequest
from pickaxe.models._response import Finished, ModelEvent, ModelResponse
from pickaxe.models._responses_answer import ResponsesAnswer
from pickaxe.models._responses_body import DIALECT, ResponsesBody

log = logging.getLogger("pickaxe.models")


class OpenAIResponses:
    """OpenAI's models over Responses: with their reasoning kept between the calls of tools, and OpenAI's own tools.

    Nothing is stored there: reasoning comes encrypted, and goes back with the message that it is of.

    - `api_key`: None is the environment's `OPENAI_API_KEY`, looked up when it is first needed.
    - `base_url`: up to and with `/v1`.
    - `timeout`: seconds of silence after which a call has failed.
    - `headers`: more headers of every request.
    - `name`: what prices and records call this provider.

    Raises `ConfigurationError` when it is first used without the SDK (`pickaxe[openai]`).
    """

    dialect = DIALECT

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str = "https://api.openai.com/v1",
        timeout: float = 600.0,
        headers: Mapping[str, str] = MappingProxyType({}),
        name: str = "openai",
    ) -> None:
        self.name = name
        self._connection = Connection(
            name, base_url=base_url, api_key=api_key, key_env="OPENAI_API_KEY", timeout=timeout, headers=headers
        )
        self._warned: set[str] = set()

    def body(self, request: ModelRequest) -> dict[str, object]:
        """What would be sent. Raises `ModelError` (`unsupported`)."""
        return ResponsesBody(self.name, request, self._drop).made()

    def _drop(self, option: str) -> None:
        if option not in self._warned:
            self._warned.add(option)
            log.warning("%s takes no %s: it is left out", self.name, option)

    async def close(self) -> None:
        """Let go of this event loop's connections. The next call makes new ones."""
        await self._connection.close()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The pieces of an answer, `Finished` last. Raises `ModelError`.

        Closing the iterator, or cancelling whoever waits for it, ends the request.
        """
        body: Json = dict(self.body(request))
        answer, call = ResponsesAnswer(), Call(self._connection, request.model)
        async with call.ask("/responses", body, lambda: answer.ended is not None) as frames:
            async for _, data in frames:
                if data.strip() == "[DONE]":  # some gateways end so
                    break
                for event in call.understood(data, answer.add):
                    yield event
                if answer.ended is not None:
                    call.done = True
                    break
        yield Finished(response=self._response(answer, call, request.model))

    def _response(self, answer: ResponsesAnswer, call: Call, model: str) -> ModelResponse:
        told = answer.response
        if answer.ended is None:
            raise call.error(Failure.TRUNCATED, "the stream ended before the answer did")
        if answer.ended in ("failed", "cancelled"):
            raise call.refused(told.get("error") or {"message": f"the response was {answer.ended}"})
        try:
            details = {key: told[key] for key in ("incomplete_details", "service_tier") if told.get(key)}
            return ModelResponse(
                message=answer.message(),
                stop=answer.stop(),
                usage=answer.usage(),
                model=told.get("model") or model,
                provider=self.name,
                id=told.get("id") or "",
                request_id=call.request_id,
                first_token=call.first,
                latency=call.latency,
                details=details,
            )
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise call.error(Failure.MALFORMED, f"not an answer: {error!r}") from error
