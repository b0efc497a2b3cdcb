"""The two sides of a mismatch, in words."""

from __future__ import annotations

from pickaxe._states import StepKind, StepState
from pickaxe.core._records import Request, StepRecord


def recorded(record: StepRecord) -> str:
    """What the log has."""
    if record.seq is None and record.state is StepState.CANCELLED:
        return f"{record.kind} {record.name!r} as no longer wanted, and cancelled"
    within = f" in {record.group!r}" if record.group else ""
    return f"{record.kind} {record.name!r}{within} with arguments of digest {record.digest or '-'}"


def asked_for(request: Request) -> str:
    """What the code asks for."""
    within = f" in {request.group!r}" if request.group else ""
    what = f"{request.options['count']} calls" if request.kind is StepKind.GATHER else request.input[:200]
    return f"{request.kind} {request.name!r}{within} with {what} (digest {request.digest or '-'})"
