"""Lines of people's own code: neither Python's, nor a library's, nor Pickaxe's."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

import pydantic

_PICKAXE = f"{Path(__file__).parent}{os.sep}"
_CHECKS = f"{Path(pydantic.__file__).parent}{os.sep}"  # what Pickaxe checks values with: no place of anybody's
_INSTALLED = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("purelib", "platlib")})
_PYTHON = (*{f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib")}, "<frozen")


def is_own(file: str) -> bool:
    """Whether code of this file is the project's own, as far as that can be told."""
    return not file.startswith((*_INSTALLED, *_PYTHON, _PICKAXE))


def raised_at(error: BaseException) -> str | None:
    """Where an exception was raised, as `"file.py:12 in function"`: the innermost line of the project's own code.

    Of a project that is itself installed as a package it is the outermost line, which is the agent's or tool's.
    Of a group of exceptions it is where the first of them was raised. None where only Pickaxe took part.
    """
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    if at := next(filter(None, map(raised_at, inner)), None) or _line(error.__traceback__):
        return at
    return _line(error.__cause__.__traceback__) if error.__cause__ is not None else None


def _line(trace: TracebackType | None) -> str | None:
    lines = [(frame.f_code, line) for frame, line in traceback.walk_tb(trace)]
    lines = [(code, line) for code, line in lines if not code.co_filename.startswith((_PICKAXE, _CHECKS))]
    own = [(code, line) for code, line in lines if is_own(code.co_filename)]
    installed = [(code, line) for code, line in lines if code.co_filename.startswith(_INSTALLED)]
    if not own and not installed:
        return None
    code, line = own[-1] if own else installed[0]
    return f"{code.co_filename}:{line} in {code.co_name}"
