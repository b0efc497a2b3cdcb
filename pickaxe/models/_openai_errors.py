"""What the failures of OpenAI and of those who speak like it mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pickaxe.models._errors import Failure, FailureRecord, ModelError
from pickaxe.models._http import failure_of, retry_after
from pickaxe.models._prose import whole

CODES = {
    "insufficient_quota": Failure.QUOTA,
    "billing_hard_limit_reached": Failure.QUOTA,
    "billing_not_active": Failure.QUOTA,
    "insufficient_balance": Failure.QUOTA,
    "rate_limit_exceeded": Failure.RATE_LIMITED,
    "rate_limit_error": Failure.RATE_LIMITED,
    "rate_limited": Failure.RATE_LIMITED,
    "resource_exhausted": Failure.RATE_LIMITED,
    "requests": Failure.RATE_LIMITED,
    "tokens": Failure.RATE_LIMITED,
    "overloaded": Failure.OVERLOADED,
    "overloaded_error": Failure.OVERLOADED,
    "service_unavailable": Failure.OVERLOADED,
    "slow_down": Failure.OVERLOADED,
    "unavailable": Failure.OVERLOADED,
    "server_error": Failure.SERVER,
    "internal_server_error": Failure.SERVER,
    "internal": Failure.SERVER,
    "vector_store_timeout": Failure.TIMEOUT,
    "deadline_exceeded": Failure.TIMEOUT,
    "invalid_api_key": Failure.AUTHENTICATION,
    "api_key_invalid": Failure.AUTHENTICATION,
    "authentication_error": Failure.AUTHENTICATION,
    "unauthenticated": Failure.AUTHENTICATION,
    "permission_denied": Failure.PERMISSION,
    "model_not_found": Failure.NOT_FOUND,
    "not_found_error": Failure.NOT_FOUND,
    "context_length_exceeded": Failure.TOO_LARGE,
    "string_above_max_length": Failure.TOO_LARGE,
    "request_too_large": Failure.TOO_LARGE,
    "tool_use_failed": Failure.BAD_TOOL_CALL,
    "json_validate_failed": Failure.BAD_TOOL_CALL,
    "output_parse_failed": Failure.BAD_TOOL_CALL,
}
"""By the provider's own words, in lower case. They say more than its status."""

TOO_LARGE = ("maximum context length", "context window", "context length", "context size", "prompt is too long")
"""How those say it who have no code for it."""


def failure(
    provider: str, model: str, told: object, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> ModelError:
    """What a provider has told, as the body of a response or as an event of a stream."""
    error = _error(told)
    details = [entry for entry in _list(error.get("details")) if isinstance(entry, dict)]
    words = [error.get("code"), error.get("type"), error.get("status"), *(entry.get("reason") for entry in details)]
    numbers = [word for word in (status, error.get("status_code"), *words) if isinstance(word, int)]
    said = [word for word in words if isinstance(word, str)]
    number = status or next(iter(numbers), None) or next((int(word) for word in said if _is_status(word)), None)
    after = retry_after(headers or {})
    return ModelError(
        FailureRecord(
            failure=_kind(said, number, message := _message(error)),
            provider=provider,
            model=model,
            message=message,
            status=number,
            code=next((word for word in said if word), None) or (str(numbers[0]) if numbers else None),
            retry_after=_delay(details) if after is None else after,
            request_id=(headers or {}).get("x-request-id") or None,
        )
    )


def _is_status(word: str) -> bool:
    return word.isascii() and word.isdigit() and 400 <= int(word) < 600


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _error(told: object) -> dict[str, Any]:
    """The object that says what is wrong: Gemini puts it in a list, some leave its envelope away."""
    if isinstance(told, list) and told:
        told = told[0]
    if isinstance(told, dict) and told.get("error"):
        told = told["error"]
    return told if isinstance(told, dict) else {"message": told}


def _message(error: dict[str, Any]) -> str:
    message = error.get("message") or error.get("detail") or error
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False, default=str)
    metadata = error.get("metadata")
    for name, source in (("failed_generation", error), ("raw", metadata if isinstance(metadata, dict) else {})):
        if source.get(name):
            text += f" ({name.replace('_', ' ')}: {source[name]})"
    return whole(text)


def _kind(words: list[str], status: int | None, message: str) -> Failure:
    for word in words:
        if word.lower() in CODES:
            return CODES[word.lower()]
    if any(phrase in message.lower() for phrase in TOO_LARGE) and (status or 400) in (400, 413, 422):
        return Failure.TOO_LARGE
    if status == 498:  # Groq: no room for flex requests
        return Failure.OVERLOADED
    return Failure.SERVER if status is None else failure_of(status)


def _delay(details: list[dict[str, Any]]) -> float | None:
    """Gemini's: `{"@type": "…RetryInfo", "retryDelay": "31.5s"}`."""
    for entry in details:
        try:
            return float(str(entry["retryDelay"]).removesuffix("s"))
        except (KeyError, ValueError):
            continue
    return None
