"""Exceptions on their way into the log, and back."""

from __future__ import annotations

import email.utils
import math
import time
import traceback
from collections.abc import Callable
from typing import Any

from pickaxe import _values
from pickaxe._durations import LONGEST
from pickaxe._places import raised_at
from pickaxe._states import StepKind, StepState
from pickaxe.core._records import StepRecord
from pickaxe.errors import ChildRunError, StepError, StepTimeoutError, ToolError

MESSAGE_CAP = 4_000
TRACEBACK_CAP = 8_000
"""Characters of an exception's message and traceback that are kept."""

BRIEF = 300
"""Characters of a message that go into a live stream."""


def describe(error: BaseException, **more: Any) -> dict[str, Any]:
    """What is recorded of an exception."""
    return {
        "type": type(error).__name__,
        "message": _told(lambda: str(error))[:MESSAGE_CAP],
        **_where(error),
        "traceback": _told(lambda: "".join(traceback.format_exception(error)))[-TRACEBACK_CAP:],
        **more,
    }


def _told(tell: Callable[[], str]) -> str:
    try:
        return tell()
    except Exception as failure:  # noqa: BLE001 - an exception of the user's own may not even be able to say what it is
        return f"(it could not be described: {type(failure).__name__})"


def is_own_exit(error: BaseException) -> bool:
    """Whether this is a `sys.exit` in the user's code: a failure like any other, not a process told to stop.

    Such a process leaves by an exception of its own, or by the negative number of the signal it got.
    """
    return type(error) is SystemExit and not (isinstance(error.code, int) and error.code < -128)


def encode(error: BaseException, **more: Any) -> str:
    """An exception as JSON text."""
    return _values.dump(describe(error, **more))


def timed_out(message: str, interrupted: BaseException | None = None) -> str:
    """A timeout as JSON text, with the line at which the body was `interrupted`, where that is known."""
    return _values.dump({"type": "StepTimeoutError", "message": message, **_where(interrupted)})


def _where(error: BaseException | None) -> dict[str, str]:
    at = raised_at(error) if error is not None else None
    return {"where": at} if at else {}


def reraise(record: StepRecord) -> StepError:
    """The exception an agent sees for a step that did not end well."""
    error = _values.load(record.error) if record.error else {}
    kind, message = error.get("type", "cancelled"), error.get("message", "")
    if record.kind is StepKind.CHILD:
        how = "was cancelled" if record.state is StepState.CANCELLED else "failed"
        return ChildRunError(
            f"the child run of agent {record.name!r} {how}: {kind}: {message}", step=record.key, error=error
        )
    if kind == "StepTimeoutError":
        return StepTimeoutError(f"{record.key}: {message}", step=record.key, error=error)
    return ToolError(f"tool {record.name!r} failed: {kind}: {message}", step=record.key, error=error)


def brief(error: dict[str, Any] | str | None) -> dict[str, Any]:
    """What a transition tells of a recorded error (or of its JSON text): `error`, its type, `message`, `where`."""
    known = _values.load(error) if isinstance(error, str) else error
    if not known:
        return {}
    told = {"error": known.get("type", ""), "message": known.get("message", "")[:BRIEF]}
    return told | ({"where": known["where"]} if "where" in known else {})


def retry_after(error: BaseException) -> float | None:
    """The seconds a service asked to be left alone: an exception's `retry_after`, or its response's header."""
    try:
        given = getattr(error, "retry_after", None)
        if given is None:
            headers = getattr(getattr(error, "response", None), "headers", None) or {}
            given = headers.get("retry-after") or headers.get("Retry-After")
    except Exception:  # noqa: BLE001 - somebody else's exception: it promises nothing about these attributes
        return None
    return seconds_from(given)


def seconds_from(given: Any) -> float | None:
    """Seconds, as a number or a date, as far as they make sense; else None."""
    if given is None:
        return None
    try:
        wait = float(given)
    except (TypeError, ValueError, OverflowError):
        try:
            wait = email.utils.parsedate_to_datetime(str(given)).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, wait), LONGEST) if math.isfinite(wait) else None
