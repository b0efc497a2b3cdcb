"""What every peer's program shares, and nothing else: the ledger, the work, and how it is told what to do.

It runs in the peer's own environment, so it needs nothing but Python.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

_ledger = os.open(os.environ["FAULTS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note(word: str, run: str, step: int = -1) -> None:
    """One line of the ledger, which no peer knows of."""
    os.write(_ledger, f"{word} {run} {step} {os.getpid()} {time.monotonic():.6f}\n".encode())


def body(run: str, step: int, seconds: float) -> int:
    """What every step does."""
    note("start", run, step)
    time.sleep(seconds)
    note("end", run, step)
    return os.getpid()


def serve(start: Callable[..., object], signal: Callable[[str], object]) -> None:
    """A client: `start(kind, run, steps, seconds)` and `signal(run)`, as standard input says."""
    for line in sys.stdin:
        told = json.loads(line)
        answer = ""
        try:
            (start if told.pop("what") == "start" else signal)(**told)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps({"error": answer}), flush=True)


def main(**programs: Callable[[], Any]) -> None:
    """Be the program that the command line names."""
    programs[sys.argv[1]]()
