"""Rates such as ``"50/s"`` or ``"100/15m"``: how many units may start in how long a window."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pickaxe.errors import ConfigurationError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_LONG_NAMES = {
    "sec": "s", "second": "s", "seconds": "s",
    "min": "m", "minute": "m", "minutes": "m",
    "hr": "h", "hour": "h", "hours": "h",
    "day": "d", "days": "d",
}  # fmt: skip
_RATE = re.compile(r"([0-9][0-9_]*)\s*/\s*([0-9]+(?:\.[0-9]+)?)?\s*([a-z]+)", re.IGNORECASE)
_EXAMPLES = 'valid examples: "50/s", "30/m", "1000/h", "10/d", "100/15m"'


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``count`` units in any ``window`` seconds, wherever that window begins.

    Args:
        count: units per window, 1 or more.
        window: length of the window in seconds, more than 0.

    Raises:
        ConfigurationError: ``count`` or ``window`` is out of range.
    """

    count: int
    window: float

    def __post_init__(self) -> None:
        """Refuse a rate that could never let anything start, or never hold anything back."""
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ConfigurationError(f"a rate's count must be a whole number of 1 or more, not {self.count!r}")
        if not (math.isfinite(self.window) and self.window > 0):
            raise ConfigurationError(f"a rate's window must be more than 0 seconds, not {self.window!r}")

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read ``"<count>/<window>"``, where the window is a unit (``s``, ``m``, ``h``, ``d``) or ``15m``.

        Raises:
            ConfigurationError: ``text`` is not such a rate; the message shows examples.
        """
        match = _RATE.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise _malformed(text)
        count, factor, name = int(match[1]), float(match[2] or 1), match[3].lower()
        seconds = _SECONDS.get(_LONG_NAMES.get(name, name))
        if seconds is None or count < 1 or factor <= 0:
            raise _malformed(text)
        return cls(count, factor * seconds)

    def __str__(self) -> str:
        """Write the rate the way `parse` reads it, in the largest unit that divides the window."""
        for unit in "dhms":
            factor = self.window / _SECONDS[unit]
            if factor >= 1 and factor.is_integer():
                return f"{self.count}/{unit}" if factor == 1 else f"{self.count}/{int(factor)}{unit}"
        return f"{self.count}/{self.window:f}s"


def parse_rates(value: str | Rate | Sequence[str | Rate]) -> tuple[Rate, ...]:
    """Read one rate or several that all hold: ``"50/s,1000/h"``, a `Rate`, or a sequence of either.

    Returns:
        The rates in the order given, each once; never empty.

    Raises:
        ConfigurationError: a part is not a rate, or there is none.
    """
    if isinstance(value, Rate):
        return (value,)
    parts: Sequence[str | Rate] = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not parts:
        raise _malformed(value)
    rates = [part if isinstance(part, Rate) else Rate.parse(part) for part in parts]
    return tuple(dict.fromkeys(rates))


def _malformed(value: object) -> ConfigurationError:
    return ConfigurationError(f'{value!r} is not a rate; {_EXAMPLES}; several at once: "50/s,1000/h"')
