"""Refuses I/O, threads and blocking calls inside agents, at the line that tries.

Python raises an audit event before it opens a file, connects a socket, starts a thread or a process, or
sleeps. While an agent runs, those events raise `ImpureAgentError` instead of going on. What raises no event
cannot be seen here (`time.time()`, `random.random()`): a replay that differs because of it is caught by the
comparison with the log.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

from pickaxe.errors import ImpureAgentError

_FORBIDDEN = {
    "open": "open a file",
    "os.listdir": "read a directory",
    "os.remove": "remove a file",
    "os.rename": "rename a file",
    "os.mkdir": "make a directory",
    "os.system": "run a command",
    "os.exec": "run a program",
    "os.fork": "fork",
    "os.posix_spawn": "run a program",
    "subprocess.Popen": "run a program",
    "socket.__new__": "open a socket",
    "socket.connect": "connect a socket",
    "socket.getaddrinfo": "look up a host",
    "_thread.start_new_thread": "start a thread",
    "time.sleep": "block in time.sleep",
    "sqlite3.connect": "open a database",
    "shutil.copyfile": "copy a file",
    "shutil.rmtree": "remove a directory",
    "tempfile.mkstemp": "make a file",
    "tempfile.mkdtemp": "make a directory",
}
# Reading source for a traceback and importing a module are Python's own business, not the agent's.
_ALLOWED_FROM = ("<frozen importlib", "linecache", "tokenize", "traceback", "zipimport")

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


def _install() -> None:
    global _hooked
    if not _hooked:
        with _installed:
            if not _hooked:
                sys.addaudithook(_audit)
                _hooked = True


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not getattr(_inside, "agent", False) or event not in _FORBIDDEN:
        return
    frame = sys._getframe(1)
    if _by_python_itself(frame):
        return
    detail = f" ({args[0]!r})" if args and isinstance(args[0], str | bytes | int | float) else ""
    raise ImpureAgentError(
        f"an agent tried to {_FORBIDDEN[event]}{detail} at {frame.f_code.co_filename}:{frame.f_lineno}. Agents "
        f"are replayed, so they may not do I/O, block, or use threads: move this line into a tool and await "
        f"the tool" + (", or await asyncio.sleep" if event == "time.sleep" else "") + "."
    )


def _by_python_itself(frame: FrameType | None) -> bool:
    while frame is not None:
        filename = frame.f_code.co_filename
        if any(part in filename for part in _ALLOWED_FROM):
            return True
        if filename.endswith("_reduction.py"):
            return False
        frame = frame.f_back
    return False
