"""Durations as people write them: seconds as a number, a `timedelta`, or text such as `"90s"` or `"3d"`."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from pickaxe.errors import ConfigurationError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*")

Duration = float | int | str | timedelta

LONGEST = 1000 * 365 * 86400.0
"""Seconds in a thousand years: no duration is longer, for a database cannot count much further."""


def seconds(value: Duration) -> float:
    """`value` in seconds. Raises `ConfigurationError` when it is not a duration, or negative."""
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, str):
        result = _parse(value)
    elif isinstance(value, bool):
        raise _refused(value)
    else:
        result = float(value)
    if not math.isfinite(result) or result < 0:
        raise _refused(value)
    if result > LONGEST:
        raise ConfigurationError(f"{value!r} is too long a duration: at most a thousand years")
    return result


def optional_seconds(value: Duration | None) -> float | None:
    """As `seconds`, with None for None."""
    return None if value is None else seconds(value)


def time_limit(value: Duration | None, what: str) -> float | None:
    """As `optional_seconds`, for the time that something may take: with None any time, and 0 is refused."""
    limit = optional_seconds(value)
    if limit == 0:
        raise ConfigurationError(f"{what} of {value!r} leaves no time at all: leave it out for no limit")
    return limit


def _parse(text: str) -> float:
    if _NUMBER.fullmatch(text.strip()):
        return float(text)
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip():
        raise _refused(text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _refused(value: object) -> ConfigurationError:
    return ConfigurationError(
        f"{value!r} is not a duration: give seconds as a number, a timedelta, or text such as '90s', '5m' or '1d12h'"
    )


def humanise(duration: float) -> str:
    """A duration in seconds as a person reads it: `"12 ms"`, `"3.4 s"`, `"2 h 5 m"`."""
    if duration < 1:
        return f"{duration * 1000:.0f} ms"
    if duration < 60:
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s" if rest else f"{minutes} m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} m" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
