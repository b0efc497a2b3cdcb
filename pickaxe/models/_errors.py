"""What can go wrong with a model, told apart by what follows from it."""

from __future__ import annotations

from enum import StrEnum

from pickaxe.errors import PickaxeError
from pickaxe.models._messages import Record


class Failure(StrEnum):
    """What kind of failure."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    SERVER = "server"
    """An error of the provider's."""
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"
    """The stream ended before the answer did."""
    MALFORMED = "malformed"
    """The provider sent what its own protocol does not know."""
    BAD_TOOL_CALL = "bad_tool_call"
    """The provider itself refused what the model wrote: the model can be told."""
    QUOTA = "quota"
    """Out of money or credit: waiting does not help, a person does."""
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    NOT_FOUND = "not_found"
    TOO_LARGE = "too_large"
    """More than the model's context, or than the provider takes in one request."""
    BAD_REQUEST = "bad_request"
    UNSUPPORTED = "unsupported"
    """Asked for something that this provider, or this model, cannot do. Nothing was sent."""


RETRYABLE = frozenset({
    Failure.RATE_LIMITED, Failure.OVERLOADED, Failure.SERVER, Failure.CONNECTION, Failure.TIMEOUT, Failure.TRUNCATED,
    Failure.MALFORMED,
})  # fmt: skip
"""After these the same request may well succeed."""


class FailureRecord(Record):
    """A failed call, as it is stored: nothing of the provider's SDK is left in it.

    `status` and `code` are the provider's; `retry_after` the seconds it asked to be left alone.
    """

    failure: Failure
    provider: str
    model: str
    message: str
    status: int | None = None
    code: str | None = None
    retry_after: float | None = None
    request_id: str | None = None


class ModelError(PickaxeError):
    """A model did not answer. `record` says why, in a form that survives JSON; `retry_after` is read by retries."""

    def __init__(self, record: FailureRecord) -> None:
        where = f" (request {record.request_id})" if record.request_id else ""
        super().__init__(
            f"{record.provider}:{record.model}: {record.failure.replace('_', ' ')}: {record.message}{where}"
        )
        self.record = record

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.record.failure in RETRYABLE

    @property
    def retry_after(self) -> float | None:
        """The seconds the provider asked to be left alone."""
        return self.record.retry_after

    def __reduce__(self) -> tuple[type[ModelError], tuple[FailureRecord]]:
        return type(self), (self.record,)
