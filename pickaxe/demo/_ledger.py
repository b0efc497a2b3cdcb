"""An account of effects that Pickaxe has no part in: which tool bodies began, and which came to their end.

Loaded into the demo's workers by Celery's own `--include`. It wraps the body of every tool of the app, and each
body adds two lines to the file named by `PICKAXE_DEMO_LEDGER`. The demo compares them with the step log.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pickaxe import Context, inject
from pickaxe._specs import ToolSpec

VARIABLE = "PICKAXE_DEMO_LEDGER"
_CONTEXT = "_ledger_context"


@dataclass(frozen=True)
class Body:
    """One start of one tool's body, and its end unless it was cut short."""

    run: str
    step: str
    attempt: int
    pid: int
    began: float
    ended: float | None


def read(path: Path) -> list[Body]:
    """All bodies that began, in order."""
    began: dict[tuple[str, str, int, int], float] = {}
    ended: dict[tuple[str, str, int, int], float] = {}
    for line in path.read_text("utf-8").splitlines():
        entry = json.loads(line)
        key = (entry["run"], entry["step"], entry["attempt"], entry["pid"])
        (began if entry["event"] == "began" else ended)[key] = entry["at"]
    return [Body(*key, at, ended.get(key)) for key, at in began.items()]


def keep(handles: Any, path: Path) -> None:
    """Have every tool's body write to the ledger from now on."""
    for handle in handles:
        if isinstance(handle.spec, ToolSpec):
            _wrap(handle.spec, path)


def _wrap(spec: ToolSpec, path: Path) -> None:
    body = spec.function
    wrapped: Any = _async(body, path) if inspect.iscoroutinefunction(body) else _sync(body, path)
    signature = inspect.signature(body)
    context = inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, default=inject())
    wrapped.__signature__ = signature.replace(parameters=[*signature.parameters.values(), context])
    object.__setattr__(spec, "function", wrapped)
    spec.__dict__.pop("signature", None)


def _sync(body: Callable[..., Any], path: Path) -> Callable[..., Any]:
    @functools.wraps(body)
    def noted(**arguments: Any) -> Any:
        context = arguments.pop(_CONTEXT)
        _note(path, "began", context)
        result = body(**arguments)
        _note(path, "ended", context)
        return result

    return noted


def _async(body: Callable[..., Any], path: Path) -> Callable[..., Any]:
    @functools.wraps(body)
    async def noted(**arguments: Any) -> Any:
        context = arguments.pop(_CONTEXT)
        _note(path, "began", context)
        result = await body(**arguments)
        _note(path, "ended", context)
        return result

    return noted


def _note(path: Path, event: str, context: Context) -> None:
    line = {
        "event": event,
        "run": context.run,
        "step": context.step,
        "attempt": context.attempt,
        "pid": os.getpid(),
        "at": time.time(),
    }
    # One write to a file opened for appending: lines of several processes do not mix.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
    finally:
        os.close(file)
