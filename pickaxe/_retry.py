"""When a failed attempt is tried again, and how long after."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pickaxe._durations import Duration, seconds
from pickaxe.errors import ConfigurationError

ErrorTypes = tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, how soon, and for which exceptions a tool's call is tried again.

    `attempts` counts all of them, the first included (default 3). The wait before attempt *n + 1* is
    `backoff * factor ** (n - 1)` seconds, at most `max_backoff`, spread by `jitter` (a share of the wait,
    0 to 1, default 0.2: ±20 %). `on` limits retries to these exceptions, `never` excludes some; an
    exception's own `retry_after` (seconds) or a `RetryLater(after=…)` overrides the computed wait.
    """

    attempts: int = 3
    backoff: Duration = 1.0
    factor: float = 2.0
    max_backoff: Duration = 300.0
    jitter: float = 0.2
    on: ErrorTypes = (Exception,)
    never: ErrorTypes = ()

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigurationError(f"Retry(attempts={self.attempts}) must be at least 1: it counts the first try")
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"Retry(jitter={self.jitter}) must be between 0 and 1")
        if self.factor < 1:
            raise ConfigurationError(f"Retry(factor={self.factor}) must be at least 1")
        seconds(self.backoff), seconds(self.max_backoff)

    @classmethod
    def of(cls, value: Retry | int | None) -> Retry:
        """`retries=3` means three more tries after the first; None means none at all."""
        if isinstance(value, Retry):
            return value
        return cls(attempts=1 + (value or 0))

    def allows(self, error: BaseException) -> bool:
        """Whether this exception is one that is tried again."""
        return isinstance(error, self.on) and not isinstance(error, self.never)

    def wait(self, attempt: int, rng: random.Random | None = None) -> float:
        """Seconds between the failure of `attempt` (1 for the first) and the next try."""
        # The exponent is capped because 2.0 ** 1024 overflows long before max_backoff is reached.
        plain = min(seconds(self.backoff) * self.factor ** min(attempt - 1, 64), seconds(self.max_backoff))
        spread = (rng or random).uniform(-self.jitter, self.jitter)
        return max(0.0, plain * (1 + spread))
