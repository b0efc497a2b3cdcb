"""Refuses I/O, threads and blocking calls inside agents, at the line that tries.

Python raises an audit event before it opens a file, connects a socket, starts a thread or a process, or
sleeps. While an agent runs, those events raise `ImpureAgentError` instead of going on. So do Pickaxe's own:
`pickaxe.log` before each statement, `pickaxe.message` before each Celery task. What raises no event cannot be
seen here (`time.time()`, `random.random()`, another library's connection that is open already): a replay that
differs because of it is caught by the comparison with the log.
"""

from __future__ import annotations

import importlib.metadata
import linecache
import logging
import logging.handlers
import os
import sys
import threading
import time
import tokenize
import traceback
import zoneinfo
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

from pickaxe._places import is_own
from pickaxe.errors import ImpureAgentError

_FORBIDDEN = {
    "open": "open a file",
    "os.chmod": "change a file",
    "os.exec": "run a program",
    "os.fork": "fork",
    "os.forkpty": "fork",
    "os.kill": "signal a process",
    "os.link": "link a file",
    "os.listdir": "read a directory",
    "os.mkdir": "make a directory",
    "os.posix_spawn": "run a program",
    "os.putenv": "change the environment",
    "os.remove": "remove a file",
    "os.rename": "rename a file",
    "os.rmdir": "remove a directory",
    "os.scandir": "read a directory",
    "os.spawn": "run a program",
    "os.symlink": "link a file",
    "os.system": "run a command",
    "os.truncate": "change a file",
    "os.utime": "change a file",
    "pickaxe.log": "enqueue, signal or look at a run",
    "pickaxe.message": "send a Celery task",
    "shutil.copyfile": "copy a file",
    "shutil.rmtree": "remove a directory",
    "socket.__new__": "open a socket",
    "socket.bind": "bind a socket",
    "socket.connect": "connect a socket",
    "socket.getaddrinfo": "look up a host",
    "socket.gethostbyname": "look up a host",
    "socket.sendto": "send to a socket",
    "sqlite3.connect": "open a database",
    "subprocess.Popen": "run a program",
    "tempfile.mkdtemp": "make a file",
    "tempfile.mkstemp": "make a file",
    "_thread.start_new_thread": "start a thread",
    "time.sleep": "block in time.sleep",
    "urllib.Request": "open a URL",
}

# Importing a module, reading source for a traceback, and writing a log line are Python's own business.
_PYTHONS_OWN = frozenset({
    "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>", "<frozen zipimport>",
    linecache.__file__, tokenize.__file__, traceback.__file__, logging.__file__, logging.handlers.__file__,
    importlib.metadata.__file__,
})  # fmt: skip
_INSTEAD = {
    "time.sleep": ", or await asyncio.sleep",
    "pickaxe.log": ". Another agent is awaited like a tool: that is a child run",
}
_HERE = f"{Path(__file__).parent}{os.sep}"
_OUTSIDE = str(Path(__file__).with_name("_reduction.py"))

_inside = threading.local()
_installed = threading.Lock()
_hooked = False


class guarded:  # noqa: N801 - reads as a phrase: with guarded()
    """While this is entered, this thread runs an agent."""

    def __enter__(self) -> None:
        _install()
        self._before = getattr(_inside, "agent", False)
        _inside.agent = True

    def __exit__(self, *_: object) -> None:
        _inside.agent = self._before


class allowed:  # noqa: N801 - reads as a phrase: with allowed()
    """Pickaxe's own work on behalf of an agent, such as writing a log line."""

    def __enter__(self) -> None:
        self._before = getattr(_inside, "agent", False)
        _inside.agent = False

    def __exit__(self, *_: object) -> None:
        _inside.agent = self._before


def place() -> str:
    """The line that is running, as `"file.py:12"`: of the agent's own code, as far as that can be told."""
    frames = [frame for frame in _frames(sys._getframe(1)) if not frame.f_code.co_filename.startswith(_HERE)]
    frame = next((frame for frame in frames if is_own(frame.f_code.co_filename)), frames[0])
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _install() -> None:
    global _hooked
    if not _hooked:
        with _installed:
            if not _hooked:
                sys.addaudithook(_audit)
                if sys.version_info < (3, 13):
                    # Two events that these Pythons do not raise yet.
                    time.sleep = _with_event("time.sleep", time.sleep)
                    threading._start_new_thread = _with_event(  # type: ignore[attr-defined]
                        "_thread.start_new_thread",
                        threading._start_new_thread,  # type: ignore[attr-defined]
                    )
                _hooked = True


def _with_event(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def audited(*args: Any) -> Any:
        sys.audit(event, *args)
        return function(*args)

    return audited


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event not in _FORBIDDEN or not getattr(_inside, "agent", False):
        return
    if _by_python_itself(sys._getframe(1)) or _is_time_zone(event, args):
        return
    detail = f" ({args[0]!r})" if args and isinstance(args[0], str | bytes | int | float) else ""
    raise ImpureAgentError(
        f"an agent tried to {_FORBIDDEN[event]}{detail} at {place()}. Agents "
        f"are replayed, so they may not do I/O, block, or use threads: move this line into a tool and await "
        f"the tool{_INSTEAD.get(event, '')}."
    )


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames from here out, as far as the reduction that runs the agent."""
    while frame is not None and frame.f_code.co_filename != _OUTSIDE:
        yield frame
        frame = frame.f_back


def _by_python_itself(frame: FrameType) -> bool:
    return any(outer.f_code.co_filename in _PYTHONS_OWN for outer in _frames(frame))


def _is_time_zone(event: str, args: tuple[Any, ...]) -> bool:
    # ZoneInfo("Europe/Berlin") reads a file when first asked: a constant of the world, not an effect.
    return event == "open" and isinstance(args[0], str) and args[0].startswith(zoneinfo.TZPATH)
