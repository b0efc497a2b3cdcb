"""Worker processes as children of a command: each a process group, gone when the command is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Run before the real program: asks the kernel for SIGKILL when the parent dies, however it dies. Not for SIGTERM:
# a worker would try to finish its work with services that went away with the parent. Not done by `preexec_fn`,
# which is unsafe in a process with threads.
_GUARD = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass
class Child:
    """One program and all that it started."""

    name: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def owns(self, pid: int) -> bool:
        """Whether a process belongs to this program's group."""
        try:
            return os.getpgid(pid) == self.pid
        except ProcessLookupError:
            return False

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when the program is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Children:
    """Programs started here. To be stopped with `stop`, in every case."""

    folder: Path
    environment: Mapping[str, str]
    running: list[Child] = field(default_factory=list)

    def start(self, name: str, arguments: Sequence[str], *, log: Path | None = None) -> Child:
        """Start `python ARGUMENTS` in a process group of its own. With `log`, its output goes there."""
        guarded = [sys.executable, "-c", _GUARD, str(os.getpid()), sys.executable, *arguments]
        output = log.open("ab") if log is not None else None
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter
                guarded,
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,  # Ctrl-C is for the command alone
            )
        finally:
            if output is not None:
                output.close()
        child = Child(name, process)
        self.running.append(child)
        return child

    def stop(self, patience: float = 5.0) -> None:
        """Ask all to end, and after `patience` seconds end them."""
        children, self.running = self.running, []
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM) if not child.running else child.process.terminate()
        deadline = time.monotonic() + patience
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.05, deadline - time.monotonic()))
            child.kill()
