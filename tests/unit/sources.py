"""Python source as a tree."""

from __future__ import annotations

import ast
import gc
from functools import cache
from pathlib import Path


def parsed(source: str) -> ast.Module:
    """The tree of a piece of source.

    CPython 3.11 counts a tree's depth in one place for the whole interpreter (gh-106905). Litter of other tests that is
    collected meanwhile may format a traceback, which parses source too: "AST constructor recursion depth mismatch".
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if collecting:
            gc.enable()


@cache
def tree_of(path: Path) -> ast.Module:
    """The tree of a module, read once."""
    return parsed(path.read_text("utf-8"))
